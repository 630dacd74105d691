# SPDX-License-Identifier: Apache-2.0
"""Plays Enflame's pyefml by name, over the sensors of the simulated accelerator.

The names are those that public users of pyefml call. The real library's report of throttling is
not public: here ``efmlDeviceGetDpmLevel`` falls below ``EFML_DPM_LEVEL_ACTIVE`` on a device that is
awake, and the SIP clock halves.
"""

from __future__ import annotations

from types import SimpleNamespace

from bertbench.backends.simulated import telemetry

SIMULATED = True
EFML_TEMPERATURE_GCU = 0
EFML_CLOCK_SIP, EFML_CLOCK_MEM = 1, 2
EFML_DPM_LEVEL_SLEEP, EFML_DPM_LEVEL_LOW, EFML_DPM_LEVEL_ACTIVE = 0, 1, 2


class EFMLError(RuntimeError):
    """The library's error; ``value`` is its code: 6 driver not loaded, 3 not supported."""

    def __init__(self, value: int, text: str) -> None:
        super().__init__(f"EFML error {value}: {text}")
        self.value = value


def efmlInit() -> None:
    """Attach to the driver."""
    try:
        telemetry.module()
    except telemetry.NoSensors as error:
        raise EFMLError(6, str(error)) from error


efmlInitV2 = efmlInit


def efmlShutdown() -> None:
    """Detach."""


def efmlDeviceGetCount() -> int:
    """Devices of the machine, hidden ones too."""
    return int(telemetry.module().physical_count)


def efmlDeviceGetHandleByIndex(idx: int) -> int:
    """A handle, from the machine's index."""
    _read(idx)
    return idx


def efmlDeviceGetName(handle: int) -> str:
    """The product's name."""
    return str(telemetry.module().get_device_name())


def efmlDeviceGetUUID(handle: int) -> str:
    """An id that starts with GCU-."""
    return f"GCU-5111000{handle:x}"


def efmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
    """``total``, ``used`` and ``free`` bytes."""
    found = _read(handle)
    used, total = found.memory_used_bytes, found.memory_total_bytes
    return SimpleNamespace(total=total, used=used, free=total - used)


def efmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:
    """``gcu``: percent of the time in which the device worked."""
    return SimpleNamespace(gcu=_read(handle).utilization_percent)


def efmlDeviceGetPowerUsage(handle: int) -> int:
    """Milliwatts."""
    return round(_read(handle).power_w * 1e3)


def efmlDeviceGetTemperature(handle: int, sensor: int = EFML_TEMPERATURE_GCU) -> int:
    """Degrees Celsius."""
    return round(_read(handle).temperature_c)


def efmlDeviceGetClockInfo(handle: int, kind: int = EFML_CLOCK_SIP) -> int:
    """MHz of the cores or of the memory."""
    found = _read(handle)
    return round(found.memory_clock_mhz if kind == EFML_CLOCK_MEM else found.clock_mhz)


def efmlDeviceGetDpmLevel(handle: int) -> int:
    """One of the three levels above."""
    return EFML_DPM_LEVEL_LOW if _read(handle).throttled else EFML_DPM_LEVEL_ACTIVE


def _read(handle: int) -> telemetry.Reading:
    try:
        return telemetry.read(handle)
    except telemetry.NoSensors as error:
        raise EFMLError(3, str(error)) from error
