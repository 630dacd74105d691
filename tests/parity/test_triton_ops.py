# SPDX-License-Identifier: Apache-2.0
"""Triton's kernels in its interpreter: against the plain operations, and against cpu_ref's.

The interpreter computes what a GPU would, but for rounding and order. Sizes are small: a program
takes it some milliseconds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertbench.common.errors import Unsupported
from bertbench.common.model.ops import Ops
from tests.conftest import interpreted

pytest.importorskip("triton", reason="triton is not installed")
if not interpreted():
    pytest.skip("a GPU is here: its own checks try the kernels", allow_module_level=True)

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.backends.cpu_ref.kernels import NativeOps
from bertbench.backends.cuda.ops import CudaOps
from bertbench.backends.cuda.packages import lamb_why_not
from bertbench.backends.triton import functions, lamb, sums, trial
from bertbench.backends.triton.lamb import triton_lamb
from bertbench.backends.triton.ops import TritonOps
from bertbench.common.native import NativeUnavailable
from bertbench.common.optim.lamb import LambKernel, LambStep, lamb_update
from tests.contract.test_numerics import LOSS_TOLERANCE
from tests.contract.tiny_task import ten_steps, tiny_task
from tests.parity.test_native_ops import BF16, F32, close, leaf, tokens

F16 = torch.float16
TOLERANCE = {F32: 1e-6, BF16: 8e-3, F16: 1e-3}
"""Of the largest value: float32's rounding, and one of the output's type."""
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["fp32", "bf16", "fp16"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def made(dtype: torch.dtype) -> TritonOps:
    return TritonOps(Ops(), dtype)


def compare(dtype: torch.dtype, run: Callable[..., Tensor], *inputs: Tensor) -> None:
    """``run(ops, *inputs)`` in Triton and plainly in float32: output and every gradient."""
    plain = [x.detach().float().requires_grad_() for x in inputs]
    got, want = run(made(dtype), *inputs), run(Ops(), *plain)
    assert got.shape == want.shape
    close(got, want, TOLERANCE[dtype], "output")
    gradient = torch.randn(want.shape).to(dtype).float()
    got.backward(gradient.to(got.dtype))
    want.backward(gradient)
    for i, (a, b) in enumerate(zip(inputs, plain, strict=True)):
        assert a.grad is not None and b.grad is not None and a.grad.dtype == a.dtype
        close(a.grad, b.grad, 8 * TOLERANCE[dtype], f"gradient of input {i}")


@DTYPES
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(hidden=st.integers(17, 70), lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_embed(dtype: torch.dtype, hidden: int, lengths: list[int]) -> None:
    batch = tokens(*lengths)
    tables = leaf(50, hidden), leaf(8, hidden), leaf(2, hidden)
    compare(
        dtype,
        lambda ops, *p: ops.embed(batch, *p, eps=1e-3, dropout=0.0),
        *tables, leaf(hidden), leaf(hidden),
    )  # fmt: skip
    compare(
        dtype, lambda ops, *p: ops.embed_sum(batch, *p, dropout=0.0),
        *(leaf(*table.shape) for table in tables),
    )  # fmt: skip


@DTYPES
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(hidden=st.integers(17, 150), rows=st.integers(1, 12))
def test_norms(dtype: torch.dtype, hidden: int, rows: int) -> None:
    def given_(n: int) -> list[Tensor]:
        return [leaf(rows, hidden, dtype=dtype) for _ in range(n)]

    parameters = leaf(hidden), leaf(hidden)
    compare(
        dtype, lambda ops, *p: ops.dropout_add_norm(*p, eps=1e-3, dropout=0.0),
        *given_(2), *parameters,
    )  # fmt: skip
    parameters = leaf(hidden), leaf(hidden)
    compare(dtype, lambda ops, *p: ops.norm(*p, eps=1e-3), *given_(1), *parameters)
    compare(dtype, lambda ops, *p: ops.dropout_add(*p, dropout=0.0), *given_(2))


@DTYPES
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_linear_layers(dtype: torch.dtype, approximate: str) -> None:
    x, weight, bias = leaf(9, 40, dtype=dtype), leaf(300, 40, scale=0.1), leaf(300)
    compare(dtype, lambda ops, *p: ops.linear(*p), x, weight, bias)
    x, weight, bias = leaf(9, 40, dtype=dtype), leaf(300, 40, scale=0.3), leaf(300)
    compare(dtype, lambda ops, *p: ops.linear_gelu(*p, approximate=approximate), x, weight, bias)


def test_gelu_far_from_zero() -> None:
    values = torch.tensor([[-1e4, -90.0, -13.0, -5.0, 0.0, 5.0, 13.0, 90.0, 1e4]]).t()
    one, zero = torch.ones(1, 1), torch.zeros(1)
    for approximate in ("none", "tanh"):
        results = []
        for ops in (made(F32), Ops()):
            x = values.clone().requires_grad_()
            y = ops.linear_gelu(x, one, zero, approximate=approximate)
            y.sum().backward()
            results.append((y.detach(), x.grad))
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=2e-6)


@DTYPES
@pytest.mark.parametrize("vocab", [64, 4999])
def test_masked_cross_entropy(dtype: torch.dtype, vocab: int) -> None:
    inputs = leaf(7, 32, dtype=dtype), leaf(vocab, 32, scale=0.1), leaf(vocab, scale=0.1)
    labels = torch.randint(vocab, (7,))
    with torch.no_grad():
        labels[::2] = Ops().linear(inputs[0].float(), *inputs[1:]).argmax(-1)[::2]
    compare(dtype, lambda ops, *p: ops.masked_cross_entropy(*p, labels)[0], *inputs)
    assert made(F32).masked_cross_entropy(*(x.float() for x in inputs), labels)[1] >= 4


@DTYPES
def test_gather(dtype: torch.dtype) -> None:
    rows = torch.tensor([1, 4, 5, 19])
    compare(dtype, lambda ops, x: ops.gather(x, rows), leaf(20, 32, dtype=dtype))


def test_sums_on_a_gradient_are_taken_anew_where_another_is_added() -> None:
    """A linear layer's output that is read twice gets the sum of two gradients."""
    x, residual = leaf(6, 16), leaf(6, 16)
    weight, bias, gamma, beta = leaf(16, 16), leaf(16), leaf(16), leaf(16)

    def run(ops: Ops, *p: Tensor) -> Tensor:
        y = ops.linear(p[0], p[2], p[3])
        return ops.dropout_add_norm(y, p[1], p[4], p[5], eps=1e-3, dropout=0.0) + 3 * y

    compare(F32, run, x, residual, weight, bias, gamma, beta)


def test_split_joins_the_gradients_and_sums_their_columns() -> None:
    qkv, weights = leaf(11, 3 * 20), torch.randn(3, 11, 4, 5)
    found = []
    for split in (functions.Split.apply, CudaOps.split):
        qkv.grad = None
        weight, bias = leaf(60, 60).detach().requires_grad_(), leaf(60).detach().requires_grad_()
        with torch.no_grad():
            weight.copy_(torch.eye(60))
        y = made(F32).linear(qkv, weight, bias)
        sum((part * w).sum() for part, w in zip(split(y, 4), weights, strict=True)).backward()
        found.append([qkv.grad, weight.grad, bias.grad])
    close(found[0][2], found[1][2], 2e-6, "bias")
    for got, want in zip(*found, strict=True):
        close(got, want, 1e-6, "split")


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_of_later_micro_batches_are_added_where_they_arise(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between ranks they pass through autograd, where DDP takes them."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
    p = [leaf(16, 16), leaf(16), leaf(24, 16), leaf(24), leaf(16, 24), leaf(16), leaf(16), leaf(16)]

    def run(ops: Ops, x: Tensor) -> None:
        a = ops.linear(x, p[0], p[1])
        inner = ops.linear_gelu(a, p[2], p[3], approximate="none")
        y = ops.linear(inner, p[4], p[5])
        out = ops.dropout_add_norm(y, a, p[6], p[7], eps=1e-3, dropout=0.0)
        (out * torch.linspace(-1, 1, 16)).sum().backward()

    parts, found = [torch.randn(5, 16) for _ in range(2)], []
    for ops in (made(F32), Ops()):
        for t in p:
            t.grad = None
        arrived = []
        for t in p:
            t.register_hook(lambda grad, arrived=arrived: arrived.append(grad))
        for part in parts:
            run(ops, part.requires_grad_())
        found.append([t.grad for t in p])
        if isinstance(ops, TritonOps):
            through = sum(grad is not None for grad in arrived)
            assert through == len(p) * ranks
    for got, want in zip(*found, strict=True):
        close(got, want, 2e-6, "two micro-batches")


def test_a_bias_of_two_layers_gets_both_sums_in_each_micro_batch() -> None:
    """The second layer's sum is taken before the first layer's is in the gradient."""
    p, found = [leaf(16, 16), leaf(16), leaf(16), leaf(16)], []
    parts = [torch.randn(5, 16) for _ in range(2)]
    for ops in (made(F32), Ops()):
        for t in p:
            t.grad = None
        for x in parts:
            for _ in range(2):
                y = ops.linear(x, p[0], p[1])
                x = ops.dropout_add_norm(y, x, p[2], p[3], eps=1e-3, dropout=0.0)
            (x * torch.linspace(-1, 1, 16)).sum().backward()
        found.append([t.grad for t in p])
    for got, want in zip(*found, strict=True):
        close(got, want, 2e-6, "a shared bias")


def test_a_residual_of_another_layer_than_the_one_before_the_last_is_not_passed_on() -> None:
    """Without dropout the norm's two gradients are one tensor, which a product must not change."""
    u, r = leaf(6, 16), leaf(6, 16)
    weights = [leaf(16, 16), leaf(16), leaf(16, 16), leaf(16), leaf(16), leaf(16)]

    def run(ops: Ops, *p: Tensor) -> Tensor:
        x = ops.linear(p[0], p[2], p[3])
        y = ops.linear(p[1], p[4], p[5])
        return ops.dropout_add_norm(x, p[1], p[6], p[7], eps=1e-3, dropout=0.0) + 3 * y

    compare(F32, run, u, r, *weights)


def test_a_batch_without_masked_tokens_has_gradients_of_zero() -> None:
    """The head over no rows, as of a micro-batch in which no token was masked."""
    ops, rows = made(F32), torch.zeros(0, dtype=torch.int64)
    x, weight, bias = leaf(5, 16), leaf(16, 16), leaf(16)
    gamma, beta, words, out_bias = leaf(16), leaf(16), leaf(40, 16), leaf(40)
    inner = ops.linear_gelu(ops.gather(x, rows), weight, bias, approximate="none")
    y = ops.norm(inner, gamma, beta, eps=1e-3)
    loss, right = ops.masked_cross_entropy(y, words, out_bias, rows)
    loss.backward()
    assert (float(loss.detach()), int(right)) == (0.0, 0)
    for parameter in (x, weight, bias, gamma, beta, words, out_bias):
        assert parameter.grad is not None and not parameter.grad.any()


def test_a_compiler_is_refused() -> None:
    with pytest.raises(Unsupported, match="leave --compile out"):
        made(F32).keep_out_of_graphs()


def test_no_graph_outlives_its_pass() -> None:
    """Also of linear layers behind which no norm comes, and of a pass that ended early."""
    ops, x, weight, bias = made(F32), leaf(6, 16), leaf(16, 16), leaf(16)
    inner = ops.linear_gelu(x, weight, bias, approximate="none")
    out = ops.linear(inner, weight, bias)
    alive = [weakref.ref(inner), weakref.ref(out)]
    del inner, out
    assert [each() for each in alive] == [None, None]


@pytest.fixture
def native() -> Iterator[NativeOps]:
    try:
        yield NativeOps(F32)
    except NativeUnavailable as error:
        pytest.skip(f"no native kernels: {error}")


def test_it_drops_what_cpu_ref_drops(native: NativeOps) -> None:
    ours = TritonOps(native, F32)
    batch, found = tokens(9, 4, 11), []
    for ops in (ours, native):
        torch.manual_seed(3)
        tables = [leaf(50, 48), leaf(16, 48), leaf(2, 48), leaf(48), leaf(48)]
        residual, parameters = leaf(24, 48), [leaf(48, 48, scale=0.2), *(leaf(48) for _ in "abc")]
        x = ops.embed(batch, *tables, eps=1e-3, dropout=0.4)
        y = ops.linear(x, *parameters[:2])
        z = ops.dropout_add_norm(y, residual, *parameters[2:], eps=1e-3, dropout=0.3)
        out = ops.dropout_add(z, residual, dropout=0.5)
        (out * torch.linspace(-1, 1, 48)).sum().backward()
        grads = [p.grad for p in (*tables, residual, *parameters)]
        found.append([out.detach(), *grads, torch.get_rng_state()])
    for got, want in zip(*found, strict=True):
        close(got, want, 2e-6, "with dropout")


def test_a_bias_before_dropout_gets_the_sums_of_what_was_kept() -> None:
    functions_used = []
    taken = sums.column_sums

    def counted(x: Tensor) -> Tensor:
        functions_used.append(x.shape)
        return taken(x)

    sums.column_sums = counted
    try:
        ops = made(F32)
        weight, bias = leaf(16, 16), leaf(16)
        y = ops.linear(leaf(6, 16), weight, bias)
        ops.dropout_add_norm(
            y, leaf(6, 16), leaf(16), leaf(16), eps=1e-3, dropout=0.5
        ).square().sum().backward()
    finally:
        sums.column_sums = taken
    assert not functions_used  # norm_backward had them


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_the_trial_passes_here_and_finds_a_wrong_kernel(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = torch.device("cpu")
    assert trial.why_not(made(dtype), host, dtype) is None
    taken = functions.column_sums
    monkeypatch.setattr(functions, "column_sums", lambda x: 1.1 * taken(x))
    assert "bias differs" in str(trial.why_not(made(dtype), host, dtype))
    monkeypatch.undo()
    monkeypatch.setattr(functions, "dropped", lambda x, drop: x)
    assert "drop what its forward" in str(trial.why_not(made(dtype), host, dtype))


def test_lamb_equals_the_formula_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lamb_why_not(triton_lamb, torch.device("cpu")) is None
    monkeypatch.setattr(lamb, "CHUNK", 1 << 12)
    shapes, results = ((3 * 50, 60), (7, 11), (4097,)), []
    for update in (triton_lamb, lamb_update):
        torch.manual_seed(1)
        p, m = ([torch.randn(*shape) for shape in shapes] for _ in range(2))
        v = [torch.rand(*shape) for shape in shapes]
        for step in (3, 4):
            g = [torch.randn(*shape) for shape in shapes]
            clip = torch.tensor(0.4) if step == 4 else None
            update(LambStep(p, g, m, v, [3, 1, 1], 0.1, 0.9, 0.999, 1e-6, 0.01, step, clip))
        results.append([*p, *m, *v])
    for got, want in zip(*results, strict=True):
        close(got, want, 2e-6, "a LAMB step")


class Interpreted(CpuRef):
    """cpu_ref with Triton's kernels around its attention, in the interpreter."""

    def build_ops(self, kernels: str, precision: str) -> Ops:
        return TritonOps(super().build_ops("native", precision), F32)

    def lamb_kernel(self, kernels: str) -> LambKernel:
        return triton_lamb


def test_mini_trains_as_on_cpu_ref(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of its model with dropout, accumulation and clipping; sequences are short."""
    monkeypatch.setattr(lamb, "BLOCK", lamb.CHUNK)  # the interpreter's time is by vectors
    flags = """
        --hidden_size 256 --num_hidden_layers 4 --num_attention_heads 4 --intermediate_size 1024
        --hidden_dropout 0.1 --attention_dropout 0.1 --initializer_range 0.02 --learning_rate 4e-3
        --max_seq_length 16 --max_predictions_per_seq 3 --global_batch 2 --micro_batch 1
        --max_steps 3 --precision fp32
    """.split()
    start, losses = None, []
    for kind in (CpuRef, Interpreted):
        backend = kind(0)
        if start is None:
            start = tiny_task(backend, *flags)[0].model.state_dict()
        torch.manual_seed(1)
        losses.append(ten_steps(backend, start, *flags).losses)
    assert losses[0][2] < losses[0][0] - 0.1
    assert losses[1] == pytest.approx(losses[0], rel=LOSS_TOLERANCE["fp32"])
