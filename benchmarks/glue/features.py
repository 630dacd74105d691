# SPDX-License-Identifier: Apache-2.0
"""Examples to the model's input: [CLS] first [SEP], or [CLS] first [SEP] second [SEP]; no padding.

Shapes: N examples of T tokens in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertbench.benchmarks.glue.formats import Examples
from bertbench.common.data.samples import IntArray, Sequences, from_lengths, ragged_index
from bertbench.common.data.tokenization import MASK, BertTokenizer, read_vocab
from bertbench.common.errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features(Sequences):
    """N sequences laid end to end; sequence i is tokens offsets[i]:offsets[i + 1]."""

    input_ids: IntArray
    """int32 [T]."""
    offsets: IntArray
    """int64 [N + 1], ascending from 0 to T."""
    split: IntArray
    """int32 [N], tokens of segment 0, [CLS] first [SEP]; all where there is one text."""
    labels: NDArray[Any] | None
    """int64 [N], classes, or float32 [N], numbers; None without."""


class Encoder:
    """A vocabulary's tokeniser, and the longest sequence."""

    def __init__(self, vocab: Path, *, lowercase: bool, max_seq_length: int) -> None:
        """Read ``vocab``, one wordpiece a line; raises BadInput where BERT's tokens are missing."""
        tokens = read_vocab(vocab, pads=False)
        if MASK not in tokens:
            raise BadInput(f"vocabulary {vocab} lacks {MASK}: use a BERT vocab.txt")
        self._tokenizer = BertTokenizer(tokens, lowercase=lowercase)
        self._longest = max_seq_length

    def features(self, examples: Examples) -> tuple[Features, int]:
        """Return the sequences of all examples in order, and the number of those that were cut."""
        parts = [self._tokens(texts) for texts in examples.texts]
        lengths = [np.diff(offsets) for _, offsets in parts]
        kept = cut_lengths(lengths, self._longest)
        special = self._tokenizer.special
        width = [1 + kept[0] + 1, *(k + 1 for k in kept[1:])]
        offsets = from_lengths(np.sum(width, axis=0))
        ids = np.full(offsets[-1], special.sep, np.int32)
        ids[offsets[:-1]] = special.cls
        begin = offsets[:-1] + 1
        for (tokens, where), size, more in zip(parts, kept, width, strict=True):
            ids[_ranges(begin, size)] = tokens[_ranges(where[:-1], size)]
            begin = offsets[:-1] + more
        made = Features(
            input_ids=ids,
            offsets=offsets,
            split=width[0].astype(np.int32),
            labels=examples.labels,
        )
        return made, int((np.sum(lengths, axis=0) > np.sum(kept, axis=0)).sum())

    def _tokens(self, texts: Sequence[str]) -> tuple[IntArray, IntArray]:
        """Return all texts' ids end to end, int32, and their offsets, int64 [N + 1]."""
        ids, counts = self._tokenizer.encode_lines(texts)
        return ids, from_lengths(counts)


def cut_lengths(lengths: Sequence[IntArray], longest: int) -> list[IntArray]:
    """Return the wordpieces kept of each text, int64 [N] each, of one or two texts.

    A pair is cut as by Hugging Face's ``longest_first``: the longer text first, down to half of the
    room if need be, where it keeps the odd one (the second text, where both are equal). The texts'
    ends are cut.
    """
    if len(lengths) == 1:
        return [np.minimum(lengths[0], longest - 2)]
    room = longest - 3
    short = np.minimum(*lengths)
    short = np.where(sum(lengths) > room, np.minimum(short, room // 2), short)
    long = np.minimum(np.maximum(*lengths), room - short)
    first_is_longer = lengths[0] > lengths[1]
    return [np.where(first_is_longer, long, short), np.where(first_is_longer, short, long)]


def _ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """Return the integers start .. start + length - 1 of each pair, end to end, int64."""
    offsets = np.stack([starts, starts + lengths], axis=1).reshape(-1)
    return ragged_index(offsets, np.arange(0, len(offsets), 2))[0]


def made_up_features(
    lengths: IntArray, vocab_size: int, classes: int, *, pair: bool, seed: int = 1
) -> Features:
    """Return sequences of ``lengths`` [N] with random tokens and labels; ``classes`` 0: numbers."""
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths)
    offsets = from_lengths(lengths)
    number = len(lengths)
    labels: NDArray[Any] = (
        rng.integers(0, classes, number) if classes else rng.uniform(0, 5, number)
    )
    return Features(
        input_ids=rng.integers(0, vocab_size, int(offsets[-1]), np.int32),
        offsets=offsets,
        split=(lengths // 2 if pair else lengths).astype(np.int32),
        labels=labels if classes else labels.astype(np.float32),
    )
