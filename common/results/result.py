# SPDX-License-Identifier: Apache-2.0
"""One result, as everything that compares, reports or exports sees it; store.py loads them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bertbench.common.files import shown
from bertbench.common.measure.metric import SHARED
from bertbench.common.results.record import MANIFEST

HOST = "cpu_ref"
"""The backend whose processes share one device, the host's processors."""
_ODD_NUMBER = re.compile(r"(?:^|[:\[,\s])-?\d(?:[\d.]*[eE]\+?\d{3}|[\d.]{299})")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Damage(ValueError):
    """One line: what is wrong with a record."""


@dataclass(frozen=True)
class Result:
    """One run, or one row of published figures. Unknown is None; an unmeasured metric is absent."""

    path: Path
    """The run's folder, or the published file."""
    kind: str
    """``run`` (measured here), ``published`` (somebody's table) or ``mlperf`` (somebody's log)."""
    manifest: Mapping[str, Any]
    """manifest.json; of a published figure its row, with its file's ``source``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    system: Mapping[str, Any] = field(default_factory=dict)
    """system.json; empty for published figures."""

    @property
    def run_id(self) -> str:
        """Names it: a run's folder, or ``<file>-<row from 1>``."""
        return str(self.manifest["run_id"])

    @property
    def title(self) -> str:
        """One line for people: ``mini, bf16, 2 x AMD EPYC, seed 42``."""
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
        """The recipe's name; published figures have one only where it is known to be the same."""
        return self._text("preset")

    @property
    def status(self) -> str:
        """Of a run one of record.STATUSES; else what the source says, or ``published``."""
        return self._text("status") or "published"

    @property
    def reason(self) -> str | None:
        """Why it ended so."""
        return self._text("reason")

    @property
    def simulated(self) -> bool:
        """Whether a device was simulated: such figures are no result."""
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
        """What system.json says of each process's device."""
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
        """The device's name; None where the processes' devices differ."""
        if self.kind != "run":
            return self._text("device")
        names = {str(device.get("name")) for device in self.devices}
        return names.pop() if len(names) == 1 else None

    @property
    def backend(self) -> str | None:
        told = self._extras.get("backend") or next(
            (device.get("backend") for device in self.devices), None
        )
        return told if isinstance(told, str) else self._text("backend")

    @property
    def precision(self) -> str | None:
        """In effect, not as asked for: what ``amp`` became on that device."""
        told = self._extras.get("precision")
        return told if isinstance(told, str) else self._text("precision")

    @property
    def recipe_hash(self) -> str | None:
        return self._text("recipe_hash")

    @property
    def code_hash(self) -> str | None:
        return self._text("code_hash")

    @property
    def data_hash(self) -> str | None:
        """Of the training and evaluation data; None for synthetic data, or unknown."""
        inputs = self.manifest.get("inputs")
        told = inputs.get("data") if isinstance(inputs, Mapping) else None
        return told if isinstance(told, str) else None

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
        """A metric's value, or None where it was not measured."""
        metric = self.metrics.get(name)
        return None if metric is None else float(metric["value"])

    @property
    def quality(self) -> dict[str, Any] | None:
        """metric, value, target, reached, samples of the last evaluation; None: there was none."""
        told = self.manifest.get("quality")
        return dict(told) if isinstance(told, Mapping) else None

    @property
    def created(self) -> str | None:
        """When it began, ``YYYY-MM-DDThh:mm:ssZ``; of published figures their source's date."""
        if self.kind == "run":
            return self._text("created_utc")
        source = self.manifest.get("source")
        told = source.get("date") if isinstance(source, Mapping) else None
        return told if isinstance(told, str) else None

    def steps(self) -> Iterator[dict[str, Any]]:
        """The lines of steps.jsonl; one that was cut, as the last of a killed run, is left out."""
        return _lines(self.path / "steps.jsonl") if self.kind == "run" else iter(())

    def telemetry(self) -> Iterator[dict[str, Any]]:
        """The lines of telemetry.jsonl, if there are any."""
        return _lines(self.path / "telemetry.jsonl") if self.kind == "run" else iter(())

    @property
    def _extras(self) -> Mapping[str, Any]:
        extras = self.manifest.get("extras")
        return extras if isinstance(extras, Mapping) else {}

    def _text(self, key: str) -> str | None:
        told = self.manifest.get(key)
        return told if isinstance(told, str) and told else None

    def _count(self, key: str) -> int | None:
        told = self.manifest.get(key)
        return told if isinstance(told, int) and not isinstance(told, bool) else None


def parse(text: str) -> Any:
    """JSON from a stranger: a number that is not finite is None, a broken character a ``?``.

    Raises ValueError, also for what is nested too deeply.
    """
    hooks: dict[str, Any] = {}
    if _ODD_NUMBER.search(text):
        hooks = {"parse_float": _finite, "parse_int": lambda digits: _finite(digits, int)}
    try:
        value = json.loads(text, parse_constant=lambda name: None, **hooks)
        return _whole(value) if "\\ud" in text.lower() else value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(text: str, kind: type = float) -> Any:
    return kind(text) if len(text) < 300 and math.isfinite(float(text)) else None


def _whole(value: Any) -> Any:
    """Without halves of characters, which no file could be written with."""
    if isinstance(value, str):
        return _SURROGATE.sub("?", value)
    if isinstance(value, list):
        return [_whole(v) for v in value]
    return {_whole(k): _whole(v) for k, v in value.items()} if isinstance(value, dict) else value


def metrics_of(told: Any, where: str = MANIFEST) -> dict[str, dict[str, Any]]:
    """By name, from a record's list or a published row's mapping; a published one has no more than
    value and unit, and what is missing is filled in from the shared definitions."""
    if isinstance(told, Mapping):
        told = [{"name": k, **v} if isinstance(v, Mapping) else None for k, v in told.items()]
    demand(isinstance(told, list), f"{where} has no metrics")
    found: dict[str, dict[str, Any]] = {}
    for entry in told:
        good = isinstance(entry, Mapping) and isinstance(entry.get("name"), str)
        demand(good, f"{where} has a metric without a name")
        name = entry["name"]
        known = SHARED.get(name)
        filled = {
            "unit": known.unit if known else "",
            "direction": known.direction if known else "none",
            "definition": "",
        } | entry
        if not _is_number(entry.get("value")):
            problem = "has no value"
        elif name in found:
            problem = "is there twice"
        elif not all(isinstance(filled[key], str) for key in ("unit", "direction", "definition")):
            problem = "is described badly"
        else:
            found[name] = filled
            continue
        raise Damage(shown(f"{where}: the metric {name} {problem}", 100))
    return found


def check_quality(told: Any, where: str) -> None:
    good = told is None or (
        isinstance(told, Mapping)
        and all(told.get(key) is None or _is_number(told[key]) for key in ("value", "target"))
    )
    demand(good, f"{where} has a quality that is none")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def demand(condition: Any, problem: str) -> None:
    if not condition:
        raise Damage(problem)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                value = parse(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value
