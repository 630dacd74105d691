# SPDX-License-Identifier: Apache-2.0
"""The backend ``mydevice`` of bertbench.

What is not said here is found by asking the device's module: see bertbench's
backends/accelerator.py, and backends/base.py for all that may be overridden.
"""

from __future__ import annotations

from bertbench.backends.accelerator import Accelerator
from bertbench.backends.sensors import Sensors
from bertbench.common.errors import Unsupported


class Mydevice(Accelerator):
    """What bertbench must know of this vendor's devices."""

    # What users write after --backend, and the entry point's name in pyproject.toml.
    name = "mydevice"

    # The type in torch.device("..."). Importing the package must make it known to torch, with a
    # module torch.<device_type>: device_count, synchronize, Event, max_memory_allocated, ...
    device_type = "mydevice"

    # The package that does so. It is imported when this backend is looked at, and only here: no
    # other line of this file may import it at its top. None where torch itself has the device.
    package = "torch_mydevice"

    # The variable that chooses and renumbers the devices of a process; None: there is none.
    visible_devices_env = None

    # The library's name for torch.distributed.init_process_group; None: one device at a time.
    collective = None

    # Switches under torch that allow products of fp32 tensors in a shorter format (TF32), as
    # dotted attributes: ("backends.mydevice.allow_tf32",). Empty: there is no such format. They
    # are set for every run, and the digits of a product are looked at afterwards.
    tf32_switches = ()

    # Names for torch.compile(backend=...) that were tried on this device.
    compilers: tuple[str, ...] = ()

    # "documents" (untested, as doctor says it), "simulator", or "hardware" once the contract
    # tests have passed on a device.
    verified = "documents"

    def driver(self) -> str | None:
        """The driver's version for the record; None: not known."""
        return None

    def sensors(self) -> Sensors:
        """How power and the like of this device, ``self.device.index``, are read during a run.

        ``Sensors(read, source="...")``: ``read()`` gives {"power_w": 71.5, "energy_j": ...,
        "memory_used_bytes": ..., "temperature_c": ...} in exactly these units. What the device
        does not tell is left out, never 0. backends/sensors.py has what readers need.
        """
        raise Unsupported("the adapter has no reader of power yet")
