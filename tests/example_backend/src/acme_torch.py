# SPDX-License-Identifier: Apache-2.0
"""What Acme, a vendor that does not exist, ships for torch: the simulated accelerator as ``acme``.

Importing it gives torch the device, as the packages of real vendors do.
"""

from __future__ import annotations

import time

from bertbench.backends.simulated import collective, device

SIMULATED = True
__version__ = "1.2.0"
DRIVER = "5.4"

acme = device.install("acme", visible_devices_env="ACME_VISIBLE_DEVICES")
collective.register("acccl", "acme")


def sensors(card: int) -> dict[str, float | None]:
    """A card of the machine, in the units that this vendor likes; None: it has no such sensor."""
    if not 0 <= card < 8:
        raise OSError(f"no card {card}")
    return {
        "power_milliwatts": 75_250.0 + card,
        "energy_millijoules": 75_250.0 * time.monotonic(),
        "temperature_celsius": 48.0,
        "memory_used_kib": 2.0**20,
        "fan_rpm": None,
    }
