# SPDX-License-Identifier: Apache-2.0
"""Which keys the queries of an attention kernel meet: tiles of queries, runs of kept blocks, bits.

See attention.h, which reads them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VECTOR_KEYS = 16
"""W of vec.h: runs begin and end at multiples of it."""
BLOCKS = (32, 64, 16)
"""Sizes of the kept blocks: small ones skip more scores, and use each key less often."""


class Layout(NamedTuple):
    """The blocks that masks keep, in the order of the kernel's parameters.

    G distinct masks of N x N positions; B is the block, and E = ceil(N / B) + 1.
    """

    which: Tensor | None = None
    """int64 [heads] or [sequences, heads]: each head's mask; None: every key is kept."""
    tiles: Tensor | None = None
    """int64 [G, E]: tile t of mask g has runs ``tiles[g, t]`` to ``tiles[g, t + 1]``."""
    runs: Tensor | None = None
    """int32 [runs, 2]: first key and the one after the last; ascending and apart in each tile."""
    bits: Tensor | None = None
    """int16 [G, N, ceil(N / 16)]: the keys that each query may attend to, one bit each; None where
    every key of a run is one."""
    places: Tensor | None = None
    """int32 [G, N]: the order in which a head has the tokens of its sequences, n of n tokens; None:
    the order of the batch. Everything else, and dropout, counts tokens in this order."""
    edges: int = 0
    longest: int = 0
    words: int = 0
    queries: int = 0

    @classmethod
    def of(cls, masks: NDArray[np.bool_], *, heads: int, block: int) -> Layout:
        """Make the layout of ``masks``, bool [1 or heads, N, N], True = may attend.

        Raises ValueError for a block that is not a multiple of 16.
        """
        if block < VECTOR_KEYS or block % VECTOR_KEYS:
            raise ValueError(f"block {block} is not a multiple of {VECTOR_KEYS}")
        return cls.of_distinct(*distinct(masks, heads), block)

    @classmethod
    def of_distinct(cls, masks: NDArray[np.bool_], which: NDArray[np.int64], block: int) -> Layout:
        """Make the layout of ``masks``, bool [G, N, N], where head h has number ``which[h]``."""
        count, longest, _ = masks.shape
        kept = kept_blocks(masks, block)
        parts = kept.shape[1]
        # A run begins and ends where a block and its neighbour differ.
        change = np.diff(np.pad(kept, ((0, 0), (0, 0), (1, 1))).astype(np.int8), axis=2)
        tile, first = np.nonzero(change.reshape(count * parts, -1) == 1)
        _, end = np.nonzero(change.reshape(count * parts, -1) == -1)
        last = -(-longest // VECTOR_KEYS) * VECTOR_KEYS
        runs = np.stack([first * block, np.minimum(end * block, last)], axis=1)
        until = np.searchsorted(tile, np.arange(count * parts), side="right").reshape(count, parts)
        tiles = np.concatenate([np.append(0, until[:-1, -1])[:, None], until], axis=1)
        words = last // VECTOR_KEYS
        full = (kept.repeat(block, 1).repeat(block, 2)[:, :longest, :longest] <= masks).all()
        packed = np.zeros((count, longest, words * 2), np.uint8)
        used = np.packbits(masks, axis=2, bitorder="little")
        packed[:, :, : used.shape[2]] = used
        return cls(
            torch.from_numpy(which),
            torch.from_numpy(tiles.astype(np.int64)),
            torch.from_numpy(runs.astype(np.int32)),
            None if full else torch.from_numpy(packed.view("<i2").astype(np.int16)), None,
            parts + 1, longest, words, block,
        )  # fmt: skip

    def over(self, sequences: int) -> Layout:
        """Return the layout with ``which`` [sequences, heads]."""
        if self.which is None or self.which.ndim == 2:
            return self
        return self._replace(which=self.which.repeat(sequences, 1))


def kept_blocks(masks: NDArray[np.bool_], block: int) -> NDArray[np.bool_]:
    """Return which blocks of ``masks`` [G, N, N] hold a True: bool [G, N/block, N/block], up."""
    count, longest, _ = masks.shape
    parts = -(-longest // block)
    padded = np.zeros((count, parts * block, parts * block), bool)
    padded[:, :longest, :longest] = masks
    blocks = padded.reshape(count, parts, block, parts, block).any(axis=(2, 4))
    return np.asarray(blocks)


def distinct(masks: NDArray[np.bool_], heads: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return the distinct ones of ``masks``, bool [1 or heads, N, N], and each head's number."""
    numbers: dict[bytes, int] = {}
    packed = (np.packbits(mask).tobytes() for mask in masks)
    which = np.array([numbers.setdefault(bits, len(numbers)) for bits in packed], np.int64)
    _, first = np.unique(which, return_index=True)
    return masks[first], np.broadcast_to(which, heads).copy()


DENSE = Layout()


def candidates(masks: NDArray[np.bool_], *, heads: int) -> dict[str, Layout]:
    """Return the layouts of ``masks``, bool [1 or heads, N, N], of which one is the fastest."""
    return {f"blocks-{b}": Layout.of(masks, heads=heads, block=b) for b in BLOCKS}


def saved_cells(
    lengths: NDArray[np.int64], heads: int, layout: Layout = DENSE
) -> NDArray[np.int64]:
    """Return how many probabilities each head of each sequence keeps: [sequences, heads]."""
    which, tiles, runs, queries = layout.which, layout.tiles, layout.runs, layout.queries
    if which is None or tiles is None or runs is None:
        cells = lengths * (-(-lengths // VECTOR_KEYS) * VECTOR_KEYS)
        return np.repeat(cells[:, None], heads, axis=1)
    fences, (first, end) = tiles.numpy(), runs.numpy().T.astype(np.int64)
    starts = np.arange(fences.shape[1] - 1) * queries
    out = np.empty((len(lengths), heads), np.int64)
    heads_of = np.broadcast_to(which.numpy(), out.shape)
    for at, length in enumerate(lengths):
        padded = -(-length // VECTOR_KEYS) * VECTOR_KEYS
        keys = np.maximum(np.minimum(end, padded) - first, 0)
        sums = np.concatenate([[0], keys.cumsum()])
        width = sums[fences[:, 1:]] - sums[fences[:, :-1]]
        rows = np.clip(length - starts, 0, queries)
        out[at] = (width * rows).sum(axis=1)[heads_of[at]]
    return out


def why_no_layout(layout: Layout, lengths: NDArray[np.int64]) -> str | None:
    """Return why the kernel cannot read ``layout`` for sequences of ``lengths`` [sequences].

    None where it can.
    """
    which, tiles, runs, _, places, edges, longest, words, queries = layout
    assert which is not None and tiles is not None and runs is not None
    longest_sequence = int(lengths.max(initial=0))
    if queries < VECTOR_KEYS or queries % VECTOR_KEYS:
        return f"tiles of {queries} queries"
    if longest < max(longest_sequence, 1) or words != -(-longest // VECTOR_KEYS):
        return f"masks of {longest} positions in {words} words for {longest_sequence}"
    if edges != -(-longest // queries) + 1:
        return f"{edges} edges of tiles"
    fences, pairs = tiles.numpy().ravel(), runs.numpy()
    if fences[0] != 0 or fences[-1] != len(pairs) or (np.diff(fences) < 0).any():
        return "tiles whose runs are not in order"
    if (tiles.numpy()[1:, 0] != tiles.numpy()[:-1, -1]).any():
        return "masks whose runs are not in order"
    first, end = pairs.T
    begins = np.zeros(len(pairs), bool)
    begins[tiles.numpy()[:, :-1].ravel()[np.diff(tiles.numpy(), axis=1).ravel() > 0]] = True
    if (
        (pairs % VECTOR_KEYS).any()
        or (first < 0).any()
        or (end <= first).any()
        or (end > words * VECTOR_KEYS).any()
        or (first[1:] <= end[:-1])[~begins[1:]].any()
    ):
        return "runs that are not ascending multiples of 16"
    return None if places is None else _why_no_order(places, which, lengths)


def _why_no_order(places: Tensor, which: Tensor, lengths: NDArray[np.int64]) -> str | None:
    """Return why ``places`` [G, N] are not an order of each sequence's tokens, or None."""
    for own, length in {(g, n) for row, n in zip(which.numpy(), lengths, strict=True) for g in row}:
        if (np.sort(places[own, :length].numpy()) != np.arange(length)).any():
            return f"places that are no order of {length} tokens"
    return None
