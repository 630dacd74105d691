# SPDX-License-Identifier: Apache-2.0
"""Sample power, energy and other sensors in the background of training.

A backend provides a function that reads its sensors into a flat mapping. These keys have a meaning
here: ``energy_j`` (a counter that only increases), ``power_w``, ``temperature_c`` and ``throttled``
(1 while the device is throttled, else 0). A missing sensor is a missing key, never a zero. Drivers
are not trusted: impossible readings are left out, and a counter is believed interval by interval.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from bertbench.common.measure.energy import between, counted, energy, possible, stretches, time_of

PATIENCE_S = 6.0
"""Longest wait for a reading while no time counts; tools have 5 s to answer."""
PROMPT_S = 0.1
"""Longest wait for one while time counts; a sensor that once takes longer is never waited for."""
BLUR = 0.05
"""Share of the windows' seconds by which the readings at their ends may differ in what they took:
no one knows when within its reading a counter was read. Up to PROMPT_S counters differ by
themselves, since they are updated some ten times a second."""


class Sampler:
    """Reads every ``period_s`` seconds; the windows between ``start`` and ``stop`` count.

    ``source`` names the sensor in the record. A sensor that fails, hangs or breaks in whatever way
    stops the sampling, never the training: ``problem`` is the reason, and no energy is reported.
    ``prepare`` and ``close`` wait for a reading, for ``patience_s`` at most: call them while no
    time counts. ``start`` and ``stop`` wait for PROMPT_S at most, once: the thread reads on between
    the windows, so that a window is cut out of the readings before and after each of its ends.
    """

    def __init__(
        self, read: Callable[[], Mapping[str, float]], *, source: str, period_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic, patience_s: float = PATIENCE_S,
    ) -> None:  # fmt: skip
        self.source = source
        self.problem: str | None = None
        self._read, self._period_s, self._clock = read, period_s, clock
        self._patience_s, self._prompt_s = patience_s, min(PROMPT_S, patience_s)
        self._readings: list[dict[str, float]] = []
        self._took: list[float] = []
        """Seconds that each reading took."""
        self._windows: list[tuple[float, float]] = []
        """First and last second of each; the last one of a window that goes on is infinite."""
        self._refused: dict[str, str] = {}
        """Sensor -> the first of its readings that was left out."""
        self._thread: threading.Thread | None = None
        self._change = threading.Condition()
        self._asked = self._begun = self._done = 0
        """Numbers of readings: the last one that is waited for, begun, done."""
        self._asked_at = 0.0

    def prepare(self) -> None:
        """Take a first reading, unless there is one."""
        if self._thread is not None or self.problem is not None:
            return
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._ask()
        self._thread.start()
        self._await(self._patience_s)

    def start(self) -> None:
        """Begin a window, with a reading if it comes in time."""
        assert not self._open(), "start() of a sampler that is running"
        if self._thread is None:
            self.prepare()
            begin = self._last()
        else:
            begin = self._last() if self._prompt() else self._clock()
        self._windows.append((begin, math.inf))

    def stop(self) -> None:
        """End the window, with a reading if it comes in time."""
        if not self._open():
            return
        now = time.monotonic()
        in_time = self._prompt()
        end = self._last() if in_time else self._clock() - (time.monotonic() - now)
        self._windows[-1] = (self._windows[-1][0], end)

    def close(self) -> None:
        """Wait for the reading that the last window's end lacks, and end the sampling."""
        if self._thread is not None:
            self._await(self._asked_at + self._patience_s - time.monotonic())
        self.end()

    def end(self) -> None:
        """End the sampling without a wait."""
        with self._change:
            self._thread = None
            self._change.notify_all()

    def take(self) -> None:
        """Read the sensors once, now."""
        self._take()

    def samples(self) -> list[dict[str, float]]:
        """Return the readings in the windows by time; ``t`` is the clock's seconds."""
        return [self._readings[i] for a, b in self._slices() for i in range(a, b)]

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
            for window in self._cut()
            for before, now in itertools.pairwise(window)
            if "throttled" in now
        ]
        return sum(seconds for seconds, yes in known if yes) if known else None

    def highest(self, key: str) -> float | None:
        """Return the largest reading of a sensor, or None without readings."""
        if self.problem is not None:
            return None
        found = (sample[key] for window in self._cut() for sample in window if key in sample)
        return max(found, default=None)

    def why_unknown(self) -> str | None:
        """Return why a device that has power or energy sensors has no energy; None if it has."""
        seen = {key for sample in self._readings for key in sample} | self._refused.keys()
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
        odd = sum(counted(w[a:b]) is None for w in windows for a, b in stretches(w))
        if odd and any("energy_j" in sample for w in windows for sample in w):
            found.append(
                f"the energy counter stood still, went back or was unreadable {odd} times: power "
                f"x time counts there"
            )
        if self._blurred() and any("energy_j" in sample for sample in self._readings):
            found.append(
                "the energy counter's readings took times too different for windows so short"
            )
        return found

    def _cut(self) -> list[list[dict[str, float]]]:
        """Return each window's readings, with those at its ends in proportion to the time.

        They have no counter where its readings cannot be placed in time.
        """
        windows = [
            between(self._readings, *part, *window)
            for part, window in zip(self._slices(), self._windows, strict=True)
        ]
        if self._blurred():
            return [[{k: s[k] for k in s if k != "energy_j"} for s in w] for w in windows]
        return windows

    def _blurred(self) -> bool:
        """Return whether the readings at the windows' ends took too different times; see BLUR."""
        blur = total = 0.0
        for (first, last), (begin, end) in zip(self._slices(), self._windows, strict=True):
            exact = [self._readings[i]["t"] for i in (first, last - 1) if first < last]
            early = first - 1 if begin not in exact else first
            late = last if end not in exact else last - 1
            sooner = max(self._took[max(0, early) : first + 1], default=0.0)
            later = max(self._took[max(0, last - 1) : late + 1], default=0.0)
            apart = abs(later - sooner)
            blur, total = blur + apart * (apart > PROMPT_S), total + end - begin
        return blur > BLUR * total

    def _slices(self) -> list[tuple[int, int]]:
        """Return of each window the index of its first reading, and that behind its last."""
        slices, last = [], 0
        for begin, end in self._windows:
            first = bisect.bisect_left(self._readings, begin, last, key=time_of)
            last = bisect.bisect_right(self._readings, end, first, key=time_of)
            slices.append((first, last))
        return slices

    # -- the thread -------------------------------------------------------------------------------
    def _open(self) -> bool:
        return bool(self._windows) and self._windows[-1][1] == math.inf

    def _last(self) -> float:
        return self._readings[-1]["t"] if self._readings else 0.0

    def _ask(self) -> None:
        """Ask for a reading that begins now."""
        with self._change:
            self._asked, self._asked_at = self._begun + 1, time.monotonic()
            self._change.notify_all()

    def _answered(self) -> bool:
        return self._done >= self._asked or self.problem is not None

    def _prompt(self) -> bool:
        """Ask for a reading; return whether there was time to wait for it, and it has come."""
        if self.problem is None:
            self._ask()
        with self._change:
            if not self._change.wait_for(self._answered, self._prompt_s):
                self._prompt_s = 0.0
            return self._answered()

    def _await(self, seconds: float) -> None:
        with self._change:
            if not self._change.wait_for(self._answered, max(0.0, seconds)):
                self.problem = f"{self.source}: no answer in {self._patience_s:g} s"

    def _run(self) -> None:
        try:
            while self.problem is None and self._turn():
                self._take()
                with self._change:
                    self._done = self._begun
                    self._change.notify_all()
        except BaseException as error:  # nobody else would see it
            self.problem = self.problem or f"{self.source}: {type(error).__name__}: {error}"
        finally:
            with self._change:
                self._change.notify_all()

    def _turn(self) -> bool:
        """Wait until a reading is asked for or due; return false at the end."""
        own = threading.current_thread()
        with self._change:
            self._change.wait_for(
                lambda: self._thread is not own or self._begun < self._asked, self._period_s
            )
            self._begun += 1
            return self._thread is own

    def _take(self) -> None:
        begin = time.monotonic()
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
            self._took.append(time.monotonic() - begin)
            self._readings.append(sample)


@contextlib.contextmanager
def prepared(telemetry: object) -> Iterator[None]:
    """Read a Sampler's sensors before time counts; end the sampling where the work raises."""
    sampler = telemetry if isinstance(telemetry, Sampler) else None
    try:
        if sampler is not None:
            sampler.prepare()
        yield
    except BaseException:
        if sampler is not None:
            sampler.end()
        raise
