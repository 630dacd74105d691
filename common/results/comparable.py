# SPDX-License-Identifier: Apache-2.0
"""Whether groups of runs are comparable: their differences, and notes for the reader."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
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
    """One of the two groups."""

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


def load_side(text: str) -> Side:
    """Return the runs in or below a folder, or the matches of a pattern (``*``, ``**``).

    Raises BadInput if nothing matches.
    """
    paths = [text] if Path(text).exists() else sorted(glob.glob(text, recursive=True))  # noqa: PTH207
    if not paths:
        raise BadInput(f"{shown(text)}: no such folder or match")
    return Side(text, *load_results(paths, references=False))


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
    "world size": lambda run: run.world_size,
    "data": _data,
    "devices": lambda run: "simulated" if run.simulated else "real",
}
_CIRCUMSTANCES: dict[str, Callable[[Result], Any]] = {
    "model": _model,
    "system": lambda run: run.system_name,
    "device": lambda run: run.device_name,
    "backend": lambda run: run.backend,
}


def differences(lhs: Side, rhs: Side) -> list[str]:
    """Return the differences between the sides, or within one; a line each."""
    found = []
    for name, of in _IDENTITY.items():
        left, right = (_values(side, of) for side in (lhs, rhs))
        for side, values in ((lhs, left), (rhs, right)):
            if len(values) > 1:
                found.append(f"{name}: {shown(side.label)} mixes {_listed(values)}")
        if left != right and left and right and len(left) == len(right) == 1:
            text = f"{name}: {_listed(left)} against {_listed(right)}"
            changed = _changed(lhs, rhs, "recipe")[:6] if name == "recipe" else []
            found.append(text + (f" ({'; '.join(changed)})" if changed else ""))
    for side in (lhs, rhs):
        codes = {run.code_hash for run in side.finished}
        if len(codes) > 1:
            found.append(f"code: {shown(side.label)} mixes {_listed(codes)}")
        for name, of in _CIRCUMSTANCES.items():
            if len(values := _values(side, of)) > 1:
                found.append(f"{name}: {shown(side.label)} mixes {_listed(values)}")
    return found


def _values(side: Side, of: Callable[[Result], Any]) -> set[Any]:
    """Return the values of runs that know their recipe."""
    return {of(run) for run in side.runs if run.recipe_hash is not None or run in side.finished}


def _listed(values: set[Any]) -> str:
    texts = sorted("unknown" if v is None else shown(v, 140) for v in values)
    return ", ".join(texts[:4]) + (f" and {len(texts) - 4} more" if len(texts) > 4 else "")


def _changed(lhs: Side, rhs: Side, part: str) -> list[str]:
    """Return the fields in which the first finished runs' ``recipe`` or ``impl`` differ."""
    if not lhs.finished or not rhs.finished:
        return []
    left, right = (leaves(side.finished[0].config[part]) for side in (lhs, rhs))
    pairs = {
        key: [side.get(key, BEFORE.get(key)) for side in (left, right)]
        for key in sorted({*left, *right} - {"attention_mask"})  # it counts by its content
    }
    return [
        f"{shown(key, 40)} {shown(one, 40)} against {shown(other, 40)}"
        for key, (one, other) in pairs.items()
        if one != other
    ]


def leaves(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all values by their own names, those in groups included."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value) if isinstance(value, Mapping) and value else {key: value}
    return found


def notes(lhs: Side, rhs: Side) -> Iterator[str]:
    """Yield warnings and circumstances that do not forbid the comparison."""
    codes = [{run.code_hash for run in side.runs} for side in (lhs, rhs)]
    if len(codes[0] | codes[1]) > 1:
        yield f"warning: the code differs: {_listed(codes[0])} against {_listed(codes[1])}"
    left, right = ({identity(run.manifest) for run in side.runs} for side in (lhs, rhs))
    shared = left & right
    if shared:
        yield f"warning: {len(shared)} runs are on both sides"
    for side in (lhs, rhs):
        if dirty := sum(bool(run.manifest.get("dirty")) for run in side.runs):
            yield f"warning: {shown(side.label)}: {dirty} runs of code with uncommitted changes"
        seeds = {run.seed for run in side.finished}
        if len(seeds) < len(side.finished):
            told = f"{len(side.finished)} runs have {len(seeds)} different seeds"
            yield f"{shown(side.label)}: {told}: they say little of the quality's spread"
        resumed = sum(run.resumed for run in side.runs)
        if resumed:
            yield f"warning: {shown(side.label)}: {resumed} resumed runs: their times are partial"
        late = side.statuses.get("below_quality", 0)
        if late:
            yield f"{shown(side.label)}: {late} runs missed their target; their rates are shown"
        for damaged in side.damaged:
            yield f"left out: {shown(damaged.path)}: {shown(damaged.problem, 400)}"
    for name in SHARED:
        definitions = {r.metrics[name]["definition"] for r in lhs.finished + rhs.finished
                if name in r.metrics}  # fmt: skip
        if len(definitions) > 1:
            listed = " | ".join(sorted(map(shown, definitions)))
            yield f"warning: {name} has different definitions: {listed}"
    for name, of in _CIRCUMSTANCES.items():
        left, right = (_values(side, of) for side in (lhs, rhs))
        if left != right or len(left) > 1:
            yield f"{name}: {_listed(left)} against {_listed(right)}"
    if impl := _changed(lhs, rhs, "impl"):
        yield f"implementation: {'; '.join(impl[:8])}"
    sizes = len(lhs.finished), len(rhs.finished)
    if min(sizes) and statistics.smallest_p(*sizes) >= statistics.SIGNIFICANT:
        least = statistics.smallest_p(*sizes)
        yield (
            f"{sizes[0]} and {sizes[1]} runs cannot show a difference: their smallest possible p "
            f"is {least:.2g}. Make six a side: bertbench repeat 6"
        )
