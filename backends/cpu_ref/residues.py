# SPDX-License-Identifier: Apache-2.0
"""Masked attention over kept blocks, with the tokens ordered by residue, then by position.

A mask with a period (strided, fixed) keeps cells in every block. Ordered by position modulo the
period, keys that many queries share lie together, and most other blocks become empty.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertbench.backends.cpu_ref.layout import Layout, distinct, kept_blocks

STRIDES = range(1, 65)
"""The periods that are tried."""
_CORNER = 512
"""Positions on which they are tried: a mask with a period has it there."""
_KEPT = 1 << 31
"""Entries of the masks whose layouts are kept for later batches: an eighth of that in bytes."""


class Residues:
    """The layouts of masks whose tokens are ordered by residue, made for lengths as they come."""

    def __init__(
        self, masks: NDArray[np.bool_], which: NDArray[np.int64], strides: list[int], block: int
    ) -> None:
        """Take distinct ``masks``, bool [G, N, N], with a stride each, and the heads' numbers."""
        self.strides, self.longest = strides, masks.shape[1]
        self._masks, self._which, self._block = masks, which, block
        self._of_length = lru_cache(maxsize=max(4, _KEPT // masks.size))(self._make)
        self.layout = lru_cache(maxsize=2)(self._join)  # a batch goes through all layers

    @classmethod
    def of(cls, masks: NDArray[np.bool_], *, heads: int, block: int) -> Residues | None:
        """Order the tokens for ``masks``, bool [1 or heads, N, N], True = may attend.

        Each mask gets the stride with the fewest kept blocks in its upper left corner; None where
        the order of the batch, stride 1, is the best for all of them.
        """
        different, which = distinct(masks, heads)
        strides = [_best_stride(mask[:_CORNER, :_CORNER], block) for mask in different]
        return cls(different, which, strides, block) if max(strides) > 1 else None

    def _make(self, length: int) -> Layout:
        """Return the layout of one length, with ``places`` [G, length]."""
        orders = [_order(length, stride) for stride in self.strides]
        masks = np.stack([m[np.ix_(o, o)] for m, o in zip(self._masks, orders, strict=True)])
        layout = Layout.of_distinct(masks, self._which, self._block)
        return layout._replace(places=torch.from_numpy(np.stack(orders).astype(np.int32)))

    def _join(self, lengths: tuple[int, ...]) -> Layout:
        """Return one layout for sequences of ``lengths``, with ``which`` [sequences, heads].

        Raises ValueError for a sequence that is longer than the masks.
        """
        different = sorted({max(1, length) for length in lengths})
        if different and different[-1] > self.longest:
            raise ValueError(f"masks of {self.longest} positions for a sequence of {different[-1]}")
        parts = [self._of_length(length) for length in different or [1]]
        last, masks = parts[-1], len(self._masks)
        numbers = np.searchsorted(different, np.maximum(lengths, 1)) * masks
        if len(parts) == 1:
            return last.over(len(lengths))
        tiles: list[Tensor] = []
        runs: list[Tensor] = []
        before = 0
        bits = torch.zeros(len(parts), masks, last.longest, last.words, dtype=torch.int16)
        places = torch.zeros(len(parts), masks, last.longest, dtype=torch.int32)
        for at, part in enumerate(parts):
            assert part.tiles is not None and part.runs is not None and part.places is not None
            fences = part.tiles + before
            more = fences[:, -1:].expand(masks, last.edges - part.edges)
            tiles.append(torch.cat([fences, more], dim=1))
            runs.append(part.runs)
            before += len(part.runs)
            bits[at, :, : part.longest, : part.words] = -1 if part.bits is None else part.bits
            places[at, :, : part.longest] = part.places
        which = torch.from_numpy(numbers)[:, None] + torch.from_numpy(self._which)
        return last._replace(
            which=which, tiles=torch.cat(tiles), runs=torch.cat(runs), bits=bits.flatten(0, 1),
            places=places.flatten(0, 1),
        )  # fmt: skip


def _order(length: int, stride: int) -> NDArray[np.int64]:
    """Return the positions 0 to ``length`` in the order of residues: int64 [length]."""
    return np.argsort(np.arange(length) % stride, kind="stable")


def _best_stride(mask: NDArray[np.bool_], block: int) -> int:
    """Return the stride whose order keeps the fewest blocks of ``mask`` [n, n]."""

    def count(stride: int) -> int:
        order = _order(len(mask), stride)
        return int(kept_blocks(mask[None, order][:, :, order], block).sum())

    return min(STRIDES, key=count)
