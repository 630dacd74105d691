# SPDX-License-Identifier: Apache-2.0
"""Iluvatar's sensors through ``ixsmi --query-gpu=``: a process per reading.

The names of its fields vary with CoreX's version, so each is queried alone, once, and refused ones
are left out. A BI-V150 card is two devices with one power sensor: ``ixsmi`` shows
the card's power and cap with its second chip, N/A with its first.
"""

from __future__ import annotations

import csv
import os
import shutil

from bertbench.backends.sensors import (
    Sensors,
    local_entries,
    quantity,
    reports_board,
    run_tool,
    tool_sensors,
    visible_entry,
)
from bertbench.common.errors import Unsupported

HOME = "/usr/local/corex"
POWER_FIELDS = ("gpu.power.draw", "power.draw", "board.power.draw")
"""CoreX 4, CoreX 3, and what SwanLab asks for."""
FIELDS = {
    "memory.used": ("memory_used_bytes", "bytes"),
    "temperature.gpu": ("temperature_c", "C"),
    "utilization.gpu": ("utilization_percent", "%"),
    "clocks.current.sm": ("sm_clock_mhz", "MHz"),
    "clocks.current.memory": ("memory_clock_mhz", "MHz"),
}
Row = dict[str, str]


def two_chips(name: str) -> bool:
    """Return whether a device of this name is one of two on its card."""
    return "BI-V150" in name or name.endswith("DUO")


def open_ixsmi(index: int, visible: str | None) -> Sensors:
    """Return sensors of this process's device ``index``; raise Unsupported where none answers."""
    try:
        rows = _query(["index", "uuid", "name"])
    except RuntimeError as error:
        raise Unsupported(str(error)) from error
    mine = _row_of(visible_entry(index, visible), rows)
    run = [_row_of(entry, rows) for entry in local_entries(visible)]
    board = _board(mine, [row["name"] for row in rows])
    fields = [field for field in FIELDS if _answers(field)]
    power = next((field for field in POWER_FIELDS if _answers(field)), None)
    reports = power is not None and reports_board(mine, board, run)

    def read() -> dict[str, float]:
        now = _query(["index", *fields, *([power] if power and reports else [])])
        if len(now) != len(rows):
            raise RuntimeError(f"ixsmi: {len(now)} devices instead of {len(rows)}")
        values = {
            key: quantity(now[mine][f], unit) for f, (key, unit) in FIELDS.items() if f in fields
        }
        if power and reports:
            shown = [quantity(now[chip][power], "W") for chip in (mine, *board)]
            values["power_w"] = next((watts for watts in shown if watts is not None), None)
        return {key: value for key, value in values.items() if value is not None}

    source = "ixsmi" if power is None else f"ixsmi {power}"
    if len(board) > 1:
        whole = "counts the card's two chips" if reports else "is with the card's other chip"
        source += f" (power {whole})"
    return tool_sensors(read, source)


def driver_version() -> str | None:
    """Return the driver's version, or None."""
    try:
        return _query(["driver_version"])[0]["driver_version"]
    except RuntimeError:
        return None


def _query(fields: list[str]) -> list[Row]:
    """Return these fields of all devices: one row per device, in the tool's order."""
    path = shutil.which("ixsmi") or f"{HOME}/bin/ixsmi"
    libraries = [os.environ.get("LD_LIBRARY_PATH", ""), f"{HOME}/lib64", f"{HOME}/lib"]
    env = {"LD_LIBRARY_PATH": ":".join(part for part in libraries if part)}
    option = f"--query-gpu={','.join(fields)}"
    text = run_tool([path, option, "--format=csv,noheader"], env=env)
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if row]
    if not rows or any(len(row) != len(fields) for row in rows):
        lines = text.strip().splitlines() or ["nothing"]
        raise RuntimeError(f"ixsmi {option}: {lines[0][:200]}")
    return [dict(zip(fields, (cell.strip() for cell in row), strict=True)) for row in rows]


def _answers(field: str) -> bool:
    """Return whether the tool has a number in this field for some device."""
    unit = FIELDS[field][1] if field in FIELDS else "W"
    try:
        # With the index beside it, a message instead of values has too few columns.
        return any(quantity(row[field], unit) is not None for row in _query(["index", field]))
    except RuntimeError:
        return False


def _row_of(entry: str, rows: list[Row]) -> int:
    for number, row in enumerate(rows):
        if entry in (row["index"], row["uuid"]):
            return number
    raise Unsupported(f"ixsmi lists no device {entry}")


def _board(mine: int, names: list[str]) -> list[int]:
    """Return the positions of the devices on the card of ``mine``, which are consecutive."""
    if not two_chips(names[mine]):
        return [mine]
    start = mine
    while start > 0 and names[start - 1] == names[mine]:
        start -= 1
    first = mine - (mine - start) % 2
    return [chip for chip in (first, first + 1) if chip < len(names) and names[chip] == names[mine]]
