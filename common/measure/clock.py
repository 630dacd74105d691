# SPDX-License-Identifier: Apache-2.0
"""The times of a run: lengths from a clock that nobody can set, and dates that agree with them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

_ALLOWED_S = 1.0
"""A leap second, and what the two readings are apart."""


class Clock:
    """Reads the wall clock once; from then on its dates pass as fast as ``time.monotonic``.

    A wall clock that is set in the middle of a run moves none of the dates that this one gives.
    """

    def __init__(
        self,
        wall: Callable[[], float] | None = None,
        steady: Callable[[], float] | None = None,
    ) -> None:
        self._wall, self._steady = wall or time.time, steady or time.monotonic
        self._offset = self._wall() - self._steady()

    def date(self, steady: float | None = None) -> float:
        """Return the seconds since 1970 at a reading of the steady clock; by default, now."""
        return self._offset + (self._steady() if steady is None else steady)

    def contradictions(self) -> list[str]:
        """Return a note for the record if the wall clock no longer agrees."""
        off = self._wall() - self.date()
        if abs(off) <= _ALLOWED_S:
            return []
        way = "forward" if off > 0 else "back"
        return [
            f"the wall clock went {way} by {abs(off):.0f} s during the run (it was set, or the "
            f"machine slept): dates go on from the run's start, and all durations are of a clock "
            f"that cannot be set"
        ]


def process_began(
    stat: Path = Path("/proc/self/stat"), now: Callable[[], float] = time.monotonic
) -> float:
    """Return the reading of ``time.monotonic`` at the start of this process."""
    try:
        # Counted from the machine's start: unlike psutil's time, it does not move with the date.
        ticks = int(stat.read_bytes().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):  # no Linux
        age = time.time() - psutil.Process().create_time()
    return now() - max(age, 0.0)


def command_began(
    environment: Mapping[str, str] = os.environ,
    began: Callable[[], float] = process_began,
    now: Callable[[], float] = time.monotonic,
) -> float:
    """Return the reading of ``time.monotonic`` at the start of the command of this process.

    A launcher script is the same process as the run that it becomes: where it installed the
    environment before, BERTBENCH_INSTALLED_S holds the seconds that this took.
    """
    text = environment.get("BERTBENCH_INSTALLED_S", "")
    installed = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    return min(began() + installed, now())
