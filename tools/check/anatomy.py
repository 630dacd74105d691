# SPDX-License-Identifier: Apache-2.0
"""Measure the phases of one pretraining step, the host's time for it, and its kernels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch

from backends.base import Backend
from benchmarks.bert_pretraining.task import PretrainingTask, build, prepare
from check.device import Check, choose_precision, free_memory
from check.figure import Report
from check.profile import profile_step
from check.runs import pretraining_arguments
from check.timing import WARM_UP, issue_seconds, step_clock, step_seconds
from common.cli import resolve
from common.data.steps import StepBatch
from common.distributed import World
from common.guards import Faults
from common.optim.clip import clip_, grad_norm
from common.training import Plan, train_step

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


def subject(check: Check, backend: Backend, precision: str, micro: int, count: int) -> Subject:
    """Build BERT-large and ``count`` steps of 1 x ``micro`` sequences for it."""
    recipe, *flags = pretraining_arguments(check, precision, 1, micro, 1)
    settings = resolve(recipe, flags)
    task = build(settings, backend, World(), prepare(settings))
    task.model.train()
    with closing(task.train_batches(None)) as stream:  # type: ignore[type-var]
        batches = list(itertools.islice(stream, count))
    return Subject(backend=backend, task=task, plan=task.plan(settings), batches=batches)


def anatomy(check: Check, report: Report) -> None:
    """Time a step and its phases, each with the device idle at both ends, and profile it."""
    backend = check.open()
    precision = choose_precision(check, backend, "bf16")
    micro = check.size(96, 4)
    it = subject(check, backend, precision, micro, 6)
    step, label = it.stepper(), f"{precision} 1 x {micro}"
    turns = itertools.cycle(it.batches)

    def mixed() -> None:
        step(next(turns))

    def ms(name: str, seconds: float, what: str, clock: str) -> float:
        report.figure(f"{label}: {name}", 1e3 * seconds, "ms", f"{what}; {clock}")
        return seconds

    clock = step_clock(8)
    whole = "a whole optimizer step: forward, backward, clipping, LAMB"
    free_memory(backend)
    seconds = ms("step, real lengths", step_seconds(backend, mixed, 8), whole, clock)
    rate(
        report,
        f"{label}: rate, real lengths",
        micro / seconds,
        "sequences of a step / seconds of the step, real lengths",
    )
    peak = backend.peak_memory()
    report.figure(
        f"{label}: peak memory, real lengths",
        None if peak is None else peak.peak_memory_bytes / 2**30,
        "GiB",
        "peak over whole steps" + ("" if peak is None else f"; {peak.definition}"),
        "" if peak is not None else "the device does not report it",
    )
    report.figure(
        f"{label}: host time to issue a step",
        1e3 * issue_seconds(backend, mixed, 5),
        "ms",
        "from the call to its return, with the device idle before and not waited for after; an "
        "upper bound where the device's queue fills up; median of 5",
    )
    full = it.task.made_up_step(micro, 1)
    seconds = ms("step, full length", step_seconds(backend, lambda: step(full), 5), whole,
                 step_clock(5))  # fmt: skip
    rate(
        report,
        f"{label}: rate, full length",
        micro / seconds,
        "sequences of a step / seconds of the step, full length",
    )
    phases(it, ms)
    profile_step(check, report, backend, label, lambda: step(it.batches[1]), WARM_UP)


def phases(it: Subject, ms: Callable[[str, float, str, str], float]) -> None:
    """Time forward, backward, clipping and LAMB separately, on one batch of real lengths."""
    backend, optimizer = it.backend, it.task.optimizer
    batch, clock = it.batches[0], step_clock(5)

    def forward() -> None:
        with torch.no_grad():
            it.loss(batch)

    def both(of: StepBatch = batch) -> None:
        it.loss(of).backward()

    ms("forward", step_seconds(backend, forward, 5), "forward without gradients", clock)
    ms("forward and backward", step_seconds(backend, both, 5), "gradients are added", clock)
    one = it.task.made_up_step(1, 1, typical=True)
    ms(
        "forward and backward of 1 sequence",
        step_seconds(backend, lambda: both(one), 5),
        "one sequence of typical length: what the host and the weights' traffic cost at least",
        clock,
    )
    parameters = [p for p in it.task.model.parameters() if p.grad is not None]
    unscaled = backend.grad_scaler("fp32")

    def clip() -> None:
        clip_(parameters, grad_norm(parameters), 1.0)

    ms("clipping", step_seconds(backend, clip, 5), "norm of all gradients, and scaling", clock)
    ms(
        "LAMB",
        step_seconds(backend, lambda: backend.optimizer_step(optimizer, unscaled), 5),
        "the optimizer's update of all parameters",
        clock,
    )
    optimizer.zero_grad(set_to_none=True)


def rate(report: Report, name: str, value: float, definition: str) -> None:
    """Report a figure in sequences per second."""
    report.figure(name, value, "sequences/s", definition)
