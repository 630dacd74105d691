# SPDX-License-Identifier: Apache-2.0
"""``Ops`` of Triton kernels, for any device whose torch has Triton; attention is the backend's own.

Activations are in the compute type from end to end, as in ``cpu_ref``'s NativeOps: the residual
stream has 16 bits, and parameters are cast once per update.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from bertbench.backends.fused import NO_DROPOUT, Gather, InComputeType, draw_dropout
from bertbench.backends.triton.fp8 import (
    Eight,
    Narrow,
    NarrowWeights,
    Wide,
    blank,
    carry,
    check_sizes,
)
from bertbench.backends.triton.functions import (
    CrossEntropy,
    DropoutAdd,
    Embed,
    Layer,
    Linear,
    LinearGelu,
    Norm,
    Split,
)
from bertbench.common.data.batch import Tokens
from bertbench.common.errors import Unsupported
from bertbench.common.model.ops import Ops


class TritonOps(Ops):
    """Fused kernels around another ``Ops``' attention."""

    name = "triton"
    split = staticmethod(Split.apply)
    """Query, key and value of [T, 3H], in the place of the attention's own."""

    eight = False
    """Whether the linear layers' products take 8-bit floats."""

    def __init__(self, attention: Ops, dtype: torch.dtype, *, fp8: bool = False) -> None:
        """Take attention from ``attention``; ``dtype`` is float32, bfloat16 or float16.

        With ``fp8`` the encoder's layers compute their products in 8 bits (fp8.py).
        """
        self._attention, self.dtype = attention, dtype
        self.shadow = InComputeType(dtype)
        self._linear: list[tuple[weakref.ref[Tensor], weakref.ref[Tensor]]] = []
        """Input and output of the last two linear layers; weak, so that no graph is kept alive."""
        if hasattr(attention, "split"):
            attention.split = self.split
        self._layers = EightOps(attention, dtype) if fp8 else None

    @property
    def in_layers(self) -> Ops:
        return self._layers or self

    @property
    def kernels(self) -> Mapping[str, str]:
        linear = {} if self._layers is None else self._layers.linear_kernels
        own = {"other": "triton-fused", "norm": "triton-fused"}
        return {**self._attention.kernels, **own, **linear}

    def keep_out_of_graphs(self) -> None:
        raise Unsupported(
            "a compiler cannot trace Triton's kernels of this suite: leave --compile out, or "
            "choose other --kernels"
        )

    def embed(
        self, tokens: Tokens, word: Tensor, position: Tensor, token_type: Tensor,
        norm_weight: Tensor, norm_bias: Tensor, *, eps: float, dropout: float,
    ) -> Tensor:  # fmt: skip
        return Embed.apply(
            word, position, token_type, norm_weight, norm_bias, tokens, self.dtype, eps,
            draw_dropout(dropout),
        )  # fmt: skip

    def embed_sum(
        self, tokens: Tokens, word: Tensor, position: Tensor, token_type: Tensor, *, dropout: float
    ) -> Tensor:
        return Embed.apply(
            word, position, token_type, None, None, tokens, self.dtype, 0.0, draw_dropout(dropout)
        )

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.to(self.dtype)
        y, passed = Linear.apply(x, weight, bias, self.layer(weight, bias))
        return self._remember(x, y, passed, bias)

    def linear_gelu(self, x: Tensor, weight: Tensor, bias: Tensor, *, approximate: str) -> Tensor:
        x = x.to(self.dtype)
        layer, tanh = self.layer(weight, bias), approximate == "tanh"
        eight = self._eight(x, len(weight))
        y, passed = LinearGelu.apply(x, weight, bias, tanh, layer, eight)
        carry(y, eight)
        return self._remember(x, y, passed, bias)

    def layer(self, weight: Tensor, bias: Tensor) -> Layer:
        """Return a linear layer's parameters in the type of its products."""
        return Wide(self.shadow(weight), self.shadow(bias))

    def _eight(self, x: Tensor, cols: int) -> Eight | None:
        """Return where the 8-bit copy of an output [T, cols] is written; None where none is."""
        return blank(len(x), cols, x.device) if self.eight else None

    def _remember(self, x: Tensor, y: Tensor, passed: Tensor, bias: Tensor) -> Tensor:
        """Return a linear layer's output y; it carries ``x``, its input, as it ``passed`` it on.

        And its bias, whose gradient the norm behind it sums with its own.
        """
        y.passed, y.bias = passed, bias  # type: ignore[attr-defined]
        self._linear = [*self._linear[-1:], (weakref.ref(x), weakref.ref(y))]
        return y

    def _residual(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return ``residual`` [T, H] as the layer before the last passed it on, if it read it.

        Its gradient then reaches that layer, whose product adds to it in its place: ``x``, whose
        gradient may be the same tensor, has to be the last layer's, which runs earlier.
        """
        known = [(given(), made()) for given, made in self._linear]
        if len(known) == 2 and known[0][0] is residual and known[1][1] is x:
            return getattr(known[0][1], "passed", residual)
        return residual

    def attention(self, qkv: Tensor, tokens: Tokens, *, num_heads: int, dropout: float) -> Tensor:
        """Return self-attention within each sequence: [T, 3H] -> [T, H]."""
        return self._attention.attention(qkv, tokens, num_heads=num_heads, dropout=dropout)

    @property
    def masked_kernel(self) -> str:
        return self._attention.masked_kernel

    def masked_attention(
        self, qkv: Tensor, tokens: Tokens, mask: Tensor, *, num_heads: int, dropout: float
    ) -> Tensor:
        """Return attention where ``mask``, bool [1 or N, L, L], is True: [T, 3H] -> [T, H]."""
        return self._attention.masked_attention(
            qkv, tokens, mask, num_heads=num_heads, dropout=dropout
        )

    def masked_routes(self, mask: Tensor, num_heads: int) -> Mapping[str, Any]:
        return self._attention.masked_routes(mask, num_heads)

    def use_route(self, mask: Tensor, route: Any) -> None:
        self._attention.use_route(mask, route)

    def dropout_add(self, x: Tensor, residual: Tensor, *, dropout: float) -> Tensor:
        x, residual = x.to(self.dtype), residual.to(self.dtype)
        return DropoutAdd.apply(x, residual, draw_dropout(dropout))

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
        return self._norm(x.to(self.dtype), None, weight, bias, eps, NO_DROPOUT)

    def dropout_add_norm(
        self, x: Tensor, residual: Tensor, norm_weight: Tensor, norm_bias: Tensor, *, eps: float,
        dropout: float,
    ) -> Tensor:  # fmt: skip
        x, residual = x.to(self.dtype), residual.to(self.dtype)
        residual = self._residual(x, residual)
        return self._norm(x, residual, norm_weight, norm_bias, eps, draw_dropout(dropout))

    def _norm(self, x: Tensor, *rest: Any) -> Tensor:
        eight = self._eight(x, x.shape[1])
        y: Tensor = Norm.apply(x, *rest, eight)
        carry(y, eight)
        return y

    def gather(self, x: Tensor, indices: Tensor) -> Tensor:
        return Gather.apply(x, indices)

    def masked_cross_entropy(
        self, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        return CrossEntropy.apply(
            x.to(self.dtype), weight, bias, labels, grad, self.shadow(weight), self.shadow(bias)
        )


class EightOps(TritonOps):
    """Those of the encoder's layers whose products take 8-bit floats.

    A kernel whose result is a product's factor also writes it in 8 bits.
    """

    eight = True
    linear_kernels: ClassVar[Mapping[str, str]] = {"linear": "e4m3-rowwise-16-bit-weight-gradient"}
    split = staticmethod(lambda qkv, heads: Split.apply(qkv, heads, True))

    def __init__(self, attention: Ops, dtype: torch.dtype) -> None:
        super().__init__(attention, dtype)
        self._weights = NarrowWeights()

    def layer(self, weight: Tensor, bias: Tensor) -> Layer:
        """Return a linear layer's parameters; raise Unsupported as ``check_sizes``."""
        check_sizes(weight)
        return Narrow(*self._weights(weight), self.shadow(bias))
