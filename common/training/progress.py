# SPDX-License-Identifier: Apache-2.0
"""A run's progress: reported, saved in a checkpoint and restored from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.files import shown, why
from bertbench.common.masks.attach import check_same
from bertbench.common.measure.throughput import Window, merge_ranks
from bertbench.common.training.checkpoint import (
    Saved,
    load,
    rank_group,
    restore_optimizer,
    step_of,
)  # fmt: skip
from bertbench.common.training.events import EvalEvent, Observer, StepEvent
from bertbench.common.training.saved import (
    check_length,
    check_scaler,
    check_state,
    check_tensors,
    check_updates,
)

if TYPE_CHECKING:
    from bertbench.backends.base import Backend
    from bertbench.common.training.task import Plan, Task


@dataclass(slots=True)
class Progress:
    """How far a run has come; a checkpoint holds every field."""

    step: int = 0
    samples: int = 0
    skipped_steps: int = 0
    next_eval_samples: int = 0
    next_checkpoint_samples: int = 0
    position: dict[str, int] | None = None


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The result of ``train`` (common/training/loop.py)."""

    status: str
    reason: str
    progress: Progress
    train_window: Window | None = None
    """All timed steps of this process after the skipped ones: ranks added, slowest seconds."""
    steps_done: int = 0
    """Steps of this process, without those before a resume."""
    samples_done: int = 0
    """Samples of these steps."""
    skipped: int = 0
    """How many of these steps the timed window leaves out."""
    run_s: float = 0.0
    eval_s: float = 0.0
    checkpoint_s: float = 0.0
    checkpoint_write_s: float = 0.0
    data_wait_s: float = 0.0
    evals: list[EvalEvent] = field(default_factory=list)
    save: Callable[[Sequence[Observer]], float] | None = None
    """Write the checkpoint of the step that reached the target, after all clocks, on all ranks."""


def restore(
    task: Task, scaler: torch.amp.GradScaler, backend: Backend, world: World, saved: Saved,
    progress: Progress,
) -> None:  # fmt: skip
    """Restore what ``Saving`` wrote: model, optimizer, scaler, random states, progress.

    ``saved`` is a result of ``Checkpoints.load``; random states (uint8 [N]) are restored only on as
    many ranks as wrote them. Raises BadInput where the state or a tensor is not of such a run.
    """
    tensors, state = saved
    check_state(state, tensors)
    # Older checkpoints of compiled models have this prefix.
    model = {name.removeprefix("_orig_mod."): value for name, value in tensors["model"].items()}
    check_tensors("model", model, task.model.state_dict())
    task.model.load_state_dict(model)
    check_same(task.mask_now(), tensors.get("attention_mask"))
    own = task.shards.own
    restore_optimizer(task.optimizer, tensors["optimizer"], state["optimizer"], own)
    for entry in task.optimizer.state.values():
        if isinstance(entry.get("step"), Tensor):
            check_updates(float(entry["step"]), state["progress"])
    if scaler.is_enabled():
        check_scaler(state["scaler"], scaler.state_dict())
        scaler.load_state_dict(state["scaler"])
    if state["world_size"] == world.size:
        needed, found = backend.rng_state(), tensors[rank_group(world.rank)]
        found = {name: state for name, state in found.items() if name in needed}
        check_tensors("random state", found, needed)
        try:
            backend.set_rng_state(found)
        except (RuntimeError, TypeError, ValueError) as error:
            raise BadInput(f"the checkpoint's random state is refused: {shown(error)}") from error
    for name in Progress.__slots__:
        setattr(progress, name, state["progress"][name])


def merge_windows(world: World, window: Window, observers: Sequence[Observer]) -> Window | None:
    """Return the timed window of all processes; None, with a note, once one of them has left."""
    try:
        return merge_ranks(world.gather(window))
    except Exception as error:  # the collective's own, of any type: the result needs no peer
        for o in observers:
            o.note(f"the rates of all processes are unknown: {why(error)}")
        return None


def load_run(path: Path, plan: Plan, batch: int) -> Saved:
    """Return the verified checkpoint at ``path``, of a run with this ``plan`` and global batch.

    Raises BadInput for a damaged one, and for a state that such a run cannot have reached.
    """
    found = load(path)
    try:
        check_state(found[1], found[0])
        check_length(found[1]["progress"], named=step_of(path), most=plan.max_steps, batch=batch)
    except BadInput as error:
        raise BadInput(f"--resume {path}: {error}") from error
    return found


def step_event(
    task: Task, plan: Plan, progress: Progress, values: Mapping[str, float], norm: Tensor | None,
    scaler: torch.amp.GradScaler, window: Window, data_wait_s: float, time_s: float,
) -> StepEvent:  # fmt: skip
    """Return the event of this step and of the window that ends with it; ``norm`` is []."""
    metrics = task.metrics(values)
    steps_left = min(
        plan.max_steps - progress.step,
        -(-(plan.max_samples - progress.samples) * window.steps // max(window.samples, 1)),
    )
    return StepEvent(
        step=progress.step, samples=progress.samples, loss=metrics.pop("loss"), metrics=metrics,
        learning_rate=task.learning_rate(progress.step - 1),
        grad_norm=None if norm is None else float(norm),
        loss_scale=scaler.get_scale() if scaler.is_enabled() else None,
        skipped_steps=progress.skipped_steps, window_steps=window.steps, window_s=window.seconds,
        sequences_per_second=window.sequences_per_second,
        real_tokens_per_second=window.real_tokens_per_second,
        padded_tokens_per_second=window.padded_tokens_per_second, data_wait_s=data_wait_s,
        time_s=time_s,
        eta_s=max(0, steps_left) * window.seconds / window.steps if window.steps else None,
    )  # fmt: skip
