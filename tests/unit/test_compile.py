# SPDX-License-Identifier: Apache-2.0
"""``--compile``: few graphs whatever the batches and layers, and checkpoints that fit either way.

A counting compiler stands in for a device's: it runs each graph's aten operations as they are
(torch's ``aot_eager``), so that numbers can be compared.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bertbench.backends.base import Capabilities
from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.backends.cuda.ops import CudaOps
from bertbench.common.data.batch import PretrainingBatch
from bertbench.common.data.collate import collate
from bertbench.common.data.hdf5 import Limits
from bertbench.common.data.synthetic import random_samples
from bertbench.common.distributed.world import World
from bertbench.common.model.config import BertConfig
from bertbench.common.model.heads import BertForPreTraining
from bertbench.common.model.ops import ComputeTypeOps, Ops
from bertbench.common.training.checkpoint import Checkpoints
from bertbench.common.training.loop import train
from bertbench.common.training.progress import Progress, restore
from tests.contract.tiny_task import Curve, tiny_task

torch._dynamo = pytest.importorskip("torch._dynamo")
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

COMPILER = "bertbench_counting"
VOCAB = 512
CONFIG = BertConfig(
    vocab_size=VOCAB, hidden_size=64, num_hidden_layers=6, num_attention_heads=2,
    intermediate_size=128, hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip


# -- an attention over ragged batches that compilers see as one operator --------------------------
def each_sequence(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
    out = []
    for a, b in zip(starts.tolist()[:-1], starts.tolist()[1:], strict=True):
        parts = (t[a:b].transpose(0, 1)[None] for t in (q, k, v))
        out.append(nn.functional.scaled_dot_product_attention(*parts)[0].transpose(0, 1))
    return torch.cat(out)


@torch.library.custom_op("bertbench_test::varlen", mutates_args=())
def varlen(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor:
    assert longest == int(starts.diff().max())
    return each_sequence(q, k, v, starts).contiguous()


@torch.library.custom_op("bertbench_test::varlen_backward", mutates_args=())
def varlen_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> list[Tensor]:
    # Written out, since autograd is switched off inside an operator.
    grads: list[list[Tensor]] = [[], [], []]
    for a, b in zip(starts.tolist()[:-1], starts.tolist()[1:], strict=True):
        do, qs, ks, vs = (t[a:b].transpose(0, 1).float() for t in (dout, q, k, v))
        scale = q.shape[-1] ** -0.5
        p = torch.softmax(qs @ ks.mT * scale, -1)
        dp = do @ vs.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * scale
        for kept, grad in zip(grads, (ds @ ks, ds.mT @ qs, p.mT @ do), strict=True):
            kept.append(grad.transpose(0, 1).to(q.dtype))
    return [torch.cat(kept) for kept in grads]


@varlen.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor:
    return q.new_empty(q.shape)


@varlen_backward.register_fake
def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (q, k, v)]


def keep(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def backward(ctx: Any, dout: Tensor) -> Any:
    return *torch.ops.bertbench_test.varlen_backward(dout, *ctx.saved_tensors), None, None


varlen.register_autograd(backward, setup_context=keep)

OPERATORS = SimpleNamespace(
    _flash_attention_forward=lambda q, k, v, starts, _, longest, *__: (
        torch.ops.bertbench_test.varlen(q, k, v, starts, longest),
    )
)


# -- fixtures -------------------------------------------------------------------------------------
COUNTER: list[CompileCounterWithBackend] = [None]
torch._dynamo.register_backend(lambda gm, inputs: COUNTER[0](gm, inputs), name=COMPILER)


class Compiling(CpuRef):
    """cpu_ref with a compiler and an accelerator's kernels."""

    chosen: Ops

    @functools.cached_property
    def capabilities(self) -> Capabilities:
        return dataclasses.replace(
            super().capabilities, compilers=(COMPILER,), kernels=("sdpa", "plain")
        )

    def build_ops(self, kernels: str, precision: str) -> Ops:
        return ComputeTypeOps(None) if kernels == "sdpa" else Ops()


@pytest.fixture
def graphs() -> Iterator[CompileCounterWithBackend]:
    """The counting compiler, registered under its name, and nothing compiled yet."""
    torch._dynamo.reset()
    counter = COUNTER[0] = CompileCounterWithBackend("aot_eager")
    yield counter
    torch._dynamo.reset()


def ragged_batches(number: int, sizes: tuple[int, int]) -> list[PretrainingBatch]:
    """Batches of ``sizes`` sequences, each with another number of tokens and longest sequence."""
    limits = Limits(max_seq_length=60, max_predictions=10, vocab_size=VOCAB)
    samples = random_samples(400, limits, 0)
    rng = np.random.default_rng(0)
    short = np.flatnonzero(samples.lengths < 60)
    found: dict[tuple[int, int], PretrainingBatch] = {}
    while len(found) < number:
        batch = collate(samples, rng.choice(short, int(rng.integers(*sizes)), replace=False))
        found.setdefault((batch.num_tokens, batch.tokens.max_length), batch)
    return list(found.values())


def model_with(ops: Ops, layers: int) -> BertForPreTraining:
    torch.manual_seed(0)
    return BertForPreTraining(dataclasses.replace(CONFIG, num_hidden_layers=layers), ops)


def compiled(counter: CompileCounterWithBackend) -> int:
    """Graphs with anything in them: a frame that only calls others leaves an empty one."""
    return sum(any(n.op.startswith("call") for n in g.graph.nodes) for g in counter.graphs)


def gradients(model: nn.Module, batch: PretrainingBatch) -> list[Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    (out.mlm_loss + out.nsp_loss).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


# -- the number of graphs -------------------------------------------------------------------------
@pytest.mark.parametrize("layers", [2, 6])
@pytest.mark.parametrize(
    ("ops", "expected", "sizes"),
    [
        pytest.param(
            lambda: CudaOps("flash", torch.bfloat16, aten=OPERATORS), 1, (1, 9), id="varlen"
        ),
        # Before torch 2.12 a break in the graph guards on the number of sequences, which training
        # keeps constant.
        pytest.param(lambda: ComputeTypeOps(torch.bfloat16), 2, (5, 6), id="loop-over-sequences"),
    ],
)
def test_ragged_batches_and_layers_share_their_graphs(
    graphs: CompileCounterWithBackend,
    ops: Any,
    expected: int,
    sizes: tuple[int, int],
    layers: int,
) -> None:
    """20 ragged batches compile nothing after the first; so do evaluations, once more."""
    chosen = ops()
    model, plain = model_with(chosen, layers), model_with(ops(), layers)
    chosen.keep_out_of_graphs()
    Compiling(0).compile(model, COMPILER)
    batches = ragged_batches(20, sizes)
    for batch in batches:
        got, wanted = gradients(model, batch), gradients(plain, batch)
        assert compiled(graphs) == expected
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0.1, atol=0.05 * float(b.abs().max()) + 1e-6)
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for batch in batches:
            model(batch)
    assert compiled(graphs) == 2 * expected


# -- checkpoints ----------------------------------------------------------------------------------
@pytest.mark.parametrize("first", ["compiled", "uncompiled"])
def test_a_checkpoint_resumes_compiled_or_not(
    graphs: CompileCounterWithBackend, tmp_path: Path, first: str
) -> None:
    """Five steps, a checkpoint and five more: the other way round, and as ten in one."""
    flags = {"compiled": ("--compile", COMPILER), "uncompiled": ()}

    def losses(how: str, steps: int, **options: Any) -> list[float]:
        backend = Compiling(0)
        task, plan = tiny_task(backend, "--precision", "fp32", *flags[how])
        plan = dataclasses.replace(plan, max_steps=steps, checkpoint_every_samples=16 * 5)
        curve = Curve()
        train(
            task, backend=backend, world=World(), plan=plan, observers=[curve],
            checkpoints=Checkpoints(tmp_path / how), **options,
        )  # fmt: skip
        return curve.losses

    (second,) = flags.keys() - {first}
    begun = losses(first, 5)
    saved = Checkpoints(tmp_path / first).load()
    assert not [name for name in saved[0]["model"] if "_orig_mod" in name]
    resumed = losses(second, 10, resume=saved)
    whole = losses("uncompiled", 10)
    assert compiled(graphs) > 0, "nothing was compiled"
    assert begun + resumed == pytest.approx(whole, rel=1e-5)


def test_a_checkpoint_of_a_wrapped_model_resumes(tmp_path: Path) -> None:
    """Until layers were compiled in place, parameters were saved with torch.compile's prefix."""
    task, plan = tiny_task(Compiling(0), "--precision", "fp32")
    plan = dataclasses.replace(plan, max_steps=2, checkpoint_every_samples=16)
    where = Checkpoints(tmp_path)
    train(task, backend=Compiling(0), world=World(), plan=plan, observers=[], checkpoints=where)
    groups, state = where.load()
    groups["model"] = {f"_orig_mod.{name}": value for name, value in groups["model"].items()}
    again, _ = tiny_task(Compiling(0), "--precision", "fp32", "--seed", "7")
    restore(
        again, torch.amp.GradScaler("cpu", enabled=False), Compiling(0), World(), (groups, state),
        Progress(),
    )  # fmt: skip
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, groups["model"][f"_orig_mod.{name}"])
