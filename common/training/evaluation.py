# SPDX-License-Identifier: Apache-2.0
"""One evaluation, on every rank: what the model gives, and how fast it gives it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from bertbench.common.measure.throughput import RateMeter, merge_ranks
from bertbench.common.training.distributed import World
from bertbench.common.training.events import EvalEvent, Observer
from bertbench.common.training.progress import Progress

if TYPE_CHECKING:
    from bertbench.backends.base import Backend, Telemetry
    from bertbench.common.training.task import Plan, Task

PERCENTILES = (50, 90, 99)


class Stopped(Exception):
    """An evaluation was ended early, on every rank."""


@torch.no_grad()
def evaluate(
    task: Task,
    *,
    backend: Backend,
    world: World,
    plan: Plan,
    progress: Progress,
    observers: Sequence[Observer],
    telemetry: Telemetry | None = None,
    clock: Callable[[], float] = time.perf_counter,
    started: float = 0.0,
    stop: Callable[[], bool] | None = None,
) -> EvalEvent:
    """Evaluate on every rank, add the sums, tell the observers.

    ``stop`` is asked before each batch. Where it is true on one rank, that one leaves its batches
    out, and behind theirs all ranks raise Stopped: there is no result, and no observer is told one.

    The first ``plan.skip_steps`` batches count neither in the rate nor in the latencies.
    ``telemetry`` samples during the seconds of the rate.
    """
    backend.synchronize()
    begin = clock()
    for o in observers:
        o.eval_start(step=progress.step, samples=progress.samples)
    task.model.eval()
    sums = torch.zeros(len(task.sum_names), device=backend.device)
    batches = task.eval_batches()
    timer = backend.timer()
    meter = RateMeter(clock=clock, synchronize=backend.synchronize, telemetry=telemetry)
    meter.start(warming=plan.skip_steps > 0)
    stopped = False
    for number, batch in enumerate(batches):
        stopped = stop is not None and stop()
        if stopped:
            break
        if number == plan.skip_steps > 0:
            meter.warmed()
        timer.start()
        with backend.precision(plan.precision):
            sums += task.eval_sums(task.model, batch.to(backend.device))
        timer.stop()
        meter.add(samples=batch.num_samples)
    counted = meter.stop()
    if stop is not None and max(world.gather(stopped)):
        task.model.train()
        raise Stopped
    window = merge_ranks(world.gather(counted))
    largest = max(world.gather(max((b.num_samples for b in batches), default=0)))
    own = list(zip(batches, timer.seconds(), strict=True))[plan.skip_steps :]
    gathered = world.gather([s for b, s in own if b.num_samples == largest])
    latencies = sorted(seconds for part in gathered for seconds in part)
    values = dict(zip(task.sum_names, world.sum_(sums).tolist(), strict=True))
    task.model.train()
    metrics = task.eval_result(values)
    target = plan.target_value
    now = clock()
    event = EvalEvent(
        step=progress.step,
        samples=progress.samples,
        metrics=metrics,
        target_metric=task.target_metric,
        target_value=target,
        reached=target is not None and metrics[task.target_metric] >= target,
        eval_s=now - begin,
        time_s=now - started,
        inference_sequences_per_second=window.sequences_per_second,
        inference_s=window.seconds,
        latency_s={f"p{p}": percentile(latencies, p) for p in PERCENTILES} if latencies else {},
        latency_clock=timer.clock,
        batches=len(latencies),
        batch_size=largest,
    )
    for o in observers:
        o.on_eval(event)
    return event


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of them do not exceed (nearest rank)."""
    return ascending[max(0, math.ceil(percent / 100 * len(ascending)) - 1)]
