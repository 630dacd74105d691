# SPDX-License-Identifier: Apache-2.0
"""One result, the input of compare, report and export; store.py loads them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bertbench.common.errors import BadInput
from bertbench.common.files import parse_json, read_bytes, shown
from bertbench.common.measure.metric import SHARED
from bertbench.common.results.seals import MANIFEST, STEPS

HOST = "cpu_ref"
"""The backend whose processes share one device, the host's processors."""
LARGEST_LOG = 256 << 20
"""Bytes of a record's file of lines."""
RUNNING = "running"


class Damage(ValueError):
    """A damaged record; the message is one line."""


@dataclass(frozen=True)
class Result:
    """One run, or one row of published figures. Unknown is None; an unmeasured metric is absent."""

    path: Path
    """The run's folder, or the published file."""
    kind: str
    """``run`` (measured here), ``published`` (from a table) or ``mlperf`` (imported log)."""
    manifest: Mapping[str, Any]
    """manifest.json; for a published figure its row, with its file's ``source``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    system: Mapping[str, Any] = field(default_factory=dict)
    """system.json; empty for published figures."""
    running: bool = False
    """Whether a process of this host still writes it."""
    earlier: frozenset[str] = frozenset()
    """The precisions of the runs that it continues; ``unknown`` for one without a record."""

    @property
    def run_id(self) -> str:
        """The run's folder name, or ``<file>-<row from 1>``."""
        return str(self.manifest["run_id"])

    @property
    def title(self) -> str:
        """One line: ``mini, bf16, 2 x AMD EPYC, seed 42``."""
        parts = [self.preset or self.benchmark, self.precision]
        count, device = self.num_devices, self.device_name or self.system_name
        parts.append(f"{count} x {device}" if count and self.device_name else device)
        if self.world_size not in (None, count):
            parts.append(f"{self.world_size} processes")
        parts.append(None if self.seed is None else f"seed {self.seed}")
        return ", ".join(part for part in parts if part)

    @property
    def system_name(self) -> str:
        return str(self.manifest["system"])

    @property
    def benchmark(self) -> str:
        return str(self.manifest["benchmark"])

    @property
    def preset(self) -> str | None:
        """The recipe's name; published figures have one only if it is known to be the same."""
        return self._text("preset")

    @property
    def status(self) -> str:
        """For a run one of record.STATUSES, or RUNNING; else the source's, or ``published``."""
        return RUNNING if self.running else self._text("status") or "published"

    @property
    def reason(self) -> str | None:
        """The reason for the status."""
        return "it goes on" if self.running else self._text("reason")

    @property
    def simulated(self) -> bool:
        """Whether a device was simulated; such figures are not results."""
        return bool(self.manifest.get("simulated")) or any(
            device.get("simulated") for device in self.devices
        )

    @property
    def seed(self) -> int | None:
        return self._count("seed")

    @property
    def world_size(self) -> int | None:
        """Processes."""
        return self._count("world_size")

    @property
    def devices(self) -> list[Mapping[str, Any]]:
        """Each process's device in system.json."""
        return list(self.system.get("devices", ()))

    @property
    def num_devices(self) -> int | None:
        """Devices used. Processes on the host's processors share one device per node index."""
        if self.kind != "run":
            return self._count("devices")
        if self.backend == HOST:
            return len({(d.get("name"), d.get("index")) for d in self.devices})
        return len(self.devices)

    @property
    def device_name(self) -> str | None:
        """The device's name; None if the processes' devices differ."""
        if self.kind != "run":
            return self._text("device")
        names = {str(device.get("name")) for device in self.devices}
        return names.pop() if len(names) == 1 else None

    @property
    def cores(self) -> int | None:
        """Processor cores that it could use, if it ran on them; else, or unknown, None."""
        known = self.system.get("processor")
        if self.kind != "run" or self.backend != HOST or not isinstance(known, Mapping):
            return None
        counts = [number(known.get(name)) for name in ("cores", "usable_threads")]
        return min((int(n) for n in counts if n), default=None)

    @property
    def backend(self) -> str | None:
        name = self.extras.get("backend") or next(
            (device.get("backend") for device in self.devices), None
        )
        return name if isinstance(name, str) else self._text("backend")

    @property
    def precision(self) -> str | None:
        """The precision in effect, that of ``amp`` on the device; resumed: ``bf16 after fp32``."""
        name = self.extras.get("precision")
        name = name if isinstance(name, str) else self._text("precision")
        before = ", ".join(sorted(self.earlier - {name}))
        return f"{name or 'unknown'} after {before}" if before else name

    @property
    def resumed(self) -> bool:
        """Whether it continues another run, so that its times are not those of a whole one."""
        return self.manifest.get("resumed_from") is not None

    @property
    def recipe_hash(self) -> str | None:
        return self._text("recipe_hash")

    @property
    def code_hash(self) -> str | None:
        return self._text("code_hash")

    @property
    def data_hash(self) -> str | None:
        """The hash of training and evaluation data; None for synthetic data, or unknown."""
        inputs = self.manifest.get("inputs")
        found = inputs.get("data") if isinstance(inputs, Mapping) else None
        return found if isinstance(found, str) else None

    @property
    def global_batch(self) -> int | None:
        """Sequences per step over all processes."""
        return self._count("global_batch" if self.kind == "run" else "batch")

    @property
    def samples(self) -> int | None:
        return self._count("samples")

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Name -> value, unit, direction, definition, ... as in schema/manifest-1.json."""
        return metrics_of(self.manifest.get("metrics"))

    def value(self, name: str) -> float | None:
        """Return a metric's value, or None if it was not measured."""
        metric = self.metrics.get(name)
        return None if metric is None else float(metric["value"])

    @property
    def quality(self) -> dict[str, Any] | None:
        """metric, value, target, reached, samples of the last evaluation; None without one."""
        found = self.manifest.get("quality")
        return dict(found) if isinstance(found, Mapping) else None

    @property
    def created(self) -> str | None:
        """The start, ``YYYY-MM-DDThh:mm:ssZ``; for published figures the source's date."""
        if self.kind == "run":
            return self._text("created_utc")
        source = self.manifest.get("source")
        date = source.get("date") if isinstance(source, Mapping) else None
        return date if isinstance(date, str) else None

    def steps(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of steps.jsonl, without a truncated last one; raise as ``content``."""
        return self._lines(STEPS)

    def telemetry(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of telemetry.jsonl, if any; raise as ``content``."""
        return self._lines("telemetry.jsonl")

    def content(self, name: str) -> bytes:
        """Return a file of the run, whose checksum was verified; an unfinished run has none.

        Raises BadInput if it changed since the record was loaded.
        """
        try:
            return verified(self.path, name, self.manifest)
        except Damage as error:
            raise BadInput(f"{shown(self.path)}: {error}; restore the record") from error

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        if self.kind != "run" or not (self.path / name).is_file():
            return
        for line in self.content(name).split(b"\n"):
            try:
                value = parse(line.decode("utf-8", "replace"))
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value

    @property
    def exported(self) -> Mapping[str, Any]:
        """The model of an inference run, as its export.json describes it; empty for other runs."""
        found = self.extras.get("export")
        return found if isinstance(found, Mapping) else {}

    @property
    def extras(self) -> Mapping[str, Any]:
        """What a benchmark has added to the manifest."""
        extras = self.manifest.get("extras")
        return extras if isinstance(extras, Mapping) else {}

    def _text(self, key: str) -> str | None:
        text = self.manifest.get(key)
        return text if isinstance(text, str) and text else None

    def _count(self, key: str) -> int | None:
        count = self.manifest.get(key)
        return count if isinstance(count, int) and not isinstance(count, bool) else None


def verified(folder: Path, name: str, manifest: Mapping[str, Any] | None = None) -> bytes:
    """Return the bytes of a record's file; raise Damage unless they are those of its manifest.

    A run that did not end has no checksums; files of a provisional record may have grown.
    """
    path = folder / name
    if path.is_symlink():
        raise Damage(f"{shown(name)} is not a plain file")
    try:
        content = read_bytes(path, LARGEST_LOG)
    except FileNotFoundError:
        raise Damage(f"{shown(name)} is missing") from None
    except (OSError, ValueError) as error:
        raise Damage(shown(f"{name} cannot be read: {error}")) from error
    files = None if manifest is None else manifest.get("files")
    if manifest is None or files is None:
        return content
    entry = files.get(name)
    demand(isinstance(entry, Mapping), f"{shown(name)} is not in the manifest's list of files")
    size = number(entry.get("bytes"))
    if size is not None and manifest.get("provisional") is True:
        content = content[: int(size)]
    if len(content) != size:
        raise Damage(shown(f"{name} has {len(content)} bytes, not {entry.get('bytes')}"))
    same = hashlib.sha256(content).hexdigest() == entry.get("sha256")
    demand(same, f"{shown(name)} differs from its checksum")
    return content


def identity(manifest: Mapping[str, Any]) -> str:
    """Return what a run shares with its copies, whatever their names.

    For a complete run these are its steps, with their times; for another all its files, as for one
    without steps: performance tests of LoadGen leave all alike.
    """
    files = manifest.get("files")
    if not files:
        return str(manifest["run_id"])
    steps = files.get(STEPS, {})
    complete = manifest["status"] in ("ok", "below_quality")
    if complete and manifest.get("step") and steps.get("bytes"):
        return str(steps.get("sha256"))
    return json.dumps([manifest["created_utc"], files], sort_keys=True)


def parse(text: str | bytes) -> Any:
    """Parse untrusted JSON: a non-finite number becomes None, an invisible character ``?``.

    Raises ValueError, also for too deep nesting.
    """
    hooks: dict[str, Any] = {
        "parse_constant": lambda name: None,
        "parse_float": _finite,
        "parse_int": lambda digits: _finite(digits, int),
    }
    value = parse_json(text, **hooks)
    content = text.encode("utf-8", "replace") if isinstance(text, str) else text
    return value if content.isascii() and b"\\" not in content else _visible(value)


def _finite(text: str, kind: type = float) -> Any:
    return kind(text) if len(text) < 300 and math.isfinite(float(text)) else None


def _visible(value: Any) -> Any:
    """Return ``value`` without control characters, other than line ends, and without surrogates."""
    if isinstance(value, str):
        plain = value if value.isprintable() else None
        return plain or "".join(c if c.isprintable() or c in "\n\t" else "?" for c in value)
    if isinstance(value, list):
        return [_visible(v) for v in value]
    if isinstance(value, dict):
        return {_visible(k): _visible(v) for k, v in value.items()}
    return value


def metrics_of(content: Any, where: str = MANIFEST) -> dict[str, dict[str, Any]]:
    """Return the metrics by name, from a record's list or a published row's mapping.

    The shared definitions complete a published metric. Raises Damage.
    """
    if isinstance(content, Mapping):
        content = [{"name": k, **v} if isinstance(v, Mapping) else None for k, v in content.items()]
    demand(isinstance(content, list), f"{where} has no metrics")
    found: dict[str, dict[str, Any]] = {}
    for entry in content:
        good = isinstance(entry, Mapping) and isinstance(entry.get("name"), str)
        demand(good, f"{where} has a metric without a name")
        name = entry["name"]
        known = SHARED.get(name)
        filled = {
            "unit": known.unit if known else "",
            "direction": known.direction if known else "none",
            "definition": "",
        } | entry
        if number(entry.get("value")) is None:
            problem = "has no value"
        elif name in found:
            problem = "occurs twice"
        elif not all(isinstance(filled[key], str) for key in ("unit", "direction", "definition")):
            problem = "has a malformed description"
        else:
            found[name] = filled
            continue
        raise Damage(shown(f"{where}: the metric {name} {problem}", 100))
    return found


def check_quality(quality: Any, where: str) -> None:
    """Raise Damage for a malformed ``quality``."""
    good = quality is None or (
        isinstance(quality, Mapping)
        and all(
            quality.get(k) is None or number(quality[k]) is not None for k in ("value", "target")
        )
    )
    demand(good, f"{where} has a malformed quality")


def number(value: Any) -> float | None:
    """Return a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def demand(condition: Any, problem: str) -> None:
    """Raise Damage unless ``condition`` holds."""
    if not condition:
        raise Damage(problem)
