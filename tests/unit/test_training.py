# SPDX-License-Identifier: Apache-2.0
"""The loop's arithmetic on a model small enough to check by hand."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from dataclasses import dataclass, replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.common.distributed.sharding import Shards
from bertbench.common.distributed.world import World
from bertbench.common.errors import DivergedError
from bertbench.common.optim.clip import clip_each_
from bertbench.common.training.checkpoint import Checkpoints
from bertbench.common.training.evaluation import percentile
from bertbench.common.training.events import Observer
from bertbench.common.training.loop import train
from bertbench.common.training.stops import Faults
from bertbench.common.training.task import Plan
from tests.ports import free_port

GLOBAL_BATCH = 8
ALONE = World()


@dataclass(frozen=True)
class Rows:
    x: torch.Tensor
    y: torch.Tensor

    def to(self, device):
        return Rows(self.x.to(device), self.y.to(device))

    @property
    def num_samples(self):
        return len(self.x)

    @property
    def num_tokens(self):
        return 5 * len(self.x)


@dataclass(frozen=True)
class Step:
    micro_batches: tuple[Rows, ...]
    num_samples: int
    position: dict[str, int]


class ToyTask:
    """Linear regression with dropout, whose data is a function of the step."""

    sum_names = ("loss", "count")
    target_metric = "score"
    mask_now = staticmethod(lambda: None)

    def __init__(self, world=ALONE, accumulation=2, poison_at=None, dropout=0.0, lr=0.1):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(dropout), nn.Linear(3, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)
        self.shards = Shards(self.optimizer)
        self.world, self.accumulation, self.poison_at, self.lr = world, accumulation, poison_at, lr
        self.closed = False
        self.on_batch = lambda step: None

    def train_batches(self, position):
        step = (position or {"step": 0})["step"]
        try:
            while True:
                g = torch.Generator().manual_seed(step)
                x = torch.randn(GLOBAL_BATCH, 4, generator=g)
                y = x.sum(1, keepdim=True)
                if step + 1 == self.poison_at:
                    x = x * float("nan")
                parts = self.world.size * self.accumulation
                mine = range(self.world.rank, parts, self.world.size)
                size = GLOBAL_BATCH // parts
                step += 1
                self.on_batch(step)
                yield Step(
                    tuple(Rows(x[i * size :][:size], y[i * size :][:size]) for i in mine),
                    GLOBAL_BATCH, {"step": step},
                )  # fmt: skip
        finally:
            self.closed = True

    def loss(self, model, batch, step):
        error = (model(batch.x) - batch.y).square().sum()
        return error / step.num_samples, torch.stack(
            [error.detach(), torch.tensor(1.0) * len(batch.x)]
        )

    def eval_batches(self):
        g = torch.Generator().manual_seed(99)
        x = torch.randn(6, 4, generator=g)
        return [Rows(x, x.sum(1, keepdim=True))] if self.world.is_main else []

    def eval_sums(self, model, batch):
        return torch.stack(
            [(model(batch.x) - batch.y).square().sum(), torch.tensor(float(len(batch.x)))]
        )

    def eval_result(self, sums):
        return self.metrics(sums)

    def metrics(self, sums):
        loss = sums["loss"] / sums["count"]
        return {"loss": loss, "score": 1 / (1 + loss)}

    def learning_rate(self, step):
        return self.lr * (1 - step / 100)

    def effective_flops(self, batch):
        return 0

    def model_flops(self, batch):
        return 30 * len(batch.x)


def _pair(error, batch):
    return torch.stack([error.detach(), torch.tensor(float(len(batch.x)))])


class Seen(Observer):
    def __init__(self):
        self.steps, self.evals, self.saved, self.stops = [], [], [], []

    def on_step(self, event):
        self.steps.append(event)

    def on_eval(self, event):
        self.evals.append(event)

    def on_checkpoint(self, *, path, step, samples, seconds):
        self.saved.append(step)

    def run_stop(self, *, step, samples, status):
        self.stops.append((step, samples, status))


PLAN = Plan(
    precision="fp32", max_steps=12, max_samples=10_000, target_value=None, eval_start_samples=16,
    eval_every_samples=32, padded_length=7, log_freq=1,
)  # fmt: skip


def run(task, plan=PLAN, world=ALONE, **kwargs):
    seen = Seen()
    out = train(task, backend=CpuRef(), world=world, plan=plan, observers=[seen], **kwargs)
    return out, seen


def test_the_split_into_micro_batches_changes_only_rounding():
    curves = []
    for accumulation in (1, 2, 4):
        _, seen = run(ToyTask(accumulation=accumulation))
        curves.append([e.loss for e in seen.steps])
    assert curves[0][0] > curves[0][-1]
    for other in curves[1:]:
        assert other == pytest.approx(curves[0], rel=1e-5)


def test_events_count_samples_and_steps():
    out, seen = run(ToyTask())
    assert [e.step for e in seen.steps] == list(range(1, 13))
    assert [e.samples for e in seen.steps] == [8 * i for i in range(1, 13)]
    assert seen.steps[0].learning_rate == pytest.approx(0.1)
    assert seen.steps[11].learning_rate == pytest.approx(0.1 * (1 - 11 / 100))
    assert all(e.window_steps == 1 for e in seen.steps)
    assert out.train_window.samples == 96 and out.train_window.real_tokens == 96 * 5
    assert out.train_window.padded_tokens == 96 * 7
    assert out.train_window.model_flops == 96 * 30
    assert seen.stops == [(12, 96, "success")]
    # first at >= 16 samples, then at >= 48 and >= 80
    assert [e.samples for e in seen.evals] == [16, 48, 80]


def test_reports_every_log_freq_before_evaluations_and_at_the_end():
    _, seen = run(ToyTask(), replace(PLAN, log_freq=5, eval_start_samples=64))
    assert [e.step for e in seen.steps] == [5, 8, 10, 12]
    assert [e.window_steps for e in seen.steps] == [5, 3, 2, 2]


def test_stops_at_the_target():
    out, seen = run(ToyTask(), replace(PLAN, target_value=1e-6))
    assert out.status == "ok" and out.progress.samples == 16
    assert seen.evals[-1].reached and seen.stops == [(2, 16, "success")]


def test_the_weights_that_reach_the_target_are_saved_behind_the_clocks(tmp_path):
    """With checkpoints otherwise rare: after run_stop, and outside the run's own figures."""
    plan = replace(PLAN, target_value=1e-6, checkpoint_every_samples=9_000)
    task, kept = ToyTask(), Checkpoints(tmp_path)
    out, seen = run(task, plan, checkpoints=kept)
    assert seen.stops == [(2, 16, "success")] and kept.latest() is None
    assert seen.saved == [] and out.checkpoint_s == 0
    console = Seen()
    assert out.save([console]) > 0
    assert console.saved == [2] and seen.saved == [] and out.checkpoint_s == 0
    groups, state = kept.load()
    assert state["progress"]["step"] == 2
    assert all(torch.equal(groups["model"][n], v) for n, v in task.model.state_dict().items())


@pytest.mark.parametrize("wanted", ["no checkpoints", "never", "missed"])
def test_other_runs_have_no_checkpoint_of_a_result(tmp_path, wanted):
    plan = replace(PLAN, target_value=1e-6, checkpoint_every_samples=9_000)
    kept = Checkpoints(tmp_path)
    plan, kept = {
        "no checkpoints": (plan, None),
        "never": (replace(plan, checkpoint_every_samples=0), kept),
        "missed": (replace(plan, target_value=2.0), kept),
    }[wanted]
    out, _ = run(ToyTask(), plan, checkpoints=kept)
    assert out.save is None


def test_a_missed_target_is_below_quality():
    out, seen = run(ToyTask(), replace(PLAN, target_value=2.0))
    assert out.status == "below_quality" and "2.0" in out.reason
    assert seen.stops[0][2] == "aborted"


def test_the_end_of_its_time_is_ok_only_for_a_run_without_a_target():
    for target, status in ((None, "ok"), (2.0, "below_quality")):
        out, seen = run(ToyTask(), replace(PLAN, target_value=target, max_minutes=1e-9))
        assert out.status == status and "max_minutes" in out.reason
        assert out.steps_done < PLAN.max_steps
        assert seen.stops[0][2] == ("success" if target is None else "aborted")


def test_stops_at_the_sample_limit():
    out, _ = run(ToyTask(), replace(PLAN, max_samples=24))
    assert out.progress.step == 3 and "max_samples_termination" in out.reason


@pytest.mark.parametrize("log_freq", [1, 4])
def test_not_a_number_names_the_step(log_freq):
    task = ToyTask(poison_at=6)
    with pytest.raises(DivergedError, match=r"step 6: the loss and gradient is not finite"):
        run(task, replace(PLAN, log_freq=log_freq))
    assert task.closed


def test_clipping_bounds_the_update():
    # SGD shows the clipped gradient directly: |update| = lr * max_norm.
    task = ToyTask(lr=1.0)
    task.optimizer = torch.optim.SGD(task.model.parameters(), lr=1.0)
    before = [p.detach().clone() for p in task.model.parameters()]
    _, seen = run(task, replace(PLAN, max_steps=1, max_grad_norm=1e-3))
    after = list(task.model.parameters())
    moved = (
        torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)]).detach().norm()
    )
    assert seen.steps[0].grad_norm > 1e-3
    assert float(moved) == pytest.approx(1e-3, rel=1e-4)


def test_clipping_each_parameter_bounds_each_and_leaves_small_ones():
    task = ToyTask(lr=1.0)
    task.optimizer = torch.optim.SGD(task.model.parameters(), lr=1.0)
    parameters = list(task.model.parameters())
    before = [p.detach().clone() for p in parameters]
    free = [p.detach().clone() for p in parameters]
    other = ToyTask(lr=1.0)
    other.optimizer = torch.optim.SGD(other.model.parameters(), lr=1.0)
    run(other, replace(PLAN, max_steps=1, max_grad_norm=None))
    free = [(a - b).detach() for a, b in zip(other.model.parameters(), before, strict=True)]
    limit = sorted(float(f.norm()) for f in free)[1] * 1.01  # two are below, two above
    plan = replace(PLAN, max_steps=1, max_grad_norm=limit, clipping="per_parameter")
    run(task, plan)
    for now, old, wanted in zip(parameters, before, free, strict=True):
        scale = min(1.0, limit / float(wanted.norm()))
        assert torch.allclose(now.detach() - old, scale * wanted, atol=1e-6)


def test_a_fused_matrix_is_clipped_as_its_parts():
    p = nn.Parameter(torch.zeros(6, 2))
    p.grad = torch.cat([torch.full((2, 2), v) for v in (0.1, 5.0, 50.0)])
    clip_each_([{"params": [p], "segments": [3]}], 1.0)
    norms = [float(part.norm()) for part in p.grad.chunk(3)]
    assert norms == pytest.approx([0.2, 1.0, 1.0])


def test_skipped_steps_are_reported_and_not_timed():
    now = itertools.count()
    plan = replace(PLAN, skip_steps=5, log_freq=4, max_steps=12)
    out, seen = run(ToyTask(), plan, clock=lambda: float(next(now)))
    assert [(e.step, e.window_steps) for e in seen.steps][:3] == [(2, 2), (4, 2), (5, 1)]
    assert out.train_window.steps == 7 and out.train_window.samples == 56
    assert out.steps_done == 12 and out.samples_done == 96
    assert out.train_window.seconds == pytest.approx(
        sum(e.window_s for e in seen.steps if e.step > 5), abs=1
    )
    assert run(ToyTask(), replace(PLAN, skip_steps=99))[0].train_window.samples == 0


def test_an_evaluation_at_the_end_and_nothing_else():
    task = ToyTask()
    plan = replace(PLAN, eval_every_samples=0, eval_at_end=True)
    out, seen = run(task, plan)
    assert [e.samples for e in seen.evals] == [96] and out.status == "ok"
    untouched = [p.detach().clone() for p in task.model.parameters()]
    out, seen = run(task, replace(plan, max_steps=0, target_value=1e-9))
    assert out.status == "ok" and [e.samples for e in seen.evals] == [0] and seen.steps == []
    assert all(map(torch.equal, untouched, task.model.parameters()))
    assert out.train_window.samples == 0
    missed, _ = run(ToyTask(), replace(plan, max_steps=0, target_value=2.0))
    assert missed.status == "below_quality"


def test_latencies_are_of_full_batches_behind_the_skipped_ones():
    class Manual:
        clock = "manual"

        def __init__(self):
            self.n = 0

        def start(self):
            pass

        def stop(self):
            self.n += 1

        def seconds(self):
            return [float(i) for i in range(1, self.n + 1)]

    class Timed(CpuRef):
        def timer(self):
            return Manual()

    task, seen = ToyTask(), Seen()
    sizes = [2] * 102 + [1]
    task.eval_batches = lambda: [Rows(torch.ones(n, 4), torch.ones(n, 1)) for n in sizes]
    plan = replace(PLAN, max_steps=0, eval_every_samples=0, eval_at_end=True, skip_steps=2)
    train(task, backend=Timed(), world=ALONE, plan=plan, observers=[seen])
    (event,) = seen.evals
    assert event.latency_s == {"p50": 52.0, "p90": 92.0, "p99": 101.0}
    assert (event.batches, event.batch_size, event.latency_clock) == (100, 2, "manual")
    assert event.inference_sequences_per_second == pytest.approx(201 / event.inference_s)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([3.0], 50, 3), ([1, 2], 50, 1), ([1, 2, 3], 50, 2), ([1, 2, 3, 4], 99, 4), ([1, 2], 0, 1)],
)
def test_percentiles_are_values_that_occurred(values, percent, expected):
    assert percentile(values, percent) == expected


def test_resume_continues_to_the_same_losses_bit_for_bit(tmp_path):
    plan = replace(PLAN, checkpoint_every_samples=24)
    _, whole = run(ToyTask(dropout=0.5), plan)
    checkpoints = Checkpoints(tmp_path, keep=9)
    _, first = run(ToyTask(dropout=0.5), replace(plan, max_steps=6), checkpoints=checkpoints)
    assert first.saved == [3, 6]
    torch.manual_seed(12345)
    task = ToyTask(dropout=0.5)
    for p in task.model.parameters():
        nn.init.zeros_(p)
    _, second = run(task, plan, resume=checkpoints.load())
    assert [e.loss for e in first.steps + second.steps] == [e.loss for e in whole.steps]
    assert [e.samples for e in first.evals + second.evals] == [e.samples for e in whole.evals]
    assert second.steps[0].step == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_interrupts(tmp_path, number):
    before = signal.getsignal(number)  # in a background job: ignored
    task = ToyTask()
    task.on_batch = lambda step: os.kill(os.getpid(), number) if step == 4 else None
    plan = replace(PLAN, checkpoint_every_samples=10_000)
    out, seen = run(task, plan, checkpoints=Checkpoints(tmp_path))
    assert out.status == "interrupted" and signal.Signals(number).name in out.reason
    assert seen.saved == [out.progress.step] and out.progress.step in (4, 5)
    assert seen.stops[-1][2] == "aborted"
    assert signal.getsignal(number) is before


def test_a_checkpoint_that_cannot_be_written_is_a_note(tmp_path, monkeypatch):
    """Listing the folder fails, as with too many open files: the result does not need it."""
    folder = Checkpoints(tmp_path)
    monkeypatch.setattr(folder, "_prune", Mock(side_effect=OSError(24, "Too many open files")))
    seen = Seen()
    seen.said = []
    seen.note = seen.said.append
    plan = replace(PLAN, checkpoint_every_samples=24)
    out = train(ToyTask(), backend=CpuRef(), world=ALONE, plan=plan, observers=[seen],
                checkpoints=folder)  # fmt: skip
    assert out.progress.step == 12 and not seen.saved
    assert "no checkpoint of step 3: Too many open files" in seen.said


class Half(CpuRef):
    """Plays a device whose fp16 overflows: real loss scaling around float32 arithmetic."""

    def precision(self, name):
        return contextlib.nullcontext()

    def grad_scaler(self, precision, init_scale=2.0**16):
        return torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=4)


def test_loss_scaling_skips_overflows_and_recovers():
    seen = Seen()
    task = ToyTask()
    before = {}
    task.on_batch = lambda step: before.update(
        {step: [p.detach().clone() for p in task.model.parameters()]}
    )
    plan = replace(PLAN, precision="fp16", init_loss_scale=64.0, max_steps=8)
    task.loss = _only_gradients_overflow(task)
    out = train(task, backend=Half(), world=ALONE, plan=plan, observers=[seen])
    assert out.progress.skipped_steps == 1
    assert [e.loss_scale for e in seen.steps] == [64, 64, 32, 32, 32, 32, 64, 64]
    unchanged = [torch.equal(a, b) for a, b in zip(before[3], before[4], strict=True)]
    assert all(unchanged), "the step that overflowed must not touch the weights"
    assert not torch.equal(before[2][0], before[3][0])


def _only_gradients_overflow(task):
    """The loss of step 3 reads as finite, but its gradient is infinite."""
    plain = task.loss

    def loss(model, batch, step):
        if step.position["step"] != 3:
            return plain(model, batch, step)
        rows = Rows(torch.ones_like(batch.x), batch.y)
        value, sums = plain(model, rows, step)
        return value * float("inf"), sums

    return loss


def _rank(rank, size, port, accumulation, clip_after, path):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(size)}
    torch.set_num_threads(1)
    world = World.from_env()
    backend = CpuRef()
    with world.joined(backend, None):
        plan = replace(PLAN, clip_after_allreduce=clip_after, max_grad_norm=1e9)
        out, seen = run(ToyTask(world, accumulation), plan, world)
        if world.is_main:
            torch.save([[e.loss for e in seen.steps], out.train_window.samples], path)


@pytest.mark.parametrize("clip_after", [True, False])
def test_two_ranks_train_like_one(tmp_path, clip_after):
    _, alone = run(ToyTask(accumulation=4), replace(PLAN, max_grad_norm=1e9))
    path = tmp_path / "losses.pt"
    port = free_port()
    mp.spawn(_rank, (2, port, 2, clip_after, path), nprocs=2)
    losses, samples = torch.load(path)
    assert losses == pytest.approx([e.loss for e in alone.steps], rel=1e-5)
    assert samples == 96


def _overflowing_rank(rank, size, port, path):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(size)}
    torch.set_num_threads(1)
    world = World.from_env()
    backend = Half()
    with world.joined(backend, None):
        task = ToyTask(world)
        if rank == 1:
            task.loss = _only_gradients_overflow(task)
        plan = replace(
            PLAN, precision="fp16", init_loss_scale=64.0, max_steps=6, clip_after_allreduce=False
        )
        out = train(task, backend=backend, world=world, plan=plan, observers=[])
        finite = all(bool(p.isfinite().all()) for p in task.model.parameters())
        torch.save([out.progress.skipped_steps, finite], f"{path}.{rank}")


def test_an_overflow_on_one_rank_makes_every_rank_skip(tmp_path):
    path = tmp_path / "result"
    mp.spawn(_overflowing_rank, (2, free_port(), path), nprocs=2)
    for rank in range(2):
        assert torch.load(f"{path}.{rank}") == [1, True]


def _bad_first_micro_batch(task, kind):
    """In step 3 the first micro-batch's loss is NaN, or only its reported sums are infinite."""
    plain = task.loss

    def loss(model, batch, step):
        first = torch.equal(batch.x, step.micro_batches[0].x)
        if step.position["step"] != 3 or not first:
            return plain(model, batch, step)
        if kind == "loss":
            return plain(model, Rows(batch.x * float("nan"), batch.y), step)
        value, sums = plain(model, batch, step)
        return value, sums * float("inf")

    return loss


NOT_FINITE = list(itertools.product(("fp32", "fp16"), (True, False), ("loss", "sums"), (1.0, None)))


def _diverging_rank(rank, size, port, path):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(size)}
    torch.set_num_threads(1)
    world = World.from_env()
    results = []
    with world.joined(CpuRef(), None):
        for precision, clip_after, kind, max_grad_norm in NOT_FINITE:
            task = ToyTask(world)
            if rank == 1:
                task.loss = _bad_first_micro_batch(task, kind)
            weights = {}

            def keep(step, task=task, weights=weights):
                weights[step] = [p.detach().clone() for p in task.model.parameters()]

            task.on_batch = keep
            plan = replace(
                PLAN, precision=precision, init_loss_scale=64.0, log_freq=5, max_steps=9,
                eval_every_samples=0, clip_after_allreduce=clip_after, max_grad_norm=max_grad_norm,
            )  # fmt: skip
            backend = Half() if precision == "fp16" else CpuRef()
            with pytest.raises(DivergedError) as caught:
                train(task, backend=backend, world=world, plan=plan, observers=[])
            results.append((str(caught.value), weights))
    torch.save(results, f"{path}.{rank}")


def test_ranks_agree_on_a_loss_that_is_not_finite_on_one(tmp_path):
    path = tmp_path / "result"
    mp.spawn(_diverging_rank, (2, free_port(), path), nprocs=2)
    both = [torch.load(f"{path}.{rank}") for rank in range(2)]
    for (precision, _, _, clip), (error, weights), (other_error, other) in zip(
        NOT_FINITE, *both, strict=True
    ):
        skips = precision == "fp16"
        causes = "loss" if skips or clip is None else "loss and gradient"
        assert error == other_error and error.startswith(f"step 3: the {causes} is not finite")
        assert list(weights) == list(other) == [1, 2, 3, 4, 5]
        for step in weights:
            for mine, its in zip(weights[step], other[step], strict=True):
                assert torch.equal(mine.nan_to_num(7), its.nan_to_num(7)), (precision, step)
        if skips:
            assert all(map(torch.equal, weights[3], weights[4])), "the update must not happen"
            assert not torch.equal(weights[4][0], weights[5][0])
            assert all(w.isfinite().all() for w in weights[5])


class WithNeighbour(World):
    """One process that hears from another one, whose loss was not finite at step 2."""

    def gather(self, value):
        match value:
            case (lap, wait_s, [0, 0]):
                return [value, (lap, wait_s, [2, 0])]
            case [0, 0]:
                return [value, [2, 0]]
        return [value, value]


@pytest.mark.parametrize("log_freq", [3, 99])
def test_another_rank_s_fault_ends_this_one_before_it_saves(tmp_path, log_freq):
    plan = replace(PLAN, log_freq=log_freq, eval_every_samples=0, checkpoint_every_samples=24)
    task, checkpoints = ToyTask(), Checkpoints(tmp_path)
    with pytest.raises(DivergedError, match="step 2: the loss is not finite"):
        run(task, plan, WithNeighbour(), checkpoints=checkpoints)
    assert task.closed and checkpoints.latest() is None


def test_the_earliest_fault_of_any_rank_is_the_cause():
    faults = Faults(torch.device("cpu"), steps_done=4)
    faults.check()
    faults.loss(torch.tensor([1.0, float("inf")]))
    faults.finish_step(5)
    faults.gradient(torch.tensor(float("nan")))
    assert faults.first_steps() == [5, 6]
    for ranks, text in (
        (None, "step 5: the loss is"),
        ([[5, 6], [0, 0], [9, 3]], "step 3: the gradient is"),
        ([[5, 6], [6, 5]], "step 5: the loss and gradient is"),
    ):
        with pytest.raises(DivergedError, match=text):
            faults.check(ranks)
    faults.check([[0, 0], [0, 0]])


@pytest.mark.parametrize("steps", [3, 0])
def test_a_signal_ends_the_last_evaluation(tmp_path, steps):
    """Behind it there is no step at which it would be noticed."""

    class Slow(ToyTask):
        asked = 0

        def eval_batches(self):
            return super().eval_batches() * 5

        def eval_sums(self, model, batch):
            self.asked += 1
            if self.asked == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().eval_sums(model, batch)

    task = Slow()
    plan = replace(
        PLAN, max_steps=steps, eval_every_samples=0, eval_at_end=True, target_value=None,
        checkpoint_every_samples=8,
    )  # fmt: skip
    checkpoints = Checkpoints(tmp_path)
    sampler = SimpleNamespace(sampling=False)
    sampler.start = lambda: setattr(sampler, "sampling", True)
    sampler.stop = lambda: setattr(sampler, "sampling", False)
    out, seen = run(task, plan, checkpoints=checkpoints, telemetry=sampler)
    assert not sampler.sampling  # energy ends with the seconds that it is of
    assert task.asked in (2, 3)  # a handler runs between two instructions
    assert (out.status, out.evals, seen.evals) == ("interrupted", [], [])
    assert out.reason == "stopped by SIGTERM in the evaluation"
    assert out.train_window is not None and task.model.training
    assert 0 < out.eval_s < out.run_s
    if steps:  # what was trained is there to go on with
        _, again = run(ToyTask(), plan, resume=checkpoints.load())
        assert len(again.evals) == 1 and not again.steps
