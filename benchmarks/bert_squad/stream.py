# SPDX-License-Identifier: Apache-2.0
"""The order in which features are trained and answered, and the batches of every step.

The order depends on seed and epoch only. Consecutive features make the global batches, across the
ends of epochs, so that each is trained exactly once per epoch. Processes, micro-batch and
accumulation only divide a global batch: every rank knows all lengths and computes the same
division by itself (bertbench.common.data.collate.deal).
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bertbench.benchmarks.bert_squad.features import Features
from bertbench.benchmarks.bert_squad.model import SpanBatch
from bertbench.common.data.batch import Tokens
from bertbench.common.data.collate import deal
from bertbench.common.data.prefetch import Prefetcher
from bertbench.common.data.samples import IntArray, ragged_index
from bertbench.common.data.steps import STEPS_AHEAD, accumulation_of, shuffled
from bertbench.common.errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """What one rank needs for one optimizer step."""

    micro_batches: tuple[SpanBatch, ...]
    """This rank's, one per accumulation step, longest sequence first in each."""
    num_samples: int
    """Features of the global batch: the denominator of the loss."""
    num_tokens: int
    """Tokens of the global batch."""
    position: dict[str, int]
    """Where the stream stands after this batch: what FeatureStream continues from."""


class FeatureStream:
    """Endless steps over features that were read for training; iterate it once."""

    def __init__(
        self,
        features: Features,
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
            raise BadInput(f"--seed {seed}: it must be within 0 and 2**64 - 1")
        self._features, self._lengths = features, features.lengths
        self._seed, self._global_batch = seed, global_batch
        self._world, self._rank, self._pin = world, rank, pin
        self._accumulation = accumulation_of(global_batch, micro_batch, world)
        self._identity = {"seed": seed, "data": _fingerprint(features)}
        self._start = {"epoch": 0, "index": 0, **self._identity} if position is None else position
        self._check_start()

    def __iter__(self) -> Generator[StepBatch, None, None]:
        steps = Prefetcher(self._steps(), STEPS_AHEAD)
        try:
            yield from steps
        finally:
            steps.close()

    def _steps(self) -> Generator[StepBatch, None, None]:
        epoch, index = self._start["epoch"], self._start["index"]
        order = self._order(epoch)
        while True:
            pieces: list[IntArray] = []
            missing = self._global_batch
            while missing:
                if index == len(order):
                    epoch, index = epoch + 1, 0
                    order = self._order(epoch)
                pieces.append(order[index : index + missing])
                index += len(pieces[-1])
                missing -= len(pieces[-1])
            position = {"epoch": epoch, "index": index, **self._identity}
            yield self._step(np.concatenate(pieces), position)

    def _order(self, epoch: int) -> IntArray:
        return shuffled(len(self._features), self._seed, epoch)

    def _step(self, rows: IntArray, position: dict[str, int]) -> StepBatch:
        lengths = self._lengths[rows]
        parts = deal(lengths, self._world * self._accumulation)
        mine = deal(lengths[parts].sum(axis=1), self._world)[self._rank]
        batches = (collate(self._features, rows[parts[part]]) for part in mine)
        return StepBatch(
            micro_batches=tuple(b.pinned() if self._pin else b for b in batches),
            num_samples=self._global_batch,
            num_tokens=int(lengths.sum()),
            position=position,
        )

    def _check_start(self) -> None:
        for name in ("epoch", "index", *self._identity):
            value = self._start.get(name)
            if not isinstance(value, int) or value < 0:
                raise BadInput(f"data position {self._start}: {name} is missing or negative")
            if value != self._identity.get(name, value):
                raise BadInput(
                    f"the checkpoint's data position was made with {name} {value}, this run has "
                    f"{self._identity[name]}: resume with the same --seed, --train_file and "
                    f"vocabulary, or start anew"
                )
        if self._start["index"] > len(self._features):
            raise BadInput(f"data position {self._start} is beyond the {len(self._features)} there")


def _fingerprint(features: Features) -> int:
    """48 bits that tell features to train on from others."""
    digest = hashlib.sha256()
    for array in (features.offsets, features.input_ids, features.start, features.end):
        if array is not None:
            digest.update(array.tobytes())
    return int.from_bytes(digest.digest()[:6], "big")


def collate(features: Features, rows: IntArray) -> SpanBatch:
    """The features ``rows`` [B] laid end to end, in that order."""
    index, offsets = ragged_index(features.offsets, rows)
    lengths = np.diff(offsets)
    sequence = np.repeat(np.arange(len(rows)), lengths)
    position = np.arange(offsets[-1]) - offsets[sequence]
    segment = position >= features.split[rows][sequence]
    start, end = features.start, features.end
    return SpanBatch(
        tokens=Tokens(
            input_ids=_int64(features.input_ids[index]),
            segment_ids=_int64(segment),
            position_ids=_int64(position),
            cu_seqlens=torch.from_numpy(offsets.astype(np.int32)),
            lengths=tuple(lengths.tolist()),
        ),
        rows=_int64(sequence),
        start=None if start is None else _int64(start[rows]),
        end=None if end is None else _int64(end[rows]),
    )


def share(number: int, world: int, rank: int) -> IntArray:
    """The features that this rank answers: every ``world``-th, in the file's order."""
    return np.arange(rank, number, world)


def answer_batches(
    features: Features, rows: IntArray, size: int, *, pin: bool = False
) -> Sequence[SpanBatch]:
    """``rows`` in their order, ``size`` at a time; the last may be smaller."""
    batches = (collate(features, rows[low : low + size]) for low in range(0, len(rows), size))
    return [batch.pinned() if pin else batch for batch in batches]


def _int64(array: IntArray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64, copy=False))
