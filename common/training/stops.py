# SPDX-License-Identifier: Apache-2.0
"""What can end a run early: numbers that are not finite, and signals."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

import torch
from torch import Tensor

from bertbench.common.errors import DivergedError


class Faults:
    """Remembers on the device the first step whose loss or gradient was not finite.

    Nothing is read back until ``check``, so that steps stay asynchronous.
    """

    def __init__(self, device: torch.device, steps_done: int = 0) -> None:
        self._first = {
            "loss": torch.zeros((), device=device, dtype=torch.int32),
            "gradient": torch.zeros((), device=device, dtype=torch.int32),
        }
        self._next = steps_done + 1
        self.skipped = 0

    def loss(self, sums: Tensor) -> None:
        """Look at the sums of this step's losses."""
        self._mark("loss", sums.sum())

    def gradient(self, norm: Tensor) -> None:
        """Look at the norm of this step's gradient."""
        self._mark("gradient", norm)

    def _mark(self, what: str, value: Tensor) -> None:
        first = self._first[what]
        bad = torch.logical_and(first == 0, ~torch.isfinite(value.detach()))
        first.masked_fill_(bad, self._next)

    def seen(self, step: int) -> None:
        """The step with this number is over."""
        self._next = step + 1

    def check(self) -> None:
        """Read the flags; raise DivergedError for the earliest fault."""
        found = {what: int(first) for what, first in self._first.items() if int(first)}
        if found:
            step = min(found.values())
            causes = " and ".join(what for what, at in found.items() if at == step)
            raise DivergedError(
                f"step {step}: the {causes} is not finite (NaN or infinity). Lower "
                f"--learning_rate, lengthen --warmup_steps, or resume from an earlier checkpoint."
            )


class Interruption:
    """SIGTERM and Ctrl-C ask for an orderly stop; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self.name = ""
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not the main thread: nothing to catch
                self._old[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked, self.name = True, signal.Signals(number).name

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
