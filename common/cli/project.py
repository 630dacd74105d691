# SPDX-License-Identifier: Apache-2.0
"""``bertbench project``: from a measured system to more devices; the model's errors beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bertbench.common.cli.scale import device_numbers
from bertbench.common.cli.verbs import parser
from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.report.words import number
from bertbench.common.results.projection import (
    LABEL,
    Base,
    Network,
    Projected,
    base_of,
    fit,
    project,
    published_systems,
)
from bertbench.common.results.projection_errors import (
    LeftOut,
    alike,
    error_table,
    errors,
    interval,
    leave_out,
)
from bertbench.common.results.projection_input import (
    ALL,
    LINKS,
    NetworkFlags,
    choose_network,
    find_system,
    record_base,
)
from bertbench.common.results.store import load_results

DEFINITIONS = {
    "samples": "sequences to MLPerf's target at this global batch, as published systems needed",
    "step_s": "compute_s + fixed_s + exposed_s + evaluation_s",
    "compute_s": "seconds a sequence of the smaller system x batch of a device",
    "fixed_s": "work of a step that does not shrink with the batch, fitted to published systems",
    "exposed_s": "communication and imbalance that computation does not hide",
    "evaluation_s": "evaluations, by the trained sequences; null: see base.evaluations",
    "sequences_per_second": "global_batch / step_s, evaluations included",
    "time_s": "samples / sequences_per_second",
    "low_s": "the middle 80 % of the left-out systems of this ratio of sizes: low_s to high_s",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the projection, or the model's errors; raises BadInput or Unsupported."""
    verb = parser("project", epilog="Exit code: 0 projected, 2 refused. docs/projection.md: model")
    source = verb.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--from", nargs="+", type=Path, dest="records", metavar="RECORD",
        help="records of one recipe, or folders of them; the fewest devices are the base",
    )  # fmt: skip
    source.add_argument(
        "--from_published", metavar="SYSTEM",
        help="a system of MLPerf Training's BERT, by NAME or ROUND/NAME",
    )  # fmt: skip
    source.add_argument(
        "--errors", action="store_true", help="only the errors on left-out published systems"
    )
    verb.add_argument(
        "--devices", default="8,64,512,4096", metavar="N,N", help="numbers of devices"
    )
    verb.add_argument(
        "--global_batch", type=int, metavar="B", help="default: the largest published of that size"
    )
    verb.add_argument(
        "--network", metavar="NAME",
        help=f"{', '.join(LINKS)}; or as a submitter's published systems, or all ({ALL})",
    )  # fmt: skip
    for name, unit, text in (
        ("--bandwidth_gb_s", "GB/S", "the all-reduce's bus bandwidth"),
        ("--latency_us", "US", "latency of an all-reduce for each doubling of the devices"),
        ("--hidden", "SHARE", "share of the all-reduce that computation hides, 0 to 1"),
    ):
        verb.add_argument(name, type=float, metavar=unit, help=text)
    given = verb.parse_args(argv)
    if given.errors:
        found = list(error_table())
        print(json.dumps({"kind": "projection_errors", "rows": found}, indent=1) if given.json
              else render_errors(found))  # fmt: skip
        return 0
    flags, sizes = _flags(given), device_numbers(given.devices)
    systems = published_systems()
    model = fit(systems)
    if given.records:
        base, known = _records(given.records)
        by = "submitter"  # no other system of this network is published
    else:
        system = find_system(systems, given.from_published)
        base, known, by = base_of(system), model.network(system.submitter, system.device), "family"
    network = choose_network(flags, model, base, known)
    left_out = leave_out(by, given.global_batch is not None)
    rows = []
    for devices in sizes:
        row = project(base, devices, model, network, given.global_batch)
        rows.append(_with_interval(row, base, left_out))
    made = _document(base, network, rows, {"left_out_by": by, **errors(left_out)})
    print(json.dumps(made, indent=1) if given.json else render(made))
    return 0


def _flags(given: Any) -> NetworkFlags:
    for name, value, most in (
        ("bandwidth_gb_s", given.bandwidth_gb_s, 1e6),
        ("latency_us", given.latency_us, 1e6),
        ("hidden", given.hidden, 1.0),
    ):
        least = 1e-6 if name == "bandwidth_gb_s" else 0.0
        if value is not None and not least <= value <= most:
            raise BadInput(f"--{name} {value:g}: give a number from {least:g} to {most:g}")
    return NetworkFlags(given.network, given.bandwidth_gb_s, given.latency_us, given.hidden)


def _records(paths: Sequence[Path]) -> tuple[Base, Network | None]:
    runs, damaged = load_results(paths, references=False)
    if damaged:
        raise BadInput(f"{shown(damaged[0].path)}: {shown(damaged[0].problem)}; leave it out")
    if not runs:
        raise BadInput(f"--from {shown(paths[0])}: no record there; give a run's folder")
    return record_base(runs)


def _with_interval(row: Projected, base: Base, left_out: Sequence[LeftOut]) -> Projected:
    if row.time_s is None:
        return row
    near = alike(left_out, row.devices / base.devices)
    low, high = interval(row.time_s, near)
    values = {"low_s": low, "high_s": high, "left_out_systems": len(near)}
    return Projected(**asdict(row) | values)


def _document(
    base: Base, network: Network, rows: Sequence[Projected], errors: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of the JSON."""
    link = {k: v if math.isfinite(v) else None for k, v in asdict(network).items()
            if isinstance(v, float)}  # fmt: skip
    return {
        "schema_version": 1,
        "kind": "projection",
        "label": LABEL,
        "base": asdict(base),
        "network": {"label": network.label, **link},
        "modelled": [asdict(row) for row in rows],
        "errors": errors,
        "definitions": DEFINITIONS,
    }


def render(made: dict[str, Any]) -> str:
    """Return the table for people: each head that is modelled says so."""
    head = ("devices", "batch", "~samples", "~steps", "~s/step", "~compute", "~fixed", "~exposed",
            "~evaluation", "~sequences/s", "~minutes", "80 % of left-out")  # fmt: skip
    table = [head, *map(_cells, made["modelled"])]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    base, found = made["base"], made["errors"]
    lines = [
        f"PROJECTION, {LABEL} (~)",
        f"from     {base['label']}: {base['devices']} device{'s' * (base['devices'] != 1)}, "
        f"batch {base['batch']}, {base['step_s']:.4g} s/step",
        f"network  {made['network']['label']}",
        "",
        *("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in table),
        "",
    ]
    if base["no_time"]:
        lines.append(f"no time to target: {base['no_time']}. Batch per device and seconds a "
                     f"sequence are kept.")  # fmt: skip
    else:
        lines.append(
            f"The model's error in time on {found['systems']} published systems, each from the "
            f"smallest of its family, the {found['left_out_by']} left out: median "
            f"{found['median']:.1%}, worst {found['worst']:.1%}, {found['within_10_percent']:.0%} "
            f"within 10 %."
        )
    lines.append(f"Evaluations: {base['evaluations']}.")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    time_s = row["time_s"]
    between = "-"
    if time_s is not None:
        between = f"{row['low_s'] / 60:.3g} to {row['high_s'] / 60:.3g} ({row['left_out_systems']})"
    return (
        str(row["devices"]),
        f"{row['global_batch']:,}",
        *("-" if row[k] is None else f"{row[k]:,.0f}" for k in ("samples", "steps")),
        *("-" if row[k] is None else f"{row[k]:.3g}" for k in (
            "step_s", "compute_s", "fixed_s", "exposed_s", "evaluation_s")),
        number(row["sequences_per_second"]),
        "-" if time_s is None else f"{time_s / 60:.3g}",
        between,
    )  # fmt: skip


def render_errors(found: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table of docs/projection.md."""
    lines = [
        "| left out | batch | devices / smallest | systems | time: median, worst | within 10 % | "
        "samples: median, worst | rate: median, worst |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in found:
        low, high = row["ratio_above"], row["ratio_to"]
        ratio = "all" if (low, high) == (1, None) else f"above {low}"
        if high is not None:
            ratio = f"{low} to {high}"
        time, samples, rate = (
            f"{row[k]['median']:.1%}, {row[k]['worst']:.1%}" if k in row else ""
            for k in ("time", "samples", "rate")
        )
        lines.append(
            f"| {row['left_out_by']} | {row['batch']} | {ratio} | {row['time']['systems']} | "
            f"{time} | {row['time']['within_10_percent']:.0%} | {samples} | {rate} |"
        )
    return "\n".join(lines)
