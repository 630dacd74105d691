# SPDX-License-Identifier: Apache-2.0
"""``bertbench runs``: the records in results, one line a run."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertbench.common.cli.filters import PLACE, add_filters, load_runs, warn_of
from bertbench.common.cli.verbs import parser
from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.report import terminal
from bertbench.common.report.words import duration, human, number
from bertbench.common.results.store import Result

_RATES = ("sequences_per_second", "samples_per_second")
_HEADINGS = ("date", "UTC", "recipe", "device", "prec.", "status", "quality", "time, rate")
_DROPPED = (1, 4, 6, 3, 0)
"""Columns that a narrow terminal lacks, the first of these first."""


def main(argv: Sequence[str]) -> int:
    """List the runs, oldest first; raises BadInput where there is none, or none passes."""
    verb = parser("runs")
    verb.add_argument(
        "places", nargs="*", type=Path, metavar="PLACE",
        help=f"run folders, or folders of them (default: {PLACE})",
    )  # fmt: skip
    add_filters(verb)
    verb.add_argument("--paths", action="store_true", help="print the folders only, one a line")
    verb.add_argument("--csv", action="store_true", help="print a table of values for programs")
    given = verb.parse_args(argv)
    if given.paths + given.csv + given.json > 1:
        raise BadInput("--paths, --csv and --json are three outputs: give one of them")
    runs, damaged = load_runs(given, given.places)
    if damaged and not runs and not given.json:
        warn_of(damaged)
        return 1
    rows = [_values(run) for run in runs]
    if given.json:
        problems = [{"path": str(d.path), "problem": d.problem} for d in damaged]
        print(json.dumps({"runs": rows, "damaged": problems}, indent=1))
    elif given.csv:
        _print_csv(rows)
    elif given.paths:
        for run in runs:
            print(shown(run.path, 4096))
    else:
        print("\n".join(_lines(runs, terminal.columns())))
    if not given.json:
        warn_of(damaged)
    return 0


def _values(run: Result) -> dict[str, Any]:
    """Return a run's values for programs; unknown is None."""
    quality = run.quality or {}
    return {
        "run_id": run.run_id,
        "created_utc": run.created,
        "benchmark": run.benchmark,
        "recipe": run.preset,
        "system": run.system_name,
        "device": run.device_name,
        "devices": run.num_devices,
        "processes": run.world_size,
        "backend": run.backend,
        "precision": run.precision,
        "status": run.status,
        "seed": run.seed,
        "commit": run.manifest.get("commit"),
        "quality_metric": quality.get("metric"),
        "quality": quality.get("value"),
        "target": quality.get("target"),
        **{name: run.value(name) for name in ("time_to_target_s", *_RATES)},
        "path": str(run.path),
    }


def _print_csv(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of values; text from records is on one line."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(rows[0])
    for row in rows:
        out.writerow([shown(v, 4096) if isinstance(v, str) else v for v in row.values()])


def _lines(runs: Sequence[Result], columns: int) -> list[str]:
    """Return the table for people, and the number of runs, of which there are some."""
    rows = [_HEADINGS, *map(_cells, runs)]
    count = f"{len(runs)} run{'s' * (len(runs) != 1)}"
    return [*terminal.table(rows, columns, drop=_DROPPED, shrink=(3, 2)), count]


def _cells(run: Result) -> tuple[str, ...]:
    date, _, time = str(run.created).partition("T")
    device, count = run.device_name or run.system_name, run.num_devices
    quality = run.quality or {}
    reached = "" if quality.get("value") is None else number(float(quality["value"]))
    if reached and quality.get("target") is not None:
        reached += f"/{number(float(quality['target']))}"
    cells = (
        date, time[:5], run.preset, f"{count} x {device}" if count else device, run.precision,
        run.status, reached, _speed(run),
    )  # fmt: skip
    return tuple("" if cell is None else shown(cell, 60) for cell in cells)


def _speed(run: Result) -> str:
    """Return the time to the target, or else the rate."""
    if (seconds := run.value("time_to_target_s")) is not None:
        return duration(seconds)
    for name in _RATES:
        if (rate := run.metrics.get(name)) is not None:
            return human(float(rate["value"]), str(rate["unit"]))
    return ""
