# SPDX-License-Identifier: Apache-2.0
"""Render all figures as Markdown that is readable as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from check.figure import Outcome

NO_MEASUREMENTS = (
    "THE FIGURES BELOW ARE NOT MEASUREMENTS: --tiny runs small shapes to test the tool itself."
)
SIMULATED = "THE FIGURES BELOW ARE NOT MEASUREMENTS: the device is simulated."
NOT_MEASURED = "not measured"


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
    definitions: dict[str, int] = {}
    rows = []
    for figure in (f for o in outcomes for f in o.figures):
        number = definitions.setdefault(figure.definition, len(definitions) + 1)
        shown = NOT_MEASURED if figure.value is None else number_text(figure.value)
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
