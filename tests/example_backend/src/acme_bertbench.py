# SPDX-License-Identifier: Apache-2.0
"""The backend ``acme`` of bertbench."""

from __future__ import annotations

import importlib
import os

from backends.accelerator import Accelerator
from backends.sensors import Sensors, visible_entry


class Acme(Accelerator):
    """One Acme card."""

    name = "acme"
    device_type = "acme"
    package = "acme_torch"
    visible_devices_env = "ACME_VISIBLE_DEVICES"
    collective = "acccl"
    verified = "simulator"

    def _driver(self) -> str | None:
        return str(self._vendor().DRIVER)

    def _sensors(self) -> Sensors:
        # The sensors count the machine's cards, torch those that this process may see.
        visible = os.environ.get("ACME_VISIBLE_DEVICES")
        card = int(visible_entry(self.device.index, visible))
        scales = {
            "power_w": ("power_milliwatts", 1e-3),
            "energy_j": ("energy_millijoules", 1e-3),
            "temperature_c": ("temperature_celsius", 1.0),
            "memory_used_bytes": ("memory_used_kib", 1024.0),
        }

        def read() -> dict[str, float]:
            told = self._vendor().sensors(card)
            known = {k: (told[theirs], scale) for k, (theirs, scale) in scales.items()}
            return {k: value * scale for k, (value, scale) in known.items() if value is not None}

        return Sensors(read, source="acme_torch.sensors")

    def _vendor(self):  # type: ignore[no-untyped-def]
        return importlib.import_module("acme_torch")
