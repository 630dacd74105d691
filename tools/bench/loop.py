# SPDX-License-Identifier: Apache-2.0
"""Measure the overhead of common/training/loop.py over the bare step."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import replace

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.benchmarks.bert_pretraining.data import find_source
from bertbench.benchmarks.bert_pretraining.recipes import PRESETS
from bertbench.benchmarks.bert_pretraining.task import PretrainingTask
from bertbench.common.config.recipe import Settings
from bertbench.common.distributed.world import World
from bertbench.common.optim.clip import clip_, grad_norm
from bertbench.common.training.loop import train

OVERHEAD_GOAL, WAIT_GOAL = 0.03, 0.01


def loop(rounds: int, steps: int = 50) -> dict[str, object]:
    """Return the loop's overhead over a bare loop, for the mini recipe on synthetic data.

    The bare loop has prepared batches; the loop makes its own, reads its losses every 10 steps and
    has no observer. Both train the same model on the same steps, in turns.
    """
    preset = PRESETS["mini"]
    run = replace(preset.run, synthetic=True, backend="cpu_ref", log_freq=10)
    settings = Settings(preset=preset, recipe=preset.recipe, impl=preset.impl, run=run)
    backend, world = CpuRef(), World()
    task = PretrainingTask(settings, backend, world, find_source(settings))
    plan = replace(
        task.plan(settings), max_steps=steps, eval_every_samples=0, checkpoint_every_samples=0
    )
    batches = list(itertools.islice(task.train_batches(None), steps))

    def bare() -> float:
        begin = time.perf_counter()
        parameters = list(task.model.parameters())
        for i, batch in enumerate(batches):
            for group in task.optimizer.param_groups:
                group["lr"] = task.learning_rate(i)
            for micro in batch.micro_batches:
                with backend.precision(plan.precision):
                    loss, _ = task.loss(task.model, micro, batch)
                loss.backward()
            clip_(parameters, grad_norm(parameters), 1.0)
            task.optimizer.step()
            task.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - begin

    overheads, waits = [], []
    bare()
    for _ in range(rounds):
        outcome = train(task, backend=backend, world=world, plan=plan, observers=[])
        assert outcome.train_window is not None
        seconds = outcome.train_window.seconds
        overheads.append(seconds / bare() - 1)
        waits.append(outcome.data_wait_s / seconds)
    overhead, wait = statistics.median(overheads), statistics.median(waits)
    return {
        "steps": steps,
        "overhead": overhead,
        "overhead_goal": OVERHEAD_GOAL,
        "data_wait": wait,
        "data_wait_goal": WAIT_GOAL,
        "ok": overhead < OVERHEAD_GOAL and wait < WAIT_GOAL,
    }
