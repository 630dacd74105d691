# SPDX-License-Identifier: Apache-2.0
"""Attention over a mask's kept blocks by torch's FlexAttention: one call per batch.

torch.nn.attention.flex_attention, compiled to Triton code by torch.compile, computes the blocks
that blocks.py lists, forward and backward. Shapes as there and in common/model/ops.py.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertbench.backends.cuda.blocks import BLOCK, Layout, MaskCounts, Tables
from bertbench.common.data.batch import Tokens
from bertbench.common.errors import BadInput
from bertbench.common.model.ops import ComputeTypeOps

_BATCHES = 16
"""Batches whose tables are kept."""
_CODES = 64
"""Most versions of compiled code, which torch limits to 8."""


# -- dropout --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Dropout:
    """Which scores a call drops: a hash of two random keys, the query's and the key's.

    FlexAttention cannot drop a probability after the softmax. But with m of 0 or 1 per key,

        sum(m p v) = softmax over the keys with m = 1, times v, x exp(lse of those - lse of all)

    where lse is the log-sum-exp of the scores. So dropout is one call whose mask leaves out the
    dropped keys, and another one for the log-sum-exp of all.
    """

    queries: Tensor
    """int32 [N, S]."""
    keys: Tensor
    """int32 [S]."""
    threshold: Tensor
    """int32 [N]: of 2^31, the hashes below it are dropped."""

    @classmethod
    def draw(cls, rate: float, heads: int, slots: int, device: torch.device) -> Dropout:
        """Draw from the device's generator, so that a restored one drops the same again."""

        def random(*shape: int) -> Tensor:
            return torch.randint(-(2**31), 2**31, shape, device=device, dtype=torch.int32)

        limit = torch.full((heads,), int(rate * 2**31), device=device, dtype=torch.int32)
        queries = random(heads, slots)
        torch._dynamo.mark_static(queries, [0])
        torch._dynamo.mark_static(limit)
        return cls(queries, random(slots), limit)


def keeps(query: Tensor, key: Tensor, threshold: Tensor) -> Tensor:
    """Return whether dropout keeps the scores of int32 keys [...], as ``Dropout``.

    The hash is lowbias32 (C. Wellons, "Prospecting for Hash Functions", 2018), whose products wrap.
    """
    x = query ^ key
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - 2**32)
    x = x ^ ((x >> 16) & 0xFFFF)
    return (x & 0x7FFFFFFF) >= threshold


# -- one call -------------------------------------------------------------------------------------
Mod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def mask_mod(layout: Layout, mask: Tensor, drop: Dropout | None = None) -> Mod:
    """Return FlexAttention's mask: the same sequence, and ``mask``, bool [G, L, L], True there.

    It reads tensors only: other values need no other code.
    """
    sequence, position = layout.sequence, layout.position
    shared = mask[0] if mask.shape[0] == 1 else None

    def attends(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        at = position[i], position[j]
        allowed = mask[h, at[0], at[1]] if shared is None else shared[at[0], at[1]]
        allowed = allowed & (sequence[i] == sequence[j]) & (sequence[i] >= 0)
        if drop is None:
            return allowed
        return allowed & keeps(drop.queries[h, i], drop.keys[j], drop.threshold[h])

    return attends


def attend(
    qkv: Tensor, layout: Layout, mask: Tensor, tables: Tables, drop: Dropout | None, narrow: bool
) -> tuple[Tensor, Tensor]:
    """Return attention [1, N, S, D] of ``qkv`` [R, BLOCK, 3, N, D], and its float32 lse [1, N, S].

    With ``narrow`` only half of the values' elements are used, for a call whose lse is wanted.
    """
    # Not at the top: a vendor's torch may lack some of it, which is then the trial's reason.
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

    # The number of slots is R x BLOCK by its form: the kernels need not check their bounds.
    q, k, v = qkv.flatten(0, 1).permute(1, 2, 0, 3).unsqueeze(1).unbind(0)
    blocks = BlockMask(
        (q.shape[2], q.shape[2]), *tables.keys, *tables.full_keys, *tables.queries,
        *tables.full_queries, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=mask_mod(layout, mask, drop),
    )  # fmt: skip
    v = v[..., : v.shape[3] // 2] if narrow else v
    out, aux = flex_attention(q, k, v, block_mask=blocks, return_aux=AuxRequest(lse=True))
    assert aux.lse is not None
    return out, aux.lse


class _Spread(torch.autograd.Function):
    """Rows [T, C] at ``slots`` of zeros [S, C]. Slots are distinct, so both passes are copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(slots)
        return x.new_zeros(size, x.shape[1]).index_copy_(0, slots, x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return dy.index_select(0, ctx.saved_tensors[0]), None, None


class _Collect(torch.autograd.Function):
    """The rows ``slots`` of [S, C], [T, C]: the reverse of ``_Spread``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.size = len(x)
        return x.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        return dy.new_zeros(ctx.size, dy.shape[1]).index_copy_(0, slots, dy), None


# -- operations -----------------------------------------------------------------------------------
class FlexOps(ComputeTypeOps):
    """``ComputeTypeOps`` whose masked attention computes the mask's kept blocks only."""

    name = "flex"

    def __init__(
        self, dtype: torch.dtype | None, *, compiler: Callable[..., Any] | None = None
    ) -> None:
        """``dtype`` is that of ``ComputeTypeOps``; ``compiler`` replaces torch's in tests."""
        super().__init__(dtype)
        # Sizes are symbols: batches of any number of tokens share their code. Training and
        # evaluation, calls with dropout, numbers of heads and trials have different code each.
        torch._dynamo.config.recompile_limit = max(_CODES, torch._dynamo.config.recompile_limit)
        compiler = compiler or functools.partial(torch.compile, dynamic=True, fullgraph=True)
        self._attend = compiler(attend)
        self._counts: dict[int, MaskCounts] = {}
        self._layouts: OrderedDict[tuple[int, ...], Layout] = OrderedDict()

    @property
    def kernels(self) -> Mapping[str, str]:
        return {**super().kernels, "attention": self.masked_kernel}

    @property
    def masked_kernel(self) -> str:
        return "flex-kept-blocks"

    def masked_attention(
        self, qkv: Tensor, tokens: Tokens, mask: Tensor, *, num_heads: int, dropout: float
    ) -> Tensor:
        """Return attention where ``mask``, bool [1 or N, L, L], is True: [T, 3H] -> [T, H].

        Raises BadInput for a sequence of more than L tokens.
        """
        if tokens.max_length > mask.shape[1]:  # it would be read beyond its end
            raise BadInput(
                f"a sequence has {tokens.max_length} tokens, and the attention mask {mask.shape[1]}"
            )
        hidden = qkv.shape[1] // 3
        layout = self._layout(tokens)
        slots, size = layout.slots, layout.blocks * BLOCK
        # The number of blocks alone is a symbol: two that are equal by chance would be one.
        blocks = _Spread.apply(qkv, slots, size).view(
            layout.blocks, BLOCK, 3, num_heads, hidden // num_heads
        )
        torch._dynamo.mark_static(blocks, [1, 2, 3, 4])

        def call(drop: Dropout | None = None, narrow: bool = False) -> tuple[Tensor, Tensor]:
            # Blocks that are full in the mask are not so where some of their scores are dropped.
            tables = self._tables(mask, layout, separate=drop is None)
            return self._attend(blocks, layout, mask, tables, drop, narrow)

        def collect(of_slots: Tensor) -> Tensor:  # [1, N, S, ...] -> [T, N x ...]
            return _Collect.apply(of_slots[0].transpose(0, 1).reshape(size, -1), slots)

        with torch.autocast(qkv.device.type, enabled=False):  # the code for it would be other code
            if not dropout:
                return collect(call()[0])
            out, kept = call(Dropout.draw(dropout, num_heads, size, qkv.device))
            everything = call(narrow=True)[1]
            # Without a key both are minus infinity, and so is the result's logarithm.
            share = (collect(kept) - collect(everything).clamp_min(-1e30)).exp() / (1 - dropout)
            scaled = collect(out).view(-1, num_heads, hidden // num_heads) * share[:, :, None]
            return scaled.to(qkv.dtype).view(-1, hidden)

    def _layout(self, tokens: Tokens) -> Layout:
        """Return the layout of a batch; that of one with the same lengths is used again."""
        known = self._layouts.pop(tokens.lengths, None)
        if known is None or known.slots.device != tokens.cu_seqlens.device:
            known = Layout.of(tokens)
        self._layouts[tokens.lengths] = known
        if len(self._layouts) > _BATCHES:
            self._layouts.popitem(last=False)
        return known

    def _tables(self, mask: Tensor, layout: Layout, *, separate: bool) -> Tables:
        """Return the tables of a batch, which are the same in all layers that share a mask."""
        key = id(mask), separate
        if key not in layout.tables:
            if id(mask) not in self._counts:  # masks are not written
                torch._dynamo.mark_static(mask)
                self._counts[id(mask)] = MaskCounts.of(mask)
            layout.tables[key] = Tables.of(self._counts[id(mask)], layout, separate=separate)
        return layout.tables[key]
