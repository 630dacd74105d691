# SPDX-License-Identifier: Apache-2.0
"""Energy from readings of sensors: what a counter counted, or power times time.

A reading is a mapping with ``t``, its clock's seconds, and the keys of telemetry.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from numbers import Real

MOST_W = 20_000.0
"""More than one device draws, and than a host with its processors does."""
GAP_S = 10.0
"""Longest time that one reading of power may stand for; MLPerf requires a reading a second."""
STUCK_S = 1.0
"""A counter that has not moved for so long does not count."""
_SLACK_S = 0.2
"""Counters are updated ten times a second or more often."""
_POSSIBLE = {
    "power_w": (1e-3, MOST_W), "energy_j": (0.0, 1e15), "temperature_c": (-60.0, 250.0),
    "utilization_percent": (0.0, 100.0), "throttled": (0.0, 1.0),
}  # fmt: skip


def time_of(sample: Mapping[str, float]) -> float:
    """Return the seconds of a reading."""
    return sample["t"]


def possible(key: str, value: object) -> float | None:
    """Return a sensor's reading as a number; None for text, NaN and what no device can read."""
    if not isinstance(value, Real) or (isinstance(value, bool) and "throttle" not in key):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    low, high = _POSSIBLE.get(key, (-1e18, 1e18))
    return number if low <= number <= high else None


def energy(samples: Sequence[Mapping[str, float]]) -> float | None:
    """Return the joules from the first sample to the last.

    From the device's counter where it counts. Where it was reset, stands still or is missing, each
    power reading times the time since the previous one (MLPerf training_policies,
    power_measurement.adoc). None where neither covers the whole time, or with fewer than two
    samples.
    """
    total = 0.0
    for a, b in stretches(samples):
        part = counted(samples[a:b])
        if part is None:
            part = _integrated(samples[a:b])
        if part is None:
            return None
        total += part
    return total if len(samples) > 1 else None


def stretches(samples: Sequence[Mapping[str, float]]) -> list[tuple[int, int]]:
    """Return the slices of ``samples`` between new readings of the counter, both included."""
    marks = [i for i, sample in enumerate(samples) if "energy_j" in sample]
    moved = [b for a, b in itertools.pairwise(marks)
             if samples[a]["energy_j"] != samples[b]["energy_j"]]  # fmt: skip
    edges = sorted({0, *marks[:1], *moved, *marks[-1:], max(0, len(samples) - 1)})
    return [(a, b + 1) for a, b in itertools.pairwise(edges)]


def counted(samples: Sequence[Mapping[str, float]]) -> float | None:
    """Return what the counter counted, if that is possible."""
    first, last = samples[0], samples[-1]
    joules = last.get("energy_j", math.nan) - first.get("energy_j", math.nan)
    seconds = last["t"] - first["t"]
    stuck = joules == 0 and seconds >= STUCK_S
    return joules if 0 <= joules <= MOST_W * (seconds + _SLACK_S) and not stuck else None


def _integrated(samples: Sequence[Mapping[str, float]]) -> float | None:
    """Return power times time, if every interval has its reading."""
    first, *rest = samples
    pairs = list(itertools.pairwise(samples))
    if "power_w" not in first and "energy_j" not in first:
        return None
    if any("power_w" not in now for now in rest):
        return None
    if any(now["t"] - before["t"] > GAP_S for before, now in pairs):
        return None
    return sum(now["power_w"] * (now["t"] - before["t"]) for before, now in pairs)


def between(
    samples: Sequence[dict[str, float]], first: int, last: int, begin: float, end: float
) -> list[dict[str, float]]:
    """Return ``samples[first:last]`` with samples made for ``begin`` and ``end``, where needed."""
    inside = list(samples[first:last])
    if 0 < first < len(samples) and samples[first]["t"] > begin:
        before = samples[first - 1]
        inside.insert(0, _at(before, samples[first], begin, before))
    if 0 < last < len(samples) and samples[last - 1]["t"] < end:
        after = samples[last]
        inside.append(_at(samples[last - 1], after, end, after))
    return inside


def _at(
    before: Mapping[str, float], after: Mapping[str, float], time_s: float,
    like: Mapping[str, float],
) -> dict[str, float]:  # fmt: skip
    """Return a sample of ``time_s``: like another, the counter in proportion to the time."""
    sample = {**like, "t": time_s}
    low, high = (reading.get("energy_j", math.nan) for reading in (before, after))
    if low <= high:
        share = (time_s - before["t"]) / (after["t"] - before["t"])
        sample["energy_j"] = low + share * (high - low)
    else:
        sample.pop("energy_j", None)
    return sample
