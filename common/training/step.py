# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: all of training's maths."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bertbench.common.distributed.all_reduce import average_
from bertbench.common.distributed.world import World
from bertbench.common.errors import BertbenchError
from bertbench.common.optim.clip import clip_, clip_each_, clip_factor, grad_norm
from bertbench.common.optim.lamb import Lamb
from bertbench.common.training.stops import Faults
from bertbench.common.training.task import Plan, Task

if TYPE_CHECKING:
    from bertbench.backends.base import Backend


def train_step(
    task: Task, model: nn.Module, batch: Any, backend: Backend, world: World, plan: Plan,
    scaler: torch.amp.GradScaler, faults: Faults,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Do one optimizer step over this rank's micro-batches.

    All ranks agree on a loss or gradient that is not finite before the update, without another
    collective: such a loss makes its own gradient NaN, and the gradients' all-reduce spreads NaN
    and infinity to every rank. With loss scaling, every rank then skips the update. Without it,
    every rank does the same update, since to skip it the host would have to wait for each step.
    ``faults`` keeps the step's number on the device; ``train`` raises before the weights are used.

    Returns:
        The sums [len(task.sum_names)] of this rank's micro-batches, and the gradient's norm [] (of
        all ranks, before clipping), or None without clipping.
    """
    total: Tensor | None = None
    last = len(batch.micro_batches) - 1
    for i, micro in enumerate(batch.micro_batches):
        # Gradients travel once per step, with the last micro-batch's backward pass.
        apart = world.size > 1 and (i < last or not plan.clip_after_allreduce)
        with model.no_sync() if apart else contextlib.nullcontext():  # type: ignore[operator]
            with backend.precision(plan.precision):
                loss, sums = task.loss(model, micro.to(backend.device), batch)
            # DDP averages over ranks, but the loss is already a share of the global mean. The
            # second term is 0, or NaN where a sum is not finite.
            scaler.scale(loss * (world.size + 0 * sums.sum())).backward()
        total = sums if total is None else total + sums
    assert total is not None
    _check_sums(task, total)
    faults.loss(total)

    parameters = [p for p in task.model.parameters() if p.grad is not None]
    scaler.unscale_(task.optimizer)
    if world.size > 1 and not plan.clip_after_allreduce:
        if plan.max_grad_norm is not None:
            _clip(task.optimizer, plan, grad_norm(parameters))
        average_(parameters, world, plan.reduce_dtype)
        if scaler.is_enabled():
            # Each rank checked its own gradients only: all must skip if one overflowed.
            for found in scaler._found_inf_per_device(task.optimizer).values():
                world.sum_(found)
    norm = None
    if plan.max_grad_norm is not None:
        norm = grad_norm(parameters)
        if not scaler.is_enabled():  # with a scaler, overflow skips the step instead
            faults.gradient(norm)
        _clip(task.optimizer, plan, norm, updates=True)
    scale = scaler.get_scale() if scaler.is_enabled() else None
    with task.shards.update(world):
        backend.optimizer_step(task.optimizer, scaler)
    if scale is not None:
        faults.scaled(scale, scaler.get_scale())
    task.optimizer.zero_grad(set_to_none=True)
    return total, norm


def _check_sums(task: Task, sums: Tensor) -> None:
    """Raise BertbenchError where the task's ``loss`` breaks its contract."""
    if sums.shape != (len(task.sum_names),):
        wanted = f"{len(task.sum_names)} sums ({', '.join(task.sum_names)})"
        raise BertbenchError(f"{type(task).__name__}.loss: {list(sums.shape)} is not {wanted}")


def _clip(
    optimizer: torch.optim.Optimizer, plan: Plan, norm: Tensor, *, updates: bool = False
) -> None:
    """Bound the gradients of ``norm`` [] together: now, or by LAMB if it ``updates`` next."""
    assert plan.max_grad_norm is not None
    if plan.clipping == "per_parameter":
        clip_each_(optimizer.param_groups, plan.max_grad_norm)
    elif updates and isinstance(optimizer, Lamb):
        optimizer.clip_factor = clip_factor(norm, plan.max_grad_norm)
    else:
        clip_([p for g in optimizer.param_groups for p in g["params"]], norm, plan.max_grad_norm)
