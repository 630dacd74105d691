# SPDX-License-Identifier: Apache-2.0
"""One evaluation on every rank: its metrics, throughput and latencies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bertbench.common.distributed.world import World
from bertbench.common.errors import BertbenchError
from bertbench.common.measure.throughput import RateMeter, Window, merge_ranks
from bertbench.common.training.events import EvalEvent, Observer
from bertbench.common.training.progress import Progress

if TYPE_CHECKING:
    from bertbench.backends.base import Backend, Telemetry
    from bertbench.common.training.task import Plan, Task

PERCENTILES = (50, 90, 99)


class Stopped(Exception):
    """All ranks ended an evaluation early."""


@torch.no_grad()
def evaluate(
    task: Task, *, backend: Backend, world: World, plan: Plan, progress: Progress,
    observers: Sequence[Observer], telemetry: Telemetry | None = None,
    clock: Callable[[], float] = time.perf_counter, started: float = 0.0,
    stop: Callable[[], bool] | None = None,
) -> EvalEvent:  # fmt: skip
    """Evaluate on every rank, add the sums and send the result to the observers.

    ``stop`` is called before each batch. A rank where it is true skips its other batches; once all
    are done, every rank raises Stopped, without a result.

    The first ``plan.skip_steps`` batches count neither in the rate nor in the latencies.
    ``telemetry`` samples during the seconds of the rate.
    """
    backend.synchronize()
    begin = clock()
    for o in observers:
        o.eval_start(step=progress.step, samples=progress.samples)
    task.model.eval()
    meter = RateMeter(clock=clock, synchronize=backend.synchronize, telemetry=telemetry)
    own = _forward_all(task, backend, plan, meter, stop)
    if stop is not None and max(world.gather(own.stopped)):
        task.model.train()
        raise Stopped
    window = merge_ranks(world.gather(own.window))
    largest = max(world.gather(max((size for size, _ in own.batches), default=0)))
    timed = [s for size, s in own.batches[plan.skip_steps :] if size == largest]
    latencies = sorted(seconds for part in world.gather(timed) for seconds in part)
    values = dict(zip(task.sum_names, world.sum_(own.sums).tolist(), strict=True))
    task.model.train()
    metrics = _results(task, values)
    target = plan.target_value
    now = clock()
    event = EvalEvent(
        step=progress.step, samples=progress.samples, metrics=metrics,
        target_metric=task.target_metric, target_value=target,
        reached=target is not None and metrics[task.target_metric] >= target, eval_s=now - begin,
        time_s=now - started, inference_sequences_per_second=window.sequences_per_second,
        inference_s=window.seconds,
        latency_s={f"p{p}": percentile(latencies, p) for p in PERCENTILES} if latencies else {},
        latency_clock=own.latency_clock, batches=len(latencies), batch_size=largest,
    )  # fmt: skip
    for o in observers:
        o.on_eval(event)
    return event


class _Forward(NamedTuple):
    """One rank's forward passes."""

    sums: Tensor
    window: Window
    batches: list[tuple[int, float]]
    """Sequences and seconds of each."""
    latency_clock: str
    stopped: bool


def _forward_all(
    task: Task, backend: Backend, plan: Plan, meter: RateMeter, stop: Callable[[], bool] | None
) -> _Forward:
    """Run this rank's held-out batches through the model, or those before ``stop`` is true."""
    sums = torch.zeros(len(task.sum_names), device=backend.device)
    batches = task.eval_batches()
    timer = backend.timer()
    stopped = False
    meter.start(warming=plan.skip_steps > 0)
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
    window = meter.stop()
    sizes = [batch.num_samples for batch in batches]
    # After a stop, the batches left have no seconds.
    return _Forward(
        sums, window, list(zip(sizes, timer.seconds(), strict=not stopped)), timer.clock, stopped
    )


def percentile(ascending: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least ``percent`` % do not exceed (nearest rank)."""
    return ascending[max(0, math.ceil(percent / 100 * len(ascending)) - 1)]


def _results(task: Task, values: Mapping[str, float]) -> dict[str, float]:
    """Return the task's results of an evaluation; raises BertbenchError without its target."""
    metrics = task.eval_result(values)
    if task.target_metric not in metrics:
        raise BertbenchError(
            f"{type(task).__name__}: the results of an evaluation lack the target_metric "
            f"{task.target_metric!r}; found {', '.join(metrics)}"
        )
    return metrics
