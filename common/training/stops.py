# SPDX-License-Identifier: Apache-2.0
"""Early ends of a run: numbers that are not finite, and signals."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bertbench.common.errors import DivergedError

if TYPE_CHECKING:
    from bertbench.common.distributed.world import World
    from bertbench.common.training.progress import Progress


LOWEST_SCALE = 1e-4
"""A loss scale that no gradient needs: below it the numbers overflow by themselves."""
MOST_SKIPPED = 10
"""Steps that loss scaling skips in a row, at most, at the end of a healthy run."""


class Faults:
    """The first step whose loss, and the first whose gradient, was not finite: on the device.

    The host reads them in ``first_steps`` only, so that steps stay asynchronous.
    """

    _KINDS = ("loss", "gradient")

    def __init__(self, device: torch.device, steps_done: int = 0) -> None:
        self._first = torch.zeros(len(self._KINDS), device=device, dtype=torch.int32)
        self._next = steps_done + 1
        self.skipped = self._in_a_row = 0
        self._scale: float | None = None

    def loss(self, sums: Tensor) -> None:
        """Check the sums [N] of this step's losses."""
        self._mark(0, sums.sum())

    def gradient(self, norm: Tensor) -> None:
        """Check the norm [] of this step's gradient."""
        self._mark(1, norm)

    def scaled(self, before: float, after: float) -> None:
        """Take the loss scales around this step's update: loss scaling skipped it if they fall."""
        self.skipped, self._scale = int(after < before), after
        self._in_a_row = self._in_a_row + 1 if self.skipped else 0

    def check_scale(self, at_end: Progress | None = None) -> None:
        """Raise DivergedError where loss scaling cannot find a scale; the same on every rank.

        That is: the scale is below LOWEST_SCALE; and ``at_end`` of the run, every one of its steps
        was skipped, or the last MOST_SKIPPED were.
        """
        if self._scale is None:
            return
        lost = self._in_a_row
        if at_end is not None and lost and at_end.skipped_steps >= at_end.step:
            which = f"all {at_end.step} steps"
        elif self._scale < LOWEST_SCALE or (at_end is not None and lost >= MOST_SKIPPED):
            which = f"the last {lost} steps"
        else:
            return
        raise DivergedError(
            f"step {self._next - 1}: {which} were skipped, since gradients overflow in fp16 (loss "
            f"scale {self._scale:g}): nothing is trained. Use --precision bf16 or fp32, lower "
            f"--init_loss_scale or --learning_rate, or train for more steps."
        )

    def _mark(self, kind: int, value: Tensor) -> None:
        first = self._first[kind]
        bad = torch.logical_and(first == 0, ~torch.isfinite(value.detach()))
        first.masked_fill_(bad, self._next)

    def finish_step(self, step: int) -> None:
        """Count the step with this number as done."""
        self._next = step + 1

    def first_steps(self) -> list[int]:
        """Read the first faulty steps of loss and gradient from the device; 0 is none."""
        return self._first.tolist()

    def check(self, ranks: Iterable[Sequence[int]] | None = None) -> None:
        """Raise DivergedError for the earliest fault.

        ``ranks`` holds the ``first_steps`` of every rank, so that all raise the same error;
        without it, this rank's count.
        """
        found = [pair for pair in ranks or [self.first_steps()] if any(pair)]
        if found:
            step = min(at for pair in found for at in pair if at)
            causes = " and ".join(
                kind
                for kind, ats in zip(self._KINDS, zip(*found, strict=True), strict=True)
                if step in ats
            )
            raise DivergedError(
                f"step {step}: the {causes} is not finite (NaN or infinity). Lower "
                f"--learning_rate, lengthen --warmup_steps, or resume from an earlier checkpoint."
            )


def check_weights(model: nn.Module, world: World, step: int) -> None:
    """Raise DivergedError on every rank if a weight of any is not finite after this step.

    An update can break them without a sign in loss or norm: unclipped, or with too large a rate.
    """
    finite = torch.stack([torch.isfinite(p.detach()).all() for p in model.parameters()]).all()
    if not all(world.gather(bool(finite))):
        raise DivergedError(
            f"step {step}: the weights are not finite (NaN or infinity). Lower --learning_rate, "
            f"clip the gradients, or resume from an earlier checkpoint."
        )


class Interruption:
    """An orderly stop on SIGTERM, SIGHUP or Ctrl-C; a second Ctrl-C stops at once.

    It may be entered again within itself: the signals are its own until the outer block ends.
    """

    def __init__(self) -> None:
        self.requested = False
        self.name = ""
        self._old: dict[int, Any] = {}
        self._depth = 0
        self._held = False

    def __enter__(self) -> Interruption:
        self._depth += 1
        if self._depth > 1:
            return self
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            with contextlib.suppress(ValueError):  # outside the main thread: no signals
                self._old[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT and not self._held:
            raise KeyboardInterrupt
        self.requested, self.name = True, signal.Signals(number).name

    @contextlib.contextmanager
    def held(self, held: bool = True) -> Iterator[None]:
        """Let no signal interrupt the block; with False, let a second Ctrl-C end it again."""
        before, self._held = self._held, held
        try:
            yield
        finally:
            self._held = before

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if not self._depth:
            for number, handler in self._old.items():
                signal.signal(number, handler)
            self._old.clear()
