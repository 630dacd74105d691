# SPDX-License-Identifier: Apache-2.0
"""BERT's operations for the CPU: oneDNN matrix products and the fused kernels of kernels.c.

Activations are in the compute type from end to end, parameters stay float32. Every override equals
``Ops`` up to rounding and, with dropout, up to which elements are dropped: those come from a hash
of (seed, row, column) with one seed per call from torch's CPU generator, so that a restored
generator gives the same run again whatever the number of threads.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from backends.cpu_ref.lamb import native_lamb as native_lamb
from backends.cpu_ref.library import call, library
from common.data.batch import Tokens
from common.errors import Unsupported
from common.model.ops import Ops

NORM_BLOCKS = 32
"""BLOCKS of rows.h: rows of partial sums."""


def load() -> None:
    """Compile and load the kernels; raises common.native.NativeUnavailable with the reason."""
    library()


class Dropout(NamedTuple):
    """What a kernel needs to know: elements whose 16 random bits are below ``threshold`` go."""

    threshold: int
    scale: float
    seed: int


NO_DROPOUT = Dropout(0, 1.0, 0)


def draw_dropout(probability: float) -> Dropout:
    """``probability`` to the nearest 1 / 65536; ``scale`` is one over the true keep rate."""
    threshold = round(probability * 65536)
    if threshold == 0:
        return NO_DROPOUT
    seed = int(torch.empty((), dtype=torch.int64).random_())
    return Dropout(threshold, 65536 / (65536 - threshold), seed)


def keep_mask(drop: Dropout, rows: int, cols: int, first_row: int = 0) -> Tensor:
    """bool [rows, cols]: what a kernel that was given ``drop`` keeps.

    Row t of an operation on [T, H] is token t; of attention, query t of head n is t * heads + n
    and columns are keys.
    """
    out = torch.empty(rows, cols, dtype=torch.uint8)
    call("keep_mask", out, first_row, rows, cols, drop.threshold, drop.seed)
    return out.bool()


@dataclass(slots=True)
class _Shadow:
    """A parameter's copy in the compute type; ``version`` is None when it must be cast again."""

    parameter: weakref.ref[Tensor]
    cast: Tensor
    version: int | None = None


class NativeOps(Ops):
    """``Ops`` in bfloat16 (or float32) on the CPU.

    Raises Unsupported for another dtype and common.native.NativeUnavailable without a compiler.
    """

    name = "native"

    def __init__(self, dtype: torch.dtype) -> None:
        if dtype not in (torch.bfloat16, torch.float32):
            raise Unsupported(f"native CPU kernels compute in bfloat16 or float32, not {dtype}")
        load()
        self.dtype = dtype
        self._shadows: dict[int, _Shadow] = {}
        self._forget_after_updates()

    @property
    def kernels(self) -> Mapping[str, str]:
        unit = "avx512_bf16" if library()["has_bf16_dot"]() else "generic"
        return {"attention": f"c-fused-{unit}", "matmul": "onednn", "other": "c-fused"}

    def shadow(self, parameter: Tensor) -> Tensor:
        """``parameter`` in the compute type: cast once per update of it, not once per use.

        An update is any optimizer's step, or an in-place operation of torch (seen by the tensor's
        version counter, which writes through ``.data`` do not raise).
        """
        if parameter.dtype == self.dtype:
            return parameter.detach()
        known = self._shadows.get(id(parameter))
        if known is None or known.parameter() is not parameter:
            known = _Shadow(weakref.ref(parameter), parameter.detach().to(self.dtype))
            self._shadows[id(parameter)] = known
        elif known.version != parameter._version:
            known.cast.copy_(parameter.detach())
        known.version = parameter._version
        return known.cast

    def _forget_after_updates(self) -> None:
        # torch's fused optimizers write parameters without raising their version.
        shadows = self._shadows

        def forget(*_: object) -> None:
            for shadow in shadows.values():
                shadow.version = None

        hook = register_optimizer_step_post_hook(forget)
        weakref.finalize(self, hook.remove)

    def embed(
        self,
        tokens: Tokens,
        word: Tensor,
        position: Tensor,
        token_type: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        *,
        eps: float,
        dropout: float,
    ) -> Tensor:
        tables = word, position, token_type
        drop = draw_dropout(dropout)
        return _Embed.apply(*tables, norm_weight, norm_bias, tokens, self.dtype, eps, drop)

    def embed_sum(
        self, tokens: Tokens, word: Tensor, position: Tensor, token_type: Tensor, *, dropout: float
    ) -> Tensor:
        tables = word, position, token_type
        drop = draw_dropout(dropout)
        return _Embed.apply(*tables, None, None, tokens, self.dtype, 0.0, drop)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _Linear.apply(x.to(self.dtype), weight, bias, self)

    def linear_gelu(self, x: Tensor, weight: Tensor, bias: Tensor, *, approximate: str) -> Tensor:
        return _LinearGelu.apply(x.to(self.dtype), weight, bias, approximate == "tanh", self)

    def attention(self, qkv: Tensor, tokens: Tokens, *, num_heads: int, dropout: float) -> Tensor:
        if qkv.shape[1] // 3 // num_heads % 16:  # the kernel works on vectors of 16
            return super().attention(qkv, tokens, num_heads=num_heads, dropout=dropout)
        save = torch.is_grad_enabled() and qkv.requires_grad
        qkv = qkv.to(self.dtype)
        return _Attention.apply(qkv, tokens, num_heads, draw_dropout(dropout), save)

    def dropout_add(self, x: Tensor, residual: Tensor, *, dropout: float) -> Tensor:
        x, residual = x.to(self.dtype), residual.to(self.dtype)
        return _DropoutAdd.apply(x, residual, draw_dropout(dropout))

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
        return _Norm.apply(x.to(self.dtype), None, weight, bias, eps, NO_DROPOUT)

    def dropout_add_norm(
        self,
        x: Tensor,
        residual: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        *,
        eps: float,
        dropout: float,
    ) -> Tensor:
        x, residual = x.to(self.dtype), residual.to(self.dtype)
        return _Norm.apply(x, residual, norm_weight, norm_bias, eps, draw_dropout(dropout))

    def gather(self, x: Tensor, indices: Tensor) -> Tensor:
        return _Gather.apply(x, indices)

    def masked_cross_entropy(
        self, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        return _CrossEntropy.apply(x.to(self.dtype), weight, bias, labels, grad, self)


def _half(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


class _Embed(torch.autograd.Function):
    """Gather, sum, LayerNorm (unless gamma is None) and dropout."""

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
        rows, cols = tokens.num_tokens, word.shape[1]
        ids = tokens.input_ids, tokens.position_ids, tokens.segment_ids
        out = torch.empty(rows, cols, dtype=dtype)
        xhat = torch.empty_like(out) if gamma is not None else None
        rstd = torch.empty(rows)
        tables = word, position, token_type
        call(
            "embed_forward", *ids, *tables, gamma, beta, eps, out, xhat, rstd, rows, cols, *drop,
            _half(out),
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
        rows, cols = dz.shape
        grads = [torch.zeros(size, cols) for size in ctx.sizes]
        for index, grad in zip(ids, grads, strict=True):
            call("scatter_add", dz, index, grad, rows, cols, _half(dz))
        return *grads, dgamma, dbeta, None, None, None, None


class _Linear(torch.autograd.Function):
    """x @ weight.T + bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, ops: NativeOps) -> Tensor:
        ctx.save_for_backward(x, weight)  # the parameter: autograd then refuses stale shadows
        ctx.weight = ops.shadow(weight)
        return F.linear(x, ctx.weight, ops.shadow(bias))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, _ = ctx.saved_tensors
        dy = dy.contiguous()
        return dy @ ctx.weight, _weight_grad(dy, x), _column_sums(dy), None


class _LinearGelu(torch.autograd.Function):
    """GELU(x @ weight.T + bias); GELU's derivative takes the place of its argument."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, tanh: bool, ops: NativeOps
    ) -> Tensor:
        ctx.weight = ops.shadow(weight)
        slope = F.linear(x, ctx.weight)
        out = torch.empty_like(slope)
        call("gelu_forward", slope, bias, out, *slope.shape, int(tanh), _half(slope))
        ctx.save_for_backward(x, weight, slope)
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, _, slope = ctx.saved_tensors
        du, dbias = torch.empty_like(slope), torch.empty(slope.shape[1])
        call("gelu_backward", dy.contiguous(), slope, du, dbias, *du.shape, _half(du))
        return du @ ctx.weight, _weight_grad(du, x), dbias, None, None


class _Attention(torch.autograd.Function):
    """Self-attention within sequences, over packed [T, 3H]."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, tokens: Tokens, heads: int, drop: Dropout, save: bool
    ) -> Tensor:
        qkv = qkv.contiguous()
        rows, width = qkv.shape
        lengths = tokens.lengths
        # Probabilities of all sequences: [heads, L, L rounded up to 16] each.
        sizes = [heads * n * (-(-n // 16) * 16) for n in lengths]
        offsets = torch.tensor([0, *sizes]).cumsum(0)
        order = torch.tensor(sorted(range(len(lengths)), key=lambda b: -lengths[b]))
        ctx.fixed = tokens.cu_seqlens, order, offsets, len(lengths), heads, width // 3 // heads
        ctx.drop = drop
        out = qkv.new_empty(rows, width // 3)
        saved = qkv.new_empty(sum(sizes)) if save else None
        inverse = torch.empty(rows, heads)
        call(
            "attention", qkv, *ctx.fixed, out, saved, inverse, None, None, *drop, _half(qkv)
        )  # fmt: skip
        ctx.save_for_backward(qkv, out, saved, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        qkv, out, saved, inverse = ctx.saved_tensors
        grad = torch.empty_like(qkv)
        call(
            "attention", qkv, *ctx.fixed, out, saved, inverse, dy.contiguous(), grad, *ctx.drop,
            _half(qkv),
        )  # fmt: skip
        return grad, None, None, None, None


class _DropoutAdd(torch.autograd.Function):
    """dropout(x) + residual."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, drop: Dropout) -> Tensor:
        ctx.drop = drop
        x = x.contiguous()
        out = torch.empty_like(x)
        call(
            "norm_forward", x, residual.contiguous(), None, None, 0.0, out, None, None, *x.shape,
            *drop, _half(x),
        )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return _dropout(dy.contiguous(), ctx.drop), dy, None


class _Norm(torch.autograd.Function):
    """LayerNorm(dropout(x) + residual); the residual may be None."""

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
        x = x.contiguous()
        out, xhat, rstd = torch.empty_like(x), torch.empty_like(x), torch.empty(len(x))
        ctx.has_residual = residual is not None
        call(
            "norm_forward", x, None if residual is None else residual.contiguous(), gamma, beta,
            eps, out, xhat, rstd, *x.shape, *drop, _half(x),
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


class _Gather(torch.autograd.Function):
    """Rows of x by distinct indices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.rows = len(x)
        return x.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        return dy.new_zeros(ctx.rows, dy.shape[1]).index_copy_(0, indices, dy), None


class _CrossEntropy(torch.autograd.Function):
    """Decoder and softmax cross-entropy; the logits turn into their own gradient in place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        grad: bool,
        ops: NativeOps,
    ) -> tuple[Tensor, Tensor]:
        ctx.weight = ops.shadow(weight)
        logits = F.linear(x, ctx.weight, ops.shadow(bias))
        rows = len(labels)
        loss, hit = torch.empty(rows), torch.empty(rows, dtype=torch.uint8)
        call(
            "cross_entropy", logits, labels.contiguous(), loss, hit, *logits.shape, int(grad),
            _half(logits),
        )  # fmt: skip
        if grad:
            ctx.save_for_backward(x, weight, logits)
        correct = hit.sum(dtype=torch.int64)
        ctx.mark_non_differentiable(correct)
        return loss.sum(dtype=torch.float64).float(), correct

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> Any:
        x, _, dlogits = ctx.saved_tensors
        scale_ = scale.to(x.dtype)  # the upstream gradient, on the small factor of each product
        dx = (dlogits @ ctx.weight) * scale_
        return (
            dx,
            _weight_grad(dlogits, x * scale_),
            _column_sums(dlogits) * scale,
            None,
            None,
            None,
        )


def _weight_grad(dy: Tensor, x: Tensor) -> Tensor:
    return (dy.t() @ x).float()


def _column_sums(x: Tensor) -> Tensor:
    sums = torch.empty(x.shape[1])
    call("column_sums", x, sums, *x.shape, _half(x))
    return sums


def _dropout(x: Tensor, drop: Dropout) -> Tensor:
    if not drop.threshold:
        return x
    out = torch.empty_like(x)
    call("dropout", x, out, *x.shape, *drop, _half(x))
    return out


def _norm_backward(
    dy: Tensor, xhat: Tensor, rstd: Tensor, gamma: Tensor, drop: Dropout, *, outer: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of LayerNorm's input, of what was dropped out before it, of gamma and of beta."""
    rows, cols = dy.shape
    dz = torch.empty_like(dy)
    dropped = torch.empty_like(dy) if drop.threshold and not outer else dz
    partial = torch.empty(NORM_BLOCKS, 2, cols)
    call(
        "norm_backward", dy, xhat, rstd, gamma, dz, dropped, partial, rows, cols, int(outer),
        *drop, _half(dy),
    )  # fmt: skip
    dgamma, dbeta = partial.sum(0)
    return dz, dropped, dgamma, dbeta
