# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that ``--resume`` names, if the run may continue it."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from bertbench.common.config.recipe import LATER, Settings
from bertbench.common.errors import BadInput
from bertbench.common.files import parse_json, read_bytes, read_json, shown, why
from bertbench.common.training.checkpoint import Checkpoints, resolve, step_of


def find_checkpoint(settings: Settings) -> Path | None:
    """Return the checkpoint to continue from; None without --resume.

    ``last`` is the newest readable one of the same preset under --output_dir. Raises BadInput when
    there is none, or when the recipe or seed of its run differs: the result would belong to
    neither.
    """
    asked = settings.run.resume
    if asked is None:
        return None
    path = _newest(settings) if asked == "last" else resolve(Path(asked))
    before, now = _config(path), settings.as_dict()
    changed = [n for n, v in now["recipe"].items() if v != (LATER | before["recipe"]).get(n)]
    if now["run"]["seed"] != before["run"].get("seed"):
        changed.append("seed")
    if changed:
        raise BadInput(
            f"--resume {path}: {', '.join(changed)} differ from that run's; give the flags of that "
            f"run, or start anew from its weights with --init_checkpoint"
        )
    return path


def _newest(settings: Settings) -> Path:
    """Return the newest checkpoint of the preset; names newer ones that cannot be read."""
    root, preset = settings.run.output_dir, settings.preset
    found: list[Path] = []
    for folder in root.glob(f"*/{preset.benchmark}/*/checkpoints"):
        try:
            found += reversed(Checkpoints(folder).available())
        except OSError as error:
            print(f"note: --resume last passes over {shown(why(error), 500)}", file=sys.stderr)
    for path in sorted(found, key=lambda p: (p.parent.parent.name, step_of(p)), reverse=True):
        try:
            if _config(path)["preset"] == preset.name:
                return path
        except BadInput as error:
            print(f"note: --resume last passes over {shown(error, 500)}", file=sys.stderr)
    raise BadInput(f"--resume last: no checkpoint of {preset.name} under {root}")


def _config(checkpoint: Path) -> dict[str, Any]:
    """Return config.json of the run that wrote a checkpoint; raises BadInput without one."""
    file = checkpoint.parent.parent / "config.json"
    try:
        file = checkpoint.resolve().parent.parent / "config.json"
        content = run_config(file)
        kept = {key: content[key] for key in ("preset", "recipe", "run")}
        if [type(value) for value in kept.values()] != [str, dict, dict]:
            raise ValueError("it is not of a run")
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{file}: the checkpoint's recipe is unknown ({shown(error)}); --resume takes a "
            f"run folder, or a checkpoint inside one"
        ) from error
    return kept


def run_config(file: Path) -> Any:
    """Return the content of a run's ``config.json``, as its manifest has it.

    Raises ValueError where it has changed since, and OSError where it cannot be read. A run that
    did not end has no checksums.
    """
    raw, manifest = read_bytes(file), file.with_name("manifest.json")
    files = read_json(manifest)["files"] if manifest.exists() else None
    if files is not None and hashlib.sha256(raw).hexdigest() != files[file.name]["sha256"]:
        raise ValueError("it differs from its checksum: damaged, or changed afterwards")
    return parse_json(raw)
