# SPDX-License-Identifier: Apache-2.0
"""What the training loop tells its observers. Observers read; they cannot change the maths.

Observers exist on every rank but the loop calls them on rank 0 only; the numbers are global.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """One optimizer step, reported every ``log_freq`` steps (losses are read only then)."""

    step: int
    """Optimizer steps done, this one included (counting those before a resume)."""
    samples: int
    """Sequences trained so far, over all ranks (counting those before a resume)."""
    loss: float
    """This step's loss, a global mean (for two of them, their sum)."""
    metrics: Mapping[str, float]
    """Parts of the loss and training accuracy of this step, e.g. ``mlm_loss``, ``mlm_accuracy``."""
    learning_rate: float
    grad_norm: float | None
    loss_scale: float | None
    skipped_steps: int
    window_steps: int
    """Steps since the last StepEvent: what the rates below are taken over."""
    window_s: float
    """Seconds those steps took, synchronised at both ends, evaluation and checkpoints excluded."""
    sequences_per_second: float | None
    real_tokens_per_second: float | None
    padded_tokens_per_second: float | None
    data_wait_s: float
    time_s: float
    """Seconds since run_start."""
    eta_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalEvent:
    """One evaluation over the held-out samples."""

    step: int
    samples: int
    metrics: Mapping[str, float]
    """Task metrics, e.g. ``mlm_accuracy``, ``eval_loss``, ``num_samples``."""
    target_metric: str
    target_value: float | None
    reached: bool
    eval_s: float
    """From its beginning to its result, scoring included."""
    time_s: float
    inference_sequences_per_second: float | None = None
    """Over the batches behind the skipped ones; None when all were skipped."""
    inference_s: float = 0.0
    """The seconds of that rate: of the slowest rank, synchronised at both ends."""
    latency_s: Mapping[str, float] = field(default_factory=dict)
    """p50, p90 and p99 of the full batches behind the skipped ones, of all ranks, each from the
    batch on the host to its result on the device; empty when there were none."""
    latency_clock: str = "none"
    batches: int = 0
    """That the latencies are taken over."""
    batch_size: int = 0
    """Sequences of a full batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """How it ended."""

    status: str
    """ok | below_quality | failed | oom | unsupported | interrupted"""
    reason: str
    step: int
    samples: int
    metrics: tuple[Any, ...] = ()
    """bertbench.common.measure.metric.Metric values."""
    extras: Mapping[str, Any] = field(default_factory=dict)


class Observer:
    """Override what you need; every method does nothing by default."""

    def init_start(self) -> None:
        """Before anything is built."""

    def init_stop(self) -> None:
        """Model, optimizer and process group are ready; no data was touched."""

    def run_start(self, *, step: int, samples: int) -> None:
        """The timed run begins (a resumed one at ``step`` > 0)."""

    def on_step(self, event: StepEvent) -> None:
        """A reported step."""

    def eval_start(self, *, step: int, samples: int) -> None:
        """Before an evaluation."""

    def on_eval(self, event: EvalEvent) -> None:
        """After an evaluation."""

    def on_checkpoint(self, *, path: str, step: int, samples: int, seconds: float) -> None:
        """A checkpoint is complete on disk."""

    def run_stop(self, *, step: int, samples: int, status: str) -> None:
        """The timed run ended: ``status`` is success or aborted (MLPerf's words)."""

    def close(self, summary: RunSummary) -> None:
        """Everything is over; files may be finished."""

    def note(self, text: str) -> None:
        """Something people should know: printed once and kept."""
