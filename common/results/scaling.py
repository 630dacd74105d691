# SPDX-License-Identifier: Apache-2.0
"""Scaling of throughput with devices: the arithmetic, its definitions and its table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from bertbench.common.files import shown
from bertbench.common.measure.metric import SHARED
from bertbench.common.results.comparable import FINISHED
from bertbench.common.results.statistics import ENOUGH, median
from bertbench.common.results.store import Result

RATE = "sequences_per_second"
DEFINITIONS = {
    "weak": "the same sequences per device: the global batch grows with the devices",
    "strong": "the same global batch, shared by the devices",
    RATE: SHARED[RATE].definition,
    "efficiency": "rate(N) / (N x rate(1)); same recipe per device, precision and kernels",
    "step_s": "global batch / sequences_per_second",
    "gradient_all_reduce_s": SHARED["gradient_all_reduce_s"].definition,
    "gradient_all_reduce_bytes": SHARED["gradient_all_reduce_bytes"].definition,
    "hidden": "1 - beyond_s / gradient_all_reduce_s, in weak scaling: the share of the all-reduce "
    "that a step's computation hides, at least, since imbalance counts as not hidden",
    "beyond_s": {
        "weak": "step_s(N) - step_s(1): the cost of communication and imbalance per step",
        "strong": "step_s(N) - step_s(1) / N: the cost per step of communication, imbalance and "
        "the smaller share of each device",
    },
}
HOST_NOTE = "processes share the host's processors: this tests the path, not the scaling"

MOST_EFFICIENT = 1.05
NOT_CREDIBLE = (
    "an efficiency above 1.05 is not credible: the run on one device was slowed down, by other "
    "work on the machine or by threads that waited for each other; repeat it when idle (--repeats)"
)


@dataclass
class ScalingPoint:
    """One number of devices."""

    devices: int
    global_batch: int
    statuses: list[str] = field(default_factory=list)
    reason: str | None = None
    """Reason of the last run without a rate."""
    records: list[str] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    rate: float | None = None
    """sequences/s, the median of the runs."""
    rate_per_device: float | None = None
    efficiency: float | None = None
    step_s: float | None = None
    beyond_s: float | None = None
    gradient_all_reduce_s: float | None = None
    gradient_all_reduce_bytes: float | None = None
    hidden: float | None = None
    """Share of the all-reduce that a step hides; None in strong scaling and on a shared host."""
    micro_batch: int | None = None
    precision: str | None = None
    kernels: Any = None
    device: str | None = None
    quality: dict[str, Any] | None = None
    """Quality of the last run; None in a preflight."""
    peak_memory_bytes: float | None = None
    power_w: float | None = None
    note: str | None = None


def fill(row: ScalingPoint, results: Sequence[Result], *, quality: bool = True) -> None:
    """Set a row's figures from its records; without ``quality`` in a preflight."""
    finished = [r for r in results if r.status in FINISHED and (r.value(RATE) or 0) > 0]
    row.rates = [value for r in finished if (value := r.value(RATE)) is not None]
    if not finished:
        return
    last = finished[-1]
    row.rate = median(row.rates)
    row.rate_per_device = row.rate / row.devices
    row.step_s = _finite(row.global_batch / row.rate)
    row.precision, row.device = last.precision, last.device_name
    row.quality = last.quality if quality else None
    extras = last.manifest.get("extras") or {}
    row.micro_batch, row.kernels = extras.get("micro_batch"), extras.get("kernels")
    for name in (
        "gradient_all_reduce_s", "gradient_all_reduce_bytes", "peak_memory_bytes", "power_w",
    ):  # fmt: skip
        values = [value for r in finished if (value := r.value(name)) is not None]
        setattr(row, name, median(values) if values else None)


def relate(rows: Sequence[ScalingPoint], weak: bool, shares_host: bool) -> None:
    """Set efficiency and step time beyond one device's, if one device has a rate."""
    one = next((row for row in rows if row.devices == 1), None)
    for row in rows:
        if shares_host and row.devices > 1:
            row.note = HOST_NOTE
        if one is None or one.rate is None or one.step_s is None:
            row.note = "one device has no rate: no baseline"
            continue
        if row.rate is None or row.step_s is None:
            continue
        unlike = [
            f"{name} {shown(getattr(row, name), 80)}, not {shown(getattr(one, name), 80)}"
            for name in ("precision", "kernels", "device")
            if getattr(row, name) != getattr(one, name)
        ]
        if unlike:
            row.note = f"not comparable with one device: {'; '.join(unlike)}"
            continue
        row.efficiency = _finite(row.rate / (row.devices * one.rate))
        if row.efficiency is not None and row.efficiency > MOST_EFFICIENT:
            row.note = "; ".join(filter(None, (row.note, NOT_CREDIBLE)))
        row.beyond_s = row.step_s - one.step_s / (1 if weak else row.devices)
        if weak and not shares_host and row.gradient_all_reduce_s:
            row.hidden = _finite(1 - row.beyond_s / row.gradient_all_reduce_s)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_dict(rows: Sequence[ScalingPoint], *, weak: bool, **facts: Any) -> dict[str, Any]:
    """Return the content of scale.json; ``facts`` describe the command."""
    mode = "weak" if weak else "strong"
    definitions = {**DEFINITIONS, "beyond_s": DEFINITIONS["beyond_s"][mode]}  # type: ignore[index]
    definitions.pop("strong" if weak else "weak")
    largest = rows[-1]
    return {
        "schema_version": 1,
        "kind": "scale",
        "created_utc": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "mode": mode,
        **facts,
        "rows": [asdict(row) for row in rows],
        "scalability": {
            "value": largest.efficiency,
            "devices": largest.devices,
            "definition": f"rate({largest.devices}) / ({largest.devices} x rate(1)), {mode}: "
            f"{definitions[mode]}",
            "note": largest.note,
        },
        "definitions": definitions,
    }


def render(found: dict[str, Any]) -> str:
    """Return the table for people, with the definitions of its columns."""
    head = ("devices", "batch", "micro", "sequences/s", "per device", "efficiency", "s/step",
            "beyond", "all-reduce", "hidden", "quality", "status")  # fmt: skip
    table = [head, *map(_cells, found["rows"])]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in table]
    value, scaled = found["scalability"]["value"], found["scalability"]
    definitions = found["definitions"]
    lines += [
        "",
        f"scalability  {_number(value, '.3f')}{'?' * (NOT_CREDIBLE in (scaled['note'] or ''))} = "
        f"{scaled['definition']}",
        *([f"  {scaled['note']}"] if scaled["note"] else []),
        f"sequences/s  {definitions[RATE]}" + ("; median of runs" if found["repeats"] > 1 else ""),
        f"efficiency   {definitions['efficiency']}",
        f"s/step       {definitions['step_s']}",
        f"beyond       {definitions['beyond_s']}",
        f"all-reduce   seconds, {definitions['gradient_all_reduce_s']}",
        f"hidden       {definitions['hidden']}",
    ]
    sent = [row["gradient_all_reduce_bytes"] for row in found["rows"]]
    for count in dict.fromkeys(n for n in sent if n is not None):
        lines.append(f"bytes        {count:,.0f}, {definitions['gradient_all_reduce_bytes']}")
    lines += [
        f"{row['devices']} devices: {shown(row['note'], 300)}"
        for row in found["rows"]
        if row["note"] and row["note"] != scaled["note"]
    ]
    lines += [
        f"{row['devices']} devices: {shown(row['reason'], 400)}"
        for row in found["rows"]
        if row["reason"]
    ]
    runs = [len(row["rates"]) for row in found["rows"] if row["rates"]]
    if runs and min(runs) < ENOUGH:
        lines.append(f"indicative: {min(runs)} run(s) for each number of devices, no interval")
    if found["synthetic"]:
        lines.append("synthetic tokens, short runs: a preflight of throughput, without accuracy")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    quality = row["quality"] or {}
    shared = "*" if (row["note"] or "").startswith(HOST_NOTE) else ""
    doubt = "?" if NOT_CREDIBLE in (row["note"] or "") else ""
    return (
        f"{row['devices']}{shared}",
        str(row["global_batch"]),
        "-" if row["micro_batch"] is None else shown(row["micro_batch"], 8),
        _number(row["rate"], ".5g"),
        _number(row["rate_per_device"], ".5g"),
        _number(row["efficiency"], ".3f") + doubt,
        _number(row["step_s"], ".4g"),
        _number(row["beyond_s"], "+.3g"),
        _number(row["gradient_all_reduce_s"], ".3g"),
        _number(row["hidden"], ".2f"),
        _number(quality.get("value"), ".4g"),
        ", ".join(dict.fromkeys(row["statuses"])) or "not run",
    )


def _number(value: Any, form: str) -> str:
    good = isinstance(value, (int, float)) and math.isfinite(value)
    return format(value, form) if good else "-"
