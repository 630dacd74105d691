# SPDX-License-Identifier: Apache-2.0
"""corex: Iluvatar BI-V100 and BI-V150, whose torch calls them cuda and their ixCCL nccl.

``identify`` distinguishes them from NVIDIA's by build, device name and tools. A BI-V150 card is
two devices of 32 GiB, and counts as two.
"""

from __future__ import annotations

import os
from typing import ClassVar

from bertbench.backends.corex.telemetry import driver_version, open_ixsmi, two_chips
from bertbench.backends.cuda.backend import Cuda
from bertbench.backends.sensors import Sensors


class Corex(Cuda):
    """One Iluvatar chip."""

    name, vendor, toolkit = "corex", "iluvatar", "CUDA for CoreX"
    # Its compute capabilities (7.1) are not NVIDIA's: what works is found by trying.
    minimum_capability: ClassVar[dict[str, tuple[int, int]]] = {}

    def float_precisions(self, notes: dict[str, str]) -> list[str]:
        notes["tf32"] = "whether this device has TF32 is unknown; fp32 runs with it switched off"
        return ["fp32"]

    def sensors(self) -> Sensors:
        return open_ixsmi(self.device.index, os.environ.get(self.visible_devices_env or ""))

    def extras(self) -> dict[str, str]:
        name = str(self.module.get_device_name(self.device.index))
        return super().extras() | ({"chips_per_card": "2"} if two_chips(name) else {})

    def driver(self) -> str | None:
        return driver_version()
