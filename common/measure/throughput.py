# SPDX-License-Identifier: Apache-2.0
"""Measure training rates: work in a window / the window's seconds.

The window is synchronised at both ends, so that it counts exactly the work issued in it.
``pause`` excludes evaluation and checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol


class Window(NamedTuple):
    """Work between two synchronised readings of the clock. Rates are None without work."""

    steps: int = 0
    samples: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0
    model_flops: int = 0
    """Dense-equivalent; see common/measure/flops.py."""
    effective_flops: int = 0
    """Without the scores that the attention mask leaves out; 0 without a mask."""
    seconds: float = 0.0

    def _rate(self, count: int) -> float | None:
        return count / self.seconds if count and self.seconds > 0 else None

    @property
    def sequences_per_second(self) -> float | None:
        return self._rate(self.samples)

    @property
    def real_tokens_per_second(self) -> float | None:
        """Tokens without padding."""
        return self._rate(self.real_tokens)

    @property
    def padded_tokens_per_second(self) -> float | None:
        """Samples times maximum length."""
        return self._rate(self.padded_tokens)

    @property
    def model_flops_per_second(self) -> float | None:
        return self._rate(self.model_flops)

    @property
    def effective_flops_per_second(self) -> float | None:
        return self._rate(self.effective_flops)


class _Sampler(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...


class RateMeter:
    """A stopwatch that also counts work.

    ``start`` .. (``add`` .. ``lap`` .. ``pause`` .. ``resume``) .. ``stop``. ``synchronize`` must
    block until the device is idle; ``clock`` returns seconds and never decreases. ``telemetry``
    samples while time counts, so that energy and rate cover the same seconds. The warm-up before
    ``warmed`` is part of the laps, but neither of ``stop``'s result nor of the samples.
    """

    def __init__(
        self, synchronize: Callable[[], None], clock: Callable[[], float] = time.perf_counter,
        telemetry: _Sampler | None = None,
    ) -> None:  # fmt: skip
        self._synchronize, self._clock, self._telemetry = synchronize, clock, telemetry
        self._since: float | None = None
        self._started = self._warming = False
        self._lap = Window()
        self._total = Window()
        self._warm_up = Window()

    @property
    def running(self) -> bool:
        """Whether time counts now."""
        return self._since is not None

    def start(self, *, warming: bool = False) -> None:
        """Begin; with ``warming``, begin a warm-up that ``warmed`` ends. A meter is used once."""
        assert not self._started, "this meter was started before"
        self._started, self._warming = True, warming
        self._run()

    def warmed(self) -> None:
        """End the warm-up."""
        assert self.running and self._warming, "warmed() outside a warm-up"
        self._read()
        self._warm_up, self._warming = _plus(self._total, self._lap), False
        if self._telemetry is not None:
            self._telemetry.start()

    def add(
        self,
        *,
        samples: int,
        real_tokens: int = 0,
        padded_tokens: int = 0,
        model_flops: int = 0,
        effective_flops: int = 0,
    ) -> None:
        """Count a step's work, issued since ``start`` or ``resume``, without synchronising."""
        assert self.running, "add() of a meter that is not running"
        work = Window(1, samples, real_tokens, padded_tokens, model_flops, effective_flops)
        self._lap = _plus(self._lap, work)

    def pause(self) -> None:
        """Stop counting time until ``resume``."""
        assert self.running, "pause() of a meter that is not running"
        self._read()
        self._halt()

    def resume(self) -> None:
        """Count time again."""
        assert self._started and not self.running, "resume() without pause()"
        self._run()

    def lap(self) -> Window:
        """Return the work since the last lap (or the start), and begin the next one."""
        if self.running:
            self._read()
        window, self._lap = self._lap, Window()
        self._total = _plus(self._total, window)
        return window

    def stop(self) -> Window:
        """End, and return the work since ``start``, or since ``warmed``.

        Time after a lap without any work, as of the last report, is not part of it.
        """
        assert self._started, "stop() without start()"
        total = self._total
        if not self.lap().steps:
            self._total = total
        self._halt()
        return Window() if self._warming else _plus(self._total, self._warm_up, -1)

    def _run(self) -> None:
        if self._telemetry is not None and not self._warming:
            self._telemetry.start()
        self._since = self._now()

    def _halt(self) -> None:
        self._since = None
        if self._telemetry is not None and not self._warming:
            self._telemetry.stop()

    def _now(self) -> float:
        self._synchronize()
        return self._clock()

    def _read(self) -> None:
        assert self._since is not None
        now = self._now()
        self._lap = _plus(self._lap, Window(seconds=now - self._since))
        self._since = now


def merge_ranks(windows: Iterable[Window], *, counts_are_global: bool = False) -> Window:
    """Return one window for all ranks: the sum of the counts, and the slowest rank's seconds.

    A mean of the rates would hide a slow rank. Every rank takes every step, so steps do not add.
    ``counts_are_global``: each rank already counted the work of all.
    """
    steps, *counts, seconds = zip(*windows, strict=True)
    combine: Callable[[Iterable[int]], int] = max if counts_are_global else sum
    return Window._make((max(steps), *map(combine, counts), max(seconds)))


class RankWindows:
    """Merges successive windows of all ranks so that they add up to the slowest rank's seconds.

    A window ends when the ranks meet, which the fast ones reach first; their wait is part of their
    next window. The slowest of each window would count that wait twice, so a window's seconds are
    those by which the longest sum of a rank's seconds has grown.
    """

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def merge(self, windows: Sequence[Window]) -> Window:
        """Return the next window of all ranks, given each rank's own; see ``merge_ranks``."""
        before = self._seconds or [0.0] * len(windows)
        self._seconds = [s + w.seconds for s, w in zip(before, windows, strict=True)]
        return merge_ranks(windows)._replace(seconds=max(self._seconds) - max(before))


def _plus(a: Window, b: Window, times: int = 1) -> Window:
    """Return a + times x b."""
    return Window._make(x + times * y for x, y in zip(a, b, strict=True))
