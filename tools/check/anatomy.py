# SPDX-License-Identifier: Apache-2.0
"""Measure the phases of one pretraining step, the host's time for it, and its kernels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from bertbench.backends.base import Backend
from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_pretraining.data import find_source
from bertbench.benchmarks.bert_pretraining.task import PretrainingTask
from bertbench.common.data.steps import StepBatch
from bertbench.common.distributed.world import World
from bertbench.common.measure.flops import BACKWARD
from bertbench.common.optim.clip import clip_, grad_norm
from bertbench.common.training.step import train_step
from bertbench.common.training.stops import Faults
from bertbench.common.training.task import Plan
from check.device import Check, choose_precision, free_memory
from check.figure import SectionReport
from check.profile import NO_KERNELS, profile_step
from check.runs import pretraining_arguments
from check.timing import WARM_UP, issue_seconds, step_clock, step_seconds

LEARNING_RATE = 1e-6
"""Changes next to nothing, however often a step is repeated."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The task whose step is measured, and a few of its batches."""

    backend: Backend
    task: PretrainingTask
    plan: Plan
    batches: list[StepBatch]
    """Steps of one micro-batch each, on the host."""

    def stepper(self) -> Callable[[StepBatch], None]:
        """Return a function that does one whole optimizer step, as the training loop does."""
        backend, task, plan = self.backend, self.task, self.plan
        scaler = backend.grad_scaler(plan.precision, plan.init_loss_scale)
        faults = Faults(backend.device)
        set_rate(task.optimizer)

        def step(batch: StepBatch) -> None:
            train_step(task, task.model, batch, backend, World(), plan, scaler, faults)

        return step

    def loss(self, batch: StepBatch) -> torch.Tensor:
        """Return the loss of a step's only micro-batch, a scalar."""
        (micro,) = batch.micro_batches
        with self.backend.precision(self.plan.precision):
            return self.task.loss(self.task.model, micro.to(self.backend.device), batch)[0]


def set_rate(optimizer: torch.optim.Optimizer) -> None:
    """Set a learning rate that changes next to nothing."""
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE


def subject(
    check: Check, backend: Backend, precision: str, micro: int, count: int, *more: str
) -> Subject:
    """Build BERT-large and ``count`` steps of 1 x ``micro`` sequences, with ``more`` flags."""
    recipe, *flags = pretraining_arguments(check, precision, 1, micro, 1)
    settings = resolve(recipe, [*flags, *more])
    task = PretrainingTask(settings, backend, World(), find_source(settings))
    task.model.train()
    with closing(task.train_batches(None)) as stream:  # type: ignore[type-var]
        batches = list(itertools.islice(stream, count))
    return Subject(backend=backend, task=task, plan=task.plan(settings), batches=batches)


@dataclass(frozen=True, kw_only=True)
class Clocked:
    """Report times of one subject, each with the device idle at both ends."""

    report: SectionReport
    backend: Backend
    label: str

    def ms(
        self,
        name: str,
        call: Callable[[], object],
        repeats: int,
        what: str,
        note: str = "",
        warm_up: int = WARM_UP,
    ) -> float:
        """Report the milliseconds of ``call`` as ``name``; return its seconds."""
        seconds = step_seconds(self.backend, call, repeats, warm_up)
        self.add(name, 1e3 * seconds, "ms", f"{what}; {step_clock(repeats, warm_up)}", note)
        return seconds

    def add(
        self, name: str, value: float | None, unit: str, definition: str, note: str = ""
    ) -> None:
        """Report a figure below the label."""
        self.report.figure(f"{self.label}: {name}", value, unit, definition, note)


def anatomy(check: Check, report: SectionReport) -> None:
    """Time a step and its phases, each with the device idle at both ends, and profile it."""
    backend = check.open()
    precision = choose_precision(check, backend, "bf16")
    micro = check.size(96, 4)
    it = subject(check, backend, precision, micro, 6)
    step, count = it.stepper(), len(it.batches)
    turns = itertools.cycle(it.batches)
    clock = Clocked(report=report, backend=backend, label=f"{precision} 1 x {micro}")
    whole = "a whole optimizer step: forward, backward, clipping, LAMB"
    free_memory(backend)
    real = clock.ms(
        "step, real lengths",
        lambda: step(next(turns)),
        2 * count,
        f"{whole}; {count} different batches in turn",
        warm_up=count,
    )
    rate = "sequences of a step / seconds of the step"
    clock.add("rate, real lengths", micro / real, "sequences/s", f"{rate}, real lengths")
    peak = backend.peak_memory()
    clock.add(
        "peak memory, real lengths",
        None if peak is None else peak.peak_memory_bytes / 2**30,
        "GiB",
        "peak over whole steps" + ("" if peak is None else f"; {peak.definition}"),
        "" if peak is not None else "the device does not report it",
    )
    full = it.task.made_up_step(micro, 1)
    seconds = clock.ms("step, full length", lambda: step(full), 5, whole, lengths_note(full))
    clock.add("rate, full length", micro / seconds, "sequences/s", f"{rate}, full length")
    one = it.task.made_up_step(1, 1, typical=True)
    clock.add(
        "host time to issue a step of 1 sequence",
        1e3 * issue_seconds(backend, lambda: step(one), 5),
        "ms",
        "from the call of a whole step to its return, with the device idle before and not waited "
        "for after: one short sequence has short kernels, so that the launch queue does not fill; "
        f"median of 5 after {WARM_UP} untimed",
        "the same number of launches as any micro-batch, unless attention runs per sequence; more "
        "micro-batches repeat all but clipping and LAMB",
    )
    batch = nearest_to_mean(it.batches)
    usual = clock.ms("step, one batch", lambda: step(batch), 5, whole, lengths_note(batch))
    phases(it, batch, one, clock)
    busy = profile_step(check, report, backend, clock.label, lambda: step(batch), WARM_UP)
    clock.add(
        "device busy share",
        None if busy is None else busy / usual,
        "1",
        "kernel time / step, one batch: the latter without the profiler",
        NO_KERNELS if busy is None else lengths_note(batch),
    )


def nearest_to_mean(batches: Sequence[StepBatch]) -> StepBatch:
    """Return the batch whose number of tokens is nearest to the mean."""
    mean = sum(b.num_tokens for b in batches) / len(batches)
    return min(batches, key=lambda b: abs(b.num_tokens - mean))


def lengths_note(batch: StepBatch) -> str:
    """Return the figures of a batch that its time depends on."""
    squares = sum(n * n for micro in batch.micro_batches for n in micro.tokens.lengths)
    return f"{batch.num_tokens:,} tokens, sum of squared lengths {squares:,}"


def phases(it: Subject, batch: StepBatch, one: StepBatch, clock: Clocked) -> None:
    """Time forward, backward, clipping and LAMB separately, on ``batch``; ``one`` is short."""
    backend, optimizer, note = it.backend, it.task.optimizer, lengths_note(batch)

    def both(of: StepBatch = batch) -> None:
        it.loss(of).backward()

    def forward() -> None:
        it.loss(batch)

    first = clock.ms("forward", forward, 5, "forward, keeping what backward needs", note)
    name = "forward and backward"
    total = clock.ms(name, both, 5, "a training pass; gradients accumulate", note)
    rest = total - first
    clock.add("backward", 1e3 * rest, "ms", f"({name}) - forward", note)
    flops = it.task.model_flops(batch.micro_batches[0]) / (1 + BACKWARD)
    for part, work, seconds in (("forward", flops, first), ("backward", BACKWARD * flops, rest)):
        clock.add(
            f"{part}: model FLOP rate",
            work / seconds / 1e12 if seconds > 0 else None,
            "TFLOP/s",
            f"model FLOPs of {part} (common/measure/flops.py) / its time",
            note if seconds > 0 else "its time is within the noise of the clock",
        )
    clock.ms(
        "forward and backward of 1 sequence",
        lambda: both(one),
        5,
        "one sequence of typical length: what the host and the weights' traffic cost at least",
        lengths_note(one),
    )
    parameters = [p for p in it.task.model.parameters() if p.grad is not None]
    unscaled = backend.grad_scaler("fp32")

    def clip() -> None:
        clip_(parameters, grad_norm(parameters), 1.0)

    clock.ms("clipping", clip, 5, "norm of all gradients, and scaling")
    clock.ms(
        "LAMB",
        lambda: backend.optimizer_step(optimizer, unscaled),
        5,
        "the optimizer's update of all parameters",
    )
    optimizer.zero_grad(set_to_none=True)
