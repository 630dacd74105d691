# SPDX-License-Identifier: Apache-2.0
"""The record of one run: ``results/<system>/<benchmark>/<UTC>_<commit>_<id>/``.

=================  ================================================================================
manifest.json      identity, status, metrics, checksums of itself and all other files
config.json        recipe, impl and run options, with the origin of each value
system.json        machine, devices, software
steps.jsonl        one line per reported step, evaluation, checkpoint, start and stop
telemetry.jsonl    readings of the device's sensors, where it has any
result_0.txt       MLPerf log (written by common/mlperf/log.py into ``record.path``)
console.log        the printed lines (``record.console``)
checkpoints/       not part of the record: each has its own checksums
=================  ================================================================================

The folder appears complete, with status ``interrupted``, before training starts; a kill leaves it
so. ``close`` writes the final manifest in one rename and makes the record read-only; no record is
ever overwritten. Formats: schema/*.json.

    record = RunRecord.create(root, system=..., benchmark=..., config=settings.as_dict(), ...)
    record.identify(recipe_hash=..., recipe_kind=..., inputs={"data": ...}, global_batch=...)
    ...                                  # the loop, with the record among its observers
    record.close(summary)                # after every other observer was closed

Paths below the user's home are written as ``~/...``: records are published.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Protocol

from bertbench.common.config.recipe import plain
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256, sync, write_atomic
from bertbench.common.measure.code import code_hash
from bertbench.common.training.events import EvalEvent, Observer, RunSummary, StepEvent

SCHEMA_VERSION = 1
STATUSES = ("ok", "failed", "oom", "unsupported", "below_quality", "interrupted")
MANIFEST, CHECKPOINTS, STEPS = "manifest.json", "checkpoints", "steps.jsonl"
_CHECKSUM = re.compile(r'("checksum": ")[0-9a-f]{64}(?=")')
_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]*")
_KEYS = (
    "schema_version", "checksum", "run_id", "system", "benchmark", "preset", "status", "reason",
    "created_utc", "finished_utc", "step", "samples", "seed", "world_size", "simulated",
    "global_batch", "recipe_hash", "recipe_kind", "inputs", "code_hash", "commit", "dirty",
    "command", "resumed_from", "mlperf", "quality", "metrics", "notes", "extras", "files",
)  # fmt: skip
"""A manifest's keys in their order; those unknown before the end are null until then."""


class _Samples(Protocol):
    def samples(self) -> list[dict[str, float]]: ...


class RunRecord(Observer):
    """An observer of the loop, on rank 0 only; made by ``create``."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.telemetry: _Samples | None = None
        """The sampler of the readings to keep; set it before the run starts."""
        self.console: IO[str] = _HomeHidden((path / "console.log").open("ab"), encoding="utf-8")
        """A copy of the printed lines; flush it after each."""
        self._steps = (path / STEPS).open("a", encoding="utf-8")
        self._held = (path / STEPS).open("rb")
        with contextlib.suppress(OSError):  # a file system without locks: see is_written
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._manifest = manifest
        self._readings = 0

    @classmethod
    def create(
        cls,
        root: Path,
        *,
        system: str,
        benchmark: str,
        config: Mapping[str, Any],
        devices: Sequence[Any],
        seed: int,
        world_size: int = 1,
        mlperf: Mapping[str, str] | None = None,
        command: Sequence[str] = (),
        resumed_from: str | None = None,
        now: datetime | None = None,
    ) -> RunRecord:
        """Write the folder, marked ``interrupted``.

        ``config`` is ``Settings.as_dict()``; ``devices`` are DeviceInfo values (or the like), one
        per process; ``mlperf`` is ``{"division": ..., "ruleset": ...}`` for a log that must comply;
        ``command`` holds the arguments as typed. Raises BadInput where a name cannot be a folder's
        or the folder cannot be written.
        """
        check_name("system", system)
        check_name("benchmark", benchmark)
        # Imported here for its torch, which readers of records do without.
        from bertbench.common.measure.system import describe_system

        created = now or datetime.now(timezone.utc)
        described = describe_system() | {"devices": plain(list(devices))}
        stamp, commit = created.strftime("%Y%m%dT%H%M%SZ"), described["code"]["commit"]
        manifest = dict.fromkeys(_KEYS) | {
            "schema_version": SCHEMA_VERSION,
            "run_id": f"{stamp}_{(commit or 'nocommit')[:7]}_{secrets.token_hex(3)}",
            "system": system,
            "benchmark": benchmark,
            "preset": config["preset"],
            "status": "interrupted",
            "reason": "the process ended without finishing its record",
            "created_utc": _utc(created),
            "seed": seed,
            "world_size": world_size,
            "simulated": any(device["simulated"] for device in described["devices"]),
            "inputs": {},
            "code_hash": code_hash(),
            "commit": commit,
            "dirty": described["code"]["dirty"],
            "command": list(command),
            "resumed_from": resumed_from,
            "mlperf": None if mlperf is None else dict(mlperf),
            "metrics": [],
            "notes": [],
            "extras": {},
        }
        try:
            return cls(_new_folder(root, config, described, manifest), manifest)
        except OSError as error:
            raise BadInput(
                f"cannot write a record into {root}: {error}. Choose another --output_dir."
            ) from error

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.path.name

    def identify(
        self,
        *,
        recipe_hash: str,
        recipe_kind: str,
        inputs: Mapping[str, str | None],
        global_batch: int,
    ) -> None:
        """Add the identity of recipe and data, known once the data is open.

        ``inputs`` are the keyword arguments of ``recipe_hash`` and ``recipe_kind`` the recipe's
        class, so that ``validate`` can compute the hash again.
        """
        self._manifest.update(
            recipe_hash=recipe_hash,
            recipe_kind=recipe_kind,
            inputs=dict(inputs),
            global_batch=global_batch,
        )
        _write_json(self.path / MANIFEST, self._manifest)

    # -- events of the loop -------------------------------------------------------------------
    def run_start(self, *, step: int, samples: int) -> None:
        self._line(kind="run_start", step=step, samples=samples)

    def on_step(self, event: StepEvent) -> None:
        self._line(kind="step", **plain(event))

    def on_eval(self, event: EvalEvent) -> None:
        self._line(kind="eval", **plain(event))
        self._manifest["quality"] = {
            "metric": event.target_metric,
            "value": event.metrics[event.target_metric],
            "target": event.target_value,
            "reached": event.reached,
            "samples": event.samples,
        }
        self._keep_readings()

    def on_checkpoint(self, *, path: str, step: int, samples: int, seconds: float) -> None:
        shown = Path(path)
        inside = shown.is_relative_to(self.path)
        self._line(
            kind="checkpoint",
            step=step,
            samples=samples,
            path=str(shown.relative_to(self.path)) if inside else shown.name,
            seconds=seconds,
        )

    def run_stop(self, *, step: int, samples: int, status: str) -> None:
        self._line(kind="run_stop", step=step, samples=samples, status=status)

    def note(self, text: str) -> None:
        self._manifest["notes"].append(text)

    def close(self, summary: RunSummary) -> None:
        """Write checksums and the final manifest; make all read-only. Call it after all others."""
        assert summary.status in STATUSES, summary.status
        self._keep_readings()
        self._steps.close()
        self._held.close()
        self.console.close()
        self._manifest.update(
            status=summary.status,
            reason=summary.reason,
            step=summary.step,
            samples=summary.samples,
            metrics=[metric.as_dict() for metric in summary.metrics],
            extras=plain(summary.extras),
            finished_utc=_utc(datetime.now(timezone.utc)),
            files={file.name: self._seal(file) for file in record_files(self.path)},
            checksum="0" * 64,
        )
        write_atomic(self.path / MANIFEST, sealed(_json_text(self._manifest)))
        for file in (*record_files(self.path), self.path / MANIFEST):
            file.chmod(0o444)
        self.path.chmod(0o555)

    def _seal(self, file: Path) -> dict[str, Any]:
        sync(file)
        return {"bytes": file.stat().st_size, "sha256": file_sha256(file)}

    def _line(self, **values: Any) -> None:
        self._steps.write(json.dumps(_publishable(values)) + "\n")
        self._steps.flush()

    def _keep_readings(self) -> None:
        """Append the new readings; called seldom, so that it delays no step."""
        if self.telemetry is None:
            return
        new = self.telemetry.samples()[self._readings :]
        if new:
            with (self.path / "telemetry.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(_publishable(reading)) + "\n" for reading in new)
            self._readings += len(new)


def check_name(option: str, name: str) -> None:
    """Raise BadInput for a name that cannot be a folder of results."""
    if not _SLUG.fullmatch(name):
        raise BadInput(
            f"{option} {name!r} cannot name a folder of results: use lower-case letters, digits, "
            f"'.', '_' and '-' (--{option})"
        )


def _new_folder(
    root: Path, config: Mapping[str, Any], system: Mapping[str, Any], manifest: Mapping[str, Any]
) -> Path:
    """Write a new record's folder, which appears complete."""
    path = root / manifest["system"] / manifest["benchmark"] / manifest["run_id"]
    work = path.with_name(f".{path.name}")
    work.mkdir(parents=True)
    _write_json(work / "config.json", config)
    _write_json(work / "system.json", system)
    for empty in (STEPS, "console.log"):
        (work / empty).touch()
    _write_json(work / MANIFEST, manifest)
    work.rename(path)
    return path


def record_files(path: Path) -> list[Path]:
    """Return the files that a record's manifest has checksums of."""
    return sorted(p for p in path.iterdir() if p.name not in (MANIFEST, CHECKPOINTS))


def is_written(path: Path) -> bool:
    """Return whether a process of this host still writes the record: it holds a lock until it ends.

    False where the file system has no locks.
    """
    try:
        descriptor = os.open(path / STEPS, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return False


def sealed(text: str) -> str:
    """Return a manifest's text with its ``checksum``: the sha256 of the text with zeros there.

    Text without a checksum is returned unchanged.
    """
    blank = _CHECKSUM.sub(rf"\g<1>{'0' * 64}", text, count=1)
    digest = hashlib.sha256(blank.encode()).hexdigest()
    return _CHECKSUM.sub(rf"\g<1>{digest}", text, count=1)


def is_sealed(text: str, manifest: Mapping[str, Any]) -> bool:
    """Return whether a manifest has the checksum of its ``text``; ``manifest`` is its content."""
    found = _CHECKSUM.search(text)
    return found is not None and sealed(text) == text and manifest["checksum"] == found[0][-64:]


def hide_home(text: str) -> str:
    """Replace the user's home folder in ``text`` by ``~``."""
    home = str(Path.home())
    return text if len(home) < 2 else re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text)


def _publishable(value: Any) -> Any:
    """Return JSON values: null for a number that is not finite, and no user's name."""
    if isinstance(value, Mapping):
        return {str(k): _publishable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_publishable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return hide_home(value) if isinstance(value, str) else value


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomic(path, _json_text(content))


def _json_text(content: Mapping[str, Any]) -> str:
    return json.dumps(_publishable(plain(content)), indent=1, allow_nan=False) + "\n"


def _utc(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class _HomeHidden(io.TextIOWrapper):
    """A text file that hides the user's home folder."""

    def write(self, text: str, /) -> int:
        return super().write(hide_home(text))
