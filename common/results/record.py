# SPDX-License-Identifier: Apache-2.0
"""The record of one run: ``results/<system>/<benchmark>/<run>/`` (names.py).

=================  ================================================================================
manifest.json      identity, status, metrics, checksums of itself and all other files
config.json        all options, with the origin of each; settings.toml: those given, for --config
system.json        machine, devices, software
steps.jsonl        one line per reported step, evaluation, checkpoint, start and stop
telemetry.jsonl    readings of the device's sensors, where it has any
result_0.txt       MLPerf log (written by common/mlperf/log.py into ``record.path``)
console.log        the printed lines (``record.console``)
checkpoints/       not part of the record: each has its own checksums
=================  ================================================================================

The folder appears complete, with status ``interrupted``, before training starts; a kill leaves it
so. ``seal`` writes the result as soon as training has ended, marked ``provisional``: its checksums
are those of the files' first bytes, since the end of a run appends to them. ``close`` writes the
final manifest in one rename and makes the record read-only; no record is ever overwritten. Only
the files above, and those that an observer names in ``files``, are sealed. Formats: schema/*.json.

    record = RunRecord.create(root, system=..., benchmark=..., config=settings.as_dict(), ...)
    record.identify(recipe_hash=..., recipe_kind=..., inputs={"data": ...}, global_batch=...)
    ...                                  # the loop, with the record among its observers
    record.seal(summary)                 # at once; the rest of the end may fail
    record.close(summary)                # after every other observer was closed

Paths below the user's home are written as ``~/...``: records are published.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Protocol

from bertbench.common.config.recipe import plain
from bertbench.common.errors import BadInput, BertbenchError
from bertbench.common.files import Lines, is_plain, shown, why, write_atomic
from bertbench.common.measure.clock import Clock
from bertbench.common.measure.code import code_hash
from bertbench.common.results.names import new_run_id
from bertbench.common.results.seals import (
    CHECKPOINTS,
    MANIFEST,
    STEPS,
    checksum,
    incomplete,
    sealed,
)
from bertbench.common.training.events import EvalEvent, Observer, RunSummary, StepEvent

SCHEMA_VERSION = 1
STATUSES = ("ok", "failed", "oom", "unsupported", "below_quality", "interrupted")
_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]*")
_KEYS = (
    "schema_version", "checksum", "run_id", "system", "benchmark", "preset", "status", "reason",
    "created_utc", "finished_utc", "step", "samples", "seed", "world_size", "simulated",
    "global_batch", "recipe_hash", "recipe_kind", "inputs", "code_hash", "commit", "dirty",
    "command", "resumed_from", "mlperf", "quality", "metrics", "notes", "extras", "files",
)  # fmt: skip
"""A manifest's keys in their order; those unknown before the end are null until then."""
_FILES = (
    "config.json", "system.json", "steps.jsonl", "telemetry.jsonl", "result_0.txt", "console.log",
)  # fmt: skip
_LARGEST_EXTRA = 1 << 20
"""Characters of JSON of one of the ``extras``; a manifest must stay small enough to read."""


class _Samples(Protocol):
    def samples(self) -> list[dict[str, float]]: ...


class RunRecord(Observer):
    """An observer of the loop, on rank 0 only; made by ``create``."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.telemetry: _Samples | None = None
        """The sampler of the readings to keep; set it before the run starts."""
        self.console: IO[str] = _HomeHidden(
            (path / "console.log").open("ab"), encoding="utf-8", errors="backslashreplace"
        )
        """A copy of the printed lines; flush it after each."""
        self.own = set(_FILES)
        """Names of the files to seal; add those of the benchmark."""
        self._steps = Lines(path / STEPS)
        self._manifest = manifest
        self._readings = 0
        self._clock = Clock()

    @classmethod
    def create(
        cls, root: Path, *, system: str, benchmark: str, config: Mapping[str, Any],
        devices: Sequence[Any], precision: str, seed: int, world_size: int = 1,
        mlperf: Mapping[str, str] | None = None, command: Sequence[str] = (),
        resumed_from: str | None = None, earlier_precisions: Collection[str] = (),
        now: datetime | None = None,
    ) -> RunRecord:  # fmt: skip
        """Write the folder, marked ``interrupted``; raises BadInput for a name or folder.

        ``config`` is ``Settings.as_dict()``, ``devices`` are DeviceInfo values, one per process,
        ``precision`` is the one in effect, ``mlperf`` is ``{"division": ..., "ruleset": ...}`` for
        a log that must comply, ``command`` as typed, ``earlier_precisions`` of runs continued.
        """
        check_name("system", system)
        check_name("benchmark", benchmark)
        # Imported here for its torch, which readers of records do without.
        from bertbench.common.measure.system import describe_system

        created = now or datetime.now(timezone.utc)
        described = describe_system() | {"devices": plain(list(devices))}
        manifest = dict.fromkeys(_KEYS) | {
            "schema_version": SCHEMA_VERSION,
            "run_id": new_run_id(created, config["preset"], precision, described["code"]["commit"]),
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
            "commit": described["code"]["commit"],
            "dirty": described["code"]["dirty"],
            "command": list(command),
            "resumed_from": resumed_from,
            **({"earlier_precisions": sorted(earlier_precisions)} if resumed_from else {}),
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
        self, *, recipe_hash: str, recipe_kind: str, inputs: Mapping[str, str | None],
        global_batch: int | None,
    ) -> None:  # fmt: skip
        """Add the identity of recipe and data, known once the data is open.

        ``inputs`` are the keyword arguments of ``recipe_hash`` and ``recipe_kind`` the recipe's
        class, so that ``validate`` can compute the hash again.
        """
        self._manifest.update(
            recipe_hash=recipe_hash, recipe_kind=recipe_kind, inputs=dict(inputs),
            global_batch=global_batch,
        )  # fmt: skip
        self._write()

    # -- events of the loop -------------------------------------------------------------------
    def run_start(self, *, step: int, samples: int) -> None:
        self._line(kind="run_start", step=step, samples=samples)

    def on_step(self, event: StepEvent) -> None:
        self._line(kind="step", **plain(event))

    def on_eval(self, event: EvalEvent) -> None:
        self._line(kind="eval", **plain(event))
        self._manifest["quality"] = {
            "metric": event.target_metric, "value": event.metrics[event.target_metric],
            "target": event.target_value, "reached": event.reached, "samples": event.samples,
        }  # fmt: skip
        self._keep_readings()

    def on_checkpoint(self, *, path: str, step: int, samples: int, seconds: float) -> None:
        place = Path(path)
        inside = place.is_relative_to(self.path)
        self._line(
            kind="checkpoint", step=step, samples=samples,
            path=str(place.relative_to(self.path)) if inside else place.name, seconds=seconds,
        )  # fmt: skip

    def run_stop(self, *, step: int, samples: int, status: str) -> None:
        self._line(kind="run_stop", step=step, samples=samples, status=status)

    def note(self, text: str) -> None:
        if text not in self._manifest["notes"]:
            self._manifest["notes"].append(text)

    def seal(self, summary: RunSummary, *, provisional: bool = True) -> None:
        """Write the result and the checksums in one rename; raises OSError where that fails."""
        assert summary.status in STATUSES, summary.status
        self._keep_readings()
        self._manifest.update(
            status=summary.status, reason=summary.reason, step=summary.step,
            samples=summary.samples, metrics=[metric.as_dict() for metric in summary.metrics],
            extras={k: v for k, v in summary.extras.items() if self._is_json(k, v)},
            finished_utc=_utc(datetime.fromtimestamp(self._clock.date(), timezone.utc)),
            provisional=True,
        )  # fmt: skip
        if not provisional:
            del self._manifest["provisional"]
            if strays := sorted(p.name for p in self.path.iterdir() if self._is_stray(p)):
                self.note(f"not part of the record: {', '.join(shown(n, 60) for n in strays[:9])}")
        self._write()

    def close(self, summary: RunSummary) -> None:
        """Write the final manifest and make all read-only. Call it after all other observers."""
        for file in (self._steps, self.console):
            with contextlib.suppress(OSError):  # text that the disk had refused before
                file.close()
        self.seal(summary, provisional=False)
        for file in (*(self.path / name for name in self._manifest["files"]), self.path / MANIFEST):
            with contextlib.suppress(OSError):  # a file system without permissions
                file.chmod(0o444)
        with contextlib.suppress(OSError):
            self.path.chmod(0o555)

    def _write(self) -> None:
        if self._manifest["finished_utc"] is not None:
            sums = {name: checksum(self.path / name) for name in sorted(self.own)}
            self._manifest["files"] = {name: entry for name, entry in sums.items() if entry}
            self._manifest["checksum"] = "0" * 64
        write_atomic(self.path / MANIFEST, sealed(_json_text(self._manifest)))

    def _is_stray(self, file: Path) -> bool:
        known = file.name in self.own and is_plain(file)
        return not known and file.name not in (MANIFEST, CHECKPOINTS)

    def _is_json(self, name: str, value: Any) -> bool:
        """Return whether one of the extras can be written; a note says where it cannot."""
        try:
            text = _json_text({name: value})
            problem = "it is too large" if len(text) > _LARGEST_EXTRA else None
        except (TypeError, ValueError, RecursionError) as error:
            problem = why(error)
        if problem is not None:
            self.note(f"{shown(name, 60)} is not in the record: {problem}")
        return problem is None

    def _line(self, **values: Any) -> None:
        try:
            self._steps.write(json.dumps(_publishable(values)))
        except OSError as error:
            raise BertbenchError(
                f"the record {self.path} can no longer be written: {why(error)}. Free space there, "
                f"or choose another --output_dir; --resume goes on from a checkpoint."
            ) from error

    def _keep_readings(self) -> None:
        """Append the new readings; called seldom, so that it delays no step."""
        if self.telemetry is None:
            return
        try:
            new = self.telemetry.samples()[self._readings :]
            if new:
                lines = Lines(self.path / "telemetry.jsonl")
                with contextlib.closing(lines):
                    lines.write("\n".join(json.dumps(_publishable(reading)) for reading in new))
            self._readings += len(new)
        except Exception as error:  # a sensor's, or the disk's: the result does not need them
            self.telemetry = None
            self.note(f"{incomplete('telemetry.jsonl')}{why(error)}")


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
    try:
        _write_json(work / "config.json", config)
        _write_json(work / "system.json", system)
        for empty in (STEPS, "console.log"):
            (work / empty).touch()
        _write_json(work / MANIFEST, manifest)
        work.rename(path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return path


def hide_home(text: str) -> str:
    """Replace the user's home folder in ``text`` by ``~``."""
    try:
        home = str(Path.home())
    except RuntimeError:  # an unknown user
        return text
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
