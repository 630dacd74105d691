# SPDX-License-Identifier: Apache-2.0
"""Timers of device work: by the host's clock, and by the device's own events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """Times spans of device work. ``start`` and ``stop`` block only if the clock requires it."""

    clock: str

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def seconds(self) -> list[float]: ...


class HostTimer:
    """Synchronises, then reads the monotonic clock: correct on any backend."""

    clock = "host-sync"

    def __init__(
        self, synchronize: Callable[[], None], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._synchronize, self._now = synchronize, clock
        self._started: float | None = None
        self._seconds: list[float] = []

    def start(self) -> None:
        self._synchronize()
        self._started = self._now()

    def stop(self) -> None:
        assert self._started is not None, "stop() without start()"
        self._synchronize()
        self._seconds.append(self._now() - self._started)
        self._started = None

    def seconds(self) -> list[float]:
        return list(self._seconds)


class DeviceEvent(Protocol):
    """A mark in the device's queue, as torch's device modules have it."""

    def record(self) -> None: ...
    def elapsed_time(self, end: DeviceEvent, /) -> float:
        """Return the milliseconds from this mark to ``end``; the device must have passed both."""


class EventTimer:
    """Marks in the device's queue: nothing blocks until ``seconds``, which synchronises once."""

    clock = "device-event"

    def __init__(
        self, new_event: Callable[[], DeviceEvent], synchronize: Callable[[], None]
    ) -> None:
        self._new_event, self._synchronize = new_event, synchronize
        self._open: DeviceEvent | None = None
        self._pairs: list[tuple[DeviceEvent, DeviceEvent]] = []

    def start(self) -> None:
        self._open = self._new_event()
        self._open.record()

    def stop(self) -> None:
        assert self._open is not None, "stop() without start()"
        end = self._new_event()
        end.record()
        self._pairs.append((self._open, end))
        self._open = None

    def seconds(self) -> list[float]:
        self._synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in self._pairs]
