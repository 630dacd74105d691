# SPDX-License-Identifier: Apache-2.0
"""The one training loop, shared by all benchmarks. Read it top to bottom.

A task says what is trained (model, batches, loss, evaluation); a backend says where; observers
are told what happened and cannot change it. All maths of a step is in ``train_step``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bertbench.common.measure.throughput import RateMeter, Window, merge_ranks
from bertbench.common.optim.clip import clip_, clip_each_, grad_norm
from bertbench.common.training.checkpoint import Checkpoints
from bertbench.common.training.distributed import World
from bertbench.common.training.evaluation import Stopped, evaluate
from bertbench.common.training.events import EvalEvent, Observer
from bertbench.common.training.progress import Progress, restore, save_checkpoint, step_event
from bertbench.common.training.stops import Faults, Interruption
from bertbench.common.training.task import Plan, Task

if TYPE_CHECKING:
    from bertbench.backends.base import Backend, Telemetry

GO_ON, TIME_IS_UP, INTERRUPTED = 0, 1, 2


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What the loop hands back."""

    status: str
    reason: str
    progress: Progress
    train_window: Window | None = None
    """All timed steps of this process behind the skipped ones: ranks added, slowest seconds."""
    steps_done: int = 0
    """In this process, not counting those before a resume."""
    samples_done: int = 0
    """Trained in these steps."""
    skipped: int = 0
    """Of them, those that the timed window leaves out."""
    run_s: float = 0.0
    eval_s: float = 0.0
    checkpoint_s: float = 0.0
    data_wait_s: float = 0.0
    evals: list[EvalEvent] = field(default_factory=list)


def train(
    task: Task,
    *,
    backend: Backend,
    world: World,
    plan: Plan,
    observers: Sequence[Observer],
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
    resume: tuple[Mapping[str, Mapping[str, Tensor]], Mapping[str, Any]] | None = None,
    telemetry: Telemetry | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Train until the target, a limit, a signal or divergence.

    ``observers`` is empty on all ranks but rank 0. ``progress`` is kept up to date, for whoever
    has to know how far it came when it raises. ``resume`` is what ``Checkpoints.load`` gave.
    ``telemetry`` samples during exactly the seconds that the rates are taken over.

    Raises DivergedError with the step and the cause when a loss or gradient is not finite.
    """
    scaler = backend.grad_scaler(plan.precision, plan.init_loss_scale)
    progress = progress or Progress()
    progress.next_eval_samples = plan.eval_start_samples
    progress.next_checkpoint_samples = max(
        plan.checkpoint_start_samples, plan.checkpoint_every_samples
    )
    if resume is not None:
        restore(task, scaler, backend, world, resume, progress)
    model = backend.wrap_ddp(task.model) if world.size > 1 else task.model
    out = Outcome(status="below_quality", reason="", progress=progress)
    meter = RateMeter(clock=clock, synchronize=backend.synchronize, telemetry=telemetry)
    sums = torch.zeros(len(task.sum_names), device=backend.device)
    faults = Faults(backend.device, progress.step)
    wait_s = 0.0
    out.skipped = plan.skip_steps

    def look(stop: Callable[[], bool] | None = None) -> None:
        evaluation = evaluate(
            task, backend=backend, world=world, plan=plan, progress=progress, observers=observers,
            telemetry=None if plan.max_steps else telemetry, clock=clock, started=started,
            stop=stop,
        )  # fmt: skip
        out.evals.append(evaluation)
        out.eval_s += evaluation.eval_s
        if evaluation.reached:
            out.status, out.reason = "ok", f"target reached at {progress.samples} samples"

    def signalled() -> str:
        return interrupted.name or "a signal to another process"

    for o in observers:
        o.run_start(step=progress.step, samples=progress.samples)
    started = clock()
    batches = task.train_batches(progress.position)
    interrupted = Interruption()
    with interrupted, contextlib.closing(batches):  # type: ignore[type-var]
        meter.start(warming=plan.skip_steps > 0)
        while progress.step < plan.max_steps and progress.samples < plan.max_samples:
            time_is_up = plan.max_minutes and clock() - started > 60 * plan.max_minutes
            vote = world.max_async(
                INTERRUPTED if interrupted.asked else TIME_IS_UP if time_is_up else GO_ON
            )
            before = clock()
            batch = next(batches)
            wait_s += clock() - before

            for group in task.optimizer.param_groups:
                group["lr"] = task.learning_rate(progress.step)
            step_sums, norm = train_step(task, model, batch, backend, world, plan, scaler, faults)
            sums.copy_(step_sums)

            progress.step += 1
            progress.samples += batch.num_samples
            progress.position = batch.position
            progress.skipped_steps += faults.skipped
            out.steps_done += 1
            out.samples_done += batch.num_samples
            warm = out.steps_done == plan.skip_steps
            faults.seen(progress.step)
            own = sum(m.num_samples for m in batch.micro_batches)
            meter.add(
                samples=own,
                real_tokens=sum(m.num_tokens for m in batch.micro_batches),
                padded_tokens=own * plan.padded_length,
                model_flops=sum(task.model_flops(m) for m in batch.micro_batches),
            )

            last = progress.step >= plan.max_steps or progress.samples >= plan.max_samples
            eval_due = plan.eval_every_samples and progress.samples >= progress.next_eval_samples
            code = vote.result()
            if progress.step % plan.log_freq == 0 or last or eval_due or code or warm:
                lap = meter.lap()
                if warm:
                    meter.warmed()
                window = merge_ranks(world.gather(lap))
                total_wait = max(world.gather(wait_s))
                out.data_wait_s += total_wait
                faults.check()
                values = dict(zip(task.sum_names, world.sum_(sums).tolist(), strict=True))
                event = step_event(
                    task, plan, progress, values, norm, scaler, window, total_wait,
                    clock() - started,
                )  # fmt: skip
                for o in observers:
                    o.on_step(event)
                wait_s = 0.0

            if eval_due:
                meter.pause()
                look()
                while progress.next_eval_samples <= progress.samples:
                    progress.next_eval_samples += plan.eval_every_samples
                meter.resume()
                if out.status == "ok":
                    break

            due = progress.samples >= progress.next_checkpoint_samples
            if checkpoints and plan.checkpoint_every_samples and (due or code == INTERRUPTED):
                meter.pause()
                while progress.next_checkpoint_samples <= progress.samples:
                    progress.next_checkpoint_samples += plan.checkpoint_every_samples
                out.checkpoint_s += save_checkpoint(
                    task, scaler, backend, world, checkpoints, progress, observers, clock
                )
                meter.resume()
            if code == INTERRUPTED:
                out.status = "interrupted"
                out.reason = f"stopped by {signalled()} after step {progress.step}"
                break
            if code == TIME_IS_UP:
                out.reason = f"--max_minutes {plan.max_minutes:g} is over"
                break
        out.train_window = merge_ranks(world.gather(meter.stop()))
        if plan.eval_at_end and out.status == "below_quality":
            # The last thing there is: a signal has no step to be noticed at behind it.
            begin = clock()
            try:
                look(stop=lambda: interrupted.asked)
            except Stopped:
                out.eval_s += clock() - begin
                out.status, out.reason = (
                    "interrupted",
                    f"stopped by {signalled()} in the evaluation",
                )
    out.run_s = clock() - started
    if not out.reason:
        limit = "max_steps" if progress.step >= plan.max_steps else "max_samples_termination"
        out.reason = f"{limit} reached" if plan.max_steps else "evaluated"
        if plan.target_value is not None:
            best = max((e.metrics[task.target_metric] for e in out.evals), default=None)
            shown = "no evaluation was due" if best is None else f"best {best:.5f}"
            out.reason += f" before the target {plan.target_value} ({shown})"
    if plan.target_value is None and out.status == "below_quality":
        out.status = "ok"  # nothing was to be reached
    success = out.status == "ok"
    for o in observers:
        o.run_stop(
            step=progress.step,
            samples=progress.samples,
            status="success" if success else "aborted",
        )
    return out


def train_step(
    task: Task,
    model: nn.Module,
    batch: Any,
    backend: Backend,
    world: World,
    plan: Plan,
    scaler: torch.amp.GradScaler,
    faults: Faults,
) -> tuple[Tensor, Tensor | None]:
    """One optimizer step over this rank's micro-batches: its sums, and the gradient's norm."""
    total: Tensor | None = None
    last = len(batch.micro_batches) - 1
    for i, micro in enumerate(batch.micro_batches):
        # Gradients travel once per step, behind the last micro-batch's backward pass.
        apart = world.size > 1 and (i < last or not plan.clip_after_allreduce)
        with model.no_sync() if apart else contextlib.nullcontext():  # type: ignore[operator]
            with backend.precision(plan.precision):
                loss, sums = task.loss(model, micro.to(backend.device), batch)
            # DDP averages over ranks, but the loss is already a share of the global mean.
            scaler.scale(loss * world.size).backward()
        total = sums if total is None else total + sums
    assert total is not None
    faults.loss(total)

    parameters = [p for p in task.model.parameters() if p.grad is not None]
    scaler.unscale_(task.optimizer)
    if world.size > 1 and not plan.clip_after_allreduce:
        if plan.max_grad_norm is not None:
            _clip(task.optimizer, plan, grad_norm(parameters))
        _all_reduce_mean(parameters, world)
        if scaler.is_enabled():
            # Each rank looked at its own gradients only: all must skip if one overflowed.
            for found in scaler._found_inf_per_device(task.optimizer).values():
                world.sum_(found)
    norm = None
    if plan.max_grad_norm is not None:
        norm = grad_norm(parameters)
        if not scaler.is_enabled():  # with a scaler, overflow skips the step instead
            faults.gradient(norm)
        _clip(task.optimizer, plan, norm)
    scale = scaler.get_scale() if scaler.is_enabled() else None
    backend.optimizer_step(task.optimizer, scaler)
    faults.skipped = int(scale is not None and scaler.get_scale() < scale)
    task.optimizer.zero_grad(set_to_none=True)
    return total, norm


def _clip(optimizer: torch.optim.Optimizer, plan: Plan, norm: Tensor) -> None:
    """Bound the gradients, whose norm together is ``norm``, in place."""
    assert plan.max_grad_norm is not None
    if plan.clipping == "per_parameter":
        clip_each_(optimizer.param_groups, plan.max_grad_norm)
    else:
        clip_([p for g in optimizer.param_groups for p in g["params"]], norm, plan.max_grad_norm)


def _all_reduce_mean(parameters: Sequence[Tensor], world: World) -> None:
    """What DDP would have done, after the clipping instead of before it."""
    flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    world.sum_(flat).div_(world.size)
    offset = 0
    for p in parameters:
        assert p.grad is not None
        p.grad.copy_(flat[offset : offset + p.grad.numel()].view_as(p.grad))
        offset += p.grad.numel()
