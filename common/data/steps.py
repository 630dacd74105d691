# SPDX-License-Identifier: Apache-2.0
"""Endless training steps: how an order of samples becomes batches, and how it is resumed.

A benchmark defines the order, which depends on the seed, the epoch and the data only. Consecutive
samples make the global batches, across the ends of epochs, so that each sample is used exactly
once per epoch.

World size, micro-batch and accumulation only divide a global batch. Every rank knows all lengths
and computes the same division, in which all micro-batches have the same number of sequences and
near-equal tokens.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypedDict, TypeVar

import numpy as np

from bertbench.common.config.batch_split import split
from bertbench.common.data.batch import Batch
from bertbench.common.data.collate import balance
from bertbench.common.data.prefetch import Prefetcher
from bertbench.common.data.samples import IntArray, Sequences
from bertbench.common.errors import BadInput

if TYPE_CHECKING:
    from typing_extensions import Unpack

STEPS_AHEAD = 4
"""Steps that are collated in advance."""

Pool = TypeVar("Pool", bound=Sequences)
B = TypeVar("B", bound=Batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One rank's data for one optimizer step."""

    micro_batches: tuple[Batch, ...]
    """This rank's, one per accumulation step, longest sequence first in each."""
    num_samples: int
    """Sequences of the global batch."""
    num_masked: int = 0
    """Masked positions of the global batch: the denominator of the MLM loss."""
    num_tokens: int
    """Real tokens of the global batch."""
    position: dict[str, int]
    """The stream's position after this batch, for resuming."""


class _Division(TypedDict):
    seed: int
    global_batch: int
    micro_batch: int
    world: int
    rank: int


class Division(_Division, total=False):
    """Arguments of every StepStream."""

    position: dict[str, int] | None
    pin: bool


class Ordered(NamedTuple, Generic[Pool]):
    """Samples in memory and their order: a part of an epoch, or all of it."""

    place: dict[str, int]
    """Its part of a position, such as the epoch's number."""
    pool: Pool
    order: IntArray
    """int64 [n], rows of ``pool``."""


class StepStream(ABC, Generic[Pool, B]):
    """Endless steps; iterate it, and close the iterator (or drop it) when done."""

    places: Sequence[str]
    """Names of the numbers that ``Ordered.place`` holds."""

    def __init__(self, identity: dict[str, int], **division: Unpack[Division]) -> None:
        """Prepare; the first sample is read on iteration.

        Args:
            identity: numbers that a position must share with the data to be valid.
            division: ``seed`` seeds the order, the same on all ranks; ``global_batch`` sequences
                per step over all ranks; ``micro_batch`` sequences per rank and pass; ``world``
                ranks, of which this is ``rank``; ``position`` of a StepBatch to continue after;
                ``pin`` puts the micro-batches into page-locked memory, in the prefetch thread.

        Raises:
            BadInput: the micro-batches do not divide the global batch, or the position belongs to
                other data.
        """
        self.seed = division["seed"]
        if not 0 <= self.seed < 1 << 64:
            raise BadInput(f"--seed {self.seed}: must be within 0 and 2**64 - 1")
        self.global_batch, micro_batch = division["global_batch"], division["micro_batch"]
        self.world, self.rank = division["world"], division["rank"]
        self.pin = division.get("pin", False)
        self.accumulation = split(
            self.global_batch, micro_batch, micro_batch, self.world
        ).accumulation
        self.identity = {"seed": self.seed, **identity}
        beginning = dict.fromkeys((*self.places, "index"), 0) | self.identity
        self.start = division.get("position") or beginning
        self._check_start()

    @abstractmethod
    def ordered(self, stopping: threading.Event) -> Generator[Ordered[Pool], None, None]:
        """Yield the samples in order from ``start`` on, without end; return once ``stopping``."""

    @abstractmethod
    def join(self, pieces: list[tuple[Pool, IntArray]]) -> tuple[Pool, IntArray]:
        """Return the rows [n] of all pieces, each rows [m] of a pool, as rows of one pool."""

    @abstractmethod
    def collate(self, pool: Pool, rows: IntArray) -> B:
        """Lay ``rows`` [B] of ``pool`` end to end, in that order."""

    def num_masked(self, pool: Pool, rows: IntArray) -> int:
        """Return the masked positions of ``rows`` [B]."""
        return 0

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
        """Yield steps; runs in its own thread, fed by a second one that loads the samples."""
        pieces: list[tuple[Pool, IntArray]] = []
        missing = self.global_batch
        index = self.start["index"]
        parts = Prefetcher(self.ordered(stopping), depth=1)
        try:
            for place, pool, order in parts:
                if index > len(order):
                    raise BadInput(self._beyond(f"{len(order)} samples there"))
                while index < len(order):
                    rows = order[index : index + missing]
                    pieces.append((pool, rows))
                    index += len(rows)
                    missing -= len(rows)
                    if not missing:
                        yield self._step(pieces, {**place, "index": index, **self.identity})
                        pieces, missing = [], self.global_batch
                index = 0
        finally:
            parts.close()

    def _step(self, pieces: list[tuple[Pool, IntArray]], position: dict[str, int]) -> StepBatch:
        pool, rows = self.join(pieces)
        lengths = pool.offsets[rows + 1] - pool.offsets[rows]
        parts = balance(lengths, self.world * self.accumulation)
        mine = balance(lengths[parts].sum(axis=1), self.world)[self.rank]
        batches = (self.collate(pool, rows[parts[part]]) for part in mine)
        return StepBatch(
            micro_batches=tuple(batch.pinned() if self.pin else batch for batch in batches),
            num_samples=self.global_batch,
            num_masked=self.num_masked(pool, rows),
            num_tokens=int(lengths.sum()),
            position=position,
        )

    def _check_start(self) -> None:
        for name in (*self.places, "index"):
            if not isinstance(self.start.get(name), int) or self.start[name] < 0:
                raise BadInput(f"data position {self.start}: {name} is missing or negative")
        for name, value in self.identity.items():
            if self.start.get(name) != value:
                raise BadInput(
                    f"the checkpoint's data position was made with {name} "
                    f"{self.start.get(name, '(none: other data)')}, this run has {value}: resume "
                    f"with the same seed and data, or start a new run"
                )

    def _beyond(self, limit: str) -> str:
        return (
            f"the checkpoint's data position {self.start} is beyond the {limit}: resume with the "
            f"same data, or start a new run"
        )


def shuffled(n: int, *key: int) -> IntArray:
    """Return a permutation int64 [n] that depends on ``key`` only, under every NumPy release.

    Generator.permutation may change between releases (NEP 19); seed sequences and the raw output
    of bit generators may not.
    """
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw(n)
    return np.argsort(bits, kind="stable")
