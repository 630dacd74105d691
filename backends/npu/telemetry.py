# SPDX-License-Identifier: Apache-2.0
"""Ascend's sensors through ``npu-smi info``: a process per reading.

Formats: Huawei's npu-smi reference for 910B and 310P, ``info -m`` and ``info -t common -i``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

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

_COLUMNS = ("NPU ID", "Chip ID", "Chip Logic ID")
_POWER = ("NPU Real-time Power(W)", "Power Dissipation(W)")


class Chip(NamedTuple):
    """Where ``npu-smi`` has the device that torch and the driver call ``logic``."""

    npu: str
    chip: str
    logic: int


def chips(text: str) -> list[Chip]:
    """Return the devices in ``npu-smi info -m``'s table, without the cards' controllers.

    Raises Unsupported for another table.
    """
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]
    header = lines[0] if lines else []
    if not set(_COLUMNS) <= set(header):
        raise Unsupported(f"npu-smi info -m: no columns {', '.join(_COLUMNS)}")
    where = [header.index(column) for column in _COLUMNS]
    rows = [[row[i] for i in where] for row in lines[1:] if len(row) == len(header)]
    return [Chip(npu, chip, int(logic)) for npu, chip, logic in rows if logic.isdecimal()]


def sections(text: str) -> dict[str, dict[str, str]]:
    """Parse ``npu-smi info -t common -i``: chip id, or ``mcu`` for the controller -> values.

    Values before the first chip, or all of a card with one chip, are under "".
    """
    found: dict[str, dict[str, str]] = {"": {}}
    current = ""
    for line in text.splitlines():
        key, colon, value = (part.strip() for part in line.partition(":"))
        if key in ("Chip ID", "Chip Name"):
            current = value.lower()
            found.setdefault(current, {})
        elif colon:
            found[current][key] = value
    return found


def open_npu_smi(index: int, visible: str | None) -> Sensors:
    """Return sensors of this process's NPU ``index``; raise Unsupported where none answers."""
    try:
        table = chips(run_tool(["npu-smi", "info", "-m"]))
    except RuntimeError as error:
        raise Unsupported(str(error)) from error
    entry = visible_entry(index, visible)
    mine = next((chip for chip in table if str(chip.logic) == entry), None)
    if mine is None:
        raise Unsupported(f"npu-smi info -m lists no chip with logic id {entry}")
    card = [chip.logic for chip in table if chip.npu == mine.npu]
    run = [int(other) for other in local_entries(visible) if other.isdecimal()]
    command = ["npu-smi", "info", "-t", "common", "-i", mine.npu]

    def read_tool() -> dict[str, float]:
        found = sections(run_tool(command))
        own = found.get(mine.chip) or found[""]
        # Some cards measure their power only as a whole: it then belongs to one of its chips.
        whole = found.get("mcu", {}) if reports_board(mine.logic, card, run) else {}
        power = next((d[key] for d in (own, whole) for key in _POWER if key in d), "")
        values = {
            "power_w": quantity(power, "W"),
            "temperature_c": quantity(own.get("Temperature(C)", ""), "C"),
            "utilization_percent": quantity(own.get("Aicore Usage Rate(%)", ""), "%"),
            "sm_clock_mhz": quantity(own.get("Aicore curFreq(MHZ)", ""), "MHz"),
        }
        return {key: value for key, value in values.items() if value is not None}

    return tool_sensors(read_tool, "npu-smi info -t common")
