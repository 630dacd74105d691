# SPDX-License-Identifier: Apache-2.0
"""ZeRO-1 on two ranks of gloo: the same numbers and checkpoints, and half of the state."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.common.distributed.sharding import Shards, collect, try_sharding
from bertbench.common.distributed.world import World
from bertbench.common.errors import Unsupported
from bertbench.common.optim.factory import build_optimizer
from bertbench.common.optim.lamb import parameter_groups
from bertbench.common.training.checkpoint import Checkpoints
from bertbench.common.training.loop import train
from tests.ports import free_port
from tests.unit.test_training import PLAN, Seen, ToyTask

STEPS = replace(
    PLAN, max_steps=10, eval_every_samples=0, max_grad_norm=0.5, log_freq=1,
    checkpoint_every_samples=40,
)  # fmt: skip


def task_of(world: World, name: str, sharded: bool, fused: bool = False) -> Any:
    """A toy of three matrices, one of them of three segments, and three biases."""
    task = ToyTask(world, accumulation=2, dropout=0.1, lr=0.03)
    torch.manual_seed(1)
    task.model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Dropout(0.1), torch.nn.Linear(6, 9), torch.nn.Linear(9, 1)
    )
    task.model[0].segments = 3
    groups = parameter_groups(task.model, 0.01)
    task.optimizer = build_optimizer(
        name, groups, lr=0.03, betas=(0.9, 0.999), eps=1e-6, lamb_kernel=None, fused=fused
    )
    task.shards = Shards(task.optimizer, *((world.rank, world.size) if sharded else ()))
    return task


class Scaled(CpuRef):
    """A device with loss scaling, whose scale is too high at first: steps are skipped."""

    def grad_scaler(self, precision: str, init_scale: float = 2.0**16) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**127, enabled=True)


def trained(
    world: World, task: Any, plan: Any = STEPS, backend: Any = None, **options: Any
) -> tuple[list[float], list[torch.Tensor]]:
    """The losses of all steps and the last weights, which every rank has in common."""
    seen = Seen()
    torch.manual_seed(2 + world.rank)  # of dropout
    train(task, backend=backend or CpuRef(), world=world, plan=plan, observers=[seen], **options)
    weights = [p.detach().clone() for p in task.model.parameters()]
    for first, *others in zip(*world.gather(weights), strict=True):
        assert all(torch.equal(first, o) for o in others), "the ranks have different weights"
    skipped = seen.steps[-1].skipped_steps
    assert 0 < skipped < 5 if isinstance(backend, Scaled) else skipped == 0
    return [step.loss for step in seen.steps], weights


def same(one: Any, other: Any) -> None:
    """Every loss and weight is the same number."""
    assert one[0] == other[0] and len(one[0]) > 0
    assert all(map(torch.equal, one[1], other[1]))


def state_bytes(task: Any) -> int:
    """Bytes of the moments that this rank holds."""
    entries = task.optimizer.state.values()
    tensors = [t for entry in entries for name, t in entry.items() if name != "step"]
    return sum(t.numel() * t.element_size() for t in tensors)


def no_number_changes(world: World) -> None:
    """With each optimizer, kind of clipping, order of the all-reduce, and loss scaling."""
    plans = [
        STEPS,
        replace(STEPS, clipping="per_parameter"),
        replace(STEPS, clip_after_allreduce=False),
        replace(STEPS, max_grad_norm=None),
    ]
    for name, fused in (("lamb", False), ("adamw", False), ("adamw", True), ("bert_adam", True)):
        for plan, backend in [*itertools.product(plans, [CpuRef()]), (STEPS, Scaled())]:
            if isinstance(backend, Scaled):
                plan = replace(plan, max_steps=14)
            whole, shared = (task_of(world, name, on, fused) for on in (False, True))
            expected = trained(world, whole, plan, backend)
            same(trained(world, shared, plan, backend), expected)
            assert whole.optimizer.state and shared.optimizer.state
            held = world.gather(state_bytes(shared))
            assert sum(held) == state_bytes(whole)
            assert held == [8 * n for n in shared.shards.elements]
            assert max(held) <= 0.6 * state_bytes(whole)


def checkpoints_are_interchangeable(world: World, folder: Path) -> None:
    """The contents are the same, and each kind of run goes on from each kind of checkpoint."""
    for name in ("lamb", "adamw"):
        kept = [Checkpoints(folder / name / str(on), 9) for on in (False, True)]
        whole = [
            trained(world, task_of(world, name, on), checkpoints=kept[on]) for on in (False, True)
        ]
        same(*whole)
        paths = [c.folder / "step_00000005" for c in kept]
        (first, state), (other, other_state) = (kept[0].load(path) for path in paths)
        assert state == other_state and first.keys() == other.keys()
        for group, named in first.items():
            assert named.keys() == other[group].keys()
            assert all(torch.equal(tensor, other[group][n]) for n, tensor in named.items())
        for path, sharded in itertools.product(paths, (False, True)):
            task = task_of(world, name, sharded)
            plan = replace(STEPS, checkpoint_every_samples=0)
            losses, weights = trained(world, task, plan, resume=kept[0].load(path))
            assert losses == whole[0][0][5:] or not world.is_main
            assert all(map(torch.equal, weights, whole[0][1]))
            held = state_bytes(task)
            assert held == 8 * (task.shards.elements[world.rank if sharded else 0])


def collected_by_name(world: World) -> None:
    mine = {f"of {world.rank}": torch.arange(6.0)[::2] / 2 + world.rank}
    found = collect(mine, world)
    assert set(found) == ({"of 0", "of 1"} if world.is_main else {"of 1"})
    assert found["of 1"].tolist() == [1.0, 2.0, 3.0]


def two_ranks(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    world = World.from_env()
    with world.joined(CpuRef(), None):
        assert try_sharding(CpuRef(), world, "zero1") == []
        collected_by_name(world)
        no_number_changes(world)
        checkpoints_are_interchangeable(world, folder)


def test_two_ranks_share_the_state(tmp_path: Path) -> None:
    mp.spawn(two_ranks, (free_port(), tmp_path), nprocs=2)
    for name in ("lamb", "adamw"):  # what two processes shared goes on in one
        results = []
        for kind in ("False", "True"):
            kept = Checkpoints(tmp_path / name / kind, 9)
            saved = kept.load(kept.folder / "step_00000005")
            task = task_of(World(), name, sharded=False)
            plan = replace(STEPS, checkpoint_every_samples=0)
            results.append(trained(World(), task, plan, resume=saved))
        same(*results)
        assert len(results[0][0]) == 5


def test_the_largest_come_first_to_the_emptiest_rank() -> None:
    sizes = (3, 10, 1, 4, 4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(n)) for n in sizes], lr=1.0)
    ranks = [Shards(optimizer, rank, 2) for rank in (0, 1)]
    assert [sorted(r.own) for r in ranks] == [[1, 2], [0, 3, 4]]
    assert ranks[0].elements == ranks[1].elements == [11, 11]
    assert [len(Shards(optimizer, rank, 7).own) for rank in range(7)] == [1, 1, 1, 1, 1, 0, 0]


def test_a_rehearsal_updates_its_own_share_alone() -> None:
    """Without other ranks: one that runs out of memory must not leave them waiting."""
    task = task_of(World(0, 2), "lamb", sharded=True)
    for parameter in task.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [p.detach().clone() for p in task.shards._parameters]
    with task.shards.update(World()):
        task.optimizer.step()
    for index, parameter in enumerate(task.shards._parameters):
        assert torch.equal(before[index], parameter) == (index not in task.shards.own)
    assert state_bytes(task) == 8 * task.shards.elements[0]


@pytest.mark.parametrize(
    ("broadcast", "message"),
    [
        (lambda *_: None, r"a trial's broadcast brings \[1\.00\d+, 0\.0\]\. Leave --optimizer"),
        (RuntimeError("no broadcast\n#0 frame"), r"zero1 is not possible here: no broadcast\. Le"),
    ],
)
def test_a_collective_that_cannot_is_refused(
    monkeypatch: pytest.MonkeyPatch, broadcast: Any, message: str
) -> None:
    def call(*values: Any) -> None:
        if isinstance(broadcast, Exception):
            raise broadcast
        broadcast(*values)

    monkeypatch.setattr(dist, "broadcast", call)
    with pytest.raises(Unsupported, match=message):
        try_sharding(CpuRef(), World(0, 2), "zero1")


def test_a_rank_that_is_gone_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise RuntimeError("[pair.cc:534] Connection closed")

    monkeypatch.setattr(dist, "broadcast", gone)
    with pytest.raises(RuntimeError, match="Connection closed"):
        try_sharding(CpuRef(), World(0, 2), "zero1")


def test_one_process_is_told_that_it_shares_nothing() -> None:
    (note,) = try_sharding(CpuRef(), World(), "zero1")
    assert note == "--optimizer_sharding zero1 has no effect: one process has all of the state"
    assert try_sharding(CpuRef(), World(0, 2), "none") == []
