# SPDX-License-Identifier: Apache-2.0
"""Checks what a device really computes, with inputs whose results are known.

A device can accept a switch and ignore it; the digits of a product show that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bertbench.common.model.ops import ComputeTypeOps, Ops

KEPT_BITS = {"fp32": (20, 24), "tf32": (10, 12), "bf16": (7, 7), "fp16": (10, 10), "fp8": (3, 3)}
"""Explicit mantissa bits of the inputs that a product keeps: float32 has 23, TF32 and float16
have 10, bfloat16 has 7, E4M3 has 3. TF32-like formats of other vendors keep up to 12."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
Linear = Callable[[Tensor, Tensor], Tensor]
"""Computes x @ weight.T."""
_SIZE = 512
"""Large enough that a matrix unit, not a scalar kernel, is chosen."""


def examine(device: torch.device, linear: Linear = F.linear) -> dict[str, str]:
    """Return facts of matrix products under the current settings, GELU and int64 on ``device``."""
    # Row i of `a` holds 1 + 2^-k in column i, so row i of the product shows whether 2^-k was kept.
    bits = torch.arange(_SIZE) % 24
    a = torch.diag(1.0 + torch.exp2(-bits.double())).float().to(device)
    a[:-1, -1] = 448.0  # a format with a scale for each row then has the same for all
    product = linear(a, torch.eye(_SIZE, device=device))
    diagonal = product.float().cpu().diagonal()[:-1]
    exact = (1.0 + torch.exp2(-bits.double())).float()[:-1]
    lost = bits[:-1][diagonal != exact]
    kept = int(lost.min()) - 1 if len(lost) else 23
    gelu = float(F.gelu(torch.full((16,), 1.0, device=device))[0].float().cpu())
    forms = {
        "erf": 0.5 * (1 + math.erf(2**-0.5)),
        "tanh": 0.5 * (1 + math.tanh((2 / math.pi) ** 0.5 * 1.044715)),
    }
    form = min(forms, key=lambda name: abs(forms[name] - gelu))
    wide = 2**40 + 1
    return {
        "product_dtype": str(product.dtype).removeprefix("torch."),
        "product_mantissa_bits": str(kept),
        "gelu": form if abs(forms[form] - gelu) < 2e-5 else f"neither erf nor tanh ({gelu:.6f})",
        "int64": "kept" if (torch.full((2,), wide - 1, device=device) + 1)[0].item() == wide
        else "narrowed to 32 bits",
    }  # fmt: skip


def why_not(precision: str, found: dict[str, str]) -> str | None:
    """Return which of the facts ``found`` contradicts ``precision``, or None."""
    wanted = str(_DTYPES.get(precision, torch.float32)).removeprefix("torch.")
    if found["product_dtype"] != wanted:
        return f"matrix products come out as {found['product_dtype']}"
    low, high = KEPT_BITS[precision]
    kept = int(found["product_mantissa_bits"])
    if not low <= kept <= high:
        return f"matrix products keep {kept} bits of their inputs' mantissas, not {low} to {high}"
    return None


def scaled_product_why_not(device: torch.device) -> str | None:
    """Try torch's product of E4M3 factors with scales by row; return why it fails, or None."""
    try:
        ones = torch.ones(32, 32, device=device).to(torch.float8_e4m3fn)
        scales = torch.arange(1.0, 33.0, device=device)[:, None]
        got = torch._scaled_mm(ones, ones.t(), scales, scales.t(), out_dtype=torch.bfloat16)
        want = (32 * scales * scales.t()).bfloat16()
        right = bool((got == want).all())
    except Exception as error:  # whatever a device may raise, it is a reason
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
    return None if right else "its products of 8-bit floats with scales are wrong"


NORM_TOLERANCE = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
"""Largest difference from float32, as a share of the largest value: four units in the last place.
A device that rounds its results only stays below one. Gradients of gain and bias that are added up
in 16 bits, as torch's CPU kernel does, are off by about ten."""


def norm_why_not(
    device: torch.device,
    dtype: torch.dtype,
    autocast: Callable[[torch.dtype], AbstractContextManager[None]],
) -> str | None:
    """Try LayerNorm in ``dtype``, forward and backward; return why it cannot be used, or None.

    It runs within ``autocast``, as in training, and its output must keep ``dtype`` there.
    It is compared with float32 on the host, from the same rounded inputs. These have many rows and
    a mean far from 0, which exposes statistics and gradients that are not summed in float32.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2048, 256)
    x, weights = (torch.randn(shape, generator=generator) for _ in range(2))
    x, weights = (x + 8).to(dtype), weights.to(dtype)
    gain, bias = (torch.randn(shape[1], generator=generator).to(dtype) for _ in range(2))

    def run(ops: Ops, on: torch.device, context: AbstractContextManager[None]) -> list[Tensor]:
        inputs = [t.to(on, torch.float32, copy=True).requires_grad_() for t in (x, gain, bias)]
        with context:
            out = ops.norm(inputs[0], inputs[1], inputs[2], eps=1e-12)
        out.backward(weights.to(on, out.dtype))
        return [t.detach().cpu() for t in (out, *(i.grad for i in inputs)) if t is not None]

    try:
        got = run(ComputeTypeOps(dtype), device, autocast(dtype))
    except Exception as error:  # whatever a device may raise, it is a reason
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
    if got[0].dtype != dtype:
        return f"autocast makes it {str(got[0].dtype).removeprefix('torch.')}"
    wanted = run(Ops(), torch.device("cpu"), nullcontext())
    names = ("output", "gradient", "gradient of its gain", "gradient of its bias")
    for what, mine, right in zip(names, got, wanted, strict=True):
        off = float((mine.float() - right).abs().max() / right.abs().max())
        if not off <= NORM_TOLERANCE[dtype]:
            return f"its {what} is off by {off:.1e} of the largest value"
    return None


CHECK_LENGTHS = (5, 33, 1, 17)
"""Lengths of the batch on which a kernel is tried."""
MASKED_LENGTHS = (5, 300, 1, 129)
"""Those for masked attention, whose kernels skip blocks of up to 128 tokens."""
TOLERANCES = {torch.float32: 3e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest difference from plain float32, as a share of the largest value. float32's is below what
one TF32 product would lose (2^-11 of each input): a kernel that uses TF32 is not fp32."""


def _trial_mask(num_heads: int, length: int, generator: torch.Generator) -> Tensor:
    """Return random masks with a full and an empty block of 128, bool [num_heads, n, n]."""
    mask = torch.rand(num_heads, length, length, generator=generator) < 0.3
    mask.diagonal(dim1=1, dim2=2).fill_(True)
    mask[:, :128, 128:256], mask[:, 128:256, :128] = True, False
    return mask


def attention_why_not(
    ops: Ops,
    device: torch.device,
    dtype: torch.dtype,
    tolerance: float | None = None,
    *,
    masked: bool = False,
) -> str | None:
    """Try ``ops.attention`` on a tiny ragged batch; return why it cannot be used, or None.

    Where ``masked``, try ``ops.masked_attention`` with another random mask for each head.

    Forward and backward are compared with plain PyTorch on the host in float32, from the same
    rounded inputs. With dropout, both passes must drop the same elements. ``tolerance`` replaces
    that of ``TOLERANCES``.
    """
    allowed = TOLERANCES[dtype] if tolerance is None else tolerance
    lengths = MASKED_LENGTHS if masked else CHECK_LENGTHS
    num_heads, head, total = 2, 64, sum(lengths)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(total, 3 * num_heads * head, generator=generator).to(dtype)
    weights = torch.randn(total, num_heads * head, generator=generator).to(dtype)
    mask = _trial_mask(num_heads, max(lengths), generator)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)

    def run(chosen: Ops, on: torch.device, kind: torch.dtype, dropout: float) -> list[Tensor]:
        tokens: Any = SimpleNamespace(
            lengths=lengths, max_length=max(lengths), cu_seqlens=starts.to(on)
        )
        qkv = values.to(on, kind, copy=True).requires_grad_()
        attend: Any = chosen.attention
        if masked:
            attend = partial(chosen.masked_attention, mask=mask.to(on))
        out = attend(qkv, tokens, num_heads=num_heads, dropout=dropout)
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
        if not off <= allowed:
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
    if not (forward - backward).abs().max() <= allowed * forward.abs().max():
        return "its backward pass does not drop what its forward pass dropped"
    return None
