# SPDX-License-Identifier: Apache-2.0
"""Sample power, energy and other sensors in the background of training.

A backend provides a function that reads its sensors into a flat mapping. These keys have a meaning
here: ``energy_j`` (a counter that only increases), ``power_w``, ``temperature_c`` and ``throttled``
(1 while the device is throttled, else 0). A missing sensor is a missing key, never a zero.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence


class Sampler:
    """Reads every ``period_s`` seconds between ``start`` and ``stop``; can be started again.

    ``source`` names the sensor in the record. A failing sensor stops the sampling, never the
    training: ``problem`` is the reason, and no energy is reported.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, float]],
        *,
        source: str,
        period_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self.problem: str | None = None
        self._read, self._period_s, self._clock = read, period_s, clock
        self._windows: list[list[dict[str, float]]] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin a window with a first reading."""
        assert self._thread is None, "start() of a sampler that is running"
        self._windows.append([])
        self._ended.clear()
        self.take()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the window with a last reading."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        self.take()

    def take(self) -> None:
        """Read the sensors once, now."""
        if self.problem is not None:
            return
        try:
            reading = dict(self._read())
        except (OSError, RuntimeError, ValueError) as error:
            self.problem = f"{self.source}: {error}"
            return
        self._windows[-1].append({"t": self._clock(), **reading})

    def samples(self) -> list[dict[str, float]]:
        """Return all readings by time; ``t`` is the clock's seconds."""
        return [sample for window in self._windows for sample in window]

    def seconds(self) -> float:
        """Return the length of the windows sampled so far."""
        return sum(w[-1]["t"] - w[0]["t"] for w in self._windows if w)

    def energy_j(self) -> float | None:
        """Return the joules used in the windows, or None if unknown."""
        if self.problem is not None:
            return None
        parts = [energy(window) for window in self._windows]
        known = [part for part in parts if part is not None]
        return sum(known) if parts and len(known) == len(parts) else None

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

    def _run(self) -> None:
        while self.problem is None and not self._ended.wait(self._period_s):
            self.take()


def energy(samples: Sequence[Mapping[str, float]]) -> float | None:
    """Return the joules from the first sample to the last.

    From the device's counter if every sample has it; else each power reading times the time since
    the previous one (MLPerf training_policies, power_measurement.adoc). None without either, or
    with fewer than two samples.
    """
    if len(samples) < 2:
        return None
    if all("energy_j" in sample for sample in samples):
        return samples[-1]["energy_j"] - samples[0]["energy_j"]
    if all("power_w" in sample for sample in samples):
        pairs = itertools.pairwise(samples)
        return sum(now["power_w"] * (now["t"] - before["t"]) for before, now in pairs)
    return None
