# SPDX-License-Identifier: Apache-2.0
"""Power and energy of the device that answers, over LoadGen's performance test.

The sensors are those of bertbench's backends, read by the parent of the engine's process. MLPerf's
power results are of the whole node, through an external meter: these are none.
"""

from __future__ import annotations

from typing import NamedTuple

from bertbench.backends import registry
from bertbench.backends.base import Backend, Telemetry
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
        reasons = []
        for name in registry.names():
            try:
                kind = registry.load(name)
                if not _serves(kind, engine, options.provider):
                    continue
                backend = kind(int(options.provider_options.get("device_id", "0")))
                if (sampler := backend.telemetry()) is not None:
                    return cls(sampler)
                reasons.append(backend.capabilities.notes.get("power", "no sensor"))
            except Exception as error:  # a vendor's library: the tests go on without it
                reasons.append(why(error))
        none = f"no backend here knows the sensors of provider {options.provider}"
        return cls(None, reasons[0] if reasons else none)

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


def _serves(kind: type[Backend], engine: str, provider: str) -> bool:
    """Return whether a backend's devices are those of a provider."""
    if engine == "torch" and kind.name == provider.lower():
        return True
    return provider.lower() in (name.lower() for name in getattr(kind, "onnx_providers", ()))
