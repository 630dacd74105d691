# SPDX-License-Identifier: Apache-2.0
"""mlu: Cambricon through torch_mlu. Names: torch_mlu, FlagPerf's base utilities, accelerate."""

from __future__ import annotations

import os

from bertbench.backends.accelerator import Accelerator
from bertbench.backends.mlu.telemetry import open_cnmon
from bertbench.backends.sensors import Sensors


class Mlu(Accelerator):
    """A Cambricon MLU; an MLU370-X8 card is two of them."""

    name, device_type, package, collective = "mlu", "mlu", "torch_mlu", "cncl"
    visible_devices_env = "MLU_VISIBLE_DEVICES"
    tf32_switches = ("backends.mlu.matmul.allow_tf32", "backends.cnnl.allow_tf32")

    def sensors(self) -> Sensors:
        return open_cnmon(self.device.index, os.environ.get(self.visible_devices_env or ""))
