# SPDX-License-Identifier: Apache-2.0
"""Sensors of the simulated accelerator, computed from how busy its queue was: not measured.

Power is 60 W idle and rises linearly to 300 W when the queue is never empty; the knob ``throttle``
halves the clock and holds power at 180 W, and ``no_telemetry`` takes every sensor away.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from bertbench.backends.simulated.device import installed

IDLE_W, FULL_W, THROTTLED_W = 60.0, 300.0, 180.0
CLOCK_MHZ, MEMORY_CLOCK_MHZ = 1500.0, 7000.0
WINDOW_S = 0.02
"""Readings closer together than this are the same."""


class NoSensors(RuntimeError):
    """This process has no simulated device, or the knob ``no_telemetry`` is set."""


@dataclass(frozen=True)
class Reading:
    """All sensors of one device at one time."""

    power_w: float
    temperature_c: float
    utilization_percent: float
    memory_used_bytes: int
    memory_total_bytes: int
    clock_mhz: float
    memory_clock_mhz: float
    throttled: bool


def knob(name: str) -> bool:
    """Return a yes-or-no knob of the environment, read at every call."""
    return os.environ.get(f"BERTBENCH_SIMULATED_{name.upper()}", "") not in ("", "0", "false")


def module() -> Any:
    """Return the device module; raise NoSensors without one."""
    if knob("no_telemetry"):
        raise NoSensors("the simulated device has no telemetry (knob no_telemetry)")
    found = installed()
    if found is None:
        raise NoSensors("no simulated device in this process")
    return found


def read(physical: int) -> Reading:
    """Read the machine's device ``physical``, hidden from this process or not.

    Raises NoSensors where it does not exist.
    """
    device = module()
    if not 0 <= physical < device.physical_count:
        raise NoSensors(f"no device {physical}: there are {device.physical_count}")
    local = device.visible.index(physical) if physical in device.visible else None
    busy = 0.0 if local is None else _busy(device, local)
    throttled = knob("throttle")
    power = IDLE_W + busy * (FULL_W - IDLE_W)
    free, total = (0, device.mem_get_info(0)[1]) if local is None else device.mem_get_info(local)
    return Reading(
        power_w=min(power, THROTTLED_W) if throttled else power,
        temperature_c=95.0 if throttled else 35.0 + 30.0 * busy,
        utilization_percent=100.0 * busy,
        memory_used_bytes=0 if local is None else total - free,
        memory_total_bytes=total,
        clock_mhz=CLOCK_MHZ / 2 if throttled else CLOCK_MHZ,
        memory_clock_mhz=MEMORY_CLOCK_MHZ,
        throttled=throttled,
    )


_last: dict[int, tuple[float, float, float]] = {}


def _busy(device: Any, local: int) -> float:
    """Return the share of the time since the last reading in which the queue had work."""
    now, seconds = time.monotonic(), device.busy_seconds(local)
    then, before, share = _last.get(local, (now, seconds, 0.0))
    if now - then >= WINDOW_S:
        share = min(1.0, (seconds - before) / (now - then))
        then, before = now, seconds
    _last[local] = (then, before, share)
    return share
