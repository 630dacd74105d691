# SPDX-License-Identifier: Apache-2.0
"""Features as training steps (order: seed and epoch only) and as batches to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertbench.benchmarks.bert_squad.features import Features
from bertbench.benchmarks.bert_squad.model import SpanBatch
from bertbench.common.data.collate import collate_tokens, int64
from bertbench.common.data.memory import MemoryStream
from bertbench.common.data.samples import IntArray
from bertbench.common.data.steps import Division, StepBatch

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["FeatureStream", "StepBatch", "answer_batches", "collate", "share"]


class FeatureStream(MemoryStream[Features, SpanBatch]):
    """Endless steps over features that were read for training; iterate it once."""

    def __init__(self, features: Features, **division: Unpack[Division]) -> None:
        """As StepStream, which may raise BadInput."""
        f = features
        super().__init__(f, (f.offsets, f.input_ids, f.start, f.end), **division)

    def collate(self, pool: Features, rows: IntArray) -> SpanBatch:
        """Lay the features ``rows`` [B] end to end, in that order."""
        return collate(pool, rows)


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
