# SPDX-License-Identifier: Apache-2.0
"""cuda's attention kernels and optional packages without a GPU.

The real operators run on the meta device, which checks their schemas, shapes and backward
formulas; stand-ins that compute check every argument and the numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bertbench.backends import selfcheck
from bertbench.backends.cuda import packages
from bertbench.backends.cuda.ops import CudaOps
from bertbench.backends.selfcheck import attention_why_not
from bertbench.common.data.batch import Tokens
from bertbench.common.errors import Unsupported
from bertbench.common.model.ops import ComputeTypeOps, Ops
from bertbench.common.optim.lamb import LambStep, lamb_update

LENGTHS = (3, 7, 1)
HOST = torch.device("cpu")


def tokens(lengths: tuple[int, ...] = LENGTHS, device: str = "cpu") -> Tokens:
    ids = torch.zeros(sum(lengths), dtype=torch.int64, device=device)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device)
    return Tokens(
        input_ids=ids, segment_ids=ids, position_ids=ids, cu_seqlens=starts, lengths=lengths
    )


class Computed:
    """Operators that compute what their names say, for one batch, and keep what they were given."""

    def __init__(self, spoil: Callable[[Tensor], Tensor] = lambda out: out) -> None:
        self.calls: list[SimpleNamespace] = []
        self.spoil = spoil

    def _flash_attention_forward(
        self, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
        dropout: float, is_causal: bool, return_debug_mask: bool,
    ) -> tuple[Tensor, None, None, None, None]:  # fmt: skip
        self.calls.append(SimpleNamespace(**{k: v for k, v in locals().items() if k != "self"}))
        assert (is_causal, return_debug_mask) == (False, False)
        return self.spoil(each_sequence(q, k, v, cu_q, dropout)), None, None, None, None

    def _efficient_attention_forward(
        self, q: Tensor, k: Tensor, v: Tensor, bias: None, cu_q: Tensor, cu_k: Tensor, max_q: int,
        max_k: int, dropout: float, mask_type: int, compute_log_sumexp: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        self.calls.append(SimpleNamespace(**{k: v for k, v in locals().items() if k != "self"}))
        assert (bias, mask_type) == (None, 0)
        assert q.shape[0] == 1
        return (self.spoil(each_sequence(q[0], k[0], v[0], cu_q, dropout))[None],)


def each_sequence(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, dropout: float) -> Tensor:
    out = []
    for a, b in zip(starts.tolist()[:-1], starts.tolist()[1:], strict=True):
        parts = (t[a:b].transpose(0, 1) for t in (q, k, v))
        with sdpa_kernel(SDPBackend.MATH):  # digit for digit as in Ops
            out.append(F.scaled_dot_product_attention(*parts, dropout_p=dropout).transpose(0, 1))
    return torch.cat(out)


# -- the real operators ----------------------------------------------------------------------
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        ("flash", torch.bfloat16),
        ("flash", torch.float16),
        ("efficient", torch.float32),
        ("efficient", torch.bfloat16),
        ("efficient", torch.float16),
    ],
)
def test_torchs_operators_take_the_call_and_its_backward(
    kernel: str, dtype: torch.dtype, dropout: float
) -> None:
    qkv = torch.empty(11, 3 * 128, device="meta", dtype=dtype, requires_grad=True)
    out = CudaOps(kernel).attention(qkv, tokens(device="meta"), num_heads=2, dropout=dropout)
    assert (out.shape, out.dtype) == ((11, 128), dtype)
    assert out.grad_fn is not None
    out.sum().backward()
    assert qkv.grad is not None
    assert qkv.grad.shape == qkv.shape


@pytest.mark.parametrize("kernel", ["flash", "efficient"])
def test_each_argument_has_the_name_and_place_in_torchs_schema(kernel: str) -> None:
    """The stand-ins' parameters below are in the operators' own order."""
    schema = getattr(torch.ops.aten, f"_{kernel}_attention_forward").default._schema
    theirs = [a.name for a in schema.arguments if not a.kwarg_only]
    ours = list(inspect.signature(getattr(Computed, f"_{kernel}_attention_forward")).parameters)
    spelled = {
        "q": "query", "k": "key", "v": "value", "max_q": "max_seqlen_q", "max_k": "max_seqlen_k",
        "cu_q": "cu_seqlens_q", "cu_k": "cu_seqlens_k", "dropout": "dropout_p",
        "mask_type": "custom_mask_type",
    }  # fmt: skip
    if kernel == "flash":
        spelled |= {"cu_q": "cum_seq_q", "cu_k": "cum_seq_k", "max_q": "max_q", "max_k": "max_k"}
    assert [spelled.get(name, name) for name in ours[1:]] == theirs


# -- what they are given ---------------------------------------------------------------------
@pytest.mark.parametrize("kernel", ["flash", "efficient"])
def test_the_batch_goes_in_as_it_is_and_comes_out_as_plain_would(kernel: str) -> None:
    dtype = torch.bfloat16 if kernel == "flash" else torch.float32
    table = Computed()
    batch = tokens()
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(11, 3 * 32, generator=generator).to(dtype)
    results = []
    for ops in (CudaOps(kernel, aten=table), Ops()):
        qkv = values.clone().requires_grad_()
        out = ops.attention(qkv, batch, num_heads=4, dropout=0.0)
        out.float().square().sum().backward()
        results.append((out, qkv.grad))
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right)
    (call,) = table.calls
    assert call.cu_q is batch.cu_seqlens
    assert call.cu_k is batch.cu_seqlens
    assert (call.max_q, call.max_k, call.dropout) == (7, 7, 0.0)
    assert [t.data_ptr() for t in (call.q, call.k, call.v)] == [
        call.q.data_ptr() + i * 32 * values.element_size() for i in range(3)
    ]  # views of one tensor, not copies
    assert call.q.stride(-1) == 1
    with torch.no_grad():
        CudaOps(kernel, aten=table).attention(values, batch, num_heads=4, dropout=0.25)
    assert table.calls[1].dropout == 0.25
    if kernel == "efficient":
        assert [c.compute_log_sumexp for c in table.calls] == [True, False]


def test_sdpa_takes_any_head_size_and_no_kernel_of_the_whole_batch() -> None:
    table = Computed()
    qkv = torch.randn(11, 3 * 20)  # a head size that no kernel takes
    got = CudaOps("sdpa", aten=table).attention(qkv, tokens(), num_heads=2, dropout=0.0)
    torch.testing.assert_close(got, Ops().attention(qkv, tokens(), num_heads=2, dropout=0.0))
    assert not table.calls
    assert CudaOps("sdpa").kernels == ComputeTypeOps(None).kernels


@pytest.mark.parametrize(
    ("kernel", "dtype", "head", "says"),
    [
        ("flash", torch.float32, 64, "computes in bfloat16, float16, not in float32"),
        ("efficient", torch.float64, 64, "not in float64"),
        ("flash", torch.bfloat16, 20, "head size of at most 256 that is a multiple of 8, not 20"),
        ("flash", torch.bfloat16, 264, "at most 256"),
        ("efficient", torch.float32, 12, "head size that is a multiple of 8, not 12"),
    ],
)
def test_what_a_kernel_does_not_take_is_refused_before_it_is_called(
    kernel: str, dtype: torch.dtype, head: int, says: str
) -> None:
    table = Computed()
    qkv = torch.zeros(11, 3 * head, dtype=dtype)
    with pytest.raises(Unsupported, match=says):
        CudaOps(kernel, aten=table).attention(qkv, tokens(), num_heads=1, dropout=0.0)
    assert not table.calls


# -- trying them -----------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_right_kernel_passes(dtype: torch.dtype) -> None:
    table = Computed()
    assert attention_why_not(CudaOps("efficient", aten=table), HOST, dtype) is None
    assert [c.dropout for c in table.calls] == [0.0, 0.5]
    assert table.calls[0].max_q == max(selfcheck.CHECK_LENGTHS)


def as_tf32(x: Tensor) -> Tensor:
    """What a TF32 product sees of its inputs: 10 explicit bits of the mantissa."""
    return (x.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)


class Tf32(Computed):
    def _efficient_attention_forward(self, q: Tensor, k: Tensor, v: Tensor, *args: Any) -> Any:
        q, k, v = (t + (as_tf32(t.detach()) - t.detach()) for t in (q, k, v))
        return super()._efficient_attention_forward(q, k, v, *args)


class Raises(Computed):
    def _efficient_attention_forward(self, *args: Any) -> Any:
        raise RuntimeError("FATAL: kernel is for sm80, but was built for sm70\nand more")


class NoDropout(Computed):
    def _efficient_attention_forward(self, *args: Any) -> Any:
        return super()._efficient_attention_forward(*args[:8], 0.0, *args[9:])


class AcrossSequences(Computed):
    def _efficient_attention_forward(self, *args: Any) -> Any:
        whole = torch.tensor([0, args[0].shape[1]], dtype=torch.int32)
        return super()._efficient_attention_forward(*args[:4], whole, whole, *args[6:])


class BadDropout(Computed):
    def _efficient_attention_forward(self, *args: Any) -> Any:
        (out,) = super()._efficient_attention_forward(*args)
        return (out * float("inf") if args[8] else out,)


class OtherDropsBehind(Computed):
    def _efficient_attention_forward(self, *args: Any) -> Any:
        seen, derived = (super(OtherDropsBehind, self)._efficient_attention_forward(*args)[0]
                         for _ in range(2))  # fmt: skip
        return (seen.detach() + (derived - derived.detach()),)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (OtherDropsBehind(), "its backward pass does not drop what its forward pass dropped"),
        (Raises(), "RuntimeError: FATAL: kernel is for sm80, but was built for sm70"),
        (Computed(lambda out: out * 1.001), "its output differs from plain PyTorch's by 1.0e-03"),
        (Computed(lambda out: out * float("nan")), "its output differs"),
        (Computed(lambda out: 2 * out - out.detach()), "its gradient differs"),
        (Tf32(), "its output differs"),
        (AcrossSequences(), "its output differs"),
        (NoDropout(), "it ignores dropout"),
        (BadDropout(), "with dropout its output or gradient is not finite"),
    ],
)
def test_a_wrong_kernel_is_found_out(table: Computed, says: str) -> None:
    why = attention_why_not(CudaOps("efficient", aten=table), HOST, torch.float32)
    assert why is not None
    assert why.startswith(says)
    assert "\n" not in why


# -- apex ------------------------------------------------------------------------------------
class AmpC:
    """multi_tensor_lamb with the arguments and numerics of apex's csrc/multi_tensor_lamb.cu."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def multi_tensor_lamb(
        self, chunk_size: int, noop_flag: Tensor, lists: list[list[Tensor]], lr: float,
        beta1: float, beta2: float, eps: float, step: int, bias_correction: int,
        weight_decay: float, grad_averaging: int, mode: int, global_grad_norm: Tensor,
        max_grad_norm: float, use_nvlamb: bool,
    ) -> None:  # fmt: skip
        self.calls.append((chunk_size, noop_flag, global_grad_norm, len(lists[0])))
        assert noop_flag.dtype == torch.int32
        assert noop_flag.tolist() == [0]
        assert global_grad_norm.dtype == torch.float32
        clip = float(global_grad_norm) / max_grad_norm if global_grad_norm > max_grad_norm else 1.0
        correction1 = 1 - beta1**step if bias_correction == 1 else 1.0
        correction2 = 1 - beta2**step if bias_correction == 1 else 1.0
        beta3 = 1 - beta1 if grad_averaging == 1 else 1.0
        for g, p, m, v in zip(*lists, strict=True):
            assert all(t.is_contiguous() and t.dtype == torch.float32 for t in (g, p, m, v))
            scaled = g / clip + (weight_decay * p if mode == 0 else 0)
            m.copy_(m * beta1 + beta3 * scaled)
            v.copy_(v * beta2 + (1 - beta2) * scaled * scaled)
            update = (m / correction1) / ((v / correction2).sqrt() + eps)
            g.copy_(update + (weight_decay * p if mode == 1 else 0))
            ratio = 1.0
            if (use_nvlamb or weight_decay) and p.norm() and g.norm():
                ratio = float(p.norm() / g.norm())
            p.sub_(lr * ratio * g)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(**modules: Any) -> None:
        monkeypatch.setattr(packages.importlib.util, "find_spec", lambda n: modules.get(n))
        monkeypatch.setattr(
            packages.importlib, "import_module", lambda n: modules[n.replace(".", "_")]
        )

    return put


@pytest.mark.parametrize("weight_decay", [0.01, 0.0])
def test_apex_lamb_is_the_formula_of_lamb_py(installed: Any, weight_decay: float) -> None:
    extension = AmpC()
    installed(amp_C=extension)
    kernel = packages.ApexLamb()
    generator = torch.Generator().manual_seed(2)
    shapes, segments = [(12, 4), (5, 3), (7,)], [3, 1, 1]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    start[1].zero_()  # a norm of zero: its ratio is 1
    states = [
        [[t.clone() for t in start], [torch.zeros_like(t) for t in start],
         [torch.zeros_like(t) for t in start]] for _ in range(2)
    ]  # fmt: skip
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "weight_decay": weight_decay}
    for step in (1, 2, 3):
        grads = [torch.randn(shape, generator=generator) for shape in shapes]
        for update, (p, m, v) in zip((kernel, lamb_update), states, strict=True):
            clip = None if step < 3 else torch.tensor(0.3)
            update(LambStep(p, [g.clone() for g in grads], m, v, segments, step=step,
                            clip_factor=clip, **options))  # fmt: skip
    for mine, right in zip(*states, strict=True):
        for a, b in zip(mine, right, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)
    assert [(chunk, n) for chunk, _, _, n in extension.calls] == [(65536, 5)] * 3
    # Nothing is allocated anew in each step.
    assert len({id(c[1]) for c in extension.calls} | {id(c[2]) for c in extension.calls[:2]}) == 2


def test_apexs_lamb_is_tried_before_it_is_used(installed: Any) -> None:
    class OtherMode(AmpC):
        def multi_tensor_lamb(self, *args: Any) -> None:
            super().multi_tensor_lamb(*args[:11], 0, *args[12:])  # L2 instead of weight decay

    class AllMatricesOne(AmpC):
        def multi_tensor_lamb(self, *args: Any) -> None:
            stacked = [[lists[0]._base] for lists in args[2]]
            super().multi_tensor_lamb(*args[:2], stacked, *args[3:])

    installed(amp_C=AmpC())
    assert packages.lamb_why_not(packages.ApexLamb(), HOST) is None
    for extension in (OtherMode(), AllMatricesOne()):
        installed(amp_C=extension)
        why = packages.lamb_why_not(packages.ApexLamb(), HOST)
        assert why is not None
        assert why.startswith("its update differs from the plain one by")


def test_a_missing_or_broken_package_is_refused_with_the_way_to_get_it(installed: Any) -> None:
    installed()
    with pytest.raises(
        Unsupported, match=r"--kernels apex: not installed \(NVIDIA's apex is built"
    ):
        packages.ApexLamb()
    with pytest.raises(Unsupported, match=r"--kernels transformer_engine: not installed \(pip"):
        packages.TransformerEngineOps()
    installed(apex=object())
    with pytest.raises(Unsupported, match="installed without its CUDA extensions"):
        packages.ApexLamb()
    installed(transformer_engine=object())  # but importing its torch part fails
    with pytest.raises(Unsupported, match="failed to load: KeyError"):
        packages.TransformerEngineOps()


# -- TransformerEngine -----------------------------------------------------------------------
class DotProductAttention:
    """Its constructor's and call's arguments; dropout is a property of the module."""

    made: list[tuple[int, int, float]]

    def __init__(
        self, num_attention_heads: int, kv_channels: int, *, attention_dropout: float,
        qkv_format: str, attn_mask_type: str,
    ) -> None:  # fmt: skip
        assert (qkv_format, attn_mask_type) == ("thd", "padding")
        self.dropout = attention_dropout
        self.made.append((num_attention_heads, kv_channels, attention_dropout))

    def __call__(
        self, query_layer: Tensor, key_layer: Tensor, value_layer: Tensor, *, qkv_format: str,
        attn_mask_type: str, cu_seqlens_q: Tensor, cu_seqlens_kv: Tensor, max_seqlen_q: int,
        max_seqlen_kv: int,
    ) -> Tensor:  # fmt: skip
        assert (qkv_format, attn_mask_type) == ("thd", "padding")
        assert cu_seqlens_q is cu_seqlens_kv
        assert cu_seqlens_q.dtype == torch.int32
        longest = int((cu_seqlens_q[1:] - cu_seqlens_q[:-1]).max())
        assert (max_seqlen_q, max_seqlen_kv) == (longest, longest)
        out = each_sequence(query_layer, key_layer, value_layer, cu_seqlens_q, self.dropout)
        return out.flatten(1)


def test_transformer_engine_gets_the_ragged_batch(installed: Any) -> None:
    class Recording(DotProductAttention):
        made: list[tuple[int, int, float]] = []  # noqa: RUF012

    installed(
        transformer_engine=object(),
        transformer_engine_pytorch=SimpleNamespace(DotProductAttention=Recording),
    )
    ops = packages.TransformerEngineOps()
    assert ops.kernels == {"attention": "transformer-engine-thd", "other": "torch"}
    assert attention_why_not(ops, HOST, torch.bfloat16) is None
    assert attention_why_not(ops, HOST, torch.bfloat16) is None
    assert Recording.made == [(2, 64, 0.0), (2, 64, 0.5)]  # one module for each rate, kept
    why = attention_why_not(ops, HOST, torch.float32)
    assert why is not None
    assert "computes in bfloat16, float16, not in float32" in why
