# SPDX-License-Identifier: Apache-2.0
"""What a run chose, as its opening lines and as the record's file of settings."""

from __future__ import annotations

from pathlib import Path

import torch

from bertbench.backends.base import Backend
from bertbench.common.config.recipe import Settings
from bertbench.common.config.settings_file import SETTINGS, as_toml, changed
from bertbench.common.files import write_atomic
from bertbench.common.results.record import RunRecord, hide_home
from bertbench.common.training.facts import RunFacts


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
    if why := no_16_bit_reason(backend, settings.impl.precision, task.precision):
        lines.append(f"              {why}")
    return [*lines, f"  threads     {torch.get_num_threads()} in each process"]


def no_16_bit_reason(backend: Backend, requested: str, chosen: str) -> str | None:
    """Return why ``--precision auto`` chose no 16-bit mode; None where it did or was not used."""
    why = backend.capabilities.notes.get("bf16", "the device has no 16-bit mode")
    lacking = requested == "auto" and chosen not in ("bf16", "fp16")
    return f"--precision auto: no bf16, {why}" if lacking else None


def write_settings(settings: Settings, record: RunRecord) -> None:
    """Write the record's file of settings; raises OSError where the disk refuses."""
    commit = record.run_id.rsplit("_", 2)[1]  # names.py: <UTC>_<recipe>_<precision>_<commit>_<id>
    text = as_toml(
        changed(settings.as_dict(), settings.preset), settings.preset.name,
        f"bertbench run --config {SETTINGS} runs {record.run_id} again (code: {commit})",
    )  # fmt: skip
    record.own.add(SETTINGS)
    write_atomic(record.path / SETTINGS, hide_home(text))
