# SPDX-License-Identifier: Apache-2.0
"""An axis of a plot: values to pixels, and where its ticks are."""

from __future__ import annotations

import math
from collections.abc import Iterable


def drawable(value: float) -> bool:
    """Return whether an axis can show ``value``; larger ones are not measurements."""
    return math.isfinite(value) and (value == 0 or 1e-80 < abs(value) < 1e80)


class Axis:
    """Maps values to pixels, with ticks at round values."""

    def __init__(
        self, values: Iterable[float], start: float, end: float, *, log: bool, tight: bool = False
    ) -> None:
        values = [v for v in values if drawable(v) and (v > 0 or not log)] or [1.0]
        self.log, self.start, self.end = log, start, end
        low, high = min(values), max(values)
        if log:
            low, high = math.log2(low), math.log2(high)
            if not tight:
                low, high = math.floor(low), math.ceil(high)
            if high - low < 1:
                low, high = low - 0.5, high + 0.5
            whole = range(math.ceil(low), math.floor(high) + 1)
            self.ticks = [2.0**k for k in whole if k % max(1, len(whole) // 6) == 0]
        else:
            if high - low <= 1e-9 * max(abs(low), abs(high), 1e-90):
                pad = abs(high) * 0.1 or 0.5
                low, high = low - pad, high + pad
            step = _step((high - low) / 5)
            if not tight:
                low, high = math.floor(low / step) * step, math.ceil(high / step) * step
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            self.ticks = [k * step for k in range(first, last + 1)]
        self.low, self.high = low, high

    def __call__(self, value: float) -> float:
        if self.log:
            value = math.log2(value) if value > 0 else self.low
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next(m * power for m in (1, 2, 2.5, 5, 10, 100) if m * power >= rough)
