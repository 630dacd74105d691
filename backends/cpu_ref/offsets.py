# SPDX-License-Identifier: Apache-2.0
"""Masked attention by the distances between queries and keys, for masks that are Toeplitz.

The kernel of offsets.h computes L x (number of steps) scores. The steps are key minus query.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertbench.backends.cpu_ref.functions import aligned, longest_first
from bertbench.backends.cpu_ref.layout import VECTOR_KEYS
from bertbench.backends.cpu_ref.library import NOWHERE, call
from bertbench.backends.fused import Dropout
from bertbench.common.data.batch import Tokens


class Offsets(NamedTuple):
    """The steps of each head's mask; G distinct masks of N x N positions."""

    which: Tensor
    """int64 [heads]: each head's mask."""
    steps: Tensor
    """int32 [G, slots]: ascending, ``NOWHERE`` after a mask's own; slots are a multiple of 16."""
    longest: int
    """N, the longest sequence."""

    @classmethod
    def of(cls, masks: NDArray[np.bool_], *, heads: int) -> Offsets | None:
        """Return the steps of ``masks``, bool [1 or heads, N, N], True = may attend.

        None where a mask is not the same along each diagonal, or where some mask has more than
        N / 2 steps: a score by itself takes longer than one of a matrix product.
        """
        length = masks.shape[1]
        if not (masks[:, 1:, 1:] == masks[:, :-1, :-1]).all():
            return None
        diagonals = np.concatenate([masks[:, :0:-1, 0], masks[:, 0]], axis=1)
        distinct, which = np.unique(diagonals, axis=0, return_inverse=True)
        most = int(distinct.sum(axis=1).max())
        if 2 * most > length:
            return None
        slots = max(1, -(-most // VECTOR_KEYS)) * VECTOR_KEYS
        steps = np.full((len(distinct), slots), NOWHERE, np.int32)
        for row, kept in zip(steps, distinct, strict=True):
            own = np.flatnonzero(kept) - (length - 1)
            row[: len(own)] = own
        heads_of = np.broadcast_to(which.reshape(-1), heads).astype(np.int64)
        return cls(torch.from_numpy(heads_of), torch.from_numpy(steps), length)


class OffsetAttention(torch.autograd.Function):
    """Self-attention within sequences, over packed [T, 3H], each query with its ``Offsets``."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, tokens: Tokens, heads: int, drop: Dropout, save: bool, kept: Offsets
    ) -> Tensor:
        """Return [T, H] from qkv [T, 3H]; ``save`` keeps the probabilities for backward.

        Raises ValueError for a sequence that is longer than the masks.
        """
        if max(tokens.lengths, default=0) > kept.longest:
            raise ValueError(
                f"masks of {kept.longest} positions for a sequence of {max(tokens.lengths)}"
            )
        qkv = aligned(qkv)
        rows, width = qkv.shape
        ctx.fixed = (
            tokens.cu_seqlens, longest_first(tokens.lengths), heads, width // 3 // heads,
            kept.which, kept.steps,
        )  # fmt: skip
        ctx.drop = drop
        out = qkv.new_empty(rows, width // 3)
        saved = qkv.new_empty(heads, rows, kept.steps.shape[1]) if save else None
        inverse = torch.empty(rows, heads)
        call("offset_attention", qkv, *ctx.fixed, out, saved, inverse, None, None, *drop)
        ctx.save_for_backward(qkv, out, saved, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        qkv, out, saved, inverse = ctx.saved_tensors
        grad = torch.empty_like(qkv)
        call(
            "offset_attention", qkv, *ctx.fixed, out, saved, inverse, aligned(dy), grad, *ctx.drop,
        )  # fmt: skip
        return grad, None, None, None, None, None
