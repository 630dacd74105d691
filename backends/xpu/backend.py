# SPDX-License-Identifier: Apache-2.0
"""xpu: Intel GPUs through the module in torch itself.

Kunlunxin's first stack used the name ``xpu``, too, and both vendors call their tool ``xpu-smi``:
here only torch's own Intel build counts, and no tool is run. Names: torch.xpu's documentation.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch

from bertbench.backends.accelerator import Accelerator
from bertbench.backends.sensors import Sensors, answering


class Xpu(Accelerator):
    """An Intel GPU; with the default of FLAT device hierarchy, one of its tiles."""

    name, device_type, collective = "xpu", "xpu", "xccl"
    visible_devices_env = "ZE_AFFINITY_MASK"
    tf32_switches = ("backends.mkldnn.allow_tf32",)  # oneDNN's; torch says it is for Intel GPUs

    @classmethod
    def absent(cls) -> str | None:
        if importlib.util.find_spec("torch_xmlir") is not None:
            return "torch_xmlir is installed: its xpu is Kunlunxin's, which has no adapter yet"
        if getattr(torch.version, "xpu", None) is None:
            return f"torch {torch.__version__} was built without Intel GPU support"
        return None

    def find_collective(self, notes: dict[str, str]) -> str | None:
        there = getattr(torch.distributed, "is_xccl_available", lambda: False)
        if there():
            return super().find_collective(notes)
        notes["collective"] = "this torch was built without xccl"
        return None

    def float_precisions(self, notes: dict[str, str]) -> list[str]:
        supported = getattr(self.module, "is_tf32_supported", lambda: True)
        if supported():
            return super().float_precisions(notes)
        notes["tf32"] = "this GPU has no matrix units (torch.xpu.is_tf32_supported)"
        return ["fp32"]

    def sensors(self) -> Sensors:
        # Level-Zero Sysman through torch (2.13) and pyzes: torch's own device numbers, no tool.
        names = {
            "power_w": "power_draw",  # W over 100 ms, for which it blocks
            "memory_used_bytes": "device_memory_used",
            "temperature_c": "temperature",
            "sm_clock_mhz": "clock_rate",
        }
        module, index = self.module, self.device.index
        sensors: dict[str, Callable[[], float]] = {
            key: functools.partial(getattr(module, name), index)
            for key, name in names.items()
            if hasattr(module, name)
        }
        read = answering(sensors)
        return Sensors(read, "Level-Zero Sysman (torch.xpu)", period_s=0.5)
