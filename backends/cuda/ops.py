# SPDX-License-Identifier: Apache-2.0
"""Attention over unpadded batches with torch's own variable-length kernels.

``torch.nn.attention.varlen`` fixes dropout at zero, and BERT's attention has dropout; so the
operators below it are called, which have dropout and a backward pass (native_functions.yaml and
derivatives.yaml of torch 2.10 to 2.13). Shapes as in common/model/ops.py; D = H / N.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from common.data.batch import Tokens
from common.errors import Unsupported
from common.model.ops import ComputeTypeOps, Ops

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One way to compute attention, and what it takes."""

    label: str
    """What the record says."""
    dtypes: tuple[torch.dtype, ...]
    head_multiple: int
    head_limit: int | None = None


KERNELS = {
    "flash": Kernel(label="flash-varlen", dtypes=_HALF, head_multiple=8, head_limit=256),
    "efficient": Kernel(label="efficient-varlen", dtypes=(*_HALF, torch.float32), head_multiple=8),
}
"""Fastest first."""

CHECK_LENGTHS = (5, 33, 1, 17)
"""Lengths of the batch on which a kernel is tried."""
TOLERANCES = {torch.float32: 3e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest difference from plain float32, as a share of the largest value. float32's is below what
one TF32 product would lose (2^-11 of each input): a kernel that uses TF32 is not fp32."""


class CudaOps(ComputeTypeOps):
    """``ComputeTypeOps`` with attention in one call for the whole batch, not one a sequence."""

    def __init__(
        self,
        kernel: str,
        dtype: torch.dtype | None = None,
        *,
        passed_over: Mapping[str, str] | None = None,
        aten: Any = None,
    ) -> None:
        """``kernel`` is a name in KERNELS, or ``sdpa`` for the attention of ``Ops``.

        ``dtype`` is the residual stream's type (``ComputeTypeOps``); ``passed_over`` gives the
        reasons why faster kernels failed, for the record; ``aten`` replaces torch's operators in
        tests.
        """
        super().__init__(dtype)
        self.name = kernel
        self._kernel, self._passed_over = kernel, dict(passed_over or {})
        self._aten = torch.ops.aten if aten is None else aten

    @property
    def kernels(self) -> Mapping[str, str]:
        failed = "; ".join(f"{k}: {why}" for k, why in self._passed_over.items())
        skipped = {"attention_passed_over": failed} if failed else {}
        own = {"attention": KERNELS[self._kernel].label} if self._kernel in KERNELS else {}
        return {**super().kernels, **own, **skipped}

    def keep_out_of_graphs(self) -> None:
        if self._kernel not in KERNELS:  # theirs is one call, whatever the lengths
            super().keep_out_of_graphs()

    def attention(self, qkv: Tensor, tokens: Tokens, *, num_heads: int, dropout: float) -> Tensor:
        if self._kernel not in KERNELS:
            return super().attention(qkv, tokens, num_heads=num_heads, dropout=dropout)
        hidden = qkv.shape[1] // 3
        check_inputs(self._kernel, KERNELS[self._kernel], qkv.dtype, hidden // num_heads)
        parts = qkv.view(len(qkv), 3, num_heads, hidden // num_heads)
        # The host's copy of the lengths: asking the device for the longest would wait for it.
        seqlens, longest = tokens.cu_seqlens, tokens.max_length
        if self._kernel == "flash":
            q, k, v = parts.unbind(1)
            out = self._aten._flash_attention_forward(
                q, k, v, seqlens, seqlens, longest, longest, dropout,
                False,  # no causal mask
                False,  # no copy of the probabilities
            )[0]  # fmt: skip
        else:
            q, k, v = parts.unsqueeze(0).unbind(2)
            backward_follows = qkv.requires_grad and torch.is_grad_enabled()
            out = self._aten._efficient_attention_forward(
                q, k, v, None, seqlens, seqlens, longest, longest, dropout,
                0,  # no causal mask
                backward_follows,  # which needs the log-sum-exp
            )[0]  # fmt: skip
        return out.reshape(len(qkv), hidden)


def check_inputs(name: str, kernel: Kernel, dtype: torch.dtype, head: int) -> None:
    """Unsupported, with the way out, where ``kernel`` does not take this type or head size."""
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


def why_not(ops: Ops, device: torch.device, dtype: torch.dtype) -> str | None:
    """Try ``ops.attention`` on a tiny ragged batch; why it cannot be used, or None: it can.

    Forward and backward are compared with plain PyTorch on the host in float32, from the same
    rounded inputs. Then once more with dropout, whose backward pass must drop what the forward
    pass dropped.
    """
    num_heads, head, total = 2, 64, sum(CHECK_LENGTHS)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(total, 3 * num_heads * head, generator=generator).to(dtype)
    weights = torch.randn(total, num_heads * head, generator=generator).to(dtype)
    starts = torch.tensor([0, *CHECK_LENGTHS]).cumsum(0).to(torch.int32)

    def run(chosen: Ops, on: torch.device, kind: torch.dtype, dropout: float) -> list[Tensor]:
        tokens: Any = SimpleNamespace(
            lengths=CHECK_LENGTHS, max_length=max(CHECK_LENGTHS), cu_seqlens=starts.to(on)
        )
        qkv = values.to(on, kind, copy=True).requires_grad_()
        out = chosen.attention(qkv, tokens, num_heads=num_heads, dropout=dropout)
        out.backward(weights.to(on, kind))
        assert qkv.grad is not None
        return [t.detach().float().cpu() for t in (out, qkv.grad)]

    try:
        got = run(ops, device, dtype, 0.0)
        with_dropout = run(ops, device, dtype, 0.5)
    except Exception as error:  # whatever a kernel may raise, it is a reason
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
    wanted = run(Ops(), torch.device("cpu"), torch.float32, 0.0)
    for what, mine, right in zip(("output", "gradient"), got, wanted, strict=True):
        off = float((mine - right).abs().max() / right.abs().max())
        if not off <= TOLERANCES[dtype]:
            return f"its {what} differs from plain PyTorch's by {off:.1e} of the largest value"
    out, gradient = with_dropout
    if not (bool(out.isfinite().all()) and bool(gradient.isfinite().all())):
        return "with dropout its output or gradient is not finite"
    if torch.equal(out, got[0]):
        return "it ignores dropout"
    # The output is linear in v, so sum(out * dL/dout) = sum(v * dL/dv) in every column, if and
    # only if both passes drop the same.
    v, dv = (t.float()[:, -out.shape[1] :] for t in (values, gradient))
    forward, backward = (out * weights.float()).sum(0), (v * dv).sum(0)
    if not (forward - backward).abs().max() <= TOLERANCES[dtype] * forward.abs().max():
        return "its backward pass does not drop what its forward pass dropped"
    return None
