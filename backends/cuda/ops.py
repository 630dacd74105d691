# SPDX-License-Identifier: Apache-2.0
"""Attention over unpadded batches with torch's own variable-length kernels.

``torch.nn.attention.varlen`` fixes dropout at zero, and BERT's attention has dropout; so the
operators below it are called, which have dropout and a backward pass (native_functions.yaml and
derivatives.yaml of torch 2.10 to 2.13). Shapes as in common/model/ops.py; D = H / N.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertbench.common.data.batch import Tokens
from bertbench.common.errors import Unsupported
from bertbench.common.model.ops import ComputeTypeOps

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One attention kernel and its limits."""

    label: str
    """Its name in the record."""
    dtypes: tuple[torch.dtype, ...]
    head_multiple: int
    head_limit: int | None = None


KERNELS = {
    "flash": Kernel(label="flash-varlen", dtypes=_HALF, head_multiple=8, head_limit=256),
    "efficient": Kernel(label="efficient-varlen", dtypes=(*_HALF, torch.float32), head_multiple=8),
}
"""In the order in which ``auto`` takes them where no run has timed them."""


class CudaOps(ComputeTypeOps):
    """``ComputeTypeOps`` with attention in one call per batch, not one per sequence."""

    def __init__(
        self,
        kernel: str,
        dtype: torch.dtype | None = None,
        *,
        passed_over: Mapping[str, str] | None = None,
        aten: Any = None,
    ) -> None:
        """Choose ``kernel``: a name in KERNELS, or ``sdpa``.

        ``dtype`` and ``passed_over`` are those of ``ComputeTypeOps``; ``aten`` replaces torch's
        operators in tests.
        """
        super().__init__(dtype, passed_over=passed_over)
        self.name = self._kernel = kernel
        self._aten = torch.ops.aten if aten is None else aten

    @staticmethod
    def split(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
        """Return query, key and value [T, N, D] of [T, 3H]; fused kernels put theirs here."""
        return qkv.view(len(qkv), 3, num_heads, -1).unbind(1)

    @property
    def kernels(self) -> Mapping[str, str]:
        own = {"attention": KERNELS[self._kernel].label} if self._kernel in KERNELS else {}
        return {**super().kernels, **own}

    def keep_out_of_graphs(self) -> None:
        super().keep_out_of_graphs()
        if self._kernel in KERNELS:  # one call, whatever the lengths: the method of the class
            del self.attention

    def attention(self, qkv: Tensor, tokens: Tokens, *, num_heads: int, dropout: float) -> Tensor:
        """Return [T, H] from [T, 3H] in one call; raise Unsupported as ``check_inputs``."""
        if self._kernel not in KERNELS:
            return super().attention(qkv, tokens, num_heads=num_heads, dropout=dropout)
        hidden = qkv.shape[1] // 3
        check_inputs(self._kernel, KERNELS[self._kernel], qkv.dtype, hidden // num_heads)
        q, k, v = self.split(qkv, num_heads)
        # The host's copy of the lengths: asking the device for the longest would wait for it.
        seqlens, longest = tokens.cu_seqlens, tokens.max_length
        if self._kernel == "flash":
            out = self._aten._flash_attention_forward(
                q, k, v, seqlens, seqlens, longest, longest, dropout,
                False,  # no causal mask
                False,  # no copy of the probabilities
            )[0]  # fmt: skip
        else:
            q, k, v = q[None], k[None], v[None]
            backward_follows = qkv.requires_grad and torch.is_grad_enabled()
            out = self._aten._efficient_attention_forward(
                q, k, v, None, seqlens, seqlens, longest, longest, dropout,
                0,  # no causal mask
                backward_follows,  # which needs the log-sum-exp
            )[0]  # fmt: skip
        return out.reshape(len(qkv), hidden)


def check_inputs(name: str, kernel: Kernel, dtype: torch.dtype, head: int) -> None:
    """Raise Unsupported where ``kernel`` does not support this type or head size."""
    if dtype not in kernel.dtypes:
        takes = ", ".join(str(d).removeprefix("torch.") for d in kernel.dtypes)
        raise Unsupported(
            f"attention kernel {name!r} computes in {takes}, not in "
            f"{str(dtype).removeprefix('torch.')}: choose --precision or --kernels accordingly"
        )
    limit = kernel.head_limit
    if head % kernel.head_multiple or (limit is not None and head > limit):
        most = "" if limit is None else f" of at most {limit}"
        raise Unsupported(
            f"attention kernel {name!r} needs a head size{most} that is a multiple of "
            f"{kernel.head_multiple}, not {head}: choose --kernels plain"
        )
