# SPDX-License-Identifier: Apache-2.0
"""Contract: two processes reduce and average over two devices."""

from __future__ import annotations

import contextlib
import copy
import os
import time

import pytest
import torch
from torch import nn

from bertbench import backends
from bertbench.backends.base import Backend
from bertbench.common.distributed.all_reduce import try_reduction
from bertbench.common.distributed.world import World
from bertbench.common.errors import Unsupported
from tests.contract.helpers import GRADIENT_TOLERANCE
from tests.contract.tiny_task import exact_precision
from tests.ports import free_port


def two_ranks(rank: int, name: str, port: int) -> None:
    """What each of two processes does; a failed assertion ends the test."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    world = World.from_env()
    backend = backends.load(name)(rank)
    with world.joined(backend, None):
        on_device = torch.full((3,), rank + 1.0, device=backend.device)
        assert world.sum_(on_device).tolist() == [3.0] * 3, "all-reduce of device tensors"
        on_host = torch.full((3,), rank + 1.0)
        assert world.sum_(on_host).tolist() == [3.0] * 3, "all-reduce of host tensors"
        assert world.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}], "gathered objects"
        assert world.max_async(rank).result() == 1, "a vote"

        with contextlib.suppress(Unsupported):  # else the gradients are what they should be
            assert try_reduction(backend, world, "bf16") == []

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
        x = torch.randn(8, 16)
        alone = copy.deepcopy(model)
        alone(x).square().mean().backward()
        both = backend.wrap_ddp(model.to(backend.device))
        half = x[4 * rank :][:4].to(backend.device)
        precision = exact_precision(backend)
        with backend.precision(precision):
            both(half).square().mean().backward()
        for p, q in zip(both.parameters(), alone.parameters(), strict=True):
            assert p.grad is not None and q.grad is not None
            off = float((p.grad.cpu() - q.grad).norm() / q.grad.norm())
            assert off <= GRADIENT_TOLERANCE[precision], f"DDP's gradient is off by {off:.1e}"


def test_two_ranks_reduce_and_average_gradients(backend: Backend) -> None:
    """The device's collective adds over two processes; DDP's gradients are the whole batch's."""
    if backend.capabilities.collective is None:
        why = backend.capabilities.notes.get("collective", "no reason in its notes")
        pytest.skip(f"{backend.name} has no collective: {why}")
    if backend.device_type != "cpu" and backend.device_count() < 2:
        pytest.skip(f"{backend.name} has {backend.device_count()} device here; this needs two")
    processes = torch.multiprocessing.spawn(
        two_ranks, args=(backend.name, free_port()), nprocs=2, join=False
    )
    deadline = time.monotonic() + 120
    try:
        while not processes.join(timeout=max(0.1, deadline - time.monotonic()), grace_period=5):
            if time.monotonic() > deadline:
                pytest.fail("two ranks did not finish in 120 s: the collective hangs")
    except torch.multiprocessing.ProcessRaisedException as error:
        pytest.fail(f"one of two processes failed:\n{error}", pytrace=False)
    finally:
        for process in processes.processes:
            process.kill()
