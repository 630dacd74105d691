# SPDX-License-Identifier: Apache-2.0
"""Which blocks of an attention mask a batch of unpadded sequences keeps, for FlexAttention.

Each sequence begins at a multiple of BLOCK slots, so that a block of the batch lies in one sequence
and is a block of its mask. The tables come from counts of the mask's blocks, made once, and not
from evaluating the mask on all pairs of slots, as torch's create_block_mask does.

Shapes: T real tokens, R blocks and S = R x BLOCK slots of a batch, L tokens and P blocks of a mask,
G = 1 or N masks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from bertbench.common.data.batch import Tokens

BLOCK = 128
"""Queries and keys of a block: FlexAttention's default, which its kernels' tiles divide."""


# -- batches --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the tokens of a batch are; all on its device."""

    slots: Tensor
    """int64 [T], each token's slot."""
    sequence: Tensor
    """int32 [S], the sequence of each slot; -1 for an empty one."""
    position: Tensor
    """int32 [S], the token of its sequence in each slot; 0 for an empty one."""
    row: Tensor
    """int64 [R], which block of its sequence a block is."""
    first: Tensor
    """int64 [R], the first block of its sequence."""
    length: Tensor
    """int64 [R], the tokens of its sequence."""
    tables: dict[tuple[int, bool], Tables] = field(default_factory=dict)
    """By the mask's identity, and whether full blocks are separate."""

    @property
    def blocks(self) -> int:
        """R, known on the host."""
        return len(self.row)

    @classmethod
    def of(cls, tokens: Tokens) -> Layout:
        """Return the layout of a batch, without reading from its device.

        One block alone gets an empty one beside it: torch.compile makes other code for a size of 1.
        """
        number = sum(-(-n // BLOCK) for n in tokens.lengths)
        length = tokens.cu_seqlens.diff().long()
        if number == 1:
            length, number = F.pad(length, (0, 1)), 2
        counts = (length + BLOCK - 1).div(BLOCK, rounding_mode="floor").clamp_min(1)
        starts = counts.cumsum(0) - counts

        def spread(repeats: Tensor, size: int) -> Tensor:
            return torch.arange(len(repeats), device=length.device).repeat_interleave(
                repeats, output_size=size
            )

        of_block = spread(counts, number)
        row = torch.arange(number, device=length.device) - starts[of_block]
        position = row[:, None] * BLOCK + torch.arange(BLOCK, device=length.device)
        empty = position >= length[of_block, None]
        of_token = spread(length, sum(tokens.lengths))
        shift = starts * BLOCK - (length.cumsum(0) - length)
        return cls(
            slots=torch.arange(len(of_token), device=length.device) + shift[of_token],
            sequence=of_block[:, None].masked_fill(empty, -1).flatten().int(),
            position=position.masked_fill(empty, 0).flatten().int(),
            row=row,
            first=starts[of_block],
            length=length[of_block],
        )


# -- masks ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class MaskCounts:
    """How many entries of each block of a mask are True, also where the last block is cut.

    A sequence of n tokens has the corner [n, n] of the mask, whose last blocks end at n.
    """

    mask: Tensor
    """The mask itself, bool [G, L, L]: it is kept so that no other gets its identity."""
    whole: Tensor
    """int32 [G, P, P], of whole blocks."""
    cut_keys: Tensor
    """int32 [G, P, L], of rows of blocks where the keys end after each one."""
    cut_queries: Tensor
    """int32 [G, L, P]."""
    cut_both: Tensor
    """int32 [G, L], of the block on the diagonal where both end."""

    @classmethod
    def of(cls, mask: Tensor) -> MaskCounts:
        """Return the counts of ``mask``, bool [G, L, L]."""
        masks, length = mask.shape[:2]
        parts = -(-length // BLOCK)
        rest = parts * BLOCK - length
        blocks = F.pad(mask, (0, rest, 0, rest)).view(masks, parts, BLOCK, parts, BLOCK)
        per_key, per_query = (blocks.sum(at, dtype=torch.int32) for at in (2, 4))
        corner = blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)  # [G, P, BLOCK, BLOCK]
        corner = corner.cumsum(2, dtype=torch.int32).cumsum(3, dtype=torch.int32)
        return cls(
            mask=mask,
            whole=per_key.sum(3, dtype=torch.int32),
            cut_keys=per_key.cumsum(3, dtype=torch.int32).flatten(2)[:, :, :length],
            cut_queries=per_query.cumsum(2, dtype=torch.int32).flatten(1, 2)[:, :length],
            cut_both=corner.diagonal(dim1=2, dim2=3).flatten(1)[:, :length],
        )

    def of_batch(self, layout: Layout) -> Tensor:
        """Return the counts, int32 [G, R, P], of each block with the blocks of its sequence."""
        row, end = layout.row, (layout.length - 1).clamp_min(0)
        columns = torch.arange(self.whole.shape[2], device=row.device)
        last = (end.div(BLOCK, rounding_mode="floor"))[:, None]
        last_keys, last_queries = columns == last, row[:, None] == last
        found = torch.where(last_keys, self.cut_keys[:, row, end, None], self.whole[:, row])
        cut = torch.where(last_keys, self.cut_both[:, end, None], self.cut_queries[:, end])
        there = (columns <= last) & (layout.length > 0)[:, None]
        return torch.where(last_queries, cut, found).masked_fill(~there, 0)


# -- tables ---------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """FlexAttention's block mask: for each block, how many blocks it meets and which, int32.

    Number [1, G, R] and indices [1, G, R, P]; ``full`` blocks, all True, need no look at the mask.
    """

    keys: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]
    full_keys: tuple[Tensor | None, Tensor | None] = (None, None)
    full_queries: tuple[Tensor | None, Tensor | None] = (None, None)

    @classmethod
    def of(cls, counts: MaskCounts, layout: Layout, *, separate: bool) -> Tables:
        """Return the tables of a batch; with ``separate``, full blocks apart from the others."""
        found = counts.of_batch(layout)
        kept = found > 0
        if not separate:
            return cls(*_both_ways(kept, layout))
        full = found == BLOCK * BLOCK
        partial, whole = _both_ways(kept & ~full, layout), _both_ways(full, layout)
        return cls(partial[0], partial[1], whole[0], whole[1])


def _both_ways(kept: Tensor, layout: Layout) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the numbers and indices of bool [G, R, P]: of keys per query, of queries per key."""
    others = layout.first[:, None] + torch.arange(kept.shape[2], device=kept.device)
    inside = others * BLOCK < layout.first[:, None] * BLOCK + layout.length[:, None]
    others = others.clamp_max(layout.blocks - 1)
    transposed = kept[:, others, layout.row[:, None]] & inside
    return _ordered(kept, others), _ordered(transposed, others)


def _ordered(kept: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return number and indices: those of ``others`` [R, P] that are ``kept`` [G, R, P] first."""
    order = kept.int().argsort(dim=-1, descending=True, stable=True)
    indices = others.expand(len(kept), -1, -1).gather(2, order)
    number, indices = kept.sum(-1, dtype=torch.int32)[None], indices.int()[None].contiguous()
    torch._dynamo.mark_static(number, [0, 1])
    torch._dynamo.mark_static(indices, [0, 1, 3])
    return number, indices
