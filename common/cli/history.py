# SPDX-License-Identifier: Apache-2.0
"""``bertbench history``: speed, time and quality of each configuration from commit to commit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bertbench.common.cli.filters import PLACE, add_filters, load_runs, warn_of
from bertbench.common.cli.verbs import parser
from bertbench.common.files import shown
from bertbench.common.report import terminal
from bertbench.common.report.history import History, Point, histories
from bertbench.common.report.words import human

_HEADINGS = ("", "date", "commit", "runs", "median", "95 % or range", "change", "p", "")
_DROPPED = (1, 7, 3, 5)
"""Columns that a narrow terminal lacks, the first of these first."""
_NOTE = (
    "median over finished runs; 95 %: distribution-free interval of the median (from 6 runs, else "
    "the range); change: against the commit before, ~ is not significant (exact Mann-Whitney, "
    "p >= 0.05); + after a commit: uncommitted changes"
)


def main(argv: Sequence[str]) -> int:
    """Print the configurations that ran on two commits or more; raises BadInput without records."""
    verb = parser("history")
    verb.add_argument(
        "places", nargs="*", type=Path, metavar="PLACE",
        help=f"run folders, or folders of them (default: {PLACE})",
    )  # fmt: skip
    add_filters(verb)
    given = verb.parse_args(argv)
    runs, damaged = load_runs(given, given.places)
    warn_of(damaged)
    every = histories(runs)
    changed = [one for one in every if len(one.versions) > 1]
    if given.json:
        print(json.dumps({"histories": [_values(one) for one in changed], "single": len(every) -
                          len(changed)}, indent=1))  # fmt: skip
        return 0
    columns = terminal.columns()
    for one in changed:
        print("\n".join([shown(one.title, 400), *_lines(one, columns), ""]))
    if changed:
        print(terminal.wrapped(_NOTE, columns))
    single = len(every) - len(changed)
    print(f"{len(changed)} configurations ran on several commits, {single} on one")
    return 0


def _values(one: History) -> dict[str, Any]:
    """Return a configuration's values for programs."""
    return {
        "title": one.title,
        "benchmark": one.first.benchmark,
        "recipe": one.first.preset,
        "recipe_hash": one.first.recipe_hash,
        "metrics": [
            {"name": name, "unit": points[0].unit, "commits": [p.as_dict() for p in points]}
            for name in one.metrics
            if (points := one.points(name))
        ],
    }


def _lines(one: History, columns: int) -> Iterator[str]:
    """Yield for each metric its name and a line for each commit."""
    points = {name: found for name in one.metrics if (found := one.points(name))}
    cells = [_cells(point) for found in points.values() for point in found]
    headings, *lines = terminal.table([_HEADINGS, *cells], columns, drop=_DROPPED, shrink=())
    yield headings
    for name, found in points.items():
        yield f"  {shown(name, 40)}"
        for _ in found:
            yield lines.pop(0)


def _cells(point: Point) -> tuple[str, ...]:
    low, high = point.interval[:2] if point.interval else (min(point.values), max(point.values))
    ends = f"{human(low, point.unit)} to {human(high, point.unit)}"
    return (
        "  ", point.version.date, point.version.name, str(len(point.values)),
        human(point.median, point.unit), ends if len(point.values) > 1 else "", _change(point),
        "" if point.p is None else f"{point.p:.2g}", point.verdict.replace("~", ""),
    )  # fmt: skip


def _change(point: Point) -> str:
    if point.p is None:
        return ""
    text = "-" if point.ratio is None else f"{100 * (point.ratio - 1):+.3g} %"
    return f"~ {text}" if point.verdict == "~" else text
