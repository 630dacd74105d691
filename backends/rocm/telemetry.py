# SPDX-License-Identifier: Apache-2.0
"""AMD's sensors: amdsmi where it works, else the kernel driver's files, which need no package.

Units: AMD SMI's Python reference (W, bytes, degrees, MHz; energy = accumulator times resolution in
microjoules) and Linux's Documentation/gpu/amdgpu/thermal.rst (microwatts, millidegrees, Hz).
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bertbench.backends.sensors import Sensors, answering
from bertbench.common.errors import Unsupported

DRM = Path("/sys/class/drm")
_CHECK_S, _AGREES = 0.5, 0.25


def open_sensors(address: str, drm: Path = DRM) -> Sensors:
    """Return sensors of the GPU at this PCI address (0000:c1:00, no function).

    Raises Unsupported where neither source works.
    """
    try:
        return from_amdsmi(address)
    except Unsupported as error:
        reason = str(error)
    try:
        return from_sysfs(address, drm)
    except Unsupported as error:
        raise Unsupported(f"{reason}; {error}") from error


def from_amdsmi(address: str, pause: Callable[[float], None] = time.sleep) -> Sensors:
    """Return sensors through the package amdsmi 6 or 7; raise Unsupported where it fails."""
    try:
        smi = importlib.import_module("amdsmi")
        smi.amdsmi_init()
        handles = smi.amdsmi_get_processor_handles()
        bus = {str(smi.amdsmi_get_gpu_device_bdf(h)).lower(): h for h in handles}
    except Exception as error:  # its errors, and those of its library, are of many classes
        raise Unsupported(f"amdsmi: {type(error).__name__}: {error}") from error
    mine = [handle for where, handle in bus.items() if where.rpartition(".")[0] == address]
    if len(mine) != 1:
        raise Unsupported(f"amdsmi: {len(mine)} devices at {address}")
    handle = mine[0]
    hot, now = smi.AmdSmiTemperatureType.HOTSPOT, smi.AmdSmiTemperatureMetric.CURRENT

    def power() -> float | None:
        info = smi.amdsmi_get_power_info(handle)
        keys = ("current_socket_power", "average_socket_power")
        return _first(info.get(key) for key in keys)

    def energy() -> float | None:
        info = smi.amdsmi_get_energy_count(handle)
        count = info.get("energy_accumulator", info.get("power"))  # its name before 6.2
        return count * info["counter_resolution"] * 1e-6 if count else None

    def clock(kind: Any) -> float | None:
        return _first([smi.amdsmi_get_clock_info(handle, kind).get("clk")])

    sensors: dict[str, Callable[[], float | None]] = {
        "power_w": power,
        "memory_used_bytes": lambda: float(
            smi.amdsmi_get_gpu_memory_usage(handle, smi.AmdSmiMemoryType.VRAM)
        ),
        "temperature_c": lambda: float(smi.amdsmi_get_temp_metric(handle, hot, now)),
        "utilization_percent": lambda: _first(
            [smi.amdsmi_get_gpu_activity(handle).get("gfx_activity")]
        ),
        "sm_clock_mhz": lambda: clock(smi.AmdSmiClkType.GFX),
        "memory_clock_mhz": lambda: clock(smi.AmdSmiClkType.MEM),
    }
    if not _counter_agrees(energy, power, pause):
        return Sensors(answering(sensors), "amdsmi")
    return Sensors(answering({"energy_j": energy, **sensors}), "amdsmi (energy counter)")


def from_sysfs(address: str, drm: Path = DRM) -> Sensors:
    """Return sensors through the amdgpu driver's files; raise Unsupported where none fits."""
    cards = [path / "device" for path in sorted(drm.glob("card*")) if path.name[4:].isdecimal()]
    mine = [card for card in cards if card.resolve().name.rpartition(".")[0] == address]
    if len(mine) != 1:
        raise Unsupported(f"{drm}: {len(mine)} cards at {address}")
    files = {
        "memory_used_bytes": (["mem_info_vram_used"], 1.0),
        "utilization_percent": (["gpu_busy_percent"], 1.0),
        "power_w": (["hwmon/hwmon*/power1_average", "hwmon/hwmon*/power1_input"], 1e-6),
        "temperature_c": (["hwmon/hwmon*/temp1_input"], 1e-3),
        "sm_clock_mhz": (["hwmon/hwmon*/freq1_input"], 1e-6),
        "memory_clock_mhz": (["hwmon/hwmon*/freq2_input"], 1e-6),
    }
    sensors: dict[str, Callable[[], float | None]] = {}
    for key, (patterns, scale) in files.items():
        there = [path for pattern in patterns for path in sorted(mine[0].glob(pattern))]
        if there:
            sensors[key] = functools.partial(_number, there[0], scale)
    return Sensors(answering(sensors), "amdgpu sysfs")


def _number(path: Path, scale: float) -> float:
    return int(path.read_text()) * scale


def _first(values: Iterable[Any]) -> float | None:
    """Return the first number: amdsmi has "N/A", or all ones, for an unknown value."""
    numbers = (v for v in values if isinstance(v, (int, float)) and 0 <= v < 0xFFFF)
    return next((float(v) for v in numbers), None)


def _counter_agrees(
    energy: Callable[[], float | None],
    power: Callable[[], float | None],
    pause: Callable[[float], None],
) -> bool:
    """Return whether the energy counter agrees with the power; some devices' does not.

    Such a device: https://github.com/ROCm/amdsmi/issues/22.
    """
    try:
        first, began = energy(), time.monotonic()
        pause(_CHECK_S)
        last, seconds = energy(), time.monotonic() - began
        watts = power()
    except Exception:
        return False
    if first is None or last is None or not watts or seconds <= 0:
        return False
    return abs((last - first) / seconds - watts) <= _AGREES * watts
