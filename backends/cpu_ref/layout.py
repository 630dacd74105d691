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
    """int64 [heads]: each head's mask; None: every key is kept."""
    tiles: Tensor | None = None
    """int64 [G, E]: tile t of mask g has runs ``tiles[g, t]`` to ``tiles[g, t + 1]``."""
    runs: Tensor | None = None
    """int32 [runs, 2]: first key and the one after the last; ascending and apart in each tile."""
    bits: Tensor | None = None
    """int16 [G, N, ceil(N / 16)]: the keys that each query may attend to, one bit each; None where
    every key of a run is one."""
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
        distinct, which = np.unique(np.packbits(masks, axis=2), axis=0, return_inverse=True)
        masks = np.unpackbits(distinct, axis=2, count=masks.shape[2]).view(bool)
        count, longest, _ = masks.shape
        parts = -(-longest // block)
        padded = np.zeros((count, parts * block, parts * block), bool)
        padded[:, :longest, :longest] = masks
        blocks = padded.reshape(count, parts, block, parts, block)
        kept = blocks.any(axis=(2, 4))
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
            torch.from_numpy(np.broadcast_to(which.reshape(-1), heads).astype(np.int64)),
            torch.from_numpy(tiles.astype(np.int64)),
            torch.from_numpy(runs.astype(np.int32)),
            None if full else torch.from_numpy(packed.view("<i2").astype(np.int16)),
            parts + 1, longest, words, block,
        )  # fmt: skip


DENSE = Layout()


def candidates(masks: NDArray[np.bool_], *, heads: int) -> dict[str, Layout]:
    """Return the layouts of ``masks``, bool [1 or heads, N, N], of which one is the fastest."""
    return {f"blocks-{b}": Layout.of(masks, heads=heads, block=b) for b in BLOCKS}


def saved_cells(
    lengths: NDArray[np.int64], heads: int, layout: Layout = DENSE
) -> NDArray[np.int64]:
    """Return how many probabilities each head of each sequence keeps: [sequences, heads]."""
    which, tiles, runs, *_, queries = layout
    if which is None or tiles is None or runs is None:
        cells = lengths * (-(-lengths // VECTOR_KEYS) * VECTOR_KEYS)
        return np.repeat(cells[:, None], heads, axis=1)
    fences, (first, end) = tiles.numpy(), runs.numpy().T.astype(np.int64)
    starts = np.arange(fences.shape[1] - 1) * queries
    out = np.empty((len(lengths), heads), np.int64)
    for at, length in enumerate(lengths):
        padded = -(-length // VECTOR_KEYS) * VECTOR_KEYS
        keys = np.maximum(np.minimum(end, padded) - first, 0)
        sums = np.concatenate([[0], keys.cumsum()])
        width = sums[fences[:, 1:]] - sums[fences[:, :-1]]
        rows = np.clip(length - starts, 0, queries)
        out[at] = (width * rows).sum(axis=1)[which.numpy()]
    return out


def why_no_layout(layout: Layout, longest_sequence: int) -> str | None:
    """Return why the kernel cannot read ``layout`` for sequences so long; None where it can."""
    _, tiles, runs, _, edges, longest, words, queries = layout
    assert tiles is not None and runs is not None
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
    return None
