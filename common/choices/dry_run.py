# SPDX-License-Identifier: Apache-2.0
"""``--dry_run``: the checks of a run, its choices and an estimate of its needs."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from bertbench.backends.base import Backend
from bertbench.benchmarks.base import Benchmark
from bertbench.common.choices.estimate import estimate
from bertbench.common.choices.opening import no_16_bit_reason
from bertbench.common.config.batch_split import AUTO, requested
from bertbench.common.config.recipe import CHOSEN, Settings
from bertbench.common.config.settings_file import changed, words_of
from bertbench.common.distributed.world import World
from bertbench.common.files import check_writable
from bertbench.common.launch.launcher import torchrun
from bertbench.common.model.config import BertConfig
from bertbench.common.results.record import check_name
from bertbench.common.training.resume import find_checkpoint
from bertbench.common.training.task import Task


def dry_run(settings: Settings, backend: Backend, world: World, benchmark: Benchmark) -> None:
    """Print the run that would start and what it needs; reads no sample and writes nothing.

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
    task = _stand_in(settings, backend, world, benchmark)
    if task is not None:
        _compute_one(task, backend)
    needs = estimate(settings, backend, world, task)
    content: dict[str, Any] = {
        "would_run": settings.preset.name,
        "division": benchmark.division(settings),
        "backend": backend.name,
        "device": backend.describe().name,
        "precision": precision,
        "why": no_16_bit_reason(backend, settings.impl.precision, precision),
        "kernels": backend.ops(settings.impl.kernels, precision).name,
        "threads": torch.get_num_threads(),
        "micro_batch": AUTO if auto else split.micro_batch,
        "accumulation": None if auto else split.accumulation,
        "world_size": split.world_size,
        "resume": None if resumed is None else str(resumed),
        "command": shlex.join(command(settings, world)),
        "estimate": needs.as_dict(),
        "settings": settings.as_dict(),
    }
    if settings.run.json:
        print(json.dumps(content, indent=1))
        return
    rows = [(k, v) for k, v in content.items() if k not in ("estimate", "settings")]
    for key, value in [*rows, *needs.lines()]:
        if value is not None:
            print(f"{key:<14}{value}")
    for name, origin in settings.origins.items():
        if origin in (*CHOSEN, "environment"):
            print(f"  --{name} from {origin}")
    for text in settings.notes:
        print(f"note: {text}")


def command(settings: Settings, world: World) -> list[str]:
    """Return the words that start the run: through torchrun for several processes.

    Raises BadInput where the environment does not say where several nodes meet.
    """
    preset, flags = settings.preset, changed(settings.as_dict(), settings.preset)
    words = ["run", preset.name, *words_of(flags)]
    if settings.run.resume is not None:
        words += ["--resume", settings.run.resume]
    words = [str(Path(sys.executable).parent / "bertbench"), *words]
    if world.size == 1:
        return words
    node = os.environ.get("GROUP_RANK", str(world.rank // world.local_size))  # as torchrun says
    nodes = {"NODE_RANK": node} | os.environ
    start = torchrun(sys.executable, nodes, world.local_size, world.size // world.local_size)
    return [*start, *words]


def _stand_in(
    settings: Settings, backend: Backend, world: World, benchmark: Benchmark
) -> Task | None:
    """Return a task with the run's weights; without any, one layer is enough."""
    source = benchmark.stand_in(settings)
    if source is None:
        return None
    model = getattr(settings.recipe, "model", None)
    if source.init_checkpoint is None and isinstance(model, BertConfig):
        one = dataclasses.replace(model, num_hidden_layers=1)
        shallow = {"model": one, "attention_mask": None}  # which may be per layer
        recipe = dataclasses.replace(settings.recipe, **shallow)  # type: ignore[arg-type]
        settings = dataclasses.replace(settings, recipe=recipe)
    return benchmark.build(settings, backend, world, source)


def _compute_one(task: Task, backend: Backend) -> None:
    """Compute a made-up sequence: a device that cannot is found before its run starts."""
    step = task.made_up_step(1, 1)
    (batch,) = step.micro_batches
    with torch.no_grad(), backend.precision(task.precision):
        task.loss(task.model, batch.to(backend.device), step)
