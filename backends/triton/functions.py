# SPDX-License-Identifier: Apache-2.0
"""The autograd functions behind TritonOps: matrix products of torch, the rest in kernels.py.

Shapes as in common/model/ops.py; gradients have the shapes of their tensors. Activations are in the
compute type, parameters and their gradients float32. ``weight`` and ``bias`` come with a
``shadow``, the parameter in the compute type; the parameter itself is saved too, so that autograd
refuses a backward pass after an update.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from bertbench.backends.fused import Dropout
from bertbench.backends.triton import kernels
from bertbench.common.data.batch import Tokens

PROGRAMS = 528
"""Shares of the rows where columns are summed: four on each of an H100's 132 multiprocessors."""
_COLUMNS, _CELLS, _VOCABULARY = 256, 1024, 4096
"""Elements of a program's vectors: of summed columns, of GELU, of the decoder's row."""


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
        ctx.drop, ctx.sizes = drop, [len(table) for table in (word, position, token_type)]
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        xhat, rstd, gamma, *ids = ctx.saved_tensors
        dy = dy.contiguous()
        if gamma is None:
            dz, dgamma, dbeta = dropped(dy, ctx.drop), None, None
        else:
            dz, _, sums = norm_backward(dy, xhat, rstd, gamma, ctx.drop, kernels.OUTER)
            dgamma, dbeta = sums[0], sums[1]
        dz = dz.float()  # sums of many rows; torch's kernel sorts, and so is deterministic
        grads = [
            torch.ops.aten.embedding_dense_backward(dz, index, size, -1, False)
            for index, size in zip(ids, ctx.sizes, strict=True)
        ]
        return *grads, dgamma, dbeta, None, None, None, None


class Linear(torch.autograd.Function):
    """x @ weight.T + bias: [T, N]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shadow: Tensor, shadow_bias: Tensor
    ) -> Tensor:
        """Return [T, N] from x [T, K], weight [N, K] and bias [N]."""
        ctx.save_for_backward(x, weight)
        ctx.weight = shadow
        return F.linear(x, shadow, shadow_bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, _ = ctx.saved_tensors
        known = _SUMS.pop(dy)
        dy = dy.contiguous()
        sums = column_sums(dy) if known is None else known
        return dy @ ctx.weight, weight_grad(dy, x), sums, None, None


class LinearGelu(torch.autograd.Function):
    """GELU(x @ weight.T + bias): [T, N]; GELU's argument is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, tanh: bool, shadow: Tensor,
        shadow_bias: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return [T, N] from x [T, K], weight [N, K] and bias [N]."""
        u = F.linear(x, shadow, shadow_bias)
        out = torch.empty_like(u)
        grid = (triton.cdiv(u.numel(), _CELLS),)
        kernels.gelu_forward[grid](u, out, u.numel(), BLOCK=_CELLS, TANH=tanh)
        ctx.save_for_backward(x, weight, u)
        ctx.weight, ctx.tanh = shadow, tanh
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, _, u = ctx.saved_tensors
        (rows, cols), du = u.shape, torch.empty_like(u)
        programs, share = _shares(rows)
        partial = torch.empty(programs, cols, device=u.device)
        grid = (triton.cdiv(cols, _COLUMNS), programs)
        kernels.gelu_backward[grid](
            dy.contiguous(), u, du, partial, rows, cols, share, BLOCK=_COLUMNS, TANH=ctx.tanh
        )
        return du @ ctx.weight, weight_grad(du, x), partial.sum(0), None, None, None


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
        drop: Dropout,
    ) -> Tensor:  # fmt: skip
        """Return [T, H] from x and residual [T, H], gamma and beta [H]."""
        out, xhat, rstd = _norm_forward(x, residual, gamma, beta, eps, drop)
        ctx.save_for_backward(xhat, rstd, gamma)
        ctx.drop, ctx.has_residual = drop, residual is not None
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        xhat, rstd, gamma = ctx.saved_tensors
        dz, dx, sums = norm_backward(dy.contiguous(), xhat, rstd, gamma, ctx.drop, kernels.INNER)
        _SUMS.put(dx, sums[2])
        return dx, dz if ctx.has_residual else None, sums[0], sums[1], None, None


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
        x, _, dlogits = ctx.saved_tensors
        small = scale.to(x.dtype)  # applied to the small factor of each product
        dx = (dlogits @ ctx.weight) * small
        dweight = weight_grad(dlogits, x * small)
        return dx, dweight, column_sums(dlogits) * scale, None, None, None, None


class _Sums:
    """Column sums that a kernel took while it wrote a gradient, kept on it for its next reader.

    Autograd hands the same tensor on, unless it adds another gradient to it: that raises its
    version, or makes a new tensor, and the sums are taken anew.
    """

    _NAME = "_bertbench_column_sums"

    def put(self, gradient: Tensor, sums: Tensor) -> None:
        setattr(gradient, self._NAME, (gradient._version, sums))

    def pop(self, gradient: Tensor) -> Tensor | None:
        """Return the sums [N] of ``gradient`` [T, N]; None where they are not known."""
        version, sums = gradient.__dict__.pop(self._NAME, (None, None))
        return sums if version == gradient._version else None


_SUMS = _Sums()


def norm_backward(
    dy: Tensor, xhat: Tensor, rstd: Tensor, gamma: Tensor, drop: Dropout, where: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of LayerNorm's input [T, H], of dropout's input before it, and sums [3, H].

    The sums are for gamma, beta and a bias added to dropout's input. ``where`` is kernels.INNER
    (dropout before the norm) or OUTER (behind it).
    """
    rows, cols = dy.shape
    dz = torch.empty_like(dy)
    active = int(where.value) if drop.threshold else 0
    dx = torch.empty_like(dy) if active == kernels.INNER.value else dz
    programs, share = _shares(rows)
    partial = torch.empty(programs, 3, cols, device=dy.device)
    kernels.norm_backward[(programs,)](
        dy, xhat, rstd, gamma, dz, dx, partial, drop.seed, drop.threshold, drop.scale, rows, cols,
        share, BLOCK=_block(cols), DROP=active,
    )  # fmt: skip
    return dz, dx, partial.sum(0)


def column_sums(x: Tensor) -> Tensor:
    """Return the sums over the rows of x [T, N], float32 [N]."""
    rows, cols = x.shape
    programs, share = _shares(rows)
    partial = torch.empty(programs, cols, device=x.device)
    grid = (triton.cdiv(cols, _COLUMNS), programs)
    kernels.column_sums[grid](x, partial, rows, cols, share, BLOCK=_COLUMNS)
    return partial.sum(0)


def dropped(x: Tensor, drop: Dropout) -> Tensor:
    """Return x [T, H] with dropout, unscaled where there is none."""
    return _norm_forward(x, None, None, None, 0.0, drop)[0] if drop.threshold else x


def weight_grad(dy: Tensor, x: Tensor) -> Tensor:
    """Return dy.T @ x, float32 [N, K]; summed in float32, and not rounded where torch can."""
    if dy.is_cuda and dy.dtype != torch.float32:
        return torch.mm(dy.t(), x, out_dtype=torch.float32)
    return (dy.t() @ x).float()


def _norm_forward(
    x: Tensor, residual: Tensor | None, gamma: Tensor | None, beta: Tensor | None, eps: float,
    drop: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    rows, cols = x.shape
    out = torch.empty_like(x)
    xhat = out if gamma is None else torch.empty_like(x)
    rstd = torch.empty(rows, device=x.device)
    kernels.norm_forward[(rows,)](
        x, _or(residual, x), _or(gamma, x), _or(beta, x), out, xhat, rstd, drop.seed,
        drop.threshold, drop.scale, eps, cols, BLOCK=_block(cols),
        RESIDUAL=residual is not None, NORM=gamma is not None, DROP=drop.threshold > 0,
    )  # fmt: skip
    return out, xhat, rstd


def _or(given: Tensor | None, other: Tensor) -> Tensor:
    """Return what a kernel gets in the place of a tensor that it does not read."""
    return other if given is None else given


def _block(cols: int) -> int:
    return int(triton.next_power_of_2(cols))


def _shares(rows: int) -> tuple[int, int]:
    """Return the number of programs that sum over ``rows``, and the rows of each."""
    share = max(1, -(-rows // PROGRAMS))
    return max(1, -(-rows // share)), share
