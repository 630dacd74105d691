# SPDX-License-Identifier: Apache-2.0
"""Gradients reduced in bfloat16: two ranks of gloo, by hand, over steps, and after a resume."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.common.distributed.all_reduce import average_, gradient_bytes, try_reduction
from bertbench.common.distributed.world import World
from bertbench.common.errors import Unsupported
from bertbench.common.training.checkpoint import Checkpoints
from bertbench.common.training.loop import train
from tests.ports import free_port
from tests.unit.test_training import PLAN, Seen, ToyTask

STEPS = replace(PLAN, max_steps=30, eval_every_samples=0, max_grad_norm=1.0)
BF16 = replace(STEPS, reduce_dtype="bf16")
TOLERANCE = 0.01
"""Of each of 30 steps' losses, which fall to a fiftieth: measured were differences up to 0.002."""


def mean_of_rounded(parts: list[torch.Tensor]) -> torch.Tensor:
    """What two ranks get: each part and their sum rounded to bfloat16, halved without rounding."""
    first, second = (part.bfloat16() for part in parts)
    return (first + second).float() / 2


def by_hand(world: World) -> None:
    """DDP's gradient and that of ``average_`` are the mean of the rounded ones, bit for bit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 1))
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(1 + world.rank))
    alone = copy.deepcopy(model)
    alone(x).square().mean().backward()
    both = CpuRef().wrap_ddp(model, "bf16")
    both(x).square().mean().backward()
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and p.grad.dtype == torch.float32
        wanted = mean_of_rounded(world.gather(q.grad))
        assert torch.equal(p.grad, wanted)
        exact = world.sum_(q.grad.clone()) / 2
        assert not torch.equal(p.grad, exact), "nothing was rounded"
    gradients = [q.grad for q in alone.parameters() if q.grad is not None]
    wanted = [mean_of_rounded(world.gather(g)) for g in gradients]
    average_(alone.parameters(), world, "bf16")
    assert all(map(torch.equal, gradients, wanted))


def trained(
    world: World, plan: Any, dropout: float = 0.1, **options: Any
) -> tuple[list[float], list[torch.Tensor]]:
    """The losses and the last weights, which every rank has in common."""
    task, seen = ToyTask(world, accumulation=2, dropout=dropout, lr=0.03), Seen()
    train(task, backend=CpuRef(), world=world, plan=plan, observers=[seen], **options)
    weights = [p.detach() for p in task.model.parameters()]
    for first, other in zip(*world.gather(weights), strict=True):
        assert torch.equal(first, other), "the ranks have different weights"
    return [step.loss for step in seen.steps], weights


def once_a_step(world: World) -> None:
    """Two micro-batches are added in float32 and travel once, in bfloat16."""
    sent, plain = [], dist.all_reduce

    def all_reduce(tensor: torch.Tensor, *values: Any, **named: Any) -> Any:
        sent.append((tensor.dtype, tensor.numel()))
        return plain(tensor, *values, **named)

    dist.all_reduce = all_reduce
    try:
        for clip_after in (True, False):
            sent.clear()
            trained(world, replace(BF16, max_steps=3, clip_after_allreduce=clip_after))
            elements = sum(p.numel() for p in ToyTask().model.parameters())
            assert [n for dtype, n in sent if dtype == torch.bfloat16] == [elements] * 3
            # What else the loop adds, in float32, are the sums of a report.
            assert all(n == 2 for dtype, n in sent if dtype == torch.float32)
    finally:
        dist.all_reduce = plain


def resumed(world: World, folder: Path) -> None:
    """A run that is continued after 20 steps ends as the one that was not."""
    checkpoints = Checkpoints(folder)
    plan = replace(BF16, checkpoint_every_samples=160)
    _, whole = trained(world, plan, checkpoints=checkpoints)
    path = next(p for p in checkpoints.available() if p.name.endswith("20"))
    _, again = trained(world, BF16, resume=checkpoints.load(path))
    assert all(map(torch.equal, whole, again))


def two_ranks(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    world = World.from_env()
    with world.joined(CpuRef(), None):
        assert try_reduction(CpuRef(), world, "bf16") == []
        by_hand(world)
        once_a_step(world)
        resumed(world, folder)
        exact, _ = trained(world, STEPS, dropout=0.0)
        rounded, _ = trained(world, BF16, dropout=0.0)
        assert rounded != exact, "nothing was rounded"
        assert rounded == pytest.approx(exact, rel=TOLERANCE)
        assert exact[-1] < exact[0] / 50, "nothing was learnt"


def test_two_ranks_reduce_in_bf16(tmp_path: Path) -> None:
    mp.spawn(two_ranks, (free_port(), tmp_path), nprocs=2)


class Refusing(CpuRef):
    """A device whose wrapper does something else."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self._wrap = wrap

    def wrap_ddp(self, module: nn.Module, reduce_dtype: str = "fp32") -> nn.Module:
        assert reduce_dtype == "bf16"
        wrapped: nn.Module = self._wrap(module)
        return wrapped


def broken(error: Exception) -> Any:
    def wrap(module: nn.Module) -> nn.Module:
        raise error

    return wrap


TWO = World(rank=0, size=2)


def test_a_reduction_that_rounds_nothing_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"gradients is \[2\.00\d+, 0\.0\], not"):
        try_reduction(Refusing(lambda module: module), TWO, "bf16")


@pytest.mark.parametrize(
    "error", [RuntimeError("Invalid scalar type\n#0 frame"), TypeError("Invalid scalar type")]
)
def test_a_collective_without_bf16_is_refused_with_its_reason(error: Exception) -> None:
    with pytest.raises(Unsupported) as caught:
        try_reduction(Refusing(broken(error)), TWO, "bf16")
    assert str(caught.value) == (
        "cpu_ref: --reduce_dtype bf16 is not possible here: Invalid scalar type. Leave "
        "--reduce_dtype out to reduce gradients in float32."
    )


@pytest.mark.parametrize(
    "error", [RuntimeError("[pair.cc:534] Connection closed"), dist.DistBackendError("gone")]
)
def test_a_rank_that_is_gone_is_no_refusal(error: Exception) -> None:
    with pytest.raises(type(error)):
        try_reduction(Refusing(broken(error)), TWO, "bf16")


def test_one_process_is_told_that_it_reduces_nothing() -> None:
    refusing = Refusing(broken(RuntimeError("never called")))
    (note,) = try_reduction(refusing, World(), "bf16")
    assert note == "--reduce_dtype bf16 has no effect: one process reduces no gradients"
    assert try_reduction(refusing, TWO, "fp32") == try_reduction(refusing, World(), "fp32") == []


def test_bytes_are_those_of_trained_parameters() -> None:
    parameters = [torch.empty(3, 5, requires_grad=True), torch.empty(99)]
    assert (gradient_bytes(parameters, "fp32"), gradient_bytes(parameters, "bf16")) == (60, 30)
