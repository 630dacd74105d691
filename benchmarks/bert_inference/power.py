# SPDX-License-Identifier: Apache-2.0
"""Power and energy of the device that answers, over LoadGen's performance test.

The sensors are those of bertbench's backends, read by the parent of the engine's process. MLPerf's
power results are of the whole node, through an external meter: these are none.
"""

from __future__ import annotations

from typing import NamedTuple

from bertbench import engines
from bertbench.backends import registry
from bertbench.backends.base import Telemetry
from bertbench.common.files import why
from bertbench.common.measure.telemetry import Sampler
from bertbench.engines.base import EngineOptions


class Power(NamedTuple):
    """The sampler of a device, or why there is none."""

    sampler: Telemetry | None
    reason: str | None = None

    @classmethod
    def of(cls, engine: str, options: EngineOptions) -> Power:
        """Open the sensors of the device that ``engine`` computes on; raises nothing."""
        name = engines.load(engine).backend_of(options.provider)
        if name is None:
            return cls(None, f"bertbench has no sensors of provider {options.provider}")
        try:
            backend = registry.load(name)(int(options.provider_options.get("device_id", "0")))
            sampler = backend.telemetry()
            if sampler is None:
                return cls(None, backend.capabilities.notes.get("power", "no sensor"))
        except Exception as error:  # a vendor's library: the tests go on without it
            return cls(None, why(error))
        return cls(sampler)

    def prepare(self) -> None:
        """Take a first reading while no time counts."""
        if isinstance(self.sampler, Sampler):
            self.sampler.prepare()

    def start(self) -> None:
        """Begin the window that counts."""
        if self.sampler is not None:
            self.sampler.start()

    def stop(self) -> None:
        """End the window."""
        if self.sampler is not None:
            self.sampler.stop()
