# SPDX-License-Identifier: Apache-2.0
"""Features as training steps (order: seed and epoch only) and as batches to answer."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertbench.benchmarks.bert_squad.features import Features
from bertbench.benchmarks.bert_squad.model import SpanBatch
from bertbench.common.data.collate import collate_tokens, int64
from bertbench.common.data.samples import IntArray
from bertbench.common.data.steps import Division, Ordered, StepBatch, StepStream, shuffled

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["FeatureStream", "StepBatch", "answer_batches", "collate", "share"]


class FeatureStream(StepStream[Features, SpanBatch]):
    """Endless steps over features that were read for training; iterate it once."""

    places = ("epoch",)

    def __init__(self, features: Features, **division: Unpack[Division]) -> None:
        """As StepStream, which may raise BadInput."""
        self._features = features
        super().__init__({"data": _fingerprint(features)}, **division)

    def ordered(self, stopping: threading.Event) -> Generator[Ordered[Features], None, None]:
        """Yield all features in each epoch's order."""
        for epoch in itertools.count(self.start["epoch"]):
            order = shuffled(len(self._features), self.seed, epoch)
            yield Ordered({"epoch": epoch}, self._features, order)

    def join(self, pieces: list[tuple[Features, IntArray]]) -> tuple[Features, IntArray]:
        """Return the rows [m] of all pieces end to end, [n]."""
        return self._features, np.concatenate([rows for _, rows in pieces])

    def collate(self, pool: Features, rows: IntArray) -> SpanBatch:
        """Lay the features ``rows`` [B] end to end, in that order."""
        return collate(pool, rows)


def _fingerprint(features: Features) -> int:
    """Return 48 bits that identify the training data."""
    digest = hashlib.sha256()
    for array in (features.offsets, features.input_ids, features.start, features.end):
        if array is not None:
            digest.update(array.tobytes())
    return int.from_bytes(digest.digest()[:6], "big")


def collate(features: Features, rows: IntArray) -> SpanBatch:
    """Lay the features ``rows`` [B] end to end, in that order."""
    tokens = collate_tokens(features, rows)
    start, end = features.start, features.end
    return SpanBatch(
        tokens=tokens,
        rows=int64(np.repeat(np.arange(len(rows)), tokens.lengths)),
        start=None if start is None else int64(start[rows]),
        end=None if end is None else int64(end[rows]),
    )


def share(number: int, world: int, rank: int) -> IntArray:
    """Return this rank's features to answer, int64 [n]: every ``world``-th, in the file's order."""
    return np.arange(rank, number, world)


def answer_batches(
    features: Features, rows: IntArray, size: int, *, pin: bool = False
) -> Sequence[SpanBatch]:
    """Return ``rows`` [n] in their order, ``size`` at a time; the last batch may be smaller."""
    batches = (collate(features, rows[low : low + size]) for low in range(0, len(rows), size))
    return [batch.pinned() if pin else batch for batch in batches]
