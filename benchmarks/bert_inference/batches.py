# SPDX-License-Identifier: Apache-2.0
"""Sequences to batches: by length and a budget of tokens, or padded to the model's full length.

Sequences laid end to end, as in bert_squad/features.py: N of T tokens in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bertbench.common.data.samples import IntArray
from bertbench.engines.base import Batch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """The model's input of all samples, without padding."""

    input_ids: IntArray
    """int32 [T]."""
    offsets: IntArray
    """int64 [N + 1], ascending from 0 to T."""
    split: IntArray
    """int32 [N], tokens of segment 0."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """int64 [N]."""
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How samples become batches."""

    tokens: int
    """The most of one batch, padding included; a longer sample is a batch by itself."""
    length: int | None = None
    """Pad each batch to this length; None: to its longest sample, sorted by length."""

    def batches(self, lengths: IntArray) -> Iterator[IntArray]:
        """Yield places in ``lengths`` [n], int64 [b] for each batch; each place occurs once.

        Sorted, the longest come first: the batch that ends the run alone is a short one.
        """
        order = np.arange(len(lengths))
        if self.length is None:
            order = np.argsort(-lengths, kind="stable")
        first = 0
        while first < len(order):
            longest = self.length or int(lengths[order[first]])
            count = max(1, self.tokens // longest)
            yield order[first : first + count]
            first += count

    def most(self, shortest: int) -> int:
        """Return the sequences of the largest batch, where none is below ``shortest`` tokens."""
        return max(1, self.tokens // (self.length or shortest))


def pad(inputs: Inputs, rows: Sequence[int] | IntArray, length: int | None = None) -> Batch:
    """Return the samples ``rows`` [B] as int64 [B, L] arrays.

    L is ``length`` or the longest sample's. Padding is 0 in all three arrays, as in the reference.
    """
    lengths = inputs.lengths[rows]
    width = np.arange(length or int(lengths.max()))
    real = width < lengths[:, None]
    ids = np.zeros(real.shape, np.int64)
    starts = inputs.offsets[rows]
    ids[real] = inputs.input_ids[(starts[:, None] + width)[real]]
    segments = (width >= inputs.split[rows][:, None]) & real
    return Batch(ids, real.astype(np.int64), segments.astype(np.int64))
