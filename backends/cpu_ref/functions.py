# SPDX-License-Identifier: Apache-2.0
"""The autograd functions behind NativeOps: matrix products of torch, the rest in kernels.c.

Shapes as in common/model/ops.py; gradients have the shapes of their tensors. Activations are
bfloat16 or float32, parameters and their gradients float32. ``weight`` and ``bias`` come with a
``shadow``, the parameter in the compute type. The parameter itself is saved too, so that autograd
refuses a backward pass after an update.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bertbench.backends.cpu_ref.layout import DENSE, Layout, saved_cells
from bertbench.backends.cpu_ref.library import VECTOR, call
from bertbench.backends.fused import Dropout
from bertbench.common.data.batch import Tokens

BLOCKS = 32
"""BLOCKS of rows.h: rows of partial sums."""


def keep_mask(drop: Dropout, rows: int, cols: int, first_row: int = 0) -> Tensor:
    """Return which elements a kernel with ``drop`` keeps: bool [rows, cols].

    Row t of an operation on [T, H] is token t; of attention, query t of head n is t * heads + n
    and columns are keys.
    """
    out = torch.empty(rows, cols, dtype=torch.uint8)
    call("keep_mask", out, first_row, drop.threshold, drop.seed)
    return out.bool()


class Embed(torch.autograd.Function):
    """Gather, sum, LayerNorm (unless gamma is None) and dropout: [T, H]."""

    @staticmethod
    def forward(
        ctx: Any,
        word: Tensor,
        position: Tensor,
        token_type: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        tokens: Tokens,
        dtype: torch.dtype,
        eps: float,
        drop: Dropout,
    ) -> Tensor:
        """Return [T, H] from tables [V, H], positions [P, H], token types [2, H]."""
        rows, cols = tokens.num_tokens, word.shape[1]
        ids = tokens.input_ids, tokens.position_ids, tokens.segment_ids
        out = torch.empty(rows, cols, dtype=dtype)
        xhat = torch.empty_like(out) if gamma is not None else None
        rstd = torch.empty(rows)
        tables = word, position, token_type
        call(
            "embed_forward", *ids, *tables, gamma, beta, eps, out, xhat, rstd, *drop,
        )  # fmt: skip
        ctx.save_for_backward(xhat, rstd, gamma, *ids)
        ctx.drop, ctx.sizes = drop, [len(table) for table in tables]
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        xhat, rstd, gamma, *ids = ctx.saved_tensors
        dy = dy.contiguous()
        if gamma is not None:
            dz, _, dgamma, dbeta = _norm_backward(dy, xhat, rstd, gamma, ctx.drop, outer=True)
        else:
            dz, dgamma, dbeta = _dropout(dy, ctx.drop), None, None
        grads = [torch.zeros(size, dz.shape[1]) for size in ctx.sizes]
        for index, grad in zip(ids, grads, strict=True):
            call("scatter_add", dz, index, grad)
        return *grads, dgamma, dbeta, None, None, None, None


class Linear(torch.autograd.Function):
    """x @ weight.T + bias: [T, N]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shadow: Tensor, shadow_bias: Tensor
    ) -> Tensor:
        """Return [T, N] from x [T, K], weight [N, K] and bias [N]."""
        ctx.save_for_backward(x, weight)  # the parameter: autograd then refuses stale shadows
        ctx.weight = shadow
        return F.linear(x, shadow, shadow_bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, _ = ctx.saved_tensors
        dy = dy.contiguous()
        return dy @ ctx.weight, _weight_grad(dy, x), _column_sums(dy), None, None


class LinearGelu(torch.autograd.Function):
    """GELU(x @ weight.T + bias): [T, N]; GELU's derivative takes the place of its argument."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, tanh: bool, shadow: Tensor
    ) -> Tensor:
        """Return [T, N] from x [T, K], weight [N, K] and bias [N]."""
        ctx.weight = shadow
        slope = F.linear(x, shadow)
        out = torch.empty_like(slope)
        call("gelu_forward", slope, bias, out, int(tanh))
        ctx.save_for_backward(x, weight, slope)
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, _, slope = ctx.saved_tensors
        du, sums = torch.empty_like(slope), torch.empty(BLOCKS, slope.shape[1])
        call("gelu_backward", dy.contiguous(), slope, du, sums)
        return du @ ctx.weight, _weight_grad(du, x), sums.sum(0), None, None


class Attention(torch.autograd.Function):
    """Self-attention within sequences, over packed [T, 3H]."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        tokens: Tokens,
        heads: int,
        drop: Dropout,
        save: bool,
        layout: Layout = DENSE,
    ) -> Tensor:
        """Return [T, H] from qkv [T, 3H]; ``save`` keeps the probabilities for backward.

        With a ``layout``, keys that its masks leave out have no weight.
        """
        qkv = aligned(qkv)
        rows, width = qkv.shape
        which, offsets, cells = _room(
            tokens.lengths, heads, layout.which, layout.tiles, layout.runs, layout.queries
        )
        ctx.fixed = (
            tokens.cu_seqlens, longest_first(tokens.lengths), offsets, heads, width // 3 // heads,
            *layout._replace(which=which),
        )  # fmt: skip
        ctx.drop = drop
        out = qkv.new_empty(rows, width // 3)
        saved = qkv.new_empty(cells) if save else None
        inverse = torch.empty(rows, heads)
        call("attention", qkv, *ctx.fixed, out, saved, inverse, None, None, *drop)
        ctx.save_for_backward(qkv, out, saved, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        qkv, out, saved, inverse = ctx.saved_tensors
        grad = torch.empty_like(qkv)
        call(
            "attention", qkv, *ctx.fixed, out, saved, inverse, aligned(dy), grad, *ctx.drop,
        )  # fmt: skip
        return grad, None, None, None, None, None


class DropoutAdd(torch.autograd.Function):
    """dropout(x) + residual: [T, H]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, drop: Dropout) -> Tensor:
        """Return [T, H] from x and residual [T, H]."""
        ctx.drop = drop
        x = x.contiguous()
        out = torch.empty_like(x)
        call(
            "norm_forward", x, residual.contiguous(), None, None, 0.0, out, None, None, *drop,
        )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return _dropout(dy.contiguous(), ctx.drop), dy, None


class Norm(torch.autograd.Function):
    """LayerNorm(dropout(x) + residual): [T, H]; the residual may be None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        drop: Dropout,
    ) -> Tensor:
        """Return [T, H] from x and residual [T, H], gamma and beta [H]."""
        x = x.contiguous()
        out, xhat, rstd = torch.empty_like(x), torch.empty_like(x), torch.empty(len(x))
        ctx.has_residual = residual is not None
        call(
            "norm_forward", x, None if residual is None else residual.contiguous(), gamma, beta,
            eps, out, xhat, rstd, *drop,
        )  # fmt: skip
        ctx.save_for_backward(xhat, rstd, gamma)
        ctx.drop = drop
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        xhat, rstd, gamma = ctx.saved_tensors
        dz, dx, dgamma, dbeta = _norm_backward(
            dy.contiguous(), xhat, rstd, gamma, ctx.drop, outer=False
        )
        return dx, dz if ctx.has_residual else None, dgamma, dbeta, None, None


class CrossEntropy(torch.autograd.Function):
    """Decoder and softmax cross-entropy; the logits [M, V] become their gradient in place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        grad: bool,
        shadow: Tensor,
        shadow_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss [] and the correct ones [] of x [M, H], weight [V, H], labels [M]."""
        ctx.weight = shadow
        logits = F.linear(x, shadow, shadow_bias)
        rows = len(labels)
        loss, hit = torch.empty(rows), torch.empty(rows, dtype=torch.uint8)
        call("cross_entropy", logits, labels.contiguous(), loss, hit, int(grad))
        if grad:
            ctx.save_for_backward(x, weight, logits)
        correct = hit.sum(dtype=torch.int64)
        ctx.mark_non_differentiable(correct)
        return loss.sum(dtype=torch.float64).float(), correct

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> Any:
        x, _, dlogits = ctx.saved_tensors
        small = scale.to(x.dtype)  # applied to the small factor of each product
        dx = (dlogits @ ctx.weight) * small
        dweight = _weight_grad(dlogits, x * small)
        return dx, dweight, _column_sums(dlogits) * scale, None, None, None, None


def aligned(x: Tensor) -> Tensor:
    """Return x [...] as whole vectors: a part of a larger tensor is copied."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % VECTOR else x


@lru_cache(maxsize=64)  # a batch goes through all layers, whose masks may differ
def longest_first(lengths: tuple[int, ...]) -> Tensor:
    """Return the sequences in the order in which threads take them up: int64 [sequences]."""
    return torch.tensor(np.argsort(-np.array(lengths), kind="stable"))


@lru_cache(maxsize=64)
def _room(
    lengths: tuple[int, ...],
    heads: int,
    which: Tensor | None,
    tiles: Tensor | None,
    runs: Tensor | None,
    queries: int,
) -> tuple[Tensor | None, Tensor, int]:
    """Return what a layout's kernel is given for sequences of ``lengths``.

    Its ``which`` [sequences, heads], the offsets of the probabilities [sequences, heads], and how
    many there are. Tensors are told apart by identity: those of a layout are not written.
    """
    layout = Layout(which, tiles, runs, queries=queries).over(len(lengths))
    cells = saved_cells(np.array(lengths), heads, layout)
    offsets = torch.from_numpy(cells.cumsum() - cells.ravel()).view(cells.shape)
    return layout.which, offsets, int(cells.sum())


def _weight_grad(dy: Tensor, x: Tensor) -> Tensor:
    return (dy.t() @ x).float()


def _column_sums(x: Tensor) -> Tensor:
    sums = torch.empty(BLOCKS, x.shape[1])
    call("column_sums", x, sums)
    return sums.sum(0)


def _dropout(x: Tensor, drop: Dropout) -> Tensor:
    if not drop.threshold:
        return x
    out = torch.empty_like(x)
    call("dropout", x, out, *drop)
    return out


def _norm_backward(
    dy: Tensor, xhat: Tensor, rstd: Tensor, gamma: Tensor, drop: Dropout, *, outer: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradients of LayerNorm's input, of dropout's input before it, of gamma and beta."""
    dz = torch.empty_like(dy)
    dropped = torch.empty_like(dy) if drop.threshold and not outer else dz
    partial = torch.empty(BLOCKS, 2, dy.shape[1])
    call("norm_backward", dy, xhat, rstd, gamma, dz, dropped, partial, int(outer), *drop)
    dgamma, dbeta = partial.sum(0)
    return dz, dropped, dgamma, dbeta
