# SPDX-License-Identifier: Apache-2.0
"""cpu_ref's fused kernels against the plain operations: outputs and every gradient.

float32 holds to 1e-5 of the largest value. bfloat16 is compared with plain float32 operations on
the same (bf16) inputs: one rounding is 2^-8 relative, a chain of a few stays below 2e-2.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bertbench.common.data.batch import Tokens
from bertbench.common.errors import Unsupported
from bertbench.common.model.ops import Ops
from bertbench.common.native import NativeUnavailable

try:
    from bertbench.backends.cpu_ref import kernels
    from bertbench.backends.cpu_ref.functions import keep_mask
    from bertbench.backends.cpu_ref.kernels import NativeOps
    from bertbench.backends.fused import Dropout, draw_dropout

    kernels.load()
except NativeUnavailable as error:
    pytest.skip(f"no native kernels: {error}", allow_module_level=True)

F32, BF16 = torch.float32, torch.bfloat16
TOLERANCE = {F32: 1e-5, BF16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def leaf(*shape: int, dtype: torch.dtype = F32, scale: float = 1.0) -> Tensor:
    """Random values that bf16 represents exactly, so that both sides start from the same."""
    x = (torch.randn(*shape) * scale).to(BF16).to(dtype)
    return x.requires_grad_()


def tokens(*lengths: int, vocab: int = 50) -> Tokens:
    total = sum(lengths)
    return Tokens(
        input_ids=torch.randint(vocab, (total,)),
        segment_ids=torch.randint(2, (total,)),
        position_ids=torch.cat([torch.arange(n) for n in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        lengths=lengths,
    )


def close(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    got, want = got.detach().float(), want.detach().float()
    error = (got - want).abs().max().item() / max(want.abs().max().item(), 1e-30)
    assert error <= tolerance, f"{what}: {error:.2e} of the largest value, allowed {tolerance}"


def compare(dtype: torch.dtype, run: Callable[..., Tensor], *inputs: Tensor) -> None:
    """``run(ops, *inputs)`` natively in ``dtype`` and plainly in float32: output and gradients.

    2-D inputs named activations keep ``dtype``; parameters are float32 in both.
    """
    plain_inputs = [x.detach().float().requires_grad_() for x in inputs]
    got, want = run(NativeOps(dtype), *inputs), run(Ops(), *plain_inputs)
    assert got.shape == want.shape
    close(got, want, TOLERANCE[dtype], "output")
    gradient = torch.randn(want.shape).to(BF16).float()
    got.backward(gradient.to(got.dtype))
    want.backward(gradient)
    for i, (a, b) in enumerate(zip(inputs, plain_inputs, strict=True)):
        assert a.grad is not None and b.grad is not None and a.grad.dtype == a.dtype
        close(a.grad, b.grad, TOLERANCE[dtype], f"gradient of input {i}")


@DTYPES
@pytest.mark.parametrize("hidden", [32, 40, 256])
def test_embed(dtype: torch.dtype, hidden: int) -> None:
    batch = tokens(13, 1, 40)
    tables = leaf(50, hidden), leaf(64, hidden), leaf(2, hidden)
    compare(
        dtype,
        lambda ops, *p: ops.embed(batch, *p, eps=1e-12, dropout=0.0),
        *tables, leaf(hidden), leaf(hidden),
    )  # fmt: skip


@DTYPES
def test_embed_sum(dtype: torch.dtype) -> None:
    batch = tokens(13, 5)
    compare(
        dtype,
        lambda ops, *p: ops.embed_sum(batch, *p, dropout=0.0),
        leaf(50, 48), leaf(16, 48), leaf(2, 48),
    )  # fmt: skip


@DTYPES
def test_linear(dtype: torch.dtype) -> None:
    compare(
        dtype,
        lambda ops, x, w, b: ops.linear(x, w, b),
        leaf(37, 64, dtype=dtype), leaf(50, 64, scale=0.1), leaf(50),
    )  # fmt: skip


@DTYPES
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_linear_gelu(dtype: torch.dtype, approximate: str) -> None:
    compare(
        dtype,
        lambda ops, x, w, b: ops.linear_gelu(x, w, b, approximate=approximate),
        leaf(300, 64, dtype=dtype), leaf(200, 64, scale=0.3), leaf(200),
    )  # fmt: skip


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_far_from_zero(approximate: str) -> None:
    values = torch.tensor([[-1e4, -90.0, -13.0, -5.0, 0.0, 5.0, 13.0, 90.0, 1e4]]).t()
    one, zero = torch.ones(1, 1), torch.zeros(1)
    results = []
    for ops in (NativeOps(F32), Ops()):
        x = values.clone().requires_grad_()
        y = ops.linear_gelu(x, one, zero, approximate=approximate)
        y.sum().backward()
        results.append((y.detach(), x.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=2e-6)


@DTYPES
@pytest.mark.parametrize("heads,size", [(2, 64), (3, 16), (1, 128)])
def test_attention(dtype: torch.dtype, heads: int, size: int) -> None:
    batch = tokens(1, 100, 16, 63, 47, 2)
    qkv = leaf(sum(batch.lengths), 3 * heads * size, dtype=dtype)
    compare(
        dtype, lambda ops, x: ops.attention(x, batch, num_heads=heads, dropout=0.0), qkv
    )  # fmt: skip


def test_heads_that_the_kernel_cannot_do_are_refused() -> None:
    batch = tokens(5)
    with pytest.raises(Unsupported, match="24 elements"):
        NativeOps(F32).attention(leaf(5, 3 * 48), batch, num_heads=2, dropout=0.0)


def test_attention_with_large_scores() -> None:
    batch = tokens(70)
    compare(
        F32,
        lambda ops, x: ops.attention(x, batch, num_heads=2, dropout=0.0),
        leaf(70, 96, scale=12.0),
    )


@DTYPES
@pytest.mark.parametrize("hidden", [32, 40, 768])
def test_norms(dtype: torch.dtype, hidden: int) -> None:
    x, y = leaf(50, hidden, dtype=dtype), leaf(50, hidden, dtype=dtype)
    compare(
        dtype,
        lambda ops, *p: ops.dropout_add_norm(*p, eps=1e-12, dropout=0.0),
        x, y, leaf(hidden), leaf(hidden),
    )  # fmt: skip
    compare(
        dtype,
        lambda ops, *p: ops.norm(*p, eps=1e-5),
        leaf(50, hidden, dtype=dtype), leaf(hidden), leaf(hidden),
    )  # fmt: skip
    compare(
        dtype,
        lambda ops, *p: ops.dropout_add(*p, dropout=0.0),
        leaf(50, hidden, dtype=dtype), leaf(50, hidden, dtype=dtype),
    )  # fmt: skip


@DTYPES
def test_gather(dtype: torch.dtype) -> None:
    rows = torch.tensor([1, 4, 5, 19])
    compare(dtype, lambda ops, x: ops.gather(x, rows), leaf(20, 32, dtype=dtype))


@DTYPES
@pytest.mark.parametrize("vocab", [64, 509])
def test_masked_cross_entropy(dtype: torch.dtype, vocab: int) -> None:
    inputs = leaf(33, 32, dtype=dtype), leaf(vocab, 32, scale=0.4), leaf(vocab)
    labels = torch.randint(vocab, (33,))
    with torch.no_grad():  # half of the predictions right, so that the count is tested
        labels[::2] = Ops().linear(inputs[0].float(), *inputs[1:]).argmax(-1)[::2]
    compare(dtype, lambda ops, *p: ops.masked_cross_entropy(*p, labels)[0], *inputs)
    got = NativeOps(dtype).masked_cross_entropy(*inputs, labels)[1]
    same = Ops().masked_cross_entropy(
        inputs[0], *(NativeOps(dtype).shadow(p) for p in inputs[1:]), labels
    )[1]
    assert got.dtype == torch.int64 and 10 < got.item() == same.item()


@DTYPES
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("column", [0, 17, 33, 79])
def test_a_nan_stays_one(dtype: torch.dtype, dropout: float, column: int) -> None:
    """A run that diverges must show it: the kernels' exp and maximum let it through."""
    ops, batch = NativeOps(dtype), tokens(50)

    def bad(*shape: int) -> Tensor:
        x = torch.randn(*shape).to(dtype)
        x[3, column] = torch.nan
        return x

    qkv = torch.randn(50, 48).to(dtype)
    qkv[3, 16] = torch.nan  # a key: every query meets it
    found = ops.attention(qkv, batch, num_heads=1, dropout=dropout)
    assert found.isnan().all()
    ones, zeros = torch.ones(80), torch.zeros(80)
    plain = torch.zeros(50, 80).to(dtype)
    found = ops.dropout_add_norm(plain, bad(50, 80), ones, zeros, eps=1e-5, dropout=dropout)
    assert found[3].isnan().all() and not found[4].isnan().any()
    found = ops.linear_gelu(torch.ones(5, 80), bad(80, 80).float(), zeros, approximate="none")
    assert found[:, 3].isnan().all() and not found[:, 4].isnan().any()
    bias = torch.zeros(80)
    bias[column] = torch.nan
    labels = torch.tensor([5, 6])
    loss, _ = ops.masked_cross_entropy(torch.ones(2, 80), torch.ones(80, 80), bias, labels)
    assert loss.isnan()


# -- dropout ------------------------------------------------------------------------------------
class Recorded(Ops):
    """Plain operations that drop what a kernel dropped."""

    def __init__(self, masks: list[Tensor], scale: float) -> None:
        self.masks, self.scale = masks, scale


def record(monkeypatch: pytest.MonkeyPatch) -> list[Dropout]:
    drawn: list[Dropout] = []
    draw = draw_dropout

    def remember(probability: float) -> Dropout:
        drawn.append(draw(probability))
        return drawn[-1]

    monkeypatch.setattr(kernels, "draw_dropout", remember)
    return drawn


@DTYPES
def test_dropout_of_rows_is_the_mask_forward_and_backward(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = record(monkeypatch)
    batch = tokens(30, 21)

    def dropped(x: Tensor) -> Tensor:
        drop = drawn[-1]
        return x * keep_mask(drop, *x.shape) * drop.scale

    def post_norm(ops: Ops, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if isinstance(ops, NativeOps):
            return ops.dropout_add_norm(x, residual, weight, bias, eps=1e-5, dropout=0.3)
        return ops.norm(dropped(x) + residual, weight, bias, eps=1e-5)

    def pre_norm(ops: Ops, x: Tensor, residual: Tensor) -> Tensor:
        if isinstance(ops, NativeOps):
            return ops.dropout_add(x, residual, dropout=0.3)
        return dropped(x) + residual

    def embed(ops: Ops, *parameters: Tensor) -> Tensor:
        if isinstance(ops, NativeOps):
            return ops.embed(batch, *parameters, eps=1e-5, dropout=0.3)
        return dropped(ops.embed(batch, *parameters, eps=1e-5, dropout=0.0))

    def embed_sum(ops: Ops, *parameters: Tensor) -> Tensor:
        if isinstance(ops, NativeOps):
            return ops.embed_sum(batch, *parameters, dropout=0.3)
        return dropped(ops.embed_sum(batch, *parameters, dropout=0.0))

    rows = sum(batch.lengths)
    for hidden in (40, 64):
        pair = leaf(rows, hidden, dtype=dtype), leaf(rows, hidden, dtype=dtype)
        compare(dtype, pre_norm, *pair)
        pair = leaf(rows, hidden, dtype=dtype), leaf(rows, hidden, dtype=dtype)
        compare(dtype, post_norm, *pair, leaf(hidden), leaf(hidden))
        tables = leaf(50, hidden), leaf(64, hidden), leaf(2, hidden)
        compare(dtype, embed_sum, *tables)
        tables = leaf(50, hidden), leaf(64, hidden), leaf(2, hidden)
        compare(dtype, embed, *tables, leaf(hidden), leaf(hidden))
    assert len(drawn) == 8


@DTYPES
def test_dropout_of_attention_is_the_mask_forward_and_backward(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = record(monkeypatch)
    heads, size, batch = 2, 32, tokens(9, 70, 33)

    def attention(ops: Ops, qkv: Tensor) -> Tensor:
        if isinstance(ops, NativeOps):
            return ops.attention(qkv, batch, num_heads=heads, dropout=0.2)
        out, first = [], 0
        for n in batch.lengths:
            q, k, v = (
                qkv[first : first + n].view(n, 3, heads, size).permute(1, 2, 0, 3)
            )  # [heads, n, size] each
            p = (q @ k.transpose(1, 2) * size**-0.5).softmax(-1)
            keep = keep_mask(drawn[-1], n * heads, n, first * heads)
            p = p * keep.view(n, heads, n).transpose(0, 1) * drawn[-1].scale
            out.append((p @ v).transpose(0, 1).reshape(n, heads * size))
            first += n
        return torch.cat(out)

    compare(dtype, attention, leaf(sum(batch.lengths), 3 * heads * size, dtype=dtype))
    assert len(drawn) == 1


@pytest.mark.parametrize("probability", [0.1, 0.5, 1 / 3])
def test_dropout_keeps_the_stated_share(probability: float) -> None:
    drop = draw_dropout(probability)
    assert abs(drop.threshold / 65536 - probability) <= 2**-17
    mask = keep_mask(drop, 2000, 512).double()
    keep = 1 / drop.scale
    assert keep == pytest.approx(1 - drop.threshold / 65536, rel=1e-12)
    deviation = (keep * (1 - keep) / mask.numel()) ** 0.5
    assert abs(mask.mean().item() - keep) < 5 * deviation
    # Rows and columns: sums over them scatter like those of independent draws.
    for dim in (0, 1):
        n = mask.shape[dim]
        scores = (mask.mean(dim) - keep) / (keep * (1 - keep) / n) ** 0.5
        assert scores.abs().max() < 5.5
        assert 0.8 < scores.var() < 1.25


def test_dropout_masks_are_not_correlated() -> None:
    rows, cols = 2000, 512
    drop = Dropout(6554, 1.0, 123456789)
    z = keep_mask(drop, rows, cols).double()
    z = (z - z.mean()) / z.std()
    others = {f"seed + {d}": drop._replace(seed=drop.seed + d) for d in (1, 2, 1 << 32)}
    masks = {name: keep_mask(other, rows, cols).double() for name, other in others.items()}
    for shift in (1, 2, 15, 16, 17, 32, 64, 256):
        masks[f"column + {shift}"] = keep_mask(drop, rows, cols).roll(shift, 1).double()
    for shift in (1, 2, 12, 512):
        masks[f"row + {shift}"] = keep_mask(drop, rows, cols).roll(shift, 0).double()
    for name, mask in masks.items():
        other = (mask - mask.mean()) / mask.std()
        correlation = (z * other).mean().item()
        assert abs(correlation) < 5 / (rows * cols) ** 0.5, f"{name}: {correlation:.1e}"


def test_dropout_follows_the_generator_and_not_the_threads() -> None:
    ops, batch = NativeOps(BF16), tokens(90, 40)
    qkv = leaf(130, 192, dtype=BF16)
    weight, bias = leaf(64), leaf(64)

    def run() -> list[Tensor]:
        qkv.grad = weight.grad = None
        context = ops.attention(qkv, batch, num_heads=2, dropout=0.1)
        y = ops.dropout_add_norm(context, context, weight, bias, eps=1e-5, dropout=0.1)
        y.float().square().sum().backward()
        assert qkv.grad is not None and weight.grad is not None
        return [y.detach(), qkv.grad, weight.grad]

    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second = run(), run()
    assert not torch.equal(first[0], second[0])
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.set_rng_state(state)
            for a, b in zip(first, run(), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


# -- state --------------------------------------------------------------------------------------
def test_shadows_follow_the_parameter() -> None:
    ops = NativeOps(BF16)
    weight, bias = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.zeros(4))
    x = torch.ones(1, 4, dtype=BF16)
    for update in (
        lambda: torch.optim.AdamW([weight], lr=0.5, fused=True).step(),
        lambda: torch.optim.AdamW([weight], lr=0.5, foreach=True).step(),
        lambda: torch.optim.SGD([weight], lr=0.5).step(),
        lambda: weight.detach().mul_(2.0),
    ):
        ops.linear(x, weight, bias).float().sum().backward()
        update()
        weight.grad = None
        close(ops.linear(x, weight, bias), weight.sum(1)[None], 2**-8, "after an update")


def test_a_backward_pass_after_an_update_is_refused() -> None:
    weight, bias = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.zeros(4))
    y = NativeOps(BF16).linear(torch.ones(1, 4, dtype=BF16), weight, bias)
    with torch.no_grad():
        weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.float().sum().backward()
