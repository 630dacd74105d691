# SPDX-License-Identifier: Apache-2.0
"""musa: Moore Threads through torch_musa; sensors by pymtml (package mthreads-ml-py 2)."""

from __future__ import annotations

import importlib
import os

from bertbench.backends.accelerator import Accelerator, one_line
from bertbench.backends.sensors import Sensors, answering, visible_entry
from bertbench.common.errors import Unsupported


class Musa(Accelerator):
    """A Moore Threads GPU."""

    name, device_type, package, collective = "musa", "musa", "torch_musa", "mccl"
    visible_devices_env = "MUSA_VISIBLE_DEVICES"
    tf32_switches = ("backends.mudnn.allow_tf32",)

    def sensors(self) -> Sensors:
        entry = visible_entry(self.device.index, os.environ.get(self.visible_devices_env or ""))
        try:
            mtml = importlib.import_module("pymtml")
            mtml.nvmlInit()
            if entry.isdecimal():
                device = mtml.nvmlDeviceGetHandleByIndex(int(entry))
            else:
                device = mtml.nvmlDeviceGetHandleByUuid(entry)
        except Exception as error:  # it has its own error classes
            raise Unsupported(f"pymtml: {one_line(error)}") from error
        read = answering(
            {
                "power_w": lambda: mtml.nvmlDeviceGetPowerUsage(device) / 1e3,
                "memory_used_bytes": lambda: float(mtml.nvmlDeviceGetMemoryInfo(device).used),
                "temperature_c": lambda: float(
                    mtml.nvmlDeviceGetTemperature(device, mtml.NVML_TEMPERATURE_GPU)
                ),
                "utilization_percent": lambda: float(
                    mtml.nvmlDeviceGetUtilizationRates(device).gpu
                ),
                "sm_clock_mhz": lambda: float(
                    mtml.nvmlDeviceGetClockInfo(device, mtml.NVML_CLOCK_SM)
                ),
                "memory_clock_mhz": lambda: float(
                    mtml.nvmlDeviceGetClockInfo(device, mtml.NVML_CLOCK_MEM)
                ),
            }
        )
        return Sensors(read, "pymtml")
