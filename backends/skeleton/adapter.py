# SPDX-License-Identifier: Apache-2.0
"""The backend ``mydevice`` of bertbench.

bertbench finds everything else by trying the device: see its backends/accelerator.py. Its
docs/adding-a-backend.md lists the methods that an adapter may override.
"""

from __future__ import annotations

from bertbench import Accelerator, Sensors, Unsupported


class Mydevice(Accelerator):
    """One device of this vendor."""

    # The value of --backend, and the entry point's name in pyproject.toml.
    name = "mydevice"

    # The type in torch.device("..."). Importing the package must make it known to torch, with a
    # module torch.<device_type>: device_count, synchronize, Event, max_memory_allocated, ...
    device_type = "mydevice"

    # That package. bertbench imports it to probe the device; this file must not import it at its
    # top. None where torch itself has the device.
    package = "torch_mydevice"

    # The variable that selects and renumbers the devices of a process, or None.
    visible_devices_env = None

    # The library's name in torch.distributed.init_process_group; None: runs use one device.
    collective = None

    # Switches under torch that allow products of fp32 tensors in a shorter format (TF32), as
    # dotted attributes: ("backends.mydevice.allow_tf32",). Empty without such a format. Each run
    # sets them and verifies the digits of a product.
    tf32_switches = ()

    # Values of torch.compile(backend=...) that were tested on this device.
    compilers: tuple[str, ...] = ()

    # "documents" (doctor prints: untested), "simulator", or "hardware" once the contract tests
    # have passed on a device.
    verified = "documents"

    def driver(self) -> str | None:
        """Return the driver's version for the record, or None."""
        return None

    def sensors(self) -> Sensors:
        """Return how sensors of this device, ``self.device.index``, are read, or raise Unsupported.

        ``Sensors(read, source="...")``: ``read()`` returns {"power_w": 71.5, "energy_j": ...,
        "memory_used_bytes": ..., "temperature_c": ...} in exactly these units. Leave out sensors
        that the device lacks; never return 0 for them. backends/sensors.py has helpers.
        """
        raise Unsupported("the adapter has no reader of power yet")
