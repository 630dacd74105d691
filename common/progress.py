# SPDX-License-Identifier: Apache-2.0
"""Where a run stands, and how that goes into a checkpoint and comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.checkpoint import Checkpoints, flatten_optimizer, rank_group, restore_optimizer
from common.distributed import World
from common.events import Observer

if TYPE_CHECKING:
    from backends.base import Backend
    from common.training import Task


@dataclass(slots=True)
class Progress:
    """Where the run stands: everything of it goes into a checkpoint."""

    step: int = 0
    samples: int = 0
    skipped_steps: int = 0
    next_eval_samples: int = 0
    next_checkpoint_samples: int = 0
    position: dict[str, int] | None = None


def save_checkpoint(
    task: Task,
    scaler: torch.amp.GradScaler,
    backend: Backend,
    world: World,
    checkpoints: Checkpoints,
    progress: Progress,
    observers: Sequence[Observer],
    clock: Callable[[], float],
) -> float:
    """Write a checkpoint on rank 0; every rank waits for it. Returns the seconds it took."""
    begin = clock()
    states = world.gather(backend.rng_state())
    if world.is_main:
        tensors, optimizer = flatten_optimizer(task.optimizer)
        groups = {"model": task.model.state_dict(), "optimizer": tensors}
        for rank, state in enumerate(states):
            groups[rank_group(rank)] = state
        path = checkpoints.save(
            progress.step,
            groups,
            {
                "progress": {name: getattr(progress, name) for name in Progress.__slots__},
                "scaler": scaler.state_dict(),
                "optimizer": optimizer,
                "world_size": world.size,
            },
        )
        for o in observers:
            o.on_checkpoint(
                path=str(path),
                step=progress.step,
                samples=progress.samples,
                seconds=clock() - begin,
            )
    world.gather(None)
    return clock() - begin


def restore(
    task: Task,
    scaler: torch.amp.GradScaler,
    backend: Backend,
    world: World,
    saved: tuple[Mapping[str, Mapping[str, Tensor]], Mapping[str, Any]],
) -> Progress:
    tensors, state = saved
    task.model.load_state_dict(tensors["model"])
    restore_optimizer(task.optimizer, tensors["optimizer"], state["optimizer"])
    if scaler.is_enabled():
        scaler.load_state_dict(state["scaler"])
    if state["world_size"] == world.size:
        backend.set_rng_state(tensors[rank_group(world.rank)])
    return Progress(**state["progress"])
