# SPDX-License-Identifier: Apache-2.0
"""npu: Huawei Ascend through torch_npu.

Its matrix units have HF32, a TF32-like format with separate switches. Names: torch_npu's
documentation and Hugging Face accelerate.
"""

from __future__ import annotations

import os
from typing import ClassVar

from bertbench.backends.accelerator import Accelerator
from bertbench.backends.npu.telemetry import open_npu_smi
from bertbench.backends.sensors import Sensors


class Npu(Accelerator):
    """An Ascend NPU. ``torch_npu.contrib.transfer_to_npu`` is never imported: it fakes CUDA."""

    onnx_providers: ClassVar[tuple[str, ...]] = ("CANN",)
    """ONNX Runtime's execution providers on these devices: `infer` reads the sensors here."""

    name, device_type, package, collective = "npu", "npu", "torch_npu", "hccl"
    visible_devices_env = "ASCEND_RT_VISIBLE_DEVICES"
    tf32_switches = ("npu.matmul.allow_hf32", "npu.conv.allow_hf32")

    def sensors(self) -> Sensors:
        return open_npu_smi(self.device.index, os.environ.get(self.visible_devices_env or ""))
