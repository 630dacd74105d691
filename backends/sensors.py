# SPDX-License-Identifier: Apache-2.0
"""Helpers for readers of vendors' sensors: units, command-line tools, physical ids.

Tools and libraries number the machine's devices, torch the ones visible to the process; and each
reports in its own units.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bertbench.common.config.launched import number
from bertbench.common.errors import Unsupported

TOOL_PERIOD_S = 1.0
"""A tool starts a process per reading: sample no faster. MLPerf requires one reading a second."""


class Sensors(NamedTuple):
    """One device's sensors, for ``bertbench.common.measure.telemetry.Sampler``."""

    read: Callable[[], Mapping[str, float]]
    source: str
    period_s: float = 0.1
    """The shortest useful period."""


_SCALES = {
    "W": {"uw": 1e-6, "mw": 1e-3, "w": 1.0, "kw": 1e3},
    "J": {"uj": 1e-6, "mj": 1e-3, "j": 1.0, "kj": 1e3},
    "C": {"c": 1.0, "degc": 1.0, "mc": 1e-3},
    "MHz": {"hz": 1e-6, "khz": 1e-3, "mhz": 1.0, "ghz": 1e3},
    "%": {"%": 1.0},
    # Vendors' tools write MB for 2**20: npu-smi shows 64 GiB as "65536 MB".
    "bytes": {"b": 1.0, "bytes": 1.0}
    | {
        f"{letter}{tail}": 1024.0**power
        for power, letter in enumerate("kmgt", start=1)
        for tail in ("b", "ib")
    },
}
_QUANTITY = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*([a-z%]*)", re.IGNORECASE)
_ASCII = str.maketrans({"\u00b5": "u", "\u03bc": "u", "\u00b0": "", "\u2103": "C"})


def quantity(text: str, unit: str) -> float | None:
    """Return the number in ``text``, converted to ``unit``: one of W, J, C, MHz, %, bytes.

    A bare number is in ``unit`` already. None where ``text`` has no number ("-", "N/A",
    "[Not Supported]"), or a unit of another quantity. KB, MB and GB are powers of 1024.
    """
    scales = _SCALES[unit]
    match = _QUANTITY.fullmatch(text.strip().translate(_ASCII))
    if match is None:
        return None
    scale = scales.get(match[2].lower()) if match[2] else 1.0
    value = float(match[1])
    return None if scale is None or not math.isfinite(value) else value * scale


def answering(sensors: Mapping[str, Callable[[], float | None]]) -> Callable[[], dict[str, float]]:
    """Return a reader of the sensors that answer now; raise Unsupported if none does.

    The reader leaves a sensor that returns None out of its reading, and turns any error of the
    vendor's library into RuntimeError, which ends the sampling.
    """
    kept: dict[str, Callable[[], float | None]] = {}
    reasons = []
    for name, sensor in sensors.items():
        try:
            if sensor() is not None:
                kept[name] = sensor
        except Exception as error:
            reasons.append(f"{name}: {type(error).__name__}: {error}")
    if not kept:
        raise Unsupported(reasons[0] if reasons else "no sensor of this device answers")

    def read() -> dict[str, float]:
        reading = {}
        for name, sensor in kept.items():
            try:
                value = sensor()
            except Exception as error:
                raise RuntimeError(f"{name}: {type(error).__name__}: {error}") from error
            if value is not None:
                reading[name] = value
        return reading

    return read


def run_tool(
    argv: Sequence[str], timeout_s: float = 5.0, env: Mapping[str, str] | None = None
) -> str:
    """Return a vendor's tool's standard output; raise RuntimeError if it is missing or fails.

    A tool that hangs is killed with its children: a stuck driver must not stop the training.
    ``env`` is added to the environment.
    """
    name = Path(argv[0]).name
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            start_new_session=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        why = "not found" if isinstance(error, FileNotFoundError) else error.strerror
        raise RuntimeError(f"{name}: {why}") from error
    with process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise RuntimeError(f"{name}: no answer in {timeout_s:g} s") from None
    if process.returncode:
        lines = (err.strip() or out.strip()).splitlines()
        detail = f": {lines[0].strip()[:200]}" if lines else ""
        raise RuntimeError(f"{name}: exit code {process.returncode}{detail}")
    return out


def visible_entry(index: int, value: str | None) -> str:
    """Return the machine's id of this process's device ``index``, as tools and libraries know it.

    ``value`` is the visible-devices variable, None where it is not set. The id is an entry of it
    as written: "3", "GPU-<uuid>", "MIG-<uuid>", "DRS-<uuid>". As for CUDA, the list ends at the
    first negative number. Raises Unsupported where the list is too short.
    """
    if value is None or value.strip().lower() == "all":
        return str(index)
    entries: list[str] = []
    for entry in (part.strip() for part in value.split(",")):
        if not entry or entry.startswith("-"):
            break
        entries.append(entry)
    if not 0 <= index < len(entries):
        raise Unsupported(
            f"device {index} does not exist: {len(entries)} visible in {value!r}. Start fewer "
            f"processes, or make more devices visible."
        )
    return entries[index]


def tool_sensors(read_tool: Callable[[], dict[str, float]], source: str) -> Sensors:
    """Return sensors of a command-line tool, read once; raise Unsupported where that fails."""

    def read() -> dict[str, float]:
        reading = read_tool()
        if not reading:
            raise RuntimeError(f"{source}: no value in its output")
        return reading

    try:
        read()
    except (OSError, RuntimeError, ValueError) as error:
        raise Unsupported(str(error)) from error
    return Sensors(read, source, TOOL_PERIOD_S)


def local_entries(value: str | None) -> list[str]:
    """Return ``visible_entry`` of each of the run's processes on this machine."""
    return [visible_entry(rank, value) for rank in range(number("LOCAL_WORLD_SIZE"))]


def reports_board(device: int, board: Sequence[int], run: Sequence[int]) -> bool:
    """Return whether the process on ``device`` is the one that reports its ``board``'s power.

    Two chips on one card share a power sensor, which must count once in the sum over ranks: the
    first of the card's devices in this ``run`` reports it. All arguments are the machine's ids.
    """
    return device not in run or device == min(other for other in board if other in run)
