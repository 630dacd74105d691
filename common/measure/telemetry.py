# SPDX-License-Identifier: Apache-2.0
"""Sample power, energy and other sensors in the background of training.

A backend provides a function that reads its sensors into a flat mapping. These keys have a meaning
here: ``energy_j`` (a counter that only increases), ``power_w``, ``temperature_c`` and ``throttled``
(1 while the device is throttled, else 0). A missing sensor is a missing key, never a zero. Drivers
are not trusted: impossible readings are left out, and a counter is believed interval by interval.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

PATIENCE_S = 6.0
"""Longest wait for a reading at the start and the end of a window; tools have 5 s to answer."""
MOST_W = 20_000.0
"""More than one device draws, and than a host with its processors does."""
GAP_S = 10.0
"""Longest time that one reading of power may stand for; MLPerf requires a reading a second."""
STUCK_S = 1.0
"""A counter that has not moved for so long does not count."""
_AT_ONCE_S = 0.25
"""A last reading within this time is of the window's end."""
_SLACK_S = 0.2
"""Counters are updated ten times a second or more often."""
_POSSIBLE = {
    "power_w": (1e-3, MOST_W), "energy_j": (0.0, 1e15), "temperature_c": (-60.0, 250.0),
    "utilization_percent": (0.0, 100.0), "throttled": (0.0, 1.0),
}  # fmt: skip


class Sampler:
    """Reads every ``period_s`` seconds between ``start`` and ``stop``; can be started again.

    ``source`` names the sensor in the record. A sensor that fails, hangs or breaks in whatever way
    stops the sampling, never the training: ``problem`` is the reason, and no energy is reported.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, float]],
        *,
        source: str,
        period_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.source = source
        self.problem: str | None = None
        self._read, self._period_s, self._clock = read, period_s, clock
        self._patience_s = patience_s
        self._windows: list[list[dict[str, float]]] = []
        self._late: list[float] = []
        """Of each window: seconds from its end to its last reading."""
        self._refused: dict[str, str] = {}
        """Sensor -> the first of its readings that was left out."""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin a window with a first reading."""
        assert self._thread is None, "start() of a sampler that is running"
        self._windows.append([])
        self._late.append(0.0)
        if self.problem is not None:
            return
        self._ended, first = threading.Event(), threading.Event()
        work = (self._windows[-1], self._ended, first)
        self._thread = threading.Thread(target=self._run, args=work, name="telemetry", daemon=True)
        self._thread.start()
        if not first.wait(self._patience_s):
            self._give_up()

    def stop(self) -> None:
        """End the window with a last reading."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        end = time.monotonic()
        self._ended.set()
        thread.join(0.0 if self.problem else self._patience_s)
        if thread.is_alive():
            self._give_up()
        late = time.monotonic() - end
        if late > _AT_ONCE_S and self._clock is time.monotonic:
            self._late[-1] = late

    def take(self) -> None:
        """Read the sensors once, now."""
        self._take(self._windows[-1])

    def samples(self) -> list[dict[str, float]]:
        """Return all readings by time; ``t`` is the clock's seconds."""
        return [sample for window in self._windows for sample in window]

    def seconds(self) -> float:
        """Return the length of the windows sampled so far."""
        return sum(w[-1]["t"] - w[0]["t"] for w in self._cut() if w)

    def energy_j(self) -> float | None:
        """Return the joules used in the windows, or None if unknown."""
        if self.problem is not None:
            return None
        parts = [energy(window) for window in self._cut()]
        known = [part for part in parts if part is not None]
        return (sum(known) or None) if len(known) == len(parts) else None

    def power_w(self) -> float | None:
        """Return the mean power over the windows, or None if unknown."""
        joules, seconds = self.energy_j(), self.seconds()
        return joules / seconds if joules is not None and seconds > 0 else None

    def throttled_s(self) -> float | None:
        """Return the seconds in the windows before a throttled reading; None if unknown."""
        if self.problem is not None:
            return None
        known = [
            (now["t"] - before["t"], now["throttled"])
            for window in self._windows
            for before, now in itertools.pairwise(window)
            if "throttled" in now
        ]
        return sum(seconds for seconds, yes in known if yes) if known else None

    def highest(self, key: str) -> float | None:
        """Return the largest reading of a sensor, or None without readings."""
        if self.problem is not None:
            return None
        return max((sample[key] for sample in self.samples() if key in sample), default=None)

    def why_unknown(self) -> str | None:
        """Return why a device that has power or energy sensors has no energy; None if it has."""
        seen = {key for sample in self.samples() for key in sample} | self._refused.keys()
        if self.problem is not None or not seen & {"power_w", "energy_j"}:
            return self.problem
        if self.energy_j() is not None:
            return None
        why = "; ".join(self.doubts()) or "its readings do not cover the window"
        return f"{self.source}: {why}"

    def doubts(self) -> list[str]:
        """Return what was left out of the readings, and what the counter did not count."""
        found = [f"{key} of {value} is left out" for key, value in self._refused.items()]
        windows = self._cut()
        odd = sum(_counted(w[a:b]) is None for w in windows for a, b in _stretches(w))
        if odd and any("energy_j" in sample for w in windows for sample in w):
            found.append(
                f"the energy counter stood still, went back or was unreadable {odd} times: power "
                f"x time counts there"
            )
        return found

    def _cut(self) -> list[list[dict[str, float]]]:
        """Return the windows, each up to its end: a slow last reading came after it."""
        return [_until(w, w[-1]["t"] - late) if w else w
                for w, late in zip(self._windows, self._late, strict=True)]  # fmt: skip

    def _run(
        self, window: list[dict[str, float]], ended: threading.Event, first: threading.Event
    ) -> None:
        try:
            self._take(window)
            first.set()
            while self.problem is None and not ended.is_set():
                ended.wait(self._period_s)
                self._take(window)
        except BaseException as error:  # nobody else would see it
            self.problem = self.problem or f"{self.source}: {type(error).__name__}: {error}"
        finally:
            first.set()

    def _take(self, window: list[dict[str, float]]) -> None:
        if self.problem is not None:
            return
        try:
            reading = dict(self._read())
        except Exception as error:
            known = isinstance(error, (OSError, RuntimeError, ValueError)) and str(error)
            why = str(error) if known else f"{type(error).__name__}: {error}"
            self.problem = self.problem or f"{self.source}: {why}"
            return
        sample = {"t": self._clock()}
        for key, value in reading.items():
            number = possible(key, value)
            if number is None:
                self._refused.setdefault(key, repr(value)[:40])
            else:
                sample[key] = number
        if self.problem is None:  # nobody waits any more for a reading that hung
            window.append(sample)

    def _give_up(self) -> None:
        self.problem = self.problem or f"{self.source}: no answer in {self._patience_s:g} s"


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
    for a, b in _stretches(samples):
        part = _counted(samples[a:b])
        if part is None:
            part = _integrated(samples[a:b])
        if part is None:
            return None
        total += part
    return total if len(samples) > 1 else None


def _stretches(samples: Sequence[Mapping[str, float]]) -> list[tuple[int, int]]:
    """Return the slices from each new reading of the counter to the next, both included."""
    marks = [i for i, sample in enumerate(samples) if "energy_j" in sample]
    moved = [b for a, b in itertools.pairwise(marks)
             if samples[a]["energy_j"] != samples[b]["energy_j"]]  # fmt: skip
    edges = sorted({0, *marks[:1], *moved, *marks[-1:], max(0, len(samples) - 1)})
    return [(a, b + 1) for a, b in itertools.pairwise(edges)]


def _counted(samples: Sequence[Mapping[str, float]]) -> float | None:
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


def _until(samples: list[dict[str, float]], end: float) -> list[dict[str, float]]:
    """Return the samples up to ``end``, the counter's last reading in proportion to the time."""
    whole = [sample for sample in samples if sample["t"] <= end]
    if len(whole) == len(samples) or not whole:
        return samples
    before, after = whole[-1], dict(samples[len(whole)])
    share = (end - before["t"]) / (after["t"] - before["t"])
    if "energy_j" in after and after["energy_j"] >= before.get("energy_j", math.inf):
        after["energy_j"] = before["energy_j"] + share * (after["energy_j"] - before["energy_j"])
    return [*whole, after | {"t": end}]
