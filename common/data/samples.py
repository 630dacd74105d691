# SPDX-License-Identifier: Apache-2.0
"""Pretraining examples in memory: flat arrays with offsets, no padding, about 700 bytes each.

N samples hold T tokens and M masked positions in all. Sample ``i`` is tokens
``offsets[i]:offsets[i + 1]`` and masked positions ``masked_offsets[i]:masked_offsets[i + 1]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self

IntArray = NDArray[Any]
"""An integer array whose width the field's docstring gives."""


class Sequences:
    """N sequences of T tokens laid end to end: i is tokens ``offsets[i]:offsets[i + 1]``."""

    __slots__ = ()

    input_ids: IntArray
    offsets: IntArray
    split: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """int64 [N], tokens of each sequence."""
        return np.diff(self.offsets)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join all sequences of ``parts``, at least one, in order."""
        if len(parts) == 1:
            return parts[0]
        joined: dict[str, IntArray | None] = {}
        for name in (field.name for field in fields(cls)):  # type: ignore[arg-type]
            arrays = [getattr(part, name) for part in parts]
            if name in ("offsets", "masked_offsets"):
                joined[name] = from_lengths(np.concatenate([np.diff(a) for a in arrays]))
            else:
                joined[name] = None if arrays[0] is None else np.concatenate(arrays)
        return cls(**joined)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples(Sequences):
    """N masked-language-model and next-sentence examples, as they are on disk less the padding."""

    input_ids: IntArray
    """``token_dtype(vocab)`` [T], masked, with [CLS] and [SEP]."""
    offsets: IntArray
    """int64 [N + 1], ascending from 0 to T."""
    split: IntArray
    """uint16 [N], tokens of segment A ([CLS] A [SEP]); the rest of the sample is segment B."""
    masked_positions: IntArray
    """uint16 [M], strictly ascending inside a sample, counted from its [CLS]."""
    masked_labels: IntArray
    """``token_dtype(vocab)`` [M], the original ids."""
    masked_offsets: IntArray
    """int64 [N + 1], ascending from 0 to M."""
    next_sentence_labels: IntArray
    """int8 [N], 1 = B is random, 0 = B follows A."""

    @property
    def masked_counts(self) -> IntArray:
        """int64 [N], masked positions of each sample."""
        return np.diff(self.masked_offsets)

    def take(self, rows: IntArray) -> Samples:
        """Return copies of ``rows`` [n], in that order."""
        tokens, offsets = ragged_index(self.offsets, rows)
        masked, masked_offsets = ragged_index(self.masked_offsets, rows)
        return Samples(
            input_ids=self.input_ids[tokens],
            offsets=offsets,
            split=self.split[rows],
            masked_positions=self.masked_positions[masked],
            masked_labels=self.masked_labels[masked],
            masked_offsets=masked_offsets,
            next_sentence_labels=self.next_sentence_labels[rows],
        )


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the type of a vocabulary's ids: uint16 up to 65,536, else int32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def from_lengths(lengths: IntArray) -> IntArray:
    """Return the offsets, int64 [n + 1], of pieces of ``lengths`` [n] laid end to end."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def places(offsets: IntArray) -> IntArray:
    """Return int64 [t], each element's index in its own piece, from ``offsets`` [n + 1]."""
    index = np.arange(offsets[-1])
    index -= np.repeat(offsets[:-1], np.diff(offsets))
    return index


def ragged_index(offsets: IntArray, rows: IntArray) -> tuple[IntArray, IntArray]:
    """Return the rows' elements end to end, and where each row begins.

    Args:
        offsets: int64 [N + 1] of all rows.
        rows: [n].

    Returns:
        int64 indices [t], and new offsets, int64 [n + 1].
    """
    start = offsets[rows]
    new = from_lengths(offsets[rows + 1] - start)
    index = np.arange(new[-1])
    index += np.repeat(start - new[:-1], np.diff(new))
    return index, new
