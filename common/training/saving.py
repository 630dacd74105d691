# SPDX-License-Identifier: Apache-2.0
"""Checkpoints beside training: copied while every rank waits, then written by a thread of rank 0.

The thread calls no collective. A kill at any time leaves the checkpoint complete or absent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bertbench.common.distributed.sharding import collect
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.files import why
from bertbench.common.masks.attach import to_tensors
from bertbench.common.training.checkpoint import (
    Checkpoints,
    Groups,
    flatten_optimizer,
    rank_group,
    snapshot,
)  # fmt: skip
from bertbench.common.training.events import Observer
from bertbench.common.training.progress import Progress

if TYPE_CHECKING:
    from bertbench.backends.base import Backend
    from bertbench.common.training.task import Task


class Saving:
    """The checkpoints of one run. At most one is being written: the next one waits for it.

    Where the disk refuses, the training goes on with a note: earlier checkpoints are untouched.
    """

    def __init__(
        self, task: Task, scaler: torch.amp.GradScaler, backend: Backend, world: World,
        checkpoints: Checkpoints, progress: Progress, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._task, self._scaler, self._backend, self._world = task, scaler, backend, world
        self._checkpoints, self._progress, self._clock = checkpoints, progress, clock
        # Not a daemon: the interpreter waits for it, so a checkpoint that was begun is finished.
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._written: tuple[int, int, Future[tuple[Path, float]]] | None = None
        self.write_s = 0.0
        """Seconds of writing those that are complete, beside training."""

    def begin(self, observers: Sequence[Observer]) -> float:
        """Copy the state and start to write it; return the seconds that training waited.

        They include those for the checkpoint before. Every rank must call it.
        """
        begin, task = self._clock(), self._task
        self.finish(observers)
        states = self._world.gather(self._backend.rng_state())
        tensors, optimizer = flatten_optimizer(task.optimizer)
        if task.shards.size > 1:
            tensors = collect(tensors, self._world)
            parts = self._world.gather(optimizer["state"])
            optimizer["state"] = {index: entry for part in parts for index, entry in part.items()}
        if self._world.is_main:
            groups = {"model": task.model.state_dict(), "optimizer": tensors}
            if (mask := task.mask_now()) is not None:
                groups["attention_mask"] = to_tensors(mask)
            groups |= {rank_group(rank): state for rank, state in enumerate(states)}
            step, samples = self._progress.step, self._progress.samples
            state = {
                "progress": {name: getattr(self._progress, name) for name in Progress.__slots__},
                "scaler": self._scaler.state_dict(),
                "optimizer": optimizer,
                "world_size": self._world.size,
            }
            writing = self._thread.submit(self._write, step, snapshot(groups), state)
            self._written = step, samples, writing
        self._world.gather(None)
        return self._clock() - begin

    def finish(self, observers: Sequence[Observer], *, wait: bool = True) -> float:
        """Report the checkpoint being written once it is complete; ``wait`` for that, in seconds.

        Without one that can be reported, return 0.
        """
        if self._written is None or not (wait or self._written[2].done()):
            return 0.0
        begin = self._clock()
        step, samples, writing = self._written
        try:
            path, seconds = writing.result()
        except (BadInput, OSError) as error:  # the result does not need it, and the others wait
            for o in observers:
                o.note(f"no checkpoint of step {step}: {why(error)}")
        else:
            self.write_s += seconds
            for o in observers:
                o.on_checkpoint(path=str(path), step=step, samples=samples, seconds=seconds)
        self._written = None
        return self._clock() - begin

    def complete(self, observers: Sequence[Observer]) -> float:
        """Write a checkpoint while every rank waits; return the seconds it took."""
        begin = self._clock()
        self.begin(observers)
        self.finish(observers)
        self._world.gather(None)
        return self._clock() - begin

    def _write(self, step: int, groups: Groups, state: dict[str, Any]) -> tuple[Path, float]:
        begin = time.perf_counter()
        return self._checkpoints.save(step, groups, state), time.perf_counter() - begin
