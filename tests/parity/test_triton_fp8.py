# SPDX-License-Identifier: Apache-2.0
"""Linear layers in 8-bit floats, in Triton's interpreter: against the same rounding by torch.

The interpreter's own conversion to E4M3 does not carry into the exponent (127.9 becomes 64, Triton
3.9), so torch's stands in for it here; on a device the trial of backends/triton/trial.py decides.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertbench.backends import selfcheck
from bertbench.common.errors import Unsupported
from bertbench.common.model.ops import Ops
from tests.conftest import interpreted

pytest.importorskip("triton", reason="triton is not installed")
if not interpreted():
    pytest.skip("a GPU is here: its own checks try the kernels", allow_module_level=True)

import triton.language as tl
from triton.runtime import interpreter

from bertbench.backends.cuda.backend import Cuda
from bertbench.backends.triton import fp8, kernels, trial
from bertbench.backends.triton.ops import TritonOps
from tests.parity.test_native_ops import BF16, F32, close, leaf

HOST = torch.device("cpu")
own_conversion = interpreter._convert_float


def converted(given: Any, kind: Any, wanted: Any, rounding: Any) -> Any:
    if wanted != tl.float8e4nv:
        return own_conversion(given, kind, wanted, rounding)
    assert kind == tl.float32
    x = torch.from_numpy(np.ascontiguousarray(given)).to(torch.float8_e4m3fn)
    return x.view(torch.uint8).numpy()


@pytest.fixture(autouse=True)
def exact_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "_convert_float", converted)
    torch.manual_seed(0)


def made(dtype: torch.dtype = F32) -> TritonOps:
    return TritonOps(Ops(), dtype, fp8=True)


def by_hand(x: Tensor) -> Tensor:
    """x rounded row by row, with the largest E4M3 number as each row's largest."""
    rows = []
    for row in x.detach().float():
        scale = row.abs().max() / 448 if row.any() else torch.tensor(1.0)
        rows.append((row / scale).to(torch.float8_e4m3fn).float() * scale)
    return torch.stack(rows)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 70), st.integers(-30, 30), st.booleans())
def test_rounding_by_row(rows: int, cols: int, power: int, half: bool) -> None:
    x = torch.randn(rows, cols) * 2.0**power
    x[0] = 0
    x = x.bfloat16() if half else x
    got = fp8.rounded(x)
    assert got.values.dtype == torch.float8_e4m3fn and got.scales.shape == (rows, 1)
    assert torch.equal(got.values.float() * got.scales, by_hand(x))


def layer(ops: Ops, x: Tensor, p: list[Tensor]) -> Tensor:
    """A feed-forward block with its norm, and a linear layer that reads it."""
    ops = ops.in_layers
    inner = ops.linear_gelu(x, p[0], p[1], approximate="tanh")
    y = ops.linear(inner, p[2], p[3])
    y = ops.dropout_add_norm(y, x, p[4], p[5], eps=1e-3, dropout=0.0)
    q, k, v = getattr(ops, "split", lambda t, heads: t.view(len(t), 3, heads, -1).unbind(1))(
        ops.linear(y, p[6], p[7]), 2
    )
    return q - 2 * k + 3 * v


def parameters() -> list[Tensor]:
    sizes = ((64, 32), (64,), (32, 64), (32,), (32,), (32,), (96, 32), (96,))
    return [leaf(*size, scale=0.2) for size in sizes]


@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 2e-3), (BF16, 5e-2)])
def test_a_layer_equals_the_same_rounding_in_plain_pytorch(
    dtype: torch.dtype, tolerance: float
) -> None:
    """Twice, so that gradients are added; a different last digit may round to the next number."""
    p, parts, found = parameters(), [torch.randn(7, 32).to(dtype) for _ in range(2)], []
    weights = torch.randn(7, 2, 16)
    for ops in (made(dtype), trial.RoundedOps(), Ops()):
        for t in p:
            t.grad = None
        outs, grads = [], []
        for part in parts:
            kind = dtype if isinstance(ops, TritonOps) else F32
            x = part.to(kind, copy=True).requires_grad_()
            out = layer(ops, x, p)
            (out * weights.to(kind)).sum().backward()
            outs.append(out.detach().float())
            assert x.grad is not None
            grads.append(x.grad.float())
        found.append([*outs, *grads, *(t.grad for t in p)])
    mine, same, exact = found
    for got, want in zip(mine, same, strict=True):
        close(got, want, tolerance, "with the same rounding")
    off = [float((g - w).abs().max() / w.abs().max()) for g, w in zip(mine, exact, strict=True)]
    assert 0.01 < max(off) < 0.3, off  # 8 bits were used, and they suffice


def test_kernels_write_the_copies_that_the_next_product_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the first input, the last gradient and the weights need a kernel of their own."""
    rows, own = [], kernels.eight

    class Counted:
        def __getitem__(self, grid: tuple[int]) -> Any:
            rows.append(grid[0])
            return own[grid]

    monkeypatch.setattr(kernels, "eight", Counted())
    ops, p = made(), parameters()
    for _ in range(2):
        rows.clear()
        layer(ops, leaf(7, 32), p).square().sum().backward()
    assert rows == [7]  # the input; weights are cast once per update
    with torch.no_grad():
        p[0].mul_(2)
    rows.clear()
    layer(ops, leaf(7, 32), p)
    assert rows == [64, 32, 7]  # the changed weight by output and by input


def test_a_copy_of_a_tensor_that_has_changed_is_made_anew() -> None:
    x = torch.randn(3, 16)
    copy = fp8.rounded(x)
    fp8.carry(x, copy)
    assert fp8.rounded(x) is copy and fp8.rounded(x) is not copy  # it is not kept
    fp8.carry(x, copy)
    x.mul_(3)
    assert torch.equal(fp8.rounded(x).values.float() * fp8.rounded(x).scales, by_hand(x))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_stays_so(bad: float) -> None:
    x = torch.randn(3, 16)
    x[1, 5] = bad
    got = fp8.rounded(x)
    back = got.values.float() * got.scales
    assert not back[1].isfinite().all()
    assert torch.equal(back[::2], by_hand(x[::2]))


def test_heads_are_not_rounded() -> None:
    x, weight, bias = leaf(5, 32), leaf(48, 32), leaf(48)
    assert torch.equal(made().linear(x, weight, bias), Ops().linear(x, weight, bias))
    assert not torch.equal(made().in_layers.linear(x, weight, bias), x @ weight.t() + bias)


def test_sizes_that_the_product_does_not_take_are_refused() -> None:
    with pytest.raises(Unsupported, match=r"multiples of 16, not 32 -> 40: choose --precision"):
        made().in_layers.linear(leaf(5, 32), leaf(40, 32), leaf(40))


def test_the_trial_passes_here_and_finds_a_wrong_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial.why_not(made(BF16), HOST, BF16) is None
    product = fp8._product
    monkeypatch.setattr(
        fp8, "_product", lambda a, b, *rest, **how: product(a, b, *rest, **how) * 1.2
    )
    assert "differs from plain" in str(trial.why_not(made(BF16), HOST, BF16))


def test_the_digits_of_the_layers_product_are_those_of_e4m3() -> None:
    found = selfcheck.examine(HOST, fp8.linear)
    assert found["product_mantissa_bits"] == "3"
    assert selfcheck.why_not("fp8", found) is None
    assert "keep 23 bits" in str(selfcheck.why_not("fp8", selfcheck.examine(HOST) | {
        "product_dtype": "bfloat16"}))  # fmt: skip


def test_the_cuda_adapter_examines_the_layers_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own product would keep the seven bits of bfloat16, and pass for it."""
    monkeypatch.setattr(Cuda, "__init__", lambda self: None)
    monkeypatch.setattr(Cuda, "resolve_precision", lambda self, name: name)
    monkeypatch.setattr(Cuda, "precision", lambda self, name: contextlib.nullcontext())
    cuda = Cuda()
    cuda.device = HOST
    assert cuda.verify_precision("fp8")["product_mantissa_bits"] == "3"
    monkeypatch.setattr(fp8, "linear", lambda x, weight: (x @ weight.t()).bfloat16())
    with pytest.raises(Unsupported, match="fp8 was requested, but matrix products keep 7 bits"):
        cuda.verify_precision("fp8")


def test_torchs_product_with_scales_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert selfcheck.scaled_product_why_not(HOST) is None
    monkeypatch.setattr(torch, "_scaled_mm", lambda a, b, *rest, **how: a.bfloat16() @ b.bfloat16())
    assert "wrong" in str(selfcheck.scaled_product_why_not(HOST))
    monkeypatch.delattr(torch, "_scaled_mm")
    assert "AttributeError" in str(selfcheck.scaled_product_why_not(HOST))
