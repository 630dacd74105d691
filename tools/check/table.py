# SPDX-License-Identifier: Apache-2.0
"""Render all figures as Markdown that is readable as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from check.figure import Figure, Outcome

NO_MEASUREMENTS = (
    "THE FIGURES BELOW ARE NOT MEASUREMENTS: --tiny runs small shapes to test the tool itself."
)
SIMULATED = "THE FIGURES BELOW ARE NOT MEASUREMENTS: the device is simulated."
NOT_MEASURED = "not measured"
RATE = ": sequences per second"
OVER_PEER = (": ours over Hugging Face, step", ": ours over Hugging Face, step, full length")


def render(result: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Return sections, figures, definitions and facts as text.

    ``result`` is the heading of result.json: its keys ``tiny``, ``simulated``, ``backend``,
    ``started_utc`` and ``software`` are shown.
    """
    lines = []
    if result["tiny"]:
        lines += [NO_MEASUREMENTS, ""]
    if result["simulated"]:
        lines += [SIMULATED, ""]
    software = ", ".join(f"{k} {v}" for k, v in result["software"].items() if v is not None)
    lines += [f"# Device check of {result['backend']}", ""]
    lines += [f"Started {result['started_utc']}; {software}.", "", "## Sections", ""]
    lines += _aligned(
        ("section", "status", "seconds", "expected s", "reason"),
        [
            (
                o.name,
                o.status,
                "" if o.seconds is None else f"{o.seconds:.1f}",
                f"{o.expected_s:.0f}",
                o.reason,
            )
            for o in outcomes
        ],
        right=(2, 3),
    )
    lines += summary(outcomes)
    definitions: dict[str, int] = {}
    rows = []
    for figure in (f for o in outcomes for f in o.figures):
        number = definitions.setdefault(figure.definition, len(definitions) + 1)
        shown = value_text(figure)
        rows.append((figure.section, figure.name, shown, figure.unit, str(number), figure.note))
    if rows:
        lines += [
            "",
            "## Figures",
            "",
            'The column "def" is the number of the definition below.',
            "",
        ]
        lines += _aligned(("section", "figure", "value", "unit", "def", "note"), rows, right=(2, 4))
        lines += ["", "## Definitions", ""]
        lines += [f"{number}. {text}" for text, number in definitions.items()]
    facts = [(f.section, f.name, f.text) for o in outcomes for f in o.facts]
    if facts:
        lines += ["", "## Facts", ""]
        lines += _aligned(("section", "fact", "text"), facts)
    return "\n".join(lines) + "\n"


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the most important of the figures, without a new one; empty if there are none."""
    found = [f for o in outcomes for f in o.figures]

    def value(section: str, start: str, end: str = "") -> str:
        """Return the values of the figures whose names begin and end so."""
        same = [f for f in found if f.section == section and f.name.startswith(start)]
        return " / ".join(value_text(f) for f in same if f.name.endswith(end)) or NOT_MEASURED

    runs = []
    for section, name in ((f.section, f.name) for f in found if f.name.endswith(RATE)):
        label = name.removesuffix(RATE)
        peaks = [f for f in found if f.section == section and f.name.startswith(f"{label}: mfu")]
        mfu = " / ".join(value_text(f) for f in peaks if not f.name.endswith(" calibrated"))
        memory, power = (value(section, f"{label}: {what}") for what in ("peak memory", "power"))
        rate = value(section, name, RATE)
        runs.append((section, label, rate, mfu or NOT_MEASURED, memory, power))
    heading = ("section", "run", "sequences/s", "MFU", "peak memory GiB", "power W")
    table = _aligned(heading, runs, right=(2, 3, 4)) if runs else []
    words = []
    for section, text, parts in (
        ("anatomy", "kernels of a step: {}; device busy share: {}", (": kernels", " busy share")),
        ("contract", "passed: {}; failed: {}; skipped: {}", ("passed", "failed", "skipped")),
        ("hugging_face", "ours over Hugging Face: {}; at full length: {}", OVER_PEER),
    ):
        if any(f.section == section for f in found):
            words.append(f"- {section}: {text.format(*(value(section, '', p) for p in parts))}")
    lines = [*table, *([""] if table and words else ()), *words]
    return ["", "## Summary", "", *lines] if lines else []


def value_text(figure: Figure) -> str:
    """Format a figure's value."""
    return NOT_MEASURED if figure.value is None else number_text(figure.value)


def number_text(value: float) -> str:
    """Format with four significant digits; as whole numbers from 1,000 on."""
    if value == 0:
        return "0"
    if 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _aligned(
    heading: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> list[str]:
    """Return the lines of a Markdown table; all columns but the last are padded."""
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(heading), *cells]) for i in range(len(heading))]
    widths[-1] = len(heading[-1])

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * (w - 1)}:" if i in right else "-" * w for i, w in enumerate(widths)]
    return [line(heading), line(rule), *map(line, cells)]
