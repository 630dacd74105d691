# SPDX-License-Identifier: Apache-2.0
"""The tiny pretraining task that every adapter must train like the reference."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bertbench.backends.base import Backend
from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_pretraining.data import PretrainingSource
from bertbench.benchmarks.bert_pretraining.task import PretrainingTask
from bertbench.common.config.recipe import Settings
from bertbench.common.data.synthetic import SyntheticStream
from bertbench.common.distributed.world import World
from bertbench.common.training.events import Observer, StepEvent
from bertbench.common.training.loop import train
from bertbench.common.training.task import Plan

TINY = """
    --hidden_size 64 --num_hidden_layers 2 --num_attention_heads 2 --intermediate_size 256
    --vocab_size 512 --max_seq_length 64 --max_position_embeddings 64 --max_predictions_per_seq 10
    --initializer_range 0.1 --hidden_dropout 0 --attention_dropout 0
    --global_batch 16 --micro_batch 8 --warmup_steps 2 --learning_rate 1e-2 --max_steps 10
    --target_mlm_accuracy None --log_freq 1 --synthetic --skip_checkpoint --init_loss_scale 256
    --num_threads 1
""".split()
"""Flags of `bertbench run mini`: small enough for seconds, steep enough to show a wrong step."""


@contextlib.contextmanager
def unchanged_switches() -> Iterator[None]:
    """Torch's process-wide switches stay as they were: adapters may set them for themselves."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def exact_precision(backend: Backend) -> str:
    """fp32; tf32 where a process has one of the two only."""
    have = backend.capabilities.precisions
    return "fp32" if "fp32" in have else "tf32"


class TinySource(PretrainingSource):
    """One batch of synthetic samples, again and again: that can be learnt in ten steps."""

    def train(self, *, world: World, **options: Any) -> Iterator[Any]:
        recipe = self.recipe
        return iter(
            SyntheticStream(
                **options,
                global_batch=recipe.global_batch,
                world=world.size,
                rank=world.rank,
                limits=self.limits,
                num_samples=recipe.global_batch,
            )
        )


class Curve(Observer):
    """What the loop reported, step by step."""

    def __init__(self) -> None:
        self.steps: list[StepEvent] = []

    def on_step(self, event: StepEvent) -> None:
        self.steps.append(event)

    @property
    def losses(self) -> list[float]:
        return [event.loss for event in self.steps]


def tiny_task(backend: Backend, *flags: str) -> tuple[PretrainingTask, Plan]:
    """The real task of `bertbench run mini` with TINY's and these flags."""
    settings = _settings(*TINY, *flags)
    source = TinySource(recipe=settings.recipe, description="synthetic")  # type: ignore[arg-type]
    task = PretrainingTask(settings, backend, World(), source)
    return task, task.plan(settings)


@functools.cache
def _settings(*flags: str) -> Settings:
    return resolve("mini", flags)


def ten_steps(backend: Backend, weights: dict[str, torch.Tensor] | None, *flags: str) -> Curve:
    """Train TINY for its ten steps through the suite's loop, from ``weights``."""
    task, plan = tiny_task(backend, *flags)
    if weights is not None:
        task.model.load_state_dict(weights)
    curve = Curve()
    train(task, backend=backend, world=World(), plan=plan, observers=[curve])
    return curve


class HostReads(TorchDispatchMode):
    """Reports operations that make the host wait for the device: ``item()``, copies to the CPU.

    On the CPU no operation waits.
    """

    def __init__(self, device_type: str, report: Callable[[str], None]) -> None:
        super().__init__()
        self.device_type, self.report = device_type, report

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.device_type == "cpu":
            return result
        name = str(func)
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        source = tensors[-1] if name.startswith("aten.copy_") else next(iter(tensors), None)
        if source is not None and source.device.type == self.device_type:
            copied = isinstance(result, torch.Tensor) and result.device.type == "cpu"
            if copied or name.startswith(
                ("aten._local_scalar_dense", "aten.equal", "aten.nonzero")
            ):
                self.report(name)
        return result
