# SPDX-License-Identifier: Apache-2.0
"""Run the product's training step over fake tensors and collect its operations."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from bertbench.benchmarks import load as load_benchmark
from bertbench.benchmarks import resolve
from bertbench.common.config.recipe import Settings
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.training.step import train_step
from tracing.device import FakeCuda, MarkedFaults, Phases, marked_backward
from tracing.launches import LIMITS
from tracing.process import pretend
from tracing.tally import Rates, Tally

SAMPLES = 4096
"""Number of synthetic samples from which the typical micro-batch is chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The operations of one training step of two micro-batches."""

    name: str
    precision: str
    kernels: dict[str, str]
    lengths: tuple[int, ...]
    """Tokens of each sequence of the micro-batch."""
    masked: int | None
    """Masked positions of the micro-batch; None for a task without masking."""
    model_flops: int
    """Of the micro-batch (common/measure/flops.py)."""
    accumulation: int
    """Micro-batches per step of the recipe on one device."""
    tally: Tally


def trace(
    name: str,
    flags: Sequence[str],
    root: Path,
    rates: Rates,
    argument_kb: int = 4,
    accept: Callable[[str, str], None] = lambda precision, attention: None,
) -> Trace:
    """Trace recipe ``name`` with the flags of ``bertbench run``; ``tracing.process.start`` first.

    ``accept`` receives precision and attention before the step, and can refuse them. Raises
    BadInput and Unsupported as the product does, and for settings that cannot be traced.
    """
    settings = resolve(name, [*flags, "--synthetic"])
    _check(settings)
    benchmark = load_benchmark(settings.preset.benchmark)
    source = benchmark.prepare(settings)
    tally = Tally(root, rates, limits=LIMITS[argument_kb])
    phases = Phases(tally)
    pretence = pretend(marked_backward(phases))
    with FakeTensorMode(allow_non_fake_inputs=True), pretence, tally, _fused(settings, tally):
        backend = FakeCuda(phases, tally)
        task = benchmark.build(settings, backend, World(), source)
        accept(task.precision, task.ops.kernels["attention"])
        plan = task.plan(settings)
        size = task.split.micro_batch
        make = BATCHES[settings.preset.benchmark](task, source, size)
        scaler = backend.grad_scaler(plan.precision, plan.init_loss_scale)
        faults = MarkedFaults(phases, backend.device)
        for group in task.optimizer.param_groups:
            group["lr"] = task.learning_rate(0)
        with unset_fake_temporarily():  # collation reads its tensors
            micro = make(size)
            # The first step also creates the optimizer's state, so it does not count.
            steps = (_step(task, make(1), 1), False), (_step(task, micro, 2), True)
        lengths = micro.tokens.lengths
        tally.squares = sum(n * n for n in lengths)
        for step, counted in steps:
            phases.step(counted)
            train_step(task, task.model, step, backend, World(), plan, scaler, faults)
        phases.step(False)
    labels = getattr(micro, "masked_labels", None)
    return Trace(
        name=name,
        precision=task.precision,
        kernels=dict(task.facts().kernels),
        lengths=lengths,
        masked=None if labels is None else len(labels),
        model_flops=task.model_flops(micro),
        accumulation=task.split.accumulation,
        tally=tally,
    )


def _fused(settings: Settings, tally: Tally) -> AbstractContextManager[None]:
    """Return where Triton's launches are counted, if its kernels were asked for."""
    if settings.impl.kernels != "triton" and settings.impl.precision != "fp8":
        return contextlib.nullcontext()
    try:
        from tracing.fused import counted
    except ImportError as error:
        raise Unsupported(f"Triton's kernels: {error}: pip install triton") from error
    return counted(tally)


def _check(settings: Settings) -> None:
    """Raise BadInput or Unsupported for settings without effect, or that cannot be traced."""
    if settings.origins.get("backend") == "flag":
        raise BadInput("--backend: only the operations of backends/cuda are traced; leave it out")
    if settings.impl.compile is not None:
        raise Unsupported("--compile: a compiler's kernels are not traced; leave it out")
    if settings.preset.benchmark not in BATCHES:
        raise Unsupported(f"tracing knows no batches of benchmark {settings.preset.benchmark}")


def _step(task: Any, batch: Any, passes: int) -> Any:
    """Return a step, of the task's class, of ``passes`` times ``batch``."""
    return dataclasses.replace(
        task.made_up_step(batch.num_samples, passes),
        micro_batches=(batch,) * passes,
        num_tokens=batch.num_tokens * passes,
        num_masked=len(getattr(batch, "masked_labels", ())) * passes,
    )


def typical_rows(lengths: Any, size: int) -> Any:
    """Return ``size`` consecutive rows with tokens nearest to the mean.

    ``lengths`` is [rows]. Raises BadInput with too few rows.
    """
    starts = range(0, len(lengths) - size, size)
    if not starts:
        raise BadInput(f"--micro_batch {size}: there are only {len(lengths)} samples to trace")
    mean = lengths.mean() * size
    first = min(starts, key=lambda i: abs(lengths[i : i + size].sum() - mean))
    return np.arange(first, first + size)


Maker = Callable[[int], Any]
"""From a number of sequences, at most the micro-batch's, to a batch of them."""


def _pretraining(task: Any, source: Any, size: int) -> Maker:
    from bertbench.common.data.collate import collate
    from bertbench.common.data.synthetic import random_samples

    samples = random_samples(max(SAMPLES, 2 * size), source.limits, 0)
    rows = typical_rows(samples.lengths, size)
    return lambda count: collate(samples, rows[:count])


def _squad(task: Any, source: Any, size: int) -> Maker:
    from bertbench.benchmarks.bert_squad.stream import collate

    features = source.train.features
    rows = typical_rows(np.diff(features.offsets[: max(SAMPLES, 2 * size) + 1]), size)
    return lambda count: collate(features, rows[:count])


BATCHES: dict[str, Callable[[Any, Any, int], Maker]] = {
    "bert_pretraining": _pretraining,
    "bert_squad": _squad,
}
"""Benchmark -> the maker of its batches."""
