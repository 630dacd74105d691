# SPDX-License-Identifier: Apache-2.0
"""The report's tables, and the values of its common plots, for programs: JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from bertbench.common.report.page import Report
from bertbench.common.report.plot import Plot
from bertbench.common.report.tables import Cell, Table

FOLDER, INDEX = "tables", "tables.json"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def table_files(report: Report) -> dict[str, str]:
    """Return the content of each file by its path: ``tables.json`` and ``tables/ID.csv``.

    The JSON has all tables and names the CSV file of each. A numeric column of a CSV file is two:
    the number (a time in seconds), and the text that the report shows, with its interval. A text
    that a spreadsheet would execute as a formula begins with an apostrophe there.
    """
    index, made = [], {}
    for section in report.sections:
        both: list[Table | Plot] = [*section.tables, *(p for p in section.plots if p.rows)]
        for one in both:
            content = _of_table(one) if isinstance(one, Table) else _of_plot(one)
            name = f"{FOLDER}/{one.id}.csv"
            index.append({"id": one.id, "section": section.title, "file": name, **content})
            made[name] = _csv(one)
    return {INDEX: json.dumps({"tables": index}, indent=1) + "\n", **made}


def _of_table(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "intro": table.intro,
        "columns": [c.name for c in table.columns],
        "rows": [{"kind": r.kind, "cells": list(map(_cell, r.cells))} for r in table.rows],
    }


def _cell(cell: Cell) -> dict[str, Any]:
    """Return what is known of a cell."""
    shown = {"text": cell.text, "number": cell.sort, "note": cell.note}
    return {name: value for name, value in shown.items() if value not in ("", None)}


def _of_plot(plot: Plot) -> dict[str, Any]:
    return {
        "title": plot.title,
        "intro": plot.desc,
        "columns": list(plot.columns),
        "rows": [{"cells": [{"text": text} if text else {} for text in r]} for r in plot.rows],
    }


def _csv(one: Table | Plot) -> str:
    out = io.StringIO()
    rows = _table_rows(one) if isinstance(one, Table) else [one.columns, *one.rows]
    csv.writer(out, lineterminator="\n").writerows([list(map(_harmless, r)) for r in rows])
    return out.getvalue()


def _table_rows(table: Table) -> list[Sequence[Any]]:
    head: list[Any] = ["Kind"]
    for c in table.columns:
        head += [c.name, f"{c.name}, as shown"] if c.numeric else [c.name]
    rows: list[Sequence[Any]] = [head]
    for r in table.rows:
        line: list[Any] = [r.kind]
        for c, cell in zip(table.columns, r.cells, strict=True):
            shown = f"{cell.text} ({cell.note})" if cell.note else cell.text
            line += [cell.sort, shown] if c.numeric else [shown]
        rows.append(line)
    return rows


def _harmless(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value.replace(",", ""))
    except ValueError:
        return f"'{value}"
    return value
