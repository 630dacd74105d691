# SPDX-License-Identifier: Apache-2.0
"""What a run chose, or would choose (``--dry_run``), as lines for people and JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from bertbench.backends.base import Backend
from bertbench.benchmarks.base import Benchmark
from bertbench.common.config.batch_split import AUTO, requested
from bertbench.common.config.recipe import Settings
from bertbench.common.distributed.world import World
from bertbench.common.files import check_writable
from bertbench.common.model.config import BertConfig
from bertbench.common.results.record import check_name
from bertbench.common.training.facts import RunFacts
from bertbench.common.training.resume import find_checkpoint


def dry_run(settings: Settings, backend: Backend, world: World, benchmark: Benchmark) -> None:
    """Print the run that would start; reads no sample and writes nothing.

    Raises as the run would for its device, precision, batch, checkpoint, folder, model and weights.
    """
    precision = backend.resolve_precision(settings.impl.precision)
    backend.verify_precision(precision)
    split = requested(settings.recipe.global_batch, settings.impl, world.size)
    auto = settings.impl.micro_batch == AUTO
    resumed = find_checkpoint(settings)
    backend.compile(torch.nn.Module(), settings.impl.compile)
    check_writable(settings.run.output_dir, "--output_dir")
    if settings.run.system is not None:
        check_name("system", settings.run.system)
    _compute_one(settings, backend, world, benchmark)
    content: dict[str, Any] = {
        "would_run": settings.preset.name,
        "division": benchmark.division(settings),
        "backend": backend.name,
        "device": backend.describe().name,
        "precision": precision,
        "why": _no_16_bit_reason(backend, settings.impl.precision, precision),
        "kernels": backend.ops(settings.impl.kernels, precision).name,
        "threads": torch.get_num_threads(),
        "micro_batch": AUTO if auto else split.micro_batch,
        "accumulation": None if auto else split.accumulation,
        "world_size": split.world_size,
        "resume": None if resumed is None else str(resumed),
        "settings": settings.as_dict(),
    }
    if settings.run.json:
        print(json.dumps(content, indent=1))
        return
    for key, value in content.items():
        if key != "settings" and value is not None:
            print(f"{key:<14}{value}")
    for name, origin in settings.origins.items():
        if origin in ("flag", "environment"):
            print(f"  --{name} from {origin}")
    for text in settings.notes:
        print(f"note: {text}")


def chosen(settings: Settings, backend: Backend, facts: RunFacts, folder: Path) -> list[str]:
    """Return the lines that open a run, whose record is ``folder``."""
    task, choice = facts.task, facts.micro_batch_choice
    lines = [
        f"  record      {folder}",
        f"  data        {task.data}, seed {settings.run.seed}",
        f"  batch       {settings.recipe.global_batch} = {task.micro_batch} sequences x "
        f"{task.gradient_accumulation_steps} accumulated x {task.world_size} processes",
    ]
    if choice is not None:
        tried = choice.tried.items()
        found = ", ".join(f"{size} {'fits' if why == 'fits' else 'not'}" for size, why in tried)
        lines.append(f"  tried       micro-batches of full length: {found}")
    kernels = ", ".join(sorted(set(task.kernels.values())))
    lines.append(f"  compute     {task.precision}, kernels {kernels}")
    for part, found in (task.own.get("kernel_choice") or {}).items():
        times = (found or {}).get("milliseconds", {}).items()
        if times:
            lines.append(
                f"  timed       {part}: {', '.join(f'{n} {ms:.3g} ms' for n, ms in times)}"
            )
    if why := _no_16_bit_reason(backend, settings.impl.precision, task.precision):
        lines.append(f"              {why}")
    return [*lines, f"  threads     {torch.get_num_threads()} in each process"]


def _no_16_bit_reason(backend: Backend, requested: str, chosen: str) -> str | None:
    """Return why ``--precision auto`` chose no 16-bit mode; None where it did or was not used."""
    why = backend.capabilities.notes.get("bf16", "the device has no 16-bit mode")
    lacking = requested == "auto" and chosen not in ("bf16", "fp16")
    return f"--precision auto: no bf16, {why}" if lacking else None


def _compute_one(settings: Settings, backend: Backend, world: World, benchmark: Benchmark) -> None:
    """Compute a made-up sequence with the run's weights; without any, one layer is enough."""
    source = benchmark.stand_in(settings)
    if source is None:
        return
    model = getattr(settings.recipe, "model", None)
    if source.init_checkpoint is None and isinstance(model, BertConfig):
        one = dataclasses.replace(model, num_hidden_layers=1)
        shallow = {"model": one, "attention_mask": None}  # which may be per layer
        recipe = dataclasses.replace(settings.recipe, **shallow)  # type: ignore[arg-type]
        settings = dataclasses.replace(settings, recipe=recipe)
    task = benchmark.build(settings, backend, world, source)
    step = task.made_up_step(1, 1)
    (batch,) = step.micro_batches
    with torch.no_grad(), backend.precision(task.precision):
        task.loss(task.model, batch.to(backend.device), step)
