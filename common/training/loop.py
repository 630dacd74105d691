# SPDX-License-Identifier: Apache-2.0
"""The training loop that all benchmarks share; its story is ``Training.run``.

A task says what to train (model, batches, loss, evaluation), a backend where. Observers read the
events and cannot change the run. All maths of a step is in step.py.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bertbench.common.distributed.world import Agreement, World
from bertbench.common.measure.telemetry import prepared
from bertbench.common.measure.throughput import RankWindows, RateMeter
from bertbench.common.training.checkpoint import Checkpoints, Saved
from bertbench.common.training.evaluation import Stopped, evaluate
from bertbench.common.training.events import Observer
from bertbench.common.training.progress import (
    Outcome,
    Progress,
    merge_windows,
    restore,
    step_event,
)
from bertbench.common.training.saving import Saving
from bertbench.common.training.step import train_step
from bertbench.common.training.stops import Faults, Interruption, check_weights
from bertbench.common.training.task import Plan, Task

if TYPE_CHECKING:
    from bertbench.backends.base import Backend, Telemetry

GO_ON, TIME_IS_UP, INTERRUPTED = 0, 1, 2


def train(
    task: Task, *, backend: Backend, world: World, plan: Plan, observers: Sequence[Observer],
    checkpoints: Checkpoints | None = None, progress: Progress | None = None,
    resume: Saved | None = None, telemetry: Telemetry | None = None,
    clock: Callable[[], float] = time.perf_counter, interruption: Interruption | None = None,
) -> Outcome:  # fmt: skip
    """Train until the target, a limit, a signal or divergence.

    ``observers`` is empty on all ranks but rank 0. ``progress`` is kept up to date, so that the
    caller has it when this raises. ``resume`` is the result of ``Checkpoints.load``.
    ``telemetry`` samples during exactly the seconds of the rates. ``interruption`` is that of the
    caller, who may enter it first, so that it still holds when this returns.

    When a loss or gradient is not finite, every rank raises DivergedError with the same step:
    at the next report, before an evaluation or checkpoint of the weights. ``train_step`` says why
    the ranks' weights stay equal until then.
    """
    training = Training(
        task, backend, world, plan, observers, checkpoints, progress or Progress(), resume,
        telemetry, clock, interruption or Interruption(),
    )  # fmt: skip
    with prepared(telemetry):
        return training.run()


class Training:
    """One run of ``train``, used once: ``run`` is the story, the other methods are its steps."""

    def __init__(
        self,
        task: Task, backend: Backend, world: World, plan: Plan, observers: Sequence[Observer],
        checkpoints: Checkpoints | None, progress: Progress, resume: Saved | None,
        telemetry: Telemetry | None, clock: Callable[[], float], interruption: Interruption,
    ) -> None:  # fmt: skip
        self.task, self.backend, self.world, self.plan = task, backend, world, plan
        self.observers, self.progress = observers, progress
        self.telemetry, self.clock = telemetry, clock
        self.scaler = backend.grad_scaler(plan.precision, plan.init_loss_scale)
        progress.next_eval_samples = plan.eval_start_samples
        progress.next_checkpoint_samples = max(
            plan.checkpoint_start_samples, plan.checkpoint_every_samples
        )
        self.save: Saving | None = None
        if checkpoints is not None and plan.checkpoint_every_samples:
            saved = task, self.scaler, backend, world, checkpoints, progress, clock
            self.save = Saving(*saved)
        if resume is not None:
            restore(task, self.scaler, backend, world, resume, progress)
        alone = world.size == 1
        self.model = task.model if alone else backend.wrap_ddp(task.model, plan.reduce_dtype)
        self.out = Outcome(status="below_quality", reason="", progress=progress)
        self.out.skipped = plan.skip_steps
        self.meter = RateMeter(clock=clock, synchronize=backend.synchronize, telemetry=telemetry)
        self.windows = RankWindows()
        self.interruption = interruption
        self.faults = Faults(backend.device, progress.step)
        self.sums = torch.zeros(len(task.sum_names), device=backend.device)
        self.norm: Tensor | None = None
        self.wait_s = 0.0
        self.started = 0.0

    def run(self) -> Outcome:
        """Train to the end and return the outcome; raises DivergedError (see ``train``)."""
        progress, out = self.progress, self.out
        for o in self.observers:
            o.run_start(step=progress.step, samples=progress.samples)
        self.started = self.clock()
        batches = self.task.train_batches(progress.position)
        with self.interruption, contextlib.closing(batches), self._saved():  # type: ignore[type-var]
            self.meter.start(warming=self.plan.skip_steps > 0)
            while not self._at_limit():
                vote = self._vote()
                self._step(batches)
                stop = vote.result()
                if self._report_due(stop):
                    self._report()
                if self._eval_due():
                    self._evaluate()
                    if out.status == "ok":
                        break
                if self._save_due(stop):
                    self._save()
                if stop != GO_ON:
                    self._stop(stop)
                    break
            window = merge_windows(self.world, self.meter.stop(), self.observers)
            self._check_end(World() if window is None else self.world)
            out.train_window = window
            if self.plan.eval_at_end and out.status == "below_quality":
                self._evaluate_at_end()
        out.run_s = self.clock() - self.started
        self._conclude()
        for o in self.observers:
            o.run_stop(
                step=progress.step, samples=progress.samples,
                status="success" if out.status == "ok" else "aborted",
            )  # fmt: skip
        return out

    def _check_end(self, world: World) -> None:
        """Raise DivergedError where a run that was not interrupted has trained nothing usable."""
        if self.out.steps_done and self.out.status != "interrupted":
            check_weights(self.task.model, world, self.progress.step)
            if self.out.status != "ok":
                self.faults.check_scale(self.progress)

    def _at_limit(self) -> bool:
        plan, progress = self.plan, self.progress
        return progress.step >= plan.max_steps or progress.samples >= plan.max_samples

    def _vote(self) -> Agreement:
        """Start to agree with the other ranks on whether this step is the last."""
        minutes = self.plan.max_minutes
        time_is_up = minutes and self.clock() - self.started > 60 * minutes
        return self.world.max_async(
            INTERRUPTED if self.interruption.requested else TIME_IS_UP if time_is_up else GO_ON
        )

    def _step(self, batches: Iterator[Any]) -> None:
        """Take the next batch, do one optimizer step and count it."""
        task, progress, out = self.task, self.progress, self.out
        before = self.clock()
        batch = next(batches)
        self.wait_s += self.clock() - before

        for group in task.optimizer.param_groups:
            group["lr"] = task.learning_rate(progress.step)
        sums, self.norm = train_step(
            task, self.model, batch, self.backend, self.world, self.plan, self.scaler, self.faults
        )
        self.sums.copy_(sums)

        progress.step += 1
        progress.samples += batch.num_samples
        progress.position = batch.position
        progress.skipped_steps += self.faults.skipped
        out.steps_done += 1
        out.samples_done += batch.num_samples
        self.faults.finish_step(progress.step)
        samples = sum(m.num_samples for m in batch.micro_batches)
        self.meter.add(
            samples=samples,
            real_tokens=sum(m.num_tokens for m in batch.micro_batches),
            padded_tokens=samples * self.plan.padded_length,
            model_flops=sum(task.model_flops(m) for m in batch.micro_batches),
            effective_flops=sum(task.effective_flops(m) for m in batch.micro_batches),
        )

    def _warm_up_ends(self) -> bool:
        return self.out.steps_done == self.plan.skip_steps

    def _report_due(self, stop: int) -> bool:
        return (
            self.progress.step % self.plan.log_freq == 0
            or self._at_limit()
            or self._eval_due()
            or stop != GO_ON
            or self._warm_up_ends()
        )

    def _report(self) -> None:
        """End the window, check every rank's numbers and send the step to the observers."""
        task, world = self.task, self.world
        lap = self.meter.lap()
        if self._warm_up_ends():
            self.meter.warmed()
        laps, waits, faults = zip(
            *world.gather((lap, self.wait_s, self.faults.first_steps())), strict=True
        )
        self.faults.check(faults)
        self.faults.check_scale()
        self.wait_s = 0.0
        self.out.data_wait_s += max(waits)
        values = dict(zip(task.sum_names, world.sum_(self.sums).tolist(), strict=True))
        window = self.windows.merge(laps)
        if self._warm_up_ends():
            self.windows = RankWindows()
        event = step_event(
            task, self.plan, self.progress, values, self.norm, self.scaler, window, max(waits),
            self.clock() - self.started,
        )  # fmt: skip
        for o in self.observers:
            o.on_step(event)
        if self.save is not None:
            self.save.finish(self.observers, wait=False)

    def _eval_due(self) -> bool:
        every, progress = self.plan.eval_every_samples, self.progress
        return every > 0 and progress.samples >= progress.next_eval_samples

    def _evaluate(self) -> None:
        """Evaluate between two steps, outside the timed window."""
        progress = self.progress
        self.meter.pause()
        self._evaluate_now()
        while progress.next_eval_samples <= progress.samples:
            progress.next_eval_samples += self.plan.eval_every_samples
        self.meter.resume()

    def _evaluate_at_end(self) -> None:
        """Evaluate after the last step; a signal ends it, since no later step would notice."""
        begin = self.clock()
        try:
            self._evaluate_now(stop=lambda: self.interruption.requested)
        except Stopped:
            self.out.eval_s += self.clock() - begin
            self.out.status = "interrupted"
            self.out.reason = f"stopped by {self._signal()} in the evaluation"

    def _evaluate_now(self, stop: Callable[[], bool] | None = None) -> None:
        out, progress = self.out, self.progress
        event = evaluate(
            self.task, backend=self.backend, world=self.world, plan=self.plan, progress=progress,
            observers=self.observers, telemetry=None if self.plan.max_steps else self.telemetry,
            clock=self.clock, started=self.started, stop=stop,
        )  # fmt: skip
        out.evals.append(event)
        out.eval_s += event.eval_s
        if event.reached:
            out.status, out.reason = "ok", f"target reached at {progress.samples} samples"
            out.save = None if self.save is None else self.save.complete

    def _save_due(self, stop: int) -> bool:
        due = self.progress.samples >= self.progress.next_checkpoint_samples
        return self.save is not None and (due or stop == INTERRUPTED)

    def _save(self) -> None:
        """Write a checkpoint outside the timed window, if every rank's numbers are finite."""
        assert self.save is not None
        progress = self.progress
        self.meter.pause()
        self.faults.check(self.world.gather(self.faults.first_steps()))
        check_weights(self.task.model, self.world, progress.step)
        while progress.next_checkpoint_samples <= progress.samples:
            progress.next_checkpoint_samples += self.plan.checkpoint_every_samples
        self.out.checkpoint_s += self.save.begin(self.observers)
        self.meter.resume()

    @contextlib.contextmanager
    def _saved(self) -> Iterator[None]:
        """Wait at the end of the block, however it ends, for the checkpoint being written."""
        try:
            yield
        finally:
            if self.save is not None:
                self.out.checkpoint_s += self.save.finish(self.observers)
                self.out.checkpoint_write_s = self.save.write_s

    def _stop(self, stop: int) -> None:
        """Record the reason that the ranks agreed on."""
        if stop == INTERRUPTED:
            self.out.status = "interrupted"
            self.out.reason = f"stopped by {self._signal()} after step {self.progress.step}"
        else:
            self.out.reason = f"--max_minutes {self.plan.max_minutes:g} is over"

    def _signal(self) -> str:
        return self.interruption.name or "a signal to another process"

    def _conclude(self) -> None:
        """Add the reason of a run that a limit ended, and the status of one without a target."""
        out, plan, target = self.out, self.plan, self.plan.target_value
        if not out.reason:
            at_steps = self.progress.step >= plan.max_steps
            limit = "max_steps" if at_steps else "max_samples_termination"
            out.reason = f"{limit} reached" if plan.max_steps else "evaluated"
            if target is not None:
                best = max((e.metrics[self.task.target_metric] for e in out.evals), default=None)
                shown = "no evaluation was due" if best is None else f"best {best:.5f}"
                out.reason += f" before the target {target} ({shown})"
        if target is None and out.status == "below_quality":
            out.status = "ok"
