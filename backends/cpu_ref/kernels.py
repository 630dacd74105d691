# SPDX-License-Identifier: Apache-2.0
"""BERT's operations for the CPU: torch's matrix products and the fused kernels of kernels.c.

Activations are in the compute type from end to end, parameters stay float32. Every override equals
``Ops`` up to rounding and, with dropout, up to which elements are dropped: those come from a hash
of (seed, row, column) with one seed per call from torch's CPU generator, so that a restored
generator gives the same run again whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bertbench.backends.cpu_ref.functions import (
    CrossEntropy,
    DropoutAdd,
    Embed,
    Linear,
    LinearGelu,
    Norm,
)
from bertbench.backends.cpu_ref.layout import BLOCKS, DENSE, Layout
from bertbench.backends.cpu_ref.library import library
from bertbench.backends.cpu_ref.routes import Route, attend, candidates
from bertbench.backends.fused import NO_DROPOUT, Gather, InComputeType, draw_dropout
from bertbench.common.data.batch import Tokens
from bertbench.common.errors import Unsupported
from bertbench.common.model.ops import Ops


def load() -> None:
    """Compile and load the kernels; raise NativeUnavailable with the reason."""
    library()


class NativeOps(Ops):
    """``Ops`` in bfloat16 (or float32) on the CPU.

    Raises Unsupported for another dtype and NativeUnavailable without a compiler.
    """

    name = "native"

    def __init__(self, dtype: torch.dtype) -> None:
        if dtype not in (torch.bfloat16, torch.float32):
            raise Unsupported(f"native CPU kernels compute in bfloat16 or float32, not {dtype}")
        load()
        self.dtype = dtype
        self._routes: dict[int, tuple[Tensor, Route]] = {}
        self.shadow = InComputeType(dtype)

    @property
    def kernels(self) -> Mapping[str, str]:
        unit = "avx512_bf16" if library()["has_bf16_dot"]() else "generic"
        products = "onednn"  # of torch in bf16; in float32 its BLAS, where it has one that is known
        if self.dtype == torch.float32:
            products = "mkl" if torch.backends.mkl.is_available() else "torch"
        return {"attention": f"c-fused-{unit}", "matmul": products, "other": "c-fused"}

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
        return Embed.apply(*tables, norm_weight, norm_bias, tokens, self.dtype, eps, drop)

    def embed_sum(
        self, tokens: Tokens, word: Tensor, position: Tensor, token_type: Tensor, *, dropout: float
    ) -> Tensor:
        tables = word, position, token_type
        drop = draw_dropout(dropout)
        return Embed.apply(*tables, None, None, tokens, self.dtype, 0.0, drop)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return Linear.apply(x.to(self.dtype), weight, bias, self.shadow(weight), self.shadow(bias))

    def linear_gelu(self, x: Tensor, weight: Tensor, bias: Tensor, *, approximate: str) -> Tensor:
        return LinearGelu.apply(
            x.to(self.dtype), weight, bias, approximate == "tanh", self.shadow(weight)
        )

    def attention(self, qkv: Tensor, tokens: Tokens, *, num_heads: int, dropout: float) -> Tensor:
        """Return [T, H] from [T, 3H]; raise Unsupported for a head size that 16 does not divide."""
        return self._attend(qkv, tokens, num_heads, dropout, DENSE)

    def _attend(
        self, qkv: Tensor, tokens: Tokens, heads: int, dropout: float, route: Route
    ) -> Tensor:
        size = qkv.shape[1] // 3 // heads
        if size % 16:
            raise Unsupported(
                f"native attention works on vectors of 16 and the heads of this model have {size} "
                f"elements: choose another hidden_size or num_attention_heads, or --kernels plain"
            )
        save = torch.is_grad_enabled() and qkv.requires_grad
        return attend(qkv.to(self.dtype), tokens, heads, draw_dropout(dropout), save, route)

    @property
    def masked_kernel(self) -> str:
        return self.kernels["attention"]  # by the route that the record's costs name

    def masked_attention(
        self, qkv: Tensor, tokens: Tokens, mask: Tensor, *, num_heads: int, dropout: float
    ) -> Tensor:
        """Return attention where ``mask``, bool [1 or N, L, L], is True: [T, 3H] -> [T, H].

        Scores of blocks without a True are not computed. Raises Unsupported as ``attention``.
        """
        return self._attend(qkv, tokens, num_heads, dropout, self._route(mask, num_heads))

    def masked_routes(self, mask: Tensor, num_heads: int) -> Mapping[str, Route]:
        return candidates(mask.numpy(), heads=num_heads)

    def use_route(self, mask: Tensor, route: Route) -> None:
        self._routes[id(mask)] = mask, route  # the mask is kept, so that no other gets its id

    def _route(self, mask: Tensor, heads: int) -> Route:
        """Return the chosen route of ``mask``; masks are not written after that."""
        if id(mask) not in self._routes:  # nobody measured: any of them is right
            self.use_route(mask, Layout.of(mask.numpy(), heads=heads, block=BLOCKS[0]))
        return self._routes[id(mask)][1]

    def dropout_add(self, x: Tensor, residual: Tensor, *, dropout: float) -> Tensor:
        x, residual = x.to(self.dtype), residual.to(self.dtype)
        return DropoutAdd.apply(x, residual, draw_dropout(dropout))

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
        return Norm.apply(x.to(self.dtype), None, weight, bias, eps, NO_DROPOUT)

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
