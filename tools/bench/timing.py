# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing: variants take turns, so that other load slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def interleave(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each variant in each round, after one untimed round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """Return the median over rounds of slow / fast."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return ``median``, ``least`` and ``most``."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def cell(found: Mapping[str, float], digits: int) -> str:
    """Return a ``spread`` as a table shows it: median (minimum-maximum)."""
    low, high = found["least"], found["most"]
    return f"{found['median']:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
