# SPDX-License-Identifier: Apache-2.0
"""The autograd functions behind TritonOps: matrix products of torch, the rest in kernels.py.

Shapes as in common/model/ops.py; gradients have the shapes of their tensors. Activations are in the
compute type, parameters and their gradients float32. ``weight`` and ``bias`` come with a
``layer``, their copies in the type of the products (fp8.py); the parameter itself is saved too, so
that autograd refuses a backward pass after an update.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from bertbench.backends.fused import Dropout
from bertbench.backends.triton import kernels
from bertbench.backends.triton.fp8 import Eight, Narrow, Wide, blank, carry
from bertbench.backends.triton.sums import (
    SUMS,
    adds_to,
    bias_grad,
    column_sums,
    norm_sums,
    shares,
    sums_for,
)
from bertbench.common.data.batch import Tokens

Layer = Wide | Narrow
_VOCABULARY = 4096
"""Elements of the decoder's row that a program holds at once."""
WARPS = {"gelu_forward": 8, "gelu_backward": 16, "join": 16}
"""Of programs that hold wide rows, so that a multiprocessor has registers for 16 or more."""


class Embed(torch.autograd.Function):
    """Gather, sum, LayerNorm (unless gamma is None) and dropout: [T, H]."""

    @staticmethod
    def forward(
        ctx: Any, word: Tensor, position: Tensor, token_type: Tensor, gamma: Tensor | None,
        beta: Tensor | None, tokens: Tokens, dtype: torch.dtype, eps: float, drop: Dropout,
    ) -> Tensor:  # fmt: skip
        """Return [T, H] from tables [V, H], positions [P, H], token types [2, H]."""
        rows, cols = tokens.num_tokens, word.shape[1]
        ids = tokens.input_ids, tokens.position_ids, tokens.segment_ids
        out = word.new_empty(rows, cols, dtype=dtype)
        xhat = out if gamma is None else torch.empty_like(out)
        rstd = word.new_empty(rows)
        kernels.embed_forward[(rows,)](
            *ids, word, position, token_type, _or(gamma, word), _or(beta, word), out, xhat, rstd,
            drop.seed, drop.threshold, drop.scale, eps, cols,
            BLOCK=_block(cols), NORM=gamma is not None, DROP=drop.threshold > 0,
        )  # fmt: skip
        ctx.save_for_backward(None if gamma is None else xhat, rstd, gamma, *ids)
        ctx.drop, ctx.beta = drop, beta
        ctx.sizes = [len(table) for table in (word, position, token_type)]
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        xhat, rstd, gamma, *ids = ctx.saved_tensors
        dy = dy.contiguous()
        if gamma is None:
            dz, dgamma, dbeta = dropped(dy, ctx.drop), None, None
        else:
            dz, _, partial = norm_backward(dy, xhat, rstd, gamma, ctx.drop, kernels.OUTER)
            dgamma, dbeta = sums_for(partial[:, :2], gamma, ctx.beta)
        dz = dz.float()  # sums of many rows; torch's kernel sorts, and so is deterministic
        grads = [
            torch.ops.aten.embedding_dense_backward(dz, index, size, -1, False)
            for index, size in zip(ids, ctx.sizes, strict=True)
        ]
        return *grads, dgamma, dbeta, None, None, None, None


class Linear(torch.autograd.Function):
    """x @ weight.T + bias, and x itself, whose gradient the product adds to its own."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: Layer
    ) -> tuple[Tensor, Tensor]:
        """Return [T, N] and [T, K] from x [T, K], weight [N, K] and bias [N]."""
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.bias = layer, bias
        ctx.set_materialize_grads(False)
        return layer.output(x), x

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, passed: Tensor | None) -> Any:
        if dy is None:
            return passed, None, None, None
        x, weight = ctx.saved_tensors
        known = SUMS.pop(dy)
        dy = dy.contiguous()
        dbias = bias_grad(dy, known, ctx.bias)
        dx = ctx.layer.input_grad(dy, passed)
        return dx, weight_grad(dy, x, weight), dbias, None


class LinearGelu(torch.autograd.Function):
    """GELU(x @ weight.T + bias), and x as Linear; GELU's argument is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, tanh: bool, layer: Layer,
        eight: Eight | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return [T, N], also in ``eight``, and [T, K] from x [T, K], weight [N, K], bias [N]."""
        u = layer.output(x)
        (rows, cols), out = u.shape, torch.empty_like(u)
        kernels.gelu_forward[(rows,)](
            u, out, *(eight or (out, out)), cols,
            BLOCK=_block(cols), TANH=tanh, EIGHT=eight is not None, num_warps=WARPS["gelu_forward"],
        )  # fmt: skip
        ctx.save_for_backward(x, weight, u)
        ctx.layer, ctx.bias, ctx.tanh = layer, bias, tanh
        ctx.set_materialize_grads(False)
        return out, x

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, passed: Tensor | None) -> Any:
        if dy is None:
            return passed, None, None, None, None, None
        x, weight, u = ctx.saved_tensors
        (rows, cols), du = u.shape, torch.empty_like(u)
        programs, share = shares(rows)
        partial = torch.empty(programs, 1, cols, device=u.device)
        eight = blank(rows, cols, du.device) if ctx.layer.eight else None
        kernels.gelu_backward[(programs,)](
            dy.contiguous(), u, du, partial, *(eight or (du, du)), rows, cols, share,
            BLOCK=_block(cols), TANH=ctx.tanh, EIGHT=eight is not None,
            num_warps=WARPS["gelu_backward"],
        )  # fmt: skip
        carry(du, eight)
        (dbias,) = sums_for(partial, ctx.bias)
        dx = ctx.layer.input_grad(du, passed)
        return dx, weight_grad(du, x, weight), dbias, None, None, None


class Split(torch.autograd.Function):
    """Query, key and value of each token, views of [T, 3H] as [T, N, D] each."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, eight: bool = False) -> tuple[Tensor, ...]:
        """Return three [T, N, D] from qkv [T, 3H]; ``eight``: its gradient is needed in 8 bits."""
        ctx.eight = eight
        return qkv.view(len(qkv), 3, heads, -1).unbind(1)

    @staticmethod
    def backward(ctx: Any, *parts: Tensor) -> Any:
        dq, dk, dv = (part.contiguous() for part in parts)
        rows, cols = len(dq), dq[0].numel()
        out = dq.new_empty(rows, 3 * cols)
        programs, share = shares(rows)
        partial = torch.empty(programs, 1, 3 * cols, device=dq.device)
        eight = blank(rows, 3 * cols, out.device) if ctx.eight else None
        kernels.join[(programs,)](
            dq, dk, dv, out, partial, *(eight or (out, out)), rows, cols, share,
            BLOCK=_block(3 * cols), EIGHT=eight is not None, num_warps=WARPS["join"],
        )  # fmt: skip
        carry(out, eight)
        SUMS.put(out, partial)
        return out, None, None


class DropoutAdd(torch.autograd.Function):
    """dropout(x) + residual: [T, H]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, drop: Dropout) -> Tensor:
        """Return [T, H] from x and residual [T, H]."""
        ctx.drop = drop
        return _norm_forward(x, residual, None, None, 0.0, drop)[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return dropped(dy.contiguous(), ctx.drop), dy, None


class Norm(torch.autograd.Function):
    """LayerNorm(dropout(x) + residual): [T, H]; the residual may be None."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, gamma: Tensor, beta: Tensor, eps: float,
        drop: Dropout, eight: Eight | None,
    ) -> Tensor:  # fmt: skip
        """Return [T, H], also in ``eight``, from x and residual [T, H], gamma and beta [H]."""
        out, xhat, rstd = _norm_forward(x, residual, gamma, beta, eps, drop, eight)
        ctx.save_for_backward(xhat, rstd, gamma)
        ctx.drop, ctx.has_residual, ctx.beta = drop, residual is not None, beta
        ctx.bias, ctx.eight = getattr(x, "bias", None), eight is not None
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        xhat, rstd, gamma = ctx.saved_tensors
        dy = dy.contiguous()
        eight = (
            blank(len(dy), dy.shape[1], dy.device) if ctx.eight and ctx.bias is not None else None
        )
        dz, dx, partial = norm_backward(dy, xhat, rstd, gamma, ctx.drop, kernels.INNER, eight)
        carry(dx, eight)
        dgamma, dbeta, sums = norm_sums(partial, gamma, ctx.beta, ctx.bias)
        SUMS.put(dx, sums)
        return dx, dz if ctx.has_residual else None, dgamma, dbeta, None, None, None


class CrossEntropy(torch.autograd.Function):
    """Decoder and softmax cross-entropy; the logits [M, V] become their gradient in place."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, grad: bool,
        shadow: Tensor, shadow_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return the loss [] and the correct ones [] of x [M, H], weight [V, H], labels [M]."""
        logits = F.linear(x, shadow, shadow_bias)
        rows, cols = logits.shape
        loss = torch.empty(rows, device=x.device)
        hit = torch.empty(rows, dtype=torch.uint8, device=x.device)
        if rows:
            kernels.cross_entropy[(rows,)](
                logits, labels.contiguous(), loss, hit, cols,
                BLOCK=min(_VOCABULARY, _block(cols)), GRADIENT=grad,
            )  # fmt: skip
        if grad:
            ctx.save_for_backward(x, weight, logits)
            ctx.weight = shadow
        correct = hit.sum(dtype=torch.int64)
        ctx.mark_non_differentiable(correct)
        return loss.sum(), correct

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> Any:
        x, weight, dlogits = ctx.saved_tensors
        small = scale.to(x.dtype)  # applied to the small factor of each product
        dx = (dlogits @ ctx.weight) * small
        (sums,) = sums_for(column_sums(dlogits), None)
        assert sums is not None
        return dx, weight_grad(dlogits, x * small, weight), sums * scale, None, None, None, None


def norm_backward(
    dy: Tensor, xhat: Tensor, rstd: Tensor, gamma: Tensor, drop: Dropout, where: Any,
    eight: Eight | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return gradients of LayerNorm's input [T, H], of dropout's input before it, and [P, 3, H].

    These are partial sums for gamma, beta and a bias added to dropout's input. ``where`` is
    kernels.INNER (dropout before the norm) or OUTER (behind it). The second gradient is written to
    ``eight``, too.
    """
    rows, cols = dy.shape
    dz = torch.empty_like(dy)
    active = int(where.value) if drop.threshold else 0
    dx = torch.empty_like(dy) if active == kernels.INNER.value else dz
    programs, share = shares(rows)
    partial = torch.empty(programs, 3, cols, device=dy.device)
    kernels.norm_backward[(programs,)](
        dy, xhat, rstd, gamma, dz, dx, partial, *(eight or (dx, dx)), drop.seed, drop.threshold,
        drop.scale, rows, cols, share, BLOCK=_block(cols), DROP=active, EIGHT=eight is not None,
    )  # fmt: skip
    return dz, dx, partial


def dropped(x: Tensor, drop: Dropout) -> Tensor:
    """Return x [T, H] with dropout, unscaled where there is none."""
    return _norm_forward(x, None, None, None, 0.0, drop)[0] if drop.threshold else x


def weight_grad(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
    """Return dy.T @ x, float32 [N, K], or None where it was added to ``weight``'s gradient.

    Summed in float32, and not rounded where torch can.
    """
    known, a = weight.grad if adds_to(weight) else None, dy.t()
    half = dy.is_cuda and dy.dtype != torch.float32
    if known is None:
        return torch.mm(a, x, out_dtype=torch.float32) if half else (a @ x).float()
    if half:
        torch.addmm(known, a, x, out_dtype=torch.float32, out=known)
    elif dy.dtype == torch.float32:
        known.addmm_(a, x)
    else:
        known.add_(a @ x)
    return None


def _norm_forward(
    x: Tensor, residual: Tensor | None, gamma: Tensor | None, beta: Tensor | None, eps: float,
    drop: Dropout, eight: Eight | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    rows, cols = x.shape
    out = torch.empty_like(x)
    xhat = out if gamma is None else torch.empty_like(x)
    rstd = torch.empty(rows, device=x.device)
    kernels.norm_forward[(rows,)](
        x, _or(residual, x), _or(gamma, x), _or(beta, x), out, xhat, rstd, *(eight or (out, out)),
        drop.seed, drop.threshold, drop.scale, eps, cols, BLOCK=_block(cols),
        RESIDUAL=residual is not None, NORM=gamma is not None, DROP=drop.threshold > 0,
        EIGHT=eight is not None,
    )  # fmt: skip
    return out, xhat, rstd


def _or(given: Tensor | None, other: Tensor) -> Tensor:
    """Return what a kernel gets in the place of a tensor that it does not read."""
    return other if given is None else given


def _block(cols: int) -> int:
    return int(triton.next_power_of_2(cols))
