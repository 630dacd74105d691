# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that ``--resume`` names, if the run may continue it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bertbench.common.config.recipe import Settings, plain
from bertbench.common.errors import BadInput
from bertbench.common.training.checkpoint import resolve


def find_checkpoint(settings: Settings) -> Path | None:
    """Return the checkpoint to continue from; None without --resume.

    ``last`` is the newest one of the same preset under --output_dir. Raises BadInput when there
    is none, or when the recipe or seed of its run differs: the result would belong to neither.
    """
    asked = settings.run.resume
    if asked is None:
        return None
    path = _newest(settings) if asked == "last" else resolve(Path(asked))
    before, now = _config(path), settings.as_dict()
    changed = [name for name, value in now["recipe"].items() if value != before["recipe"].get(name)]
    if now["run"]["seed"] != before["run"]["seed"]:
        changed.append("seed")
    if changed:
        raise BadInput(
            f"--resume {path}: {', '.join(changed)} differ from that run's; give the flags of that "
            f"run, or start anew from its weights with --init_checkpoint"
        )
    return path


def _newest(settings: Settings) -> Path:
    root, preset = settings.run.output_dir, settings.preset
    found = []
    for path in root.glob(f"*/{preset.benchmark}/*/checkpoints/step_*"):
        if path.name[5:].isdigit() and _config(path)["preset"] == preset.name:
            found.append(path)
    if not found:
        raise BadInput(f"--resume last: no checkpoint of {preset.name} under {root}")
    return max(found, key=lambda p: (p.parent.parent.name, int(p.name[5:])))


def _config(checkpoint: Path) -> dict[str, Any]:
    """Return config.json of the run that wrote a checkpoint; raises BadInput without one."""
    file = checkpoint.resolve().parent.parent / "config.json"
    try:
        content = json.loads(file.read_text())
        return {key: plain(content[key]) for key in ("preset", "recipe", "run")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{file}: the checkpoint's recipe is unknown ({error}); --resume takes a "
            f"run folder, or a checkpoint inside one"
        ) from error
