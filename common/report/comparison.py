# SPDX-License-Identifier: Apache-2.0
"""A comparison of groups of runs for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from string import ascii_uppercase

from bertbench.common.files import shown
from bertbench.common.report import terminal
from bertbench.common.report.words import human, number
from bertbench.common.results.compare import METHODS, STABILITY, Comparison, MetricRow, Spread

_HEADINGS = ("", "median", "ratio", "95 %", "p", "", "n, range")
_DROPPED = (6, 4, 3)
"""Columns that a narrow terminal lacks, the first of these first."""


def render(found: Comparison, columns: int | None = None) -> str:
    """Return the comparison for people, in lines of at most ``columns`` (default: the terminal's).

    A word that is longer, as a path, stays whole.
    """
    columns = columns or terminal.columns()
    heads = [f"{_letter(i)}  {side.summary()}" for i, side in enumerate(found.groups)]
    lines = [terminal.wrapped(f"{text}{' (baseline)' * (i == 0)}", columns)
             for i, text in enumerate(heads)]  # fmt: skip
    if found.differences:
        lines.append("NOT THE SAME BENCHMARK:" if found.forced else "not comparable:")
        lines += [terminal.wrapped(text, columns, "  ") for text in found.differences]
        if not found.forced:
            advice = (
                "--across FIELD compares a difference in precision, processes, ...; filters leave "
                "runs out; --force compares all the same, and lists the differences"
            )
            return "\n".join([*lines, terminal.wrapped(advice, columns)])
    if found.across:
        lines.append(f"compared across {', '.join(found.across)}")
    lines += [terminal.wrapped(text, columns) for text in found.notes]
    lines += ["", *_table(found, columns), ""]
    lines += [terminal.wrapped(f"{name}: {text}", columns) for name, text in METHODS.items()]
    return "\n".join([*lines, terminal.wrapped(_conclusion(found), columns)])


def _letter(group: int) -> str:
    """Return a group's name in the table: A for the baseline, AA after Z."""
    more, last = divmod(group, 26)
    return (ascii_uppercase[more - 1] if more else "") + ascii_uppercase[last]


def _table(found: Comparison, columns: int) -> Iterator[str]:
    """Yield for each metric a line with its name and the baseline, then one for each group."""
    cells = [(f"  {_letter(row.group)}", *_cells(row), _range(row, row.rhs)) for row in found.rows]
    headings, *lines = terminal.table([_HEADINGS, *cells], columns, drop=_DROPPED, shrink=())
    yield headings
    name = None
    for row, line in zip(found.rows, lines, strict=True):
        if row.name != name:
            name = row.name
            head = f"{shown(name, 40)}  {_letter(0)} {_median(row, row.lhs)}"
            full = f"{head} ({_range(row, row.lhs)})"
            yield full if _range(row, row.lhs) and len(full) <= columns else head
        yield line


def _cells(row: MetricRow) -> tuple[str, ...]:
    """Return the median of the group, its ratio, interval, p and verdict."""
    interval = ""
    if row.interval is not None:
        interval = f"{number(row.interval.low)}-{number(row.interval.high)}"
    elif row.p is not None and row.name != STABILITY:
        interval = "indicative"
    ratio = "-" if row.ratio is None else number(row.ratio)
    verdict = "regression" if row.regression and row.judged else row.verdict
    return (
        _median(row, row.rhs), f"~ {ratio}" if row.verdict == "~" else ratio, interval,
        "-" if row.p is None else f"{row.p:.2g}", "" if verdict == "~" else verdict,
    )  # fmt: skip


def _median(row: MetricRow, spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if row.name == STABILITY:
        return f"{round(spread.median * spread.n)}/{spread.n}"
    return shown(human(spread.median, row.unit), 24)


def _range(row: MetricRow, spread: Spread | None) -> str:
    if spread is None or row.name == STABILITY:
        return ""
    ends = f", {human(spread.low, row.unit)} to {human(spread.high, row.unit)}"
    return shown(f"n={spread.n}{ends * (spread.n > 1)}", 60)


def _conclusion(found: Comparison) -> str:
    worse = [row for row in found.rows if row.regression and row.judged]
    if worse:
        several = len(found.groups) > 2
        listed = ", ".join(shown(row.name) + f" ({_letter(row.group)})" * several for row in worse)
        return f"worse by more than {found.threshold:g} % and significant: {listed}"
    if found.exit_code == 2:
        return "no judged metric was measured in each group"
    limit = f"{found.threshold:g} %"
    return f"same or better: no judged metric is significantly worse by more than {limit}"
