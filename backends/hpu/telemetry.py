# SPDX-License-Identifier: Apache-2.0
"""Gaudi's sensors through pyhlml (package habana-pyhlml 1.24), shaped like NVML."""

from __future__ import annotations

import importlib
from typing import Any

from bertbench.backends.sensors import Sensors, answering
from bertbench.common.errors import Unsupported

_SOC, _ON_CHIP, _BY_POWER, _BY_HEAT = 0, 0, 1, 2
"""hlml.h: HLML_CLOCK_SOC, HLML_TEMPERATURE_ON_AIP, HLML_CLOCKS_THROTTLE_REASON_*."""


def open_hlml(module: str | None) -> Sensors:
    """Return sensors of the Gaudi with this module id, which differs from the library's index.

    None: the only one. Raises Unsupported where none or several fit.
    """
    try:
        hlml = importlib.import_module("pyhlml")
        hlml.hlmlInit()
        devices = [hlml.hlmlDeviceGetHandleByIndex(i) for i in range(hlml.hlmlDeviceGetCount())]
        if module is not None:
            devices = [d for d in devices if str(hlml.hlmlDeviceGetModuleID(d)) == module.strip()]
    except Exception as error:  # it has its own error classes
        raise Unsupported(f"pyhlml: {type(error).__name__}: {error}") from error
    if len(devices) != 1:
        raise Unsupported(
            f"pyhlml: {len(devices)} devices could be this process's: name its module in "
            f"HABANA_VISIBLE_MODULES"
        )
    device = devices[0]

    def throttled(reasons: int) -> float:
        return float(bool(hlml.hlmlDeviceGetCurrentClocksThrottleReasons(device) & reasons))

    def busy() -> float:
        rates: Any = hlml.hlmlDeviceGetUtilizationRates(device)
        return float(getattr(rates, "aip", rates))  # a structure since 1.2x, an integer before

    read = answering(
        {
            "power_w": lambda: hlml.hlmlDeviceGetPowerUsage(device) / 1e3,
            "energy_j": lambda: hlml.hlmlDeviceGetTotalEnergyConsumption(device) / 1e3,
            "memory_used_bytes": lambda: float(hlml.hlmlDeviceGetMemoryInfo(device).used),
            "temperature_c": lambda: float(hlml.hlmlDeviceGetTemperature(device, _ON_CHIP)),
            "utilization_percent": busy,
            "sm_clock_mhz": lambda: float(hlml.hlmlDeviceGetClockInfo(device, _SOC)),
            "throttled": lambda: throttled(_BY_POWER | _BY_HEAT),
            "throttle_power": lambda: throttled(_BY_POWER),
            "throttle_thermal": lambda: throttled(_BY_HEAT),
        }
    )
    return Sensors(read, "pyhlml")
