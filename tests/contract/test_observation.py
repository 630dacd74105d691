# SPDX-License-Identifier: Apache-2.0
"""Contract: telemetry in the right units, and host fallbacks."""

from __future__ import annotations

import math
import time

import torch
import torch.nn.functional as F

from bertbench.backends.base import Backend
from bertbench.common.measure.telemetry import Sampler
from tests.contract.helpers import Work

RANGES = {
    "power_w": (0.1, 5000.0), "energy_j": (0.0, 1e15), "temperature_c": (-50.0, 150.0),
    "utilization_percent": (0.0, 100.0), "sm_clock_mhz": (1.0, 1e4),
    "memory_clock_mhz": (1.0, 1e5), "memory_used_bytes": (0.0, 2.0**45), "throttled": (0.0, 1.0),
}  # fmt: skip
"""What one device can plausibly read; outside of it, the unit is wrong."""


def test_telemetry_has_plausible_units_or_a_reason(backend: Backend, work: Work) -> None:
    """Watts, joules, bytes, degrees and MHz of one device; or None, with the reason in notes."""
    telemetry = backend.telemetry(period_s=0.05)
    if telemetry is None:
        assert backend.capabilities.notes.get("power"), (
            "telemetry() is None: say why in capabilities.notes['power']"
        )
        assert not backend.capabilities.telemetry, "claims telemetry, but has none"
        return
    assert telemetry.source
    begin = time.monotonic()
    telemetry.start()
    while time.monotonic() - begin < 0.5:
        work(1)
        backend.synchronize()
    telemetry.stop()
    wall = time.monotonic() - begin
    if isinstance(telemetry, Sampler):
        telemetry.close()
    samples = telemetry.samples()
    doubts = telemetry.doubts() if isinstance(telemetry, Sampler) else []
    assert not doubts, f"{doubts}: convert the unit (the key names it), and leave out what is none"
    assert len(samples) >= 3, (
        f"{len(samples)} readings in {wall:.2f} s of {telemetry.source}: "
        f"{getattr(telemetry, 'problem', None) or 'sample every period_s'}"
    )
    for sample in samples:
        for key, value in sample.items():
            low, high = RANGES.get(key, (-math.inf, math.inf))
            assert low <= value <= high, (
                f"{key} reads {value}: convert its unit (the key names it); leave a sensor that "
                "gives nothing out of the reading"
            )
    times = [sample["t"] for sample in samples]
    assert times == sorted(times) and 0.5 * wall < times[-1] - times[0] < 1.5 * wall
    if all("energy_j" in sample for sample in samples):
        counter = [sample["energy_j"] for sample in samples]
        assert counter == sorted(counter), "energy_j is a counter: it only grows"
    joules, watts = telemetry.energy_j(), telemetry.power_w()
    if joules is None or watts is None:
        assert not any(key in sample for sample in samples for key in ("energy_j", "power_w"))
        return
    assert joules > 0 and 0.5 * wall < joules / watts < 1.5 * wall, (
        f"{joules} J at {watts} W are {joules / watts:.2f} s, not the {wall:.2f} s measured"
    )


def test_fallbacks_are_counted_or_unknown(backend: Backend) -> None:
    """``fallbacks()`` counts operations that the host computed, or is None: unknown."""
    x = torch.ones(16, 16, device=backend.device)
    with backend.fallbacks() as found:
        F.gelu(F.linear(x, x)).sum()
        backend.synchronize()
    if found is not None:
        assert isinstance(found, dict)
        assert all(isinstance(op, str) and count > 0 for op, count in found.items()), found
