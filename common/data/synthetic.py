# SPDX-License-Identifier: Apache-2.0
"""Random tokens with the lengths of real data, for speed runs without files.

The text means nothing, so accuracy and loss do not either; lengths, masks and shapes are real.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from bertbench.common.data.batch import PretrainingBatch
from bertbench.common.data.hdf5 import Limits
from bertbench.common.data.samples import IntArray, Samples, from_lengths, places, token_dtype
from bertbench.common.data.steps import Division
from bertbench.common.data.stream import Window, WindowStream, batches_of
from bertbench.common.errors import BadInput

if TYPE_CHECKING:
    from typing_extensions import Unpack

FULL_LENGTH = 512
FULL_SHARE = 0.2343
"""Share of Wikipedia's pretraining samples that fill all 512 tokens, and
LENGTH_QUANTILES, the other samples' length at each 5 % of them: from the published histogram of
16,279,552 samples (Krell et al., arXiv 2107.02027, histograms.py). The mean is 255.8 tokens."""
LENGTH_QUANTILES = (
    5, 33, 43, 51, 59, 68, 78, 89, 102, 118, 135, 155, 177, 202, 231, 264, 301, 343, 392, 448, 511
)  # fmt: skip

SHORTEST = LENGTH_QUANTILES[0]
MASKED_SHARE = 0.15
PAD, CLS, SEP, MASK, FIRST_WORD = range(5)

NUM_SAMPLES = 16384
"""Samples in memory; an epoch."""


class SyntheticStream(WindowStream):
    """TrainStream without files: one window of random samples."""

    def __init__(
        self, *, limits: Limits, num_samples: int = NUM_SAMPLES, **division: Unpack[Division]
    ) -> None:
        """As TrainStream; an epoch is ``num_samples`` long and in memory."""
        self.limits, self.num_samples = limits, num_samples
        super().__init__({"num_samples": num_samples}, **division)

    def windows(self, epoch: int) -> list[Window]:
        """Return the one window."""
        return [(0,)]

    def load(self, window: Window) -> Iterator[Samples]:
        """Yield all samples."""
        yield random_samples(self.num_samples, self.limits, self.seed)


def synthetic_eval_batches(
    *, num_examples: int, batch_size: int, world: int, rank: int, limits: Limits, seed: int = 0
) -> list[PretrainingBatch]:
    """Return what ``eval_batches`` returns, without files."""
    samples = random_samples(num_examples, limits, seed)
    return batches_of(samples, batch_size=batch_size, world=world, rank=rank)


def random_samples(n: int, limits: Limits, seed: int) -> Samples:
    """Return ``n`` samples with real lengths, 15 % of each masked, spread evenly over it.

    Raises BadInput for limits that leave no sample.
    """
    if limits.max_seq_length < SHORTEST or limits.vocab_size <= FIRST_WORD:
        raise BadInput(
            f"synthetic data needs at least {SHORTEST} tokens and {FIRST_WORD + 1} words, not "
            f"max_seq_length {limits.max_seq_length} and vocab_size {limits.vocab_size}"
        )
    rng = np.random.default_rng(seed)
    lengths = random_lengths(n, limits.max_seq_length, rng)
    counts = np.clip((MASKED_SHARE * lengths).round(), 1, limits.max_predictions).astype(np.int64)
    return _fill(lengths, counts, limits, rng)


def equal_samples(n: int, limits: Limits, length: int, masked: int) -> Samples:
    """Return the same ``n`` samples of ``length`` tokens each time, ``masked`` of each masked."""
    rng = np.random.default_rng(0)
    return _fill(np.full(n, length), np.full(n, min(masked, length - 2)), limits, rng)


def typical_length(max_seq_length: int) -> int:
    """Return the mean tokens of a sample at this limit."""
    return round(random_lengths(4096, max_seq_length, np.random.default_rng(0)).mean())


def _fill(lengths: IntArray, counts: IntArray, limits: Limits, rng: np.random.Generator) -> Samples:
    """Return random samples of ``lengths`` [n] tokens, ``counts`` [n] of them masked."""
    n = len(lengths)
    offsets, masked_offsets = from_lengths(lengths), from_lengths(counts)
    dtype = token_dtype(limits.vocab_size)
    ids = rng.integers(FIRST_WORD, limits.vocab_size, offsets[-1], dtype)
    split = rng.integers(2, lengths - 1)
    ids[offsets[:-1]] = CLS
    ids[offsets[:-1] + split - 1] = SEP
    ids[offsets[1:] - 1] = SEP
    # The k-th of c positions lies in the k-th c-th of the words, so that they ascend.
    pitch = (lengths - 2) / counts
    nth = places(masked_offsets)
    wide = np.repeat(pitch, counts)
    position = 1 + np.floor(nth * wide) + np.floor(rng.random(len(nth)) * np.floor(wide))
    position = position.astype(np.int64)
    where = np.repeat(offsets[:-1], counts) + position
    labels = ids[where]
    ids[where] = MASK
    return Samples(
        input_ids=ids,
        offsets=offsets,
        split=split.astype(np.uint16),
        masked_positions=position.astype(np.uint16),
        masked_labels=labels,
        masked_offsets=masked_offsets,
        next_sentence_labels=rng.integers(0, 2, n, np.int8),
    )


def random_lengths(n: int, max_seq_length: int, rng: np.random.Generator) -> IntArray:
    """Return int64 [n], token counts distributed as Wikipedia's at this limit.

    Up to 512 the samples drawn for 512 are cut into pieces of the limit, as a text would be (at
    128 the mean is 107, 84 %); above it they are stretched in proportion.
    """
    u = rng.random(n)
    quantiles = np.linspace(0, 1 - FULL_SHARE, len(LENGTH_QUANTILES))
    whole = np.where(u < 1 - FULL_SHARE, np.interp(u, quantiles, LENGTH_QUANTILES), FULL_LENGTH)
    if max_seq_length >= FULL_LENGTH:
        return (whole * (max_seq_length / FULL_LENGTH)).round().astype(np.int64)
    whole = whole.round().astype(np.int64)
    full, rest = np.divmod(whole, max_seq_length)
    pieces = np.concatenate([np.full(full.sum(), max_seq_length), rest[rest >= SHORTEST]])
    return rng.permutation(pieces)[:n]
