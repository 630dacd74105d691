# SPDX-License-Identifier: Apache-2.0
"""Whether groups of runs are comparable: their differences, and notes for the reader."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertbench.common.config.recipe import BEFORE, hash_values
from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.measure.metric import SHARED
from bertbench.common.results import statistics
from bertbench.common.results.attention import attention
from bertbench.common.results.result import identity
from bertbench.common.results.store import Damaged, Result, load_results

FINISHED = ("ok", "below_quality")
"""Statuses of complete runs, whose metrics count; other runs are only counted."""


@dataclass(frozen=True)
class Side:
    """One of the groups."""

    label: str
    runs: list[Result]
    damaged: list[Damaged] = field(default_factory=list)

    @property
    def finished(self) -> list[Result]:
        return [run for run in self.runs if run.status in FINISHED]

    @property
    def made(self) -> list[Result]:
        """The runs that have ended."""
        return [run for run in self.runs if not run.running]

    @property
    def statuses(self) -> dict[str, int]:
        return dict(Counter(run.status for run in self.runs).most_common())

    def summary(self) -> str:
        """Return a line: the label and the number of runs of each status."""
        counted = ", ".join(f"{n} {status}" for status, n in self.statuses.items())
        runs = f"{len(self.runs)} run{'s' if len(self.runs) != 1 else ''}"
        skipped = f"; {len(self.damaged)} damaged left out" if self.damaged else ""
        return f"{shown(self.label)}: {runs}: {counted}{skipped}"


def load_side(*texts: str) -> Side:
    """Return the runs in or below folders, or the matches of patterns (``*``, ``**``).

    Raises BadInput if nothing matches one.
    """
    paths: list[str] = []
    for text in texts:
        found = [text] if Path(text).exists() else sorted(glob.glob(text, recursive=True))  # noqa: PTH207
        if not found:
            raise BadInput(f"{shown(text)}: no such folder or match")
        paths += found
    return Side(" ".join(texts), *load_results(paths, references=False))


def _data(run: Result) -> str | None:
    return "synthetic" if run.config["run"].get("synthetic") is True else run.data_hash


def _recipe(run: Result) -> str | None:
    """Return the recipe's hash; of an inference run without its model, which may be another."""
    if not run.exported or run.recipe_hash is None:
        return run.recipe_hash
    return hash_values("", run.config["recipe"], {})


def _shape(run: Result) -> str | None:
    shape = run.exported.get("model")
    if not isinstance(shape, Mapping):
        return None
    layers, width = (shape.get(name) for name in ("num_hidden_layers", "hidden_size"))
    return f"{layers} x {width} ({hash_values('', shape, {})[:8]})"


def _model(run: Result) -> str | None:
    """Return what two models of one shape may differ in; None for a run of training."""
    if not run.exported:
        return None
    weights = str((run.manifest.get("inputs") or {}).get("checkpoint"))[:8]
    return f"{run.precision}, {run.exported.get('weight_sparsity') or 'dense'}, weights {weights}"


_IDENTITY: dict[str, Callable[[Result], Any]] = {
    "benchmark": lambda run: run.benchmark,
    "recipe": _recipe,
    "model's shape": _shape,
    "attention": attention,
    "precision": lambda run: None if run.exported else run.precision,
    "processes": lambda run: run.world_size,
    "data": _data,
    "devices": lambda run: "simulated" if run.simulated else "real",
}
_CIRCUMSTANCES: dict[str, Callable[[Result], Any]] = {
    "model": _model,
    "system": lambda run: run.system_name,
    "device": lambda run: run.device_name,
    "backend": lambda run: run.backend,
}
GROUPED: dict[str, Callable[[Result], Any]] = {
    "precision": lambda run: run.precision,
    "device": lambda run: run.device_name or run.system_name,
    "backend": lambda run: run.backend,
    "system": lambda run: run.system_name,
    "processes": lambda run: run.world_size,
    "commit": lambda run: str(run.manifest.get("commit") or "unknown")[:7],
}
"""The fields that can make groups, and of which a difference can be what is compared."""


def group_by(side: Side, names: Sequence[str]) -> list[Side]:
    """Return the group's runs divided by their values of the fields, the oldest value first.

    Values that only running runs have make no group; damaged records stay with the first.
    """
    found: dict[str, list[Result]] = {}
    for run in side.runs:
        values = (GROUPED[name](run) for name in names)
        label = ", ".join("unknown" if value is None else shown(value) for value in values)
        found.setdefault(label, []).append(run)
    ended = {label: runs for label, runs in found.items() if not all(r.running for r in runs)}
    return [Side(label, runs, side.damaged * (i == 0)) for i, (label, runs) in
            enumerate(ended.items())]  # fmt: skip


def differences(*sides: Side, across: Collection[str] = ()) -> list[str]:
    """Return the differences between the groups, or within one; each once, a line each.

    Those in the fields ``across`` are compared: between groups they are none.
    """
    found: list[str] = []
    for name, of in _IDENTITY.items():
        values = [_values(side, of) for side in sides]
        found += _mixed(name, sides, values)
        single = [(s, v) for s, v in zip(sides, values, strict=True) if len(v) == 1]
        if name not in across and (text := _against([(s.label, _listed(v)) for s, v in single])):
            changed = _changed([s for s, _ in single], "recipe")[:6] if name == "recipe" else []
            found.append(f"{name}: {text}" + (f" ({'; '.join(changed)})" if changed else ""))
    found += _mixed("code", sides, [{run.code_hash for run in side.finished} for side in sides])
    for name, of in _CIRCUMSTANCES.items():
        found += _mixed(name, sides, [_values(side, of) for side in sides])
    return list(dict.fromkeys(found))


def _mixed(name: str, sides: Sequence[Side], values: Sequence[set[Any]]) -> Iterator[str]:
    """Yield the groups that have several values."""
    for side, some in zip(sides, values, strict=True):
        if len(some) > 1:
            yield f"{name}: {shown(side.label)} mixes {_listed(some)}"


def _against(texts: Sequence[tuple[str, str]]) -> str:
    """Return the texts of groups that differ, each once; of three or more with their labels."""
    labels: dict[str, list[str]] = {}
    for label, text in texts:
        labels.setdefault(text, []).append(shown(label))
    if len(labels) < 2:
        return ""
    named = len(texts) > 2
    return " against ".join(t + f" ({'; '.join(of)})" * named for t, of in labels.items())


def _values(side: Side, of: Callable[[Result], Any]) -> set[Any]:
    """Return the values of runs that know their recipe."""
    return {of(run) for run in side.runs if run.recipe_hash is not None or run in side.finished}


def _listed(values: set[Any]) -> str:
    texts = sorted("unknown" if v is None else shown(v, 140) for v in values)
    return ", ".join(texts[:4]) + (f" and {len(texts) - 4} more" if len(texts) > 4 else "")


def _changed(sides: Sequence[Side], part: str) -> list[str]:
    """Return the fields in which the first finished runs' ``recipe`` or ``impl`` differ."""
    known = [side for side in sides if side.finished]
    values = [leaves(side.finished[0].config[part]) for side in known]
    keys = sorted({key for some in values for key in some} - {"attention_mask"})  # by its content
    found = []
    for key in keys:
        texts = [shown(some.get(key, BEFORE.get(key)), 40) for some in values]
        if text := _against([(s.label, t) for s, t in zip(known, texts, strict=True)]):
            found.append(f"{shown(key, 40)} {text}")
    return found


def leaves(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all values by their own names, those in groups included."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value) if isinstance(value, Mapping) and value else {key: value}
    return found


def notes(*sides: Side) -> Iterator[str]:
    """Yield warnings and circumstances that do not forbid the comparison."""
    codes = [(side.label, _listed({run.code_hash for run in side.runs})) for side in sides]
    if text := _against(codes):
        yield f"warning: the code differs: {text}"
    counts = Counter(run for side in sides for run in {identity(r.manifest) for r in side.runs})
    if shared := sum(n > 1 for n in counts.values()):
        where = "on both sides" if len(sides) == 2 else "in several groups"
        yield f"warning: {shared} runs are {where}"
    for side in sides:
        yield from _notes_of(side)
    for name in SHARED:
        definitions = {r.metrics[name]["definition"] for side in sides for r in side.finished
                       if name in r.metrics}  # fmt: skip
        if len(definitions) > 1:
            listed = " | ".join(sorted(map(shown, definitions)))
            yield f"warning: {name} has different definitions: {listed}"
    for name, of in _CIRCUMSTANCES.items():
        values = [_values(side, of) for side in sides]
        known = [(s.label, _listed(v)) for s, v in zip(sides, values, strict=True) if v]
        if text := _against(known):
            yield f"{name}: {text}"
    if impl := _changed(sides, "impl"):
        yield f"implementation: {'; '.join(impl[:8])}"
    first, *others = (len(side.finished) for side in sides)
    for n in dict.fromkeys(others):
        if min(first, n) and (least := statistics.smallest_p(first, n)) >= statistics.SIGNIFICANT:
            yield (
                f"{first} and {n} runs cannot show a difference: their smallest possible p is "
                f"{least:.2g}. Make six a side: bertbench repeat 6"
            )


def _notes_of(side: Side) -> Iterator[str]:
    """Yield the warnings of one group."""
    name = shown(side.label)
    if dirty := sum(bool(run.manifest.get("dirty")) for run in side.runs):
        yield f"warning: {name}: {dirty} runs of code with uncommitted changes"
    seeds = {run.seed for run in side.finished}
    if len(seeds) < len(side.finished):
        counted = f"{len(side.finished)} runs have {len(seeds)} different seeds"
        yield f"{name}: {counted}: they say little of the quality's spread"
    if resumed := sum(run.resumed for run in side.runs):
        yield f"warning: {name}: {resumed} resumed runs: their times are partial"
    if late := side.statuses.get("below_quality", 0):
        yield f"{name}: {late} runs missed their target; their rates are shown"
    for damaged in side.damaged:
        yield f"left out: {shown(damaged.path)}: {shown(damaged.problem, 400)}"
