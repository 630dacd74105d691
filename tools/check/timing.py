# SPDX-License-Identifier: Apache-2.0
"""Clocks for steps and for single kernels; the latter is that of `bertbench calibrate`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from bertbench.backends.base import Backend
from bertbench.backends.timers import HostTimer

# One implementation of the kernels' clock: figures here and in calibration.json are comparable.
from bertbench.common.measure.calibration import measure_rates

STEP_CLOCK = (
    "median of {n} after {warm_up} untimed calls, the host's clock, synchronised before and after "
    "each"
)
KERNEL_CLOCK = (
    "median over spans of 20 ms of calls in a row, after warm-up, by the device's clock if it has "
    "one"
)
RESIDUAL_S, RESIDUAL_SHARE = 1e-3, 0.05
WARM_UP = 2


class NotSynchronised(Exception):
    """The device was still working when a clock was read."""


def step_clock(repeats: int, warm_up: int = WARM_UP) -> str:
    """Return the description of ``step_seconds``' clock, for a definition."""
    return STEP_CLOCK.format(n=repeats, warm_up=warm_up)


def step_seconds(
    backend: Backend, call: Callable[[], object], repeats: int, warm_up: int = WARM_UP
) -> float:
    """Return the median seconds of a call, with the device idle at both ends.

    The idle device is verified: a second synchronisation must return at once. Raises
    NotSynchronised if it does so in none of the repeats; one slow repeat may be the host's fault.
    """
    for _ in range(warm_up):
        call()
    timer = HostTimer(backend.synchronize)
    residuals = []
    for _ in range(repeats):
        backend.synchronize()
        before = _second_synchronisation(backend)
        timer.start()
        call()
        timer.stop()
        residuals.append(max(before, _second_synchronisation(backend)))
    median, residual = statistics.median(timer.seconds()), min(residuals)
    if residual > max(RESIDUAL_S, RESIDUAL_SHARE * median):
        raise NotSynchronised(
            f"after synchronize() the device was busy for another {1e3 * residual:.1f} ms, beside "
            f"a span of {1e3 * median:.1f} ms: the adapter's synchronize() does not wait"
        )
    return median


def _second_synchronisation(backend: Backend) -> float:
    begin = time.perf_counter()
    backend.synchronize()
    return time.perf_counter() - begin


def issue_seconds(backend: Backend, call: Callable[[], object], repeats: int) -> float:
    """Return the median seconds until the host has issued a call; the device is not awaited."""
    for _ in range(WARM_UP):
        call()
    seconds = []
    for _ in range(repeats):
        backend.synchronize()
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    backend.synchronize()
    return statistics.median(seconds)


def kernel_rate(
    backend: Backend, call: Callable[[], object], work: float, spans: int
) -> tuple[float, str]:
    """Return ``work`` of one call / its seconds, and a note on the slowest and fastest span."""
    found = measure_rates(backend, call, work, spans)
    low, high = (found[key] / found["median"] for key in ("lowest", "highest"))
    spread = f"{low:.2f} and {high:.2f} of the median"
    return found["median"], f"slowest and fastest of {found['spans']} spans: {spread}"
