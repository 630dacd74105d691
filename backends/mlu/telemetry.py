# SPDX-License-Identifier: Apache-2.0
"""Cambricon's sensors through ``cnmon info``: a process per reading. Format: CNMON 4 and 5."""

from __future__ import annotations

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

TWO_CHIPS = ("MLU370-X8",)
"""Cards that are two devices, next to each other; both show the card's power, and its cap."""


def card(text: str, number: str) -> dict[str, str]:
    """Return one card's values in ``cnmon info`` by "Section/Key", from the indentation."""
    found: dict[str, str] = {}
    here, section = False, ""
    for line in text.splitlines():
        if line.startswith("Card "):
            here = line.split()[1].rstrip(":") == number
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not here or not colon:
            continue
        depth = len(line) - len(line.lstrip())
        if depth <= 4:
            section = key
            found[key] = value
        elif depth == 8:
            found[f"{section}/{key}"] = value
    return found


def open_cnmon(index: int, visible: str | None) -> Sensors:
    """Return sensors of this process's MLU ``index``; raise Unsupported where none answers."""
    mine = visible_entry(index, visible)
    if not mine.isdecimal():
        raise Unsupported(f"cnmon numbers its cards; MLU_VISIBLE_DEVICES has {mine!r}")
    run = [int(other) for other in local_entries(visible) if other.isdecimal()]
    first = int(mine) // 2 * 2
    reports = reports_board(int(mine), [first, first + 1], run)

    def read_tool() -> dict[str, float]:
        found = card(run_tool(["cnmon", "info", "-c", mine]), mine)
        temperature = found.get("Temperature/Chip", found.get("Temperature/Board", ""))
        values = {
            "power_w": quantity(found.get("Power/Usage", ""), "W"),
            "memory_used_bytes": quantity(found.get("Physical Memory Usage/Used", ""), "bytes"),
            "temperature_c": quantity(temperature, "C"),
            "utilization_percent": quantity(found.get("Utilization/MLU Average", ""), "%"),
        }
        if found.get("Product Name") in TWO_CHIPS and not reports:
            values["power_w"] = None  # the other chip's process reports the card
        return {key: value for key, value in values.items() if value is not None}

    return tool_sensors(read_tool, "cnmon info")
