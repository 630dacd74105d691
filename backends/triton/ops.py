# SPDX-License-Identifier: Apache-2.0
"""``Ops`` of Triton kernels, for any device whose torch has Triton; attention is the backend's own.

Activations are in the compute type from end to end, as in ``cpu_ref``'s NativeOps: the residual
stream has 16 bits, and parameters are cast once per update.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bertbench.backends.fused import NO_DROPOUT, Gather, Shadows, draw_dropout
from bertbench.backends.triton.functions import (
    CrossEntropy,
    DropoutAdd,
    Embed,
    Linear,
    LinearGelu,
    Norm,
    Split,
)
from bertbench.common.data.batch import Tokens
from bertbench.common.model.ops import Ops


class TritonOps(Ops):
    """Fused kernels around another ``Ops``' attention."""

    name = "triton"
    split = staticmethod(Split.apply)
    """Query, key and value of [T, 3H], in the place of the attention's own."""

    def __init__(self, attention: Ops, dtype: torch.dtype) -> None:
        """Take attention from ``attention``; ``dtype`` is float32, bfloat16 or float16."""
        self._attention, self.dtype = attention, dtype
        self.shadow = Shadows(dtype)
        self._linear: list[tuple[weakref.ref[Tensor], weakref.ref[Tensor]]] = []
        """Input and output of the last two linear layers; weak, so that no graph is kept alive."""
        if hasattr(attention, "split"):
            attention.split = self.split

    @property
    def kernels(self) -> Mapping[str, str]:
        return {**self._attention.kernels, "other": "triton-fused", "norm": "triton-fused"}

    def keep_out_of_graphs(self) -> None:
        self._attention.keep_out_of_graphs()

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
        y, passed = Linear.apply(x, weight, bias, self.shadow(weight), self.shadow(bias))
        return self._remember(x, y, passed, bias)

    def linear_gelu(self, x: Tensor, weight: Tensor, bias: Tensor, *, approximate: str) -> Tensor:
        x = x.to(self.dtype)
        y, passed = LinearGelu.apply(
            x, weight, bias, approximate == "tanh", self.shadow(weight), self.shadow(bias)
        )
        return self._remember(x, y, passed, bias)

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
        return Norm.apply(x.to(self.dtype), None, weight, bias, eps, NO_DROPOUT)

    def dropout_add_norm(
        self, x: Tensor, residual: Tensor, norm_weight: Tensor, norm_bias: Tensor, *, eps: float,
        dropout: float,
    ) -> Tensor:  # fmt: skip
        x, residual = x.to(self.dtype), residual.to(self.dtype)
        residual = self._residual(x, residual)
        return Norm.apply(x, residual, norm_weight, norm_bias, eps, draw_dropout(dropout))

    def gather(self, x: Tensor, indices: Tensor) -> Tensor:
        return Gather.apply(x, indices)

    def masked_cross_entropy(
        self, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        return CrossEntropy.apply(
            x.to(self.dtype), weight, bias, labels, grad, self.shadow(weight), self.shadow(bias)
        )
