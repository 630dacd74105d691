# SPDX-License-Identifier: Apache-2.0
"""Steps before the clock starts: do they fit the device's memory, and run on the device?

A rehearsal does real training steps on made-up data of the largest shape there can be, with the
optimizer's state and the gradients in memory, and then puts everything back: weights, optimizer,
gradients and random states are as they were, and no data was touched.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertbench.common.config.batch_split import AUTO, divisors
from bertbench.common.distributed.world import World
from bertbench.common.errors import BertbenchError, Unsupported
from bertbench.common.training.facts import MicroBatchChoice
from bertbench.common.training.step import train_step
from bertbench.common.training.stops import Faults
from bertbench.common.training.task import Plan, Task

if TYPE_CHECKING:
    from bertbench.backends.base import Backend

HOST = torch.empty(0).device


class DoesNotFit(BertbenchError):
    """The rehearsal ran out of device memory; the message names the setting to lower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sequences that a rank computes at a time."""

    micro_batch: int
    accumulation: int
    eval_batch: int | None
    """None: without evaluations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """The findings of a rehearsal."""

    fallbacks: dict[str, int] | None
    """Operations that the host computed in the device's place; None: unknown."""
    notes: tuple[str, ...]


def is_worthwhile(backend: Backend) -> bool:
    """Return whether the device differs from the host: own memory, kernels and gaps."""
    return backend.device.type != HOST.type


class Rehearsal:
    """Real steps whose traces are removed at the end of the ``with`` block.

    For use before the first step: the optimizer has no state yet. Gradients exist twice with
    several processes (autograd's and the buckets that travel), which is reserved here.
    """

    def __init__(self, task: Task, backend: Backend, world: World, plan: Plan) -> None:
        assert not task.optimizer.state, "a rehearsal after the first step"
        self._task, self._backend, self._world, self._plan = task, backend, world, plan
        self._buckets: list[Tensor] = []

    def __enter__(self) -> Rehearsal:
        task, backend = self._task, self._backend
        self._random = backend.rng_state()
        self._tensors = {
            name: tensor.detach().to(HOST, copy=True)
            for name, tensor in task.model.state_dict().items()
        }
        self._groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in task.optimizer.param_groups
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task = self._task
        task.model.train()
        task.optimizer.state.clear()
        self._buckets.clear()
        for group, before in zip(task.optimizer.param_groups, self._groups, strict=True):
            group.update(before)
        with torch.no_grad():
            for name, tensor in task.model.state_dict().items():
                tensor.copy_(self._tensors[name])
        self._clear()
        self._backend.set_rng_state(self._random)

    def train(self, size: int, passes: int = 1, *, typical: bool = False) -> None:
        """Do one optimizer step of ``passes`` micro-batches; the second adds to gradients."""
        task, backend, plan = self._task, self._backend, self._plan
        if self._world.size > 1 and not self._buckets:
            self._buckets = [torch.empty_like(p) for p in task.model.parameters()]
        # Without loss scaling: a step that overflows would not fill the optimizer's state.
        scaler = backend.grad_scaler(plan.precision, 1.0)
        step = task.made_up_step(size, passes, typical=typical)
        faults = Faults(backend.device)
        train_step(task, task.model, step, backend, World(), plan, scaler, faults)
        backend.synchronize()

    def evaluate(self, size: int, *, typical: bool = False) -> None:
        """Evaluate one batch."""
        task, backend = self._task, self._backend
        (batch,) = task.made_up_step(size, 1, typical=typical).micro_batches
        task.model.eval()
        with torch.no_grad(), backend.precision(self._plan.precision):
            task.eval_sums(task.model, batch.to(backend.device))
        backend.synchronize()

    def problem(self, attempt: Callable[[], None]) -> str | None:
        """Return why ``attempt`` ran out of memory, or None if it fits; frees its memory."""
        found = None
        try:
            attempt()
        except self._backend.oom_errors as error:
            found = str(error).strip().split("\n")[0]
        self._task.model.train()
        self._clear()
        return found

    def _clear(self) -> None:
        self._task.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        empty = getattr(self._backend.module, "empty_cache", None)
        if empty is not None:
            empty()


def rehearse(task: Task, backend: Backend, world: World, plan: Plan, sizes: Sizes) -> Rehearsed:
    """Do one step and one evaluation batch of the largest shape.

    Where that shape does not fit but one of typical lengths does, the run may go on, with a note:
    the largest may never come. Raises DoesNotFit on every rank when it cannot fit on one.
    """
    passes = min(2, sizes.accumulation)
    notes, failure = [], None
    with backend.fallbacks() as fallbacks, Rehearsal(task, backend, world, plan) as rehearsal:
        # The first step makes the optimizer's state, so that the second one finds it there.
        first = partial(rehearsal.train, 1)
        if (problem := rehearsal.problem(first)) is not None:
            failure = f"{problem}. {advice(sizes, evaluating=False, micro_batch=1)}"
        attempts: list[tuple[bool, Callable[..., None]]] = [
            (False, partial(rehearsal.train, sizes.micro_batch, passes))
        ]
        if sizes.eval_batch is not None:
            attempts.append((True, partial(rehearsal.evaluate, sizes.eval_batch)))
        for evaluating, attempt in attempts if failure is None else ():
            problem = rehearsal.problem(attempt)
            if problem is None:
                continue
            what = "evaluation" if evaluating else "training"
            hint = advice(sizes, evaluating=evaluating)
            if rehearsal.problem(partial(attempt, typical=True)) is not None:
                failure = f"rehearsal of {what}: {problem}. {hint}"
                break
            notes.append(
                f"a batch of nothing but the longest sequences does not fit in {what}; one of "
                f"typical lengths does, so the run goes on and may end out of memory. {hint}"
            )
    failures = [f"rank {rank}: {text}" for rank, text in enumerate(world.gather(failure)) if text]
    if failures:
        raise DoesNotFit(failures[0] if world.size > 1 else str(failure))
    return Rehearsed(fallbacks=None if fallbacks is None else dict(fallbacks), notes=tuple(notes))


def check_auto(backend: Backend) -> None:
    """Raise Unsupported where running out of memory is not an error on this device."""
    if not backend.capabilities.memory_limit:
        raise Unsupported(
            f"--micro_batch auto: on {backend.name} an allocation that is too large ends the "
            f"process or fills the swap instead of failing, so sizes cannot be tried. Give "
            f"--micro_batch N, or leave it out."
        )


def find_micro_batch(
    task: Task, backend: Backend, world: World, plan: Plan, share: int
) -> MicroBatchChoice:
    """Return the largest micro-batch that fits every rank, by bisection over ``share``'s divisors.

    Args:
        share: sequences that each rank trains per step.

    Returns:
        The choice, with what each rank could do and what this one tried.

    Raises:
        DoesNotFit: not even one sequence at a time does.
    """
    check_auto(backend)
    sizes = divisors(share)
    tried: dict[str, str] = {}
    largest = 0
    with Rehearsal(task, backend, world, plan) as rehearsal:

        def fits(size: int, passes: int) -> bool:
            problem = rehearsal.problem(partial(rehearsal.train, size, passes))
            tried[str(size)] = "fits" if problem is None else problem
            return problem is None

        if fits(1, 1) and fits(1, min(2, share)):  # now the optimizer's state is in memory
            low, high = 0, len(sizes)
            while high - low > 1:
                middle = (low + high) // 2
                size = sizes[middle]
                low, high = (middle, high) if fits(size, min(2, share // size)) else (low, middle)
            largest = sizes[low]
    per_rank = world.gather(largest)
    if not min(per_rank):
        reason = f" ({tried['1']})" if not largest else ""
        raise DoesNotFit(
            f"--micro_batch auto: not one sequence at a time fits the device's memory{reason}; "
            f"try a 16-bit --precision, or a smaller model"
        )
    return MicroBatchChoice(asked=AUTO, chosen=min(per_rank), per_rank=per_rank, tried=dict(tried))


def advice(sizes: Sizes, *, evaluating: bool, micro_batch: int | None = None) -> str:
    """Return which setting to lower after running out of memory, with numbers."""
    if evaluating and sizes.eval_batch is not None:
        if sizes.eval_batch == 1:
            return "--eval_batch_size is 1 already: use a device with more memory"
        return (
            f"Lower --eval_batch_size: it is {sizes.eval_batch}, try {sizes.eval_batch // 2}; "
            f"no result depends on it"
        )
    size = sizes.micro_batch if micro_batch is None else micro_batch
    share = sizes.micro_batch * sizes.accumulation
    smaller = [n for n in divisors(share) if n < size]
    if not smaller:
        return (
            "One sequence at a time does not fit: try a 16-bit --precision, a smaller model or "
            "a device with more memory"
        )
    return (
        f"Lower --micro_batch: it is {size}, the next smaller is {smaller[-1]} "
        f"({share // smaller[-1]} accumulated; the global batch stays), or let --micro_batch "
        f"auto find the largest that fits"
    )
