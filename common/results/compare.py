# SPDX-License-Identifier: Apache-2.0
"""Compare groups of runs of one benchmark with the first: ratios, intervals, significance.

Runs of different benchmarks, recipes or data are refused, with their differences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.results import statistics
from bertbench.common.results.comparable import GROUPED, Side, differences, notes

JUDGED = (
    "time_to_target_s", "sequences_per_second", "inference_sequences_per_second",
    "samples_per_second", "latency_p90_early_stopping_s", "latency_p99_early_stopping_s",
    *(f"latency_p{p}_s" for p in (50, 90, 99)),
)  # fmt: skip
"""Metrics that decide the exit code without --metric, besides stability and quality."""
STABILITY = "stability"
METHODS = {
    "groups": "each group is compared with the first, the baseline; p is not corrected for their "
    "number",
    "runs": "each run is one value; runs that ended as ok or below_quality have metrics, all "
    "count in stability (ended as ok / made)",
    "ratio": "median of all quotients of a value of the group and one of the baseline "
    "(Hodges-Lehmann, logarithms)",
    "interval": "confidence interval of the ratio, at least 95 %, distribution-free (exact "
    "Mann-Whitney); it needs 6 runs a side, fewer are indicative",
    "p": "exact two-sided Mann-Whitney test of each metric; ~ is p >= 0.05: not significant",
}


@dataclass(frozen=True)
class Spread:
    """The values of one metric in one group."""

    median: float
    n: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric of the baseline and of one other group."""

    group: int = 1
    """The other group's place in ``Comparison.groups``."""
    name: str
    unit: str
    direction: str
    lhs: Spread | None
    rhs: Spread | None
    ratio: float | None = None
    """rhs / lhs; None where a value is not positive, or a side has none."""
    interval: statistics.Interval | None = None
    p: float | None = None
    verdict: str = ""
    """better, worse, differs (the metric has no better direction), or ~ (not significant)."""
    judged: bool = False
    """Whether the exit code depends on it."""
    regression: bool = False
    """Significantly worse, beyond the threshold."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of ``compare``."""

    groups: list[Side]
    """The baseline, then the others."""
    differences: list[str]
    """Reasons why the groups are not comparable; empty if they are."""
    notes: list[str]
    rows: list[MetricRow]
    threshold: float
    forced: bool
    across: tuple[str, ...] = ()
    """The fields whose differences are compared."""

    @property
    def lhs(self) -> Side:
        """The baseline."""
        return self.groups[0]

    @property
    def rhs(self) -> Side:
        """The first group that is compared with it."""
        return self.groups[1]

    @property
    def exit_code(self) -> int:
        """0 same or better, 1 a judged metric of any group is significantly worse.

        2: not comparable, or a group without a judged metric that the baseline has, too.
        """
        if self.differences and not self.forced:
            return 2
        if any(row.regression and row.judged for row in self.rows):
            return 1
        return 0 if all(map(self._is_judged, range(1, len(self.groups)))) else 2

    def _is_judged(self, group: int) -> bool:
        """Return whether a judged metric was measured in the group and in the baseline."""
        own = [row for row in self.rows if row.group == group]
        # Stability alone decides only if it alone was asked for.
        figures = [row for row in own if row.name != STABILITY] or own
        return any(row.judged and row.p is not None for row in figures)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        refused = bool(self.differences) and not self.forced
        groups = [
            {
                "label": side.label,
                "runs": [run.run_id for run in side.runs],
                "statuses": side.statuses,
                "damaged": [{"path": str(d.path), "problem": d.problem} for d in side.damaged],
            }
            for side in self.groups
        ]
        return {
            "groups": groups,
            "lhs": groups[0],
            "rhs": groups[1],
            "across": list(self.across),
            "comparable": not self.differences,
            "forced": self.forced,
            "differences": self.differences,
            "notes": self.notes,
            "threshold_percent": self.threshold,
            "rows": [] if refused else [dataclasses.asdict(row) for row in self.rows],
            "methods": METHODS,
            "exit_code": self.exit_code,
        }


def compare(
    *groups: Side,
    metrics: Sequence[str] = (),
    threshold: float = 1.0,
    force: bool = False,
    across: Sequence[str] = (),
) -> Comparison:
    """Compare each other group with the first, the baseline; ``threshold`` is in percent.

    ``metrics`` are shown and judged; default: show all, judge JUDGED. ``across`` names the fields
    (comparable.GROUPED) whose differences are compared. Raises BadInput for fewer than two groups,
    one without runs, and an unknown metric or field.
    """
    _check(groups, across)
    finished = [run for side in groups for run in side.finished]
    names = {name: None for run in finished for name in run.metrics}
    quality = {run.quality["metric"] for run in finished
               if run.quality and isinstance(run.quality.get("metric"), str)}  # fmt: skip
    unknown = [name for name in metrics if name not in names and name != STABILITY]
    if unknown:
        there = ", ".join((STABILITY, *map(shown, names)))
        raise BadInput(f"no run has the metric {unknown[0]!r}; choose from: {there}")
    wanted = list(metrics) or [
        STABILITY,
        *sorted(names, key=lambda n: n not in (*JUDGED, *quality)),
    ]
    judged = set(metrics) or {STABILITY, *JUDGED, *quality}
    return Comparison(
        groups=list(groups),
        differences=differences(*groups, across=across),
        notes=list(notes(*groups)),
        rows=[
            dataclasses.replace(row, group=i)
            for name in wanted
            for i, side in enumerate(groups[1:], 1)
            if name == STABILITY
            or any(name in r.metrics for r in groups[0].finished + side.finished)
            for row in [compare_metric(name, groups[0], side, threshold, judged=name in judged)]
        ],
        threshold=threshold,
        forced=force,
        across=tuple(across),
    )


def _check(groups: Sequence[Side], across: Sequence[str]) -> None:
    """Raise BadInput unless there are groups with ended runs, and the fields are known."""
    if len(groups) < 2:
        one = f"; there is only {shown(groups[0].label)}" if groups else ""
        raise BadInput(f"a comparison needs a baseline and another group{one}")
    for side in groups:
        if not side.made:
            going = " that has ended" if side.runs else ""
            raise BadInput(f"{shown(side.label)}: no run{going}{_damage(side)}")
    for name in across:
        if name not in GROUPED:
            raise BadInput(f"across {shown(name)!r}: choose from {', '.join(GROUPED)}")


def compare_metric(
    name: str, lhs: Side, rhs: Side, threshold: float = 1.0, *, judged: bool = True
) -> MetricRow:
    """Return one metric of ``rhs`` beside that of ``lhs``, with its verdict.

    A regression exceeds ``threshold`` percent.
    """
    row = _stability(lhs, rhs) if name == STABILITY else _row(name, lhs, rhs)
    return _judge(row, threshold, judged)


def _damage(side: Side) -> str:
    if not side.damaged:
        return " there: give a run folder, a folder of runs, or a pattern in quotes"
    first = side.damaged[0]
    return f" that can be read ({len(side.damaged)} damaged; {shown(first.path)}: {first.problem})"


def _row(name: str, lhs: Side, rhs: Side) -> MetricRow:
    sides = [[run for run in side.finished if name in run.metrics] for side in (lhs, rhs)]
    entries = [run.metrics[name] for runs in sides for run in runs]
    units = {entry["unit"] for entry in entries}
    left, right = ([float(run.metrics[name]["value"]) for run in runs] for runs in sides)
    row = MetricRow(
        name=name,
        unit=" | ".join(sorted(units)),
        direction=entries[0]["direction"],
        lhs=_spread(left),
        rhs=_spread(right),
    )
    if not left or not right or len(units) > 1:
        return row
    found = statistics.ratio(left, right)
    return dataclasses.replace(
        row,
        ratio=found.estimate if found else None,
        interval=found.interval if found else None,
        p=statistics.mann_whitney(left, right),
    )


def _stability(lhs: Side, rhs: Side) -> MetricRow:
    """Return the shares of runs that ended as ok, tested with 1 for ok and 0 for others."""
    left, right = ([float(run.status == "ok") for run in side.made] for side in (lhs, rhs))
    shares = [sum(side) / len(side) for side in (left, right)]
    lows, highs = zip(*((min(side), max(side)) for side in (left, right)), strict=True)
    return MetricRow(
        name=STABILITY,
        unit="ok/made",
        direction="higher",
        lhs=Spread(shares[0], len(left), lows[0], highs[0]),
        rhs=Spread(shares[1], len(right), lows[1], highs[1]),
        ratio=shares[1] / shares[0] if all(shares) else None,
        p=statistics.mann_whitney(left, right),
    )


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    return Spread(statistics.median(values), len(values), min(values), max(values))


def _judge(row: MetricRow, threshold: float, judged: bool) -> MetricRow:
    """Return the row with its verdict; a regression exceeds ``threshold`` percent."""
    row = dataclasses.replace(row, judged=judged)
    if row.p is None or row.lhs is None or row.rhs is None:
        return row
    change = row.ratio - 1 if row.ratio is not None else _change(row.lhs.median, row.rhs.median)
    if row.p >= statistics.SIGNIFICANT or change == 0:
        return dataclasses.replace(row, verdict="~")
    if row.direction not in ("higher", "lower"):
        return dataclasses.replace(row, verdict="differs")
    worse = (change < 0) == (row.direction == "higher")
    # A rounding error does not exceed the threshold.
    beyond = abs(change) * 100 > threshold * (1 + 1e-12)
    return dataclasses.replace(
        row, verdict="worse" if worse else "better", regression=worse and beyond
    )


def _change(left: float, right: float) -> float:
    """Return the change relative to ``left``; from 0 it is infinite."""
    if left == right:
        return 0.0
    return (right - left) / abs(left) if left else (1e308 if right > 0 else -1e308)
