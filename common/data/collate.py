# SPDX-License-Identifier: Apache-2.0
"""From sequences in memory to the model's batches, and the fair division of a batch."""

from __future__ import annotations

import numpy as np
import torch

from bertbench.common.data.batch import PretrainingBatch, Tokens
from bertbench.common.data.samples import IntArray, Samples, Sequences, places, ragged_index


def collate(samples: Samples, rows: IntArray) -> PretrainingBatch:
    """Lay the samples ``rows`` [B] end to end, in that order."""
    tokens = collate_tokens(samples, rows)
    masked, masked_offsets = ragged_index(samples.masked_offsets, rows)
    indices = samples.masked_positions[masked].astype(np.int64)
    indices += np.repeat(tokens.cu_seqlens[:-1].numpy(), np.diff(masked_offsets))
    return PretrainingBatch(
        tokens=tokens,
        masked_indices=int64(indices),
        masked_labels=int64(samples.masked_labels[masked]),
        next_sentence_labels=int64(samples.next_sentence_labels[rows]),
    )


def collate_tokens(sequences: Sequences, rows: IntArray) -> Tokens:
    """Lay the tokens of ``rows`` [B] end to end, in that order."""
    index, offsets = ragged_index(sequences.offsets, rows)
    lengths = np.diff(offsets)
    position = places(offsets)
    segment = position >= np.repeat(sequences.split[rows].astype(np.int64), lengths)
    return Tokens(
        input_ids=int64(sequences.input_ids[index]),
        segment_ids=int64(segment),
        position_ids=int64(position),
        cu_seqlens=torch.from_numpy(offsets.astype(np.int32)),
        lengths=tuple(lengths.tolist()),
    )


def int64(array: IntArray) -> torch.Tensor:
    """Return ``array`` [n] as an int64 tensor [n]."""
    return torch.from_numpy(array.astype(np.int64, copy=False))


def balance(weights: IntArray, parts: int) -> IntArray:
    """Divide n items into ``parts`` of n / parts items and near-equal weight.

    Items are assigned in rounds, heaviest first; in each round the lightest part so far gets the
    heaviest item. Ties go by index, so every rank computes the same.

    Args:
        weights: [n], n a multiple of ``parts``.
        parts: number of parts.

    Returns:
        int64 [parts, n / parts], indices of items, heaviest first in each part.
    """
    assert len(weights) % parts == 0
    rounds = np.argsort(-weights, kind="stable").reshape(-1, parts)
    result = np.empty((parts, len(rounds)), np.int64)
    total = np.zeros(parts, np.int64)
    for turn, items in enumerate(rounds):
        order = np.argsort(total, kind="stable")
        result[order, turn] = items
        total[order] += weights[items]
    return result
