# SPDX-License-Identifier: Apache-2.0
"""Measure LAMB, the scaling of two ranks, and two threads beside other work."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.shapes import SHAPES, typical_batch
from bench.steps import adamw
from bench.timing import interleave, ratio
from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.backends.cpu_ref.kernels import NativeOps
from bertbench.backends.cpu_ref.lamb import native_lamb
from bertbench.common.cli.main import SPINS
from bertbench.common.model.heads import BertForPreTraining
from bertbench.common.optim.lamb import Lamb, LambStep, lamb_update, matrices, parameter_groups

LAMB_GOAL, RANKS_GOAL, ACCUMULATION = 3.0, 0.95, 4
LOADED_GOAL, IDLE_GOAL = 0.8, 0.98
THREADS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": SPINS},
    "2 passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "2 unbounded": {"OMP_NUM_THREADS": "2"},
}
"""How threads may wait; the second is what bertbench sets."""
WAITING = {variable for variables in THREADS.values() for variable in variables}
PRECISION = CpuRef().capabilities.precisions[0]
"""The fastest that this processor has instructions for."""


def per_tensor_lamb(s: LambStep) -> None:
    """LAMB as a plain Python loop over matrices: the yardstick."""
    lists = [matrices(t, s.segments) for t in (s.params, s.grads, s.exp_avgs, s.exp_avg_sqs)]
    for p, g, m, v in zip(*lists, strict=True):
        m.mul_(s.beta1).add_(g, alpha=1 - s.beta1)
        v.mul_(s.beta2).addcmul_(g, g, value=1 - s.beta2)
        root = (v / (1 - s.beta2**s.step)).sqrt_()
        update = (m / (1 - s.beta1**s.step)) / root.add_(s.eps)
        rate = s.lr
        if s.weight_decay:
            update.add_(p, alpha=s.weight_decay)
            p_norm, u_norm = float(p.norm()), float(update.norm())
            rate *= p_norm / u_norm if p_norm > 0 and u_norm > 0 else 1.0
        p.add_(update, alpha=-rate)


def lamb(rounds: int) -> dict[str, object]:
    """Return the milliseconds of a LAMB step on BERT-base's 110 M parameters."""
    model = BertForPreTraining(SHAPES["base-512"].config, NativeOps(torch.bfloat16))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    kernels = {"native": native_lamb, "foreach": lamb_update, "per-tensor loop": per_tensor_lamb}
    groups = parameter_groups(model, 0.01)
    steps = {
        name: Lamb([dict(group) for group in groups], 1e-6, kernel=kernel).step
        for name, kernel in kernels.items()
    }
    seconds = interleave(steps, rounds)
    reached = ratio(seconds["per-tensor loop"], seconds["native"])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "milliseconds": {k: 1e3 * statistics.median(v) for k, v in seconds.items()},
        "loop_over_native": reached,
        "goal": LAMB_GOAL,
        "ok": reached >= LAMB_GOAL,
    }


def two_ranks(shape: str, rounds: int) -> dict[str, object]:
    """Return rate(2 ranks) / (2 x rate(1)), for gloo ranks of one thread with accumulation.

    Each figure is the median of alternating runs in separate processes. ``unconnected`` is the same
    ratio for two processes that exchange nothing: what the cores' common memory leaves of two.
    """
    rates: dict[str, list[float]] = {"1": [], "2": [], "unconnected": []}
    for _ in range(rounds):
        for name, found in rates.items():
            runs = [_start_ranks(2 if name == "2" else 1, shape, THREADS["1 thread"])]
            if name == "unconnected":
                runs.append(_start_ranks(1, shape, THREADS["1 thread"]))
            found.append(sum(_rate(run) for run in runs))

    def of_two(name: str) -> float:
        pairs = zip(rates["1"], rates[name], strict=True)
        return statistics.median(two / (2 * one) for one, two in pairs)

    efficiency = of_two("2")
    return {
        "shape": shape,
        "precision": PRECISION,
        "accumulation": ACCUMULATION,
        "tokens_per_second": {name: statistics.median(v) for name, v in rates.items()},
        "unconnected": of_two("unconnected"),
        "efficiency": efficiency,
        "goal": RANKS_GOAL,
        "ok": efficiency >= RANKS_GOAL,
    }


def load(shape: str, rounds: int) -> dict[str, object]:
    """Return the rate of each way of waiting, idle and beside two busy processes.

    ``loaded`` is two threads, as bertbench starts them, over the better of one thread and two with
    passive waiting; ``idle`` the same two threads over unbounded spinning, on an idle machine.
    Medians of the ratio over alternating runs in processes apart from each other.
    """
    rates = {busy: {name: [] for name in THREADS} for busy in (0, 2)}
    for _ in range(rounds):
        for busy, found in rates.items():
            with _busy(busy):
                for name, variables in THREADS.items():
                    found[name].append(_rate(_start_ranks(1, shape, variables)))
    best = [max(pair) for pair in zip(rates[2]["1 thread"], rates[2]["2 passive"], strict=True)]
    loaded = ratio(rates[2]["2 threads"], best)
    idle = ratio(rates[0]["2 threads"], rates[0]["2 unbounded"])
    return {
        "shape": shape,
        "precision": PRECISION,
        "tokens_per_second": {
            f"{busy} busy": {name: statistics.median(v) for name, v in found.items()}
            for busy, found in rates.items()
        },
        "loaded": loaded,
        "loaded_goal": LOADED_GOAL,
        "idle": idle,
        "idle_goal": IDLE_GOAL,
        "ok": loaded >= LOADED_GOAL and idle >= IDLE_GOAL,
    }


@contextmanager
def _busy(number: int) -> Iterator[None]:
    """Keep ``number`` processors busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _start_ranks(world: int, shape: str, threads: dict[str, str]) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in WAITING}
    environment |= {"BENCH_RANK_SHAPE": shape} | threads
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(world), str(Path(__file__).parent / "rank.py")]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def _rate(run: subprocess.Popen[str]) -> float:
    out, err = run.communicate()
    if run.returncode:
        raise RuntimeError(f"{run.args!r} failed:\n{err[-2000:]}")
    return float(out.split("tokens_per_second=")[1].split()[0])


def rank_main(shape_name: str) -> None:
    """Run one rank for 6 seconds; rank 0 prints the rate of all."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.distributed.init_process_group("gloo")
    world = torch.distributed.get_world_size()
    shape = SHAPES[shape_name]
    batch, _ = typical_batch(shape, None)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if PRECISION == "bf16" else torch.float32
    model = BertForPreTraining(shape.config, NativeOps(dtype)).train()
    ddp = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = adamw(model)
    stop = torch.zeros(1)
    timed, began = 0, 0.0
    while not stop:
        for micro in range(ACCUMULATION):
            ddp.require_backward_grad_sync = micro == ACCUMULATION - 1
            with torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == "bf16"):
                sums = ddp(batch)
                loss = sums.mlm_loss + sums.nsp_loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not began:  # the first step warms up
            torch.distributed.barrier()
            began = time.perf_counter()
            continue
        timed += 1
        stop.fill_(float(time.perf_counter() - began > 6.0 and timed >= 3))
        torch.distributed.all_reduce(stop)
    elapsed = time.perf_counter() - began
    if torch.distributed.get_rank() == 0:
        tokens = world * timed * ACCUMULATION * batch.tokens.num_tokens
        print(f"tokens_per_second={tokens / elapsed}")
    torch.distributed.destroy_process_group()
