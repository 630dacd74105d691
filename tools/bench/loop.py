# SPDX-License-Identifier: Apache-2.0
"""What the training loop costs over the bare step, and how long it waits for data."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from backends.cpu_ref.backend import CpuRef
from benchmarks.bert_pretraining.task import PretrainingTask, prepare
from common.cli import resolve
from common.console import ConsoleObserver
from common.distributed import World
from common.guards import Faults
from common.mlperf import MlperfLog
from common.training import _step, train

STEPS = 30
OVERHEAD_GOAL, WAIT_GOAL = 0.03, 0.01


class _OneStream:
    """Hands out the steps of one endless stream and does not end it when a loop is over."""

    def __init__(self, steps: Iterator[Any]) -> None:
        self.steps, self.tokens = steps, 0

    def __iter__(self) -> _OneStream:
        return self

    def __next__(self) -> Any:
        step = next(self.steps)
        self.tokens += step.num_tokens
        return step

    def close(self) -> None:
        """Nothing: the next loop goes on from here."""


class _Task(PretrainingTask):
    stream: _OneStream

    def train_batches(self, position: dict[str, int] | None) -> Any:
        return self.stream


def loop(rounds: int) -> dict[str, object]:
    """Seconds per token of the loop, reporting every 10 steps to console and MLPerf log, over those
    of its step function called on batches that are ready in memory; the two take turns."""
    settings = resolve("mini", ["--backend", "cpu_ref", "--synthetic", "--log_freq", "10"])
    backend, world = CpuRef(), World()
    task = _Task(settings, backend, world, prepare(settings))
    task.stream = _OneStream(PretrainingTask.train_batches(task, None))
    plan = replace(task.plan(settings), max_steps=STEPS)
    scaler, faults = backend.grad_scaler(plan.precision), Faults(backend.device)
    timer = backend.timer()
    bare, looped, waits = [], [], []
    for turn in range(rounds + 1):
        ready = list(itertools.islice(task.stream, STEPS))
        timer.start()
        for batch in ready:
            _step(task, task.model, batch, backend, world, plan, scaler, faults)
        timer.stop()
        before = task.stream.tokens
        with tempfile.TemporaryDirectory() as folder, Path(folder, "out").open("w") as out:
            log = MlperfLog(
                Path(folder, "result_0.txt"),
                division="open",
                org="bench",
                platform="bench",
                status="research",
                seed=0,
                values={},
            )
            console = ConsoleObserver(max_steps=STEPS, target=None, console=Console(file=out))
            outcome = train(task, backend=backend, world=world, plan=plan, observers=[console, log])
        if turn:
            bare.append(timer.seconds()[-1] / sum(batch.num_tokens for batch in ready))
            looped.append(outcome.run_s / (task.stream.tokens - before))
            waits.append(outcome.data_wait_s / outcome.run_s)
    overhead = statistics.median(b / a for a, b in zip(bare, looped, strict=True)) - 1
    wait = statistics.median(waits)
    return {
        "steps": STEPS,
        "rounds": rounds,
        "overhead": overhead,
        "overhead_goal": OVERHEAD_GOAL,
        "data_wait": wait,
        "data_wait_goal": WAIT_GOAL,
        "ok": overhead < OVERHEAD_GOAL and wait < WAIT_GOAL,
    }
