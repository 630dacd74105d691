# SPDX-License-Identifier: Apache-2.0
"""The backend ``acme`` of bertbench."""

from __future__ import annotations

import os

from bertbench import Accelerator, Sensors, visible_entry

SENSORS = {
    "power_w": ("power_milliwatts", 1e-3),
    "energy_j": ("energy_millijoules", 1e-3),
    "temperature_c": ("temperature_celsius", 1.0),
    "memory_used_bytes": ("memory_used_kib", 1024.0),
}
"""bertbench's name and unit: the vendor's name, and the factor between the units."""


class Acme(Accelerator):
    """One Acme card."""

    name = "acme"
    device_type = "acme"
    package = "acme_torch"
    visible_devices_env = "ACME_VISIBLE_DEVICES"
    collective = "acccl"
    verified = "simulator"

    def driver(self) -> str | None:
        import acme_torch

        return acme_torch.DRIVER

    def sensors(self) -> Sensors:
        import acme_torch

        # Sensors number the machine's cards, torch the ones visible to this process.
        card = int(visible_entry(self.device.index, os.environ.get("ACME_VISIBLE_DEVICES")))

        def read() -> dict[str, float]:
            values = acme_torch.sensors(card)
            pairs = ((key, values[name], factor) for key, (name, factor) in SENSORS.items())
            return {key: value * factor for key, value, factor in pairs if value is not None}

        return Sensors(read, source="acme_torch.sensors")
