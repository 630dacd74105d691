# SPDX-License-Identifier: Apache-2.0
"""Which of torch's operators the model's operations come to, and in which types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bertbench.backends.selfcheck import norm_why_not
from bertbench.common.data.batch import PretrainingBatch
from bertbench.common.model.config import BertConfig
from bertbench.common.model.heads import BertForPreTraining
from bertbench.common.model.ops import ComputeTypeOps, Ops
from bertbench.common.optim.norms import tensor_norms

CONFIG = BertConfig(
    vocab_size=120, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=96, max_position_embeddings=40,
)  # fmt: skip


class Operators(TorchDispatchMode):
    """Counts the operators that are dispatched, and keeps the types of their float tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.types: dict[str, set[torch.dtype]] = {}
        self.longest: Counter[str] = Counter()
        """Most tensors in a list that an operator was given."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        self.count[name] += 1
        lists = [a for a in args if isinstance(a, (list, tuple))]
        self.longest[name] = max([self.longest[name], *map(len, lists)])
        tensors = [a for a in (*args, result) if isinstance(a, Tensor) and a.is_floating_point()]
        self.types.setdefault(name, set()).update(t.dtype for t in tensors)
        return result


def model_with(ops: Ops, norm_position: str = "post") -> BertForPreTraining:
    torch.manual_seed(0)
    config = BertConfig(**{**_fields(CONFIG), "norm_position": norm_position})
    return BertForPreTraining(config, ops)


def _fields(config: BertConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in BertConfig.__slots__}


@pytest.mark.parametrize("fused", [True, False])
def test_sdpa_takes_the_devices_fused_kernel_and_plain_never(
    make_batch: Callable[..., PretrainingBatch], fused: bool
) -> None:
    """torch offers its fused kernels four-dimensional tensors only; three become bmm and softmax.

    Here the device is the CPU: its fused kernel is the one with its name on it. Plain attention is
    the way out where a device's fused kernel is wrong.
    """
    ops = ComputeTypeOps(None) if fused else Ops()
    lengths = (11, 7, 40)
    with Operators() as seen:
        qkv = torch.randn(sum(lengths), 3 * 64, requires_grad=True)
        tokens = make_batch(lengths, vocab_size=120).tokens
        ops.attention(qkv, tokens, num_heads=2, dropout=0.0).sum().backward()
    name = "_scaled_dot_product_flash_attention_for_cpu"
    assert seen.count[name] == seen.count[f"{name}_backward"] == (len(lengths) if fused else 0)
    apart = {"bmm", "baddbmm", "_softmax", "_safe_softmax"} & seen.count.keys()
    assert bool(apart) is not fused


@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_residual_stream_stays_in_the_compute_type(
    make_batch: Callable[..., PretrainingBatch], norm_position: str, dtype: torch.dtype
) -> None:
    """Every sum with the residual, and every LayerNorm's input and output, is of 16 bits."""
    model = model_with(ComputeTypeOps(dtype), norm_position)
    batch = make_batch((11, 7), vocab_size=120)
    with torch.autocast("cpu", dtype):
        x = model.encoder.embeddings(batch.tokens)
        assert x.dtype == dtype
        with Operators() as seen:
            y = model.encoder.layers[0](x, batch.tokens)
    assert y.dtype == dtype
    assert seen.count["add"] == seen.count["native_layer_norm"] == 2
    assert seen.types["add"] == seen.types["native_layer_norm"] == {dtype}


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_without_a_compute_type_it_is_the_reference(
    make_batch: Callable[..., PretrainingBatch], norm_position: str
) -> None:
    batch = make_batch((11, 7), vocab_size=120)
    results = []
    for ops in (ComputeTypeOps(None, fused=False), Ops()):
        model = model_with(ops, norm_position).eval()
        sums = model(batch)
        (sums.mlm_loss + sums.nsp_loss).backward()
        results.append([sums.mlm_loss, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2**-6), (torch.float16, 2**-9)])
def test_the_residual_stream_in_16_bits_gives_the_references_losses(
    make_batch: Callable[..., PretrainingBatch], dtype: torch.dtype, bound: float
) -> None:
    """Losses as near as a few roundings to 7 or 10 bits; gradients are the contract tests'."""
    batch = make_batch((11, 7, 40), vocab_size=120)
    with torch.no_grad():
        want = model_with(Ops()).eval()(batch)
        with torch.autocast("cpu", dtype):
            got = model_with(ComputeTypeOps(dtype)).eval()(batch)
    for name in ("mlm_loss", "nsp_loss"):
        assert float(getattr(got, name)) == pytest.approx(float(getattr(want, name)), rel=bound)
        assert float(getattr(got, name)) != float(getattr(want, name)), "computed in float32"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_norm_that_sums_gradients_in_16_bits_is_found_out(dtype: torch.dtype) -> None:
    """torch's CPU kernel does, which is why cpu_ref has its own."""
    why = norm_why_not(torch.device("cpu"), dtype, lambda dtype: nullcontext())
    assert why is not None
    assert why.startswith("its gradient of its gain is off by")


def test_a_norm_that_works_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the CPU's is once its gradients are added up in float32, like an accelerator's."""
    inside = nn.functional.layer_norm

    def wide(x: Tensor, shape: Any, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return inside(x.float(), shape, weight.float(), bias.float(), eps).to(x.dtype)

    monkeypatch.setattr(torch.nn.functional, "layer_norm", wide)
    for dtype in (torch.bfloat16, torch.float16):
        assert norm_why_not(torch.device("cpu"), dtype, lambda _: nullcontext()) is None


def test_a_norm_that_autocast_makes_float32_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a vendor's autocast does not listen to a nested ``enabled=False``."""
    inside = nn.functional.layer_norm

    def deaf(x: Tensor, shape: Any, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return inside(x.float(), shape, weight.float(), bias.float(), eps)

    monkeypatch.setattr(torch.nn.functional, "layer_norm", deaf)
    why = norm_why_not(torch.device("cpu"), torch.bfloat16, lambda _: nullcontext())
    assert why == "autocast makes it float32"


@pytest.mark.parametrize(
    ("sizes", "pieces", "calls"),
    [
        (((4096, 1024), (1024,), (1024, 1024)), 3, 1),  # a layer's stay whole
        (((30522, 1024), (1024,)), 8 + 1, 2),
    ],
)
def test_norms_off_the_cpu_cut_word_embeddings_only(
    sizes: tuple[tuple[int, ...], ...], pieces: int, calls: int
) -> None:
    """The CPU's pieces (test_lamb.py) would be 1,484 of BERT-large."""
    tensors = [torch.empty(size, device="meta") for size in sizes]
    with Operators() as seen:
        norms = tensor_norms(tensors)
    assert (norms.shape, norms.dtype) == ((len(sizes),), torch.float32)
    assert seen.count["_foreach_norm"] == calls
    assert seen.longest["_foreach_norm"] == pieces
