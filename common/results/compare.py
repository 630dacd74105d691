# SPDX-License-Identifier: Apache-2.0
"""Compare two groups of runs of one benchmark: ratios, intervals and significance.

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
from bertbench.common.results.comparable import Side, differences, notes

JUDGED = (
    "time_to_target_s", "sequences_per_second", "inference_sequences_per_second",
    "samples_per_second", "latency_p90_early_stopping_s", "latency_p99_early_stopping_s",
    *(f"latency_p{p}_s" for p in (50, 90, 99)),
)  # fmt: skip
"""Metrics that decide the exit code without --metric, besides stability and quality."""
STABILITY = "stability"
METHODS = {
    "runs": "each run is one value; runs that ended as ok or below_quality have metrics, all "
    "count in stability (ended as ok / made)",
    "ratio": "median of all quotients of a right and a left value (Hodges-Lehmann, logarithms)",
    "interval": "confidence interval of the ratio, at least 95 %, distribution-free (exact "
    "Mann-Whitney); it needs 6 runs a side, fewer are indicative",
    "p": "exact two-sided Mann-Whitney test of each metric; ~ is p >= 0.05: not significant",
}


@dataclass(frozen=True)
class Spread:
    """The values of one metric on one side."""

    median: float
    n: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric on both sides."""

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

    lhs: Side
    rhs: Side
    differences: list[str]
    """Reasons why the sides are not comparable; empty if they are."""
    notes: list[str]
    rows: list[MetricRow]
    threshold: float
    forced: bool

    @property
    def exit_code(self) -> int:
        """0 same or better, 1 a judged metric is significantly worse, 2 not comparable."""
        if self.differences and not self.forced:
            return 2
        if any(row.regression and row.judged for row in self.rows):
            return 1
        # Stability alone decides only if it alone was asked for.
        figures = [row for row in self.rows if row.name != STABILITY] or self.rows
        return 0 if any(row.judged and row.p is not None for row in figures) else 2

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        refused = bool(self.differences) and not self.forced
        return {
            **{
                name: {
                    "label": side.label,
                    "runs": [run.run_id for run in side.runs],
                    "statuses": side.statuses,
                    "damaged": [{"path": str(d.path), "problem": d.problem} for d in side.damaged],
                }
                for name, side in (("lhs", self.lhs), ("rhs", self.rhs))
            },
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
    lhs: Side,
    rhs: Side,
    *,
    metrics: Sequence[str] = (),
    threshold: float = 1.0,
    force: bool = False,
) -> Comparison:
    """Compare ``rhs`` with the baseline ``lhs``; ``threshold`` is in percent.

    ``metrics`` are shown and judged; default: show all, judge JUDGED. Raises BadInput for a side
    without runs, or an unknown metric.
    """
    for side in (lhs, rhs):
        if not side.made:
            going = " that has ended" if side.runs else ""
            raise BadInput(f"{shown(side.label)}: no run{going}{_damage(side)}")
    names = {name: None for side in (lhs, rhs) for run in side.finished for name in run.metrics}
    quality = {run.quality["metric"] for run in lhs.finished + rhs.finished
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
    rows = [_stability(lhs, rhs) if n == STABILITY else _row(n, lhs, rhs) for n in wanted]
    return Comparison(
        lhs=lhs,
        rhs=rhs,
        differences=differences(lhs, rhs),
        notes=list(notes(lhs, rhs)),
        rows=[_judge(row, threshold, row.name in judged) for row in rows],
        threshold=threshold,
        forced=force,
    )


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


_HEADINGS: tuple[str, ...] = (
    *("metric", "unit", "lhs: median (n, min-max)", "rhs: median (n, min-max)"),
    *("rhs/lhs", "95 %", "p", ""),
)


def render(found: Comparison) -> str:
    """Return the comparison for people, in ASCII."""
    lines = [found.lhs.summary(), found.rhs.summary()]
    if found.differences:
        head = "NOT THE SAME BENCHMARK" if found.forced else "not comparable"
        lines += [f"{head}:", *(f"  {text}" for text in found.differences)]
        if not found.forced:
            return "\n".join([*lines, "--force compares them, and lists the differences"])
    lines += [*found.notes, ""]
    table = [_HEADINGS, *map(_cells, found.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        lines.append("  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip())
    lines += ["", *(f"{name}: {text}" for name, text in METHODS.items()), _conclusion(found)]
    return "\n".join(lines)


def _cells(row: MetricRow) -> tuple[str, ...]:
    if row.p is None:
        interval = ""
    elif row.interval is None:
        interval = "indicative" if row.name != STABILITY else ""
    else:
        interval = f"[{row.interval.low:.4g}, {row.interval.high:.4g}]"
    number = "-" if row.ratio is None else f"{row.ratio:.4g}"
    verdict = f"{row.verdict} (regression)" if row.regression and row.judged else row.verdict
    return (
        shown(row.name, 40), shown(row.unit, 20), _values(row, row.lhs), _values(row, row.rhs),
        f"~ {number}" if row.verdict == "~" else number, interval,
        "-" if row.p is None else f"{row.p:.2g}", "" if verdict == "~" else verdict,
    )  # fmt: skip


def _values(row: MetricRow, spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if row.name == STABILITY:
        return f"{round(spread.median * spread.n)}/{spread.n}"
    if spread.n == 1:
        return f"{spread.median:.5g} (n=1)"
    return f"{spread.median:.5g} (n={spread.n}, {spread.low:.5g}-{spread.high:.5g})"


def _conclusion(found: Comparison) -> str:
    worse = [row for row in found.rows if row.regression and row.judged]
    if worse:
        listed = ", ".join(shown(row.name) for row in worse)
        return f"worse by more than {found.threshold:g} % and significant: {listed}"
    if found.exit_code == 2:
        return "no judged metric was measured on both sides"
    limit = f"{found.threshold:g} %"
    return f"same or better: no judged metric is significantly worse by more than {limit}"
