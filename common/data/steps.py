# SPDX-License-Identifier: Apache-2.0
"""The order in which samples are trained, and the batches of every step.

The order depends on the seed, the epoch and the files only. An epoch takes the shards in shuffled
order, up to ``window_shards`` at a time; the samples of such a window are in memory together and
are shuffled among themselves. Consecutive samples make the global batches, across the ends of
windows and epochs, so that each sample is used exactly once per epoch.

World size, micro-batch and accumulation only divide a global batch. Every rank knows all lengths
and therefore computes the same division by itself, in which all micro-batches have the same
number of sequences and near-equal tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from bertbench.common.data.batch import PretrainingBatch
from bertbench.common.data.collate import collate, deal
from bertbench.common.data.prefetch import Prefetcher
from bertbench.common.data.samples import IntArray, Samples
from bertbench.common.errors import BadInput

STEPS_AHEAD = 4
"""Steps that are collated before they are asked for."""

Window = tuple[int, ...]
"""What is in memory together: numbers of shards, ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """What one rank needs for one optimizer step."""

    micro_batches: tuple[PretrainingBatch, ...]
    """This rank's, one per accumulation step, longest sequence first in each."""
    num_samples: int
    """Sequences of the global batch."""
    num_masked: int
    """Masked positions of the global batch: the denominator of the MLM loss."""
    num_tokens: int
    """Real tokens of the global batch."""
    position: dict[str, int]
    """Where the stream stands after this batch: what TrainStream continues from."""


class Source(Protocol):
    """Where samples come from; must give the same ones every time."""

    @property
    def identity(self) -> dict[str, int]:
        """What a position is only valid with, by name."""

    def windows(self, epoch: int) -> list[Window]:
        """The windows of an epoch, in order, never empty."""

    def load(self, window: Window) -> Iterator[Samples]:
        """The samples of a window, in pieces."""


class _Loaded(NamedTuple):
    """A window in memory and the order of its samples."""

    epoch: int
    window: int
    samples: Samples
    order: IntArray


class StepStream:
    """Endless steps over a Source; iterate it, and close the iterator (or drop it) when done."""

    def __init__(
        self,
        source: Source,
        *,
        seed: int,
        global_batch: int,
        micro_batch: int,
        world: int,
        rank: int,
        position: dict[str, int] | None = None,
        pin: bool = False,
    ) -> None:
        """``position`` comes from a StepBatch; BadInput when it or the division does not fit.

        ``pin`` puts the micro-batches into page-locked memory, in the thread that makes them.
        """
        if not 0 <= seed < 1 << 64:
            raise BadInput(f"seed {seed}: must be within 0 and 2**64 - 1")
        self.source = source
        self.seed = seed
        self.global_batch = global_batch
        self.world = world
        self.rank = rank
        self.pin = pin
        self.accumulation = accumulation_of(global_batch, micro_batch, world)
        self.identity = {"seed": seed, **source.identity}
        self.start = position or {"epoch": 0, "window": 0, "index": 0, **self.identity}
        self._check_start()

    def __iter__(self) -> Generator[StepBatch, None, None]:
        stopping = threading.Event()
        steps = Prefetcher(self._steps(stopping), STEPS_AHEAD)
        try:
            # `yield from` would close ``steps`` before the flag is set, and wait for a window.
            for step in steps:  # noqa: UP028
                yield step
        finally:
            stopping.set()
            steps.close()

    def _steps(self, stopping: threading.Event) -> Generator[StepBatch, None, None]:
        """Runs in a thread of its own, fed by a second one that loads the windows."""
        pieces: list[tuple[Samples, IntArray]] = []
        missing = self.global_batch
        index = self.start["index"]
        windows = Prefetcher(self._windows(stopping), depth=1)
        try:
            for epoch, window, samples, order in windows:
                if index > len(order):
                    raise BadInput(
                        f"the checkpoint's data position {self.start} is beyond the "
                        f"{len(order)} samples there: it belongs to other data"
                    )
                while index < len(order):
                    rows = order[index : index + missing]
                    pieces.append((samples, rows))
                    index += len(rows)
                    missing -= len(rows)
                    if not missing:
                        yield self._step(
                            pieces,
                            {"epoch": epoch, "window": window, "index": index, **self.identity},
                        )
                        pieces, missing = [], self.global_batch
                index = 0
        finally:
            windows.close()

    def _windows(self, stopping: threading.Event) -> Generator[_Loaded, None, None]:
        """All windows from the start position on; one that stays the same is not loaded again."""
        epoch, window = self.start["epoch"], self.start["window"]
        loaded: Window | None = None
        while True:
            windows = self.source.windows(epoch)
            if window >= len(windows):
                raise BadInput(
                    f"the checkpoint's data position {self.start} is beyond the "
                    f"{len(windows)} windows of an epoch: it belongs to other data"
                )
            for number in range(window, len(windows)):
                if loaded != windows[number]:
                    parts = []
                    for part in self.source.load(windows[number]):
                        if stopping.is_set():
                            return
                        parts.append(part)
                    samples = Samples.concatenate(parts)
                    loaded = windows[number]
                    del part, parts
                order = shuffled(len(samples), self.seed, epoch, 1 + number)
                yield _Loaded(epoch, number, samples, order)
            epoch, window = epoch + 1, 0

    def _step(self, pieces: list[tuple[Samples, IntArray]], position: dict[str, int]) -> StepBatch:
        samples, rows = pieces[0]
        if len(pieces) > 1:
            samples = Samples.concatenate([part.take(chosen) for part, chosen in pieces])
            rows = np.arange(len(samples))
        lengths = samples.offsets[rows + 1] - samples.offsets[rows]
        masked = samples.masked_offsets[rows + 1] - samples.masked_offsets[rows]
        parts = deal(lengths, self.world * self.accumulation)
        mine = deal(lengths[parts].sum(axis=1), self.world)[self.rank]
        batches = (collate(samples, rows[parts[part]]) for part in mine)
        return StepBatch(
            micro_batches=tuple(batch.pinned() if self.pin else batch for batch in batches),
            num_samples=self.global_batch,
            num_masked=int(masked.sum()),
            num_tokens=int(lengths.sum()),
            position=position,
        )

    def _check_start(self) -> None:
        for name in ("epoch", "window", "index"):
            if not isinstance(self.start.get(name), int) or self.start[name] < 0:
                raise BadInput(f"data position {self.start}: {name} is missing or negative")
        for name, value in self.identity.items():
            if self.start.get(name) != value:
                raise BadInput(
                    f"the checkpoint's data position was made with {name} "
                    f"{self.start.get(name, '(none: other data)')}, this run has {value}: resume "
                    f"with the same seed and data, or start anew"
                )


def shuffled(n: int, *key: int) -> IntArray:
    """A permutation of n that depends on ``key`` only, the same under every NumPy release.

    Generator.permutation may change between releases (NEP 19); seed sequences and the raw output
    of bit generators may not.
    """
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw(n)
    return np.argsort(bits, kind="stable")


def accumulation_of(global_batch: int, micro_batch: int, world: int) -> int:
    """Micro-batches per rank and step; BadInput, naming what fits, unless all are full."""
    if min(global_batch, micro_batch, world) < 1:
        raise BadInput(
            f"global batch {global_batch}, micro-batch {micro_batch} and world size {world} "
            f"must be at least 1"
        )
    if global_batch % world:
        near = global_batch // world * world
        fits = ", ".join(str(n) for n in (near, near + world) if n)
        raise BadInput(
            f"global batch {global_batch} cannot be shared equally by {world} ranks; the nearest "
            f"global batches that can: {fits}"
        )
    share = global_batch // world
    if share % micro_batch:
        divisors = [n for n in range(1, share + 1) if share % n == 0]
        below = max(n for n in divisors if n < micro_batch)
        above = min((n for n in divisors if n > micro_batch), default=below)
        raise BadInput(
            f"micro-batch {micro_batch} does not divide the {share} sequences that each of "
            f"{world} ranks trains per step; the nearest that do: "
            f"{', '.join(str(n) for n in sorted({below, above}))}"
        )
    return share // micro_batch
