# SPDX-License-Identifier: Apache-2.0
"""From Samples to the batches a model is fed, and the fair division of a batch."""

from __future__ import annotations

import numpy as np
import torch

from bertbench.common.data.batch import PretrainingBatch, Tokens
from bertbench.common.data.samples import IntArray, Samples, ragged_index


def collate(samples: Samples, rows: IntArray) -> PretrainingBatch:
    """The samples ``rows`` [B] laid end to end, in that order."""
    tokens, offsets = ragged_index(samples.offsets, rows)
    masked, masked_offsets = ragged_index(samples.masked_offsets, rows)
    lengths = np.diff(offsets)
    position = np.arange(offsets[-1])
    position -= np.repeat(offsets[:-1], lengths)
    segment = position >= np.repeat(samples.split[rows].astype(np.int64), lengths)
    indices = samples.masked_positions[masked].astype(np.int64)
    indices += np.repeat(offsets[:-1], np.diff(masked_offsets))
    return PretrainingBatch(
        tokens=Tokens(
            input_ids=_int64(samples.input_ids[tokens]),
            segment_ids=_int64(segment),
            position_ids=_int64(position),
            cu_seqlens=torch.from_numpy(offsets.astype(np.int32)),
            lengths=tuple(lengths.tolist()),
        ),
        masked_indices=_int64(indices),
        masked_labels=_int64(samples.masked_labels[masked]),
        next_sentence_labels=_int64(samples.next_sentence_labels[rows]),
    )


def deal(weights: IntArray, hands: int) -> IntArray:
    """Divide n items among ``hands`` so that each gets n / hands of them and near-equal weight.

    Items are dealt in rounds, heaviest first; in each round the lightest hand so far gets the
    heaviest item. Ties go by index, so every rank computes the same.

    Args:
        weights: [n], n a multiple of ``hands``.
        hands: how many.

    Returns:
        int64 [hands, n / hands], indices of items, heaviest first in each hand.
    """
    assert len(weights) % hands == 0
    rounds = np.argsort(-weights, kind="stable").reshape(-1, hands)
    result = np.empty((hands, len(rounds)), np.int64)
    total = np.zeros(hands, np.int64)
    for turn, items in enumerate(rounds):
        order = np.argsort(total, kind="stable")
        result[order, turn] = items
        total[order] += weights[items]
    return result


def _int64(array: IntArray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64, copy=False))
