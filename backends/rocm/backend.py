# SPDX-License-Identifier: Apache-2.0
"""rocm: AMD GPUs, whose torch (``torch.version.hip``) calls them cuda and their RCCL nccl."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

from bertbench.backends.cuda.backend import Cuda
from bertbench.backends.rocm.telemetry import open_sensors
from bertbench.backends.sensors import Sensors
from bertbench.common.errors import Unsupported


class Rocm(Cuda):
    """One AMD GPU; of an MI250 card, one of its two dies."""

    onnx_providers: ClassVar[tuple[str, ...]] = ("MIGraphX", "ROCM")
    """ONNX Runtime's execution providers on these devices: `infer` reads the sensors here."""

    name, vendor, toolkit = "rocm", "amd", "ROCm"
    visible_devices_env = "HIP_VISIBLE_DEVICES"
    minimum_capability: ClassVar[dict[str, tuple[int, int]]] = {}  # gfx numbers, not NVIDIA's
    recorded_env = (
        "ROCR_VISIBLE_DEVICES",
        "CUDA_VISIBLE_DEVICES",
        "HSA_OVERRIDE_GFX_VERSION",
        "HIPBLASLT_ALLOW_TF32",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_HIP_ALLOC_CONF",
    )

    @classmethod
    def is_built(cls) -> bool:
        return torch.version.hip is not None

    def float_precisions(self, notes: dict[str, str]) -> list[str]:
        notes["tf32"] = "no TF32 of this device has been checked; fp32 runs with it switched off"
        return ["fp32"]

    def sensors(self) -> Sensors:
        found = self.module.get_device_properties(self.device.index)
        try:
            domain, bus, device = found.pci_domain_id, found.pci_bus_id, found.pci_device_id
        except AttributeError as error:
            raise Unsupported("this torch does not report the device's PCI address") from error
        sensors = open_sensors(f"{domain:04x}:{bus:02x}:{device:02x}")
        if "MI250" in str(found.name):
            sensors = sensors._replace(
                source=f"{sensors.source} (the first die reports the power of the card's two)"
            )
        return sensors

    def driver(self) -> str | None:
        try:
            return Path("/sys/module/amdgpu/version").read_text().strip()
        except OSError:
            return None  # the kernel's own module has no version
