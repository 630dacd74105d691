# SPDX-License-Identifier: Apache-2.0
"""The events that the training loop sends to its observers, which read and cannot change the run.

Observers exist on every rank, but the loop calls them on rank 0 only; the numbers are global.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """One optimizer step, reported every ``log_freq`` steps (losses are read only then)."""

    step: int
    """Optimizer steps done, including this one and those before a resume."""
    samples: int
    """Sequences trained so far, over all ranks, including those before a resume."""
    loss: float
    """This step's loss: a global mean, or the sum of two."""
    metrics: Mapping[str, float]
    """Parts of the loss and training accuracy of this step, e.g. ``mlm_loss``, ``mlm_accuracy``."""
    learning_rate: float
    grad_norm: float | None
    loss_scale: float | None
    skipped_steps: int
    window_steps: int
    """Steps since the last StepEvent: the window of the rates below."""
    window_s: float
    """Their seconds, synchronised at both ends, without evaluation and checkpoints; of several
    ranks, those by which the slowest one's sum has grown."""
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
    """Over the batches after the skipped ones; None when all were skipped."""
    inference_s: float = 0.0
    """The seconds of that rate: the slowest rank's, synchronised at both ends."""
    latency_s: Mapping[str, float] = field(default_factory=dict)
    """p50, p90 and p99 over all ranks' full batches after the skipped ones, each from the batch on
    the host to its result on the device; empty without any."""
    latency_clock: str = "none"
    batches: int = 0
    """The latencies' number of batches."""
    batch_size: int = 0
    """Sequences of a full batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """The end of a run."""

    status: str
    """ok | below_quality | failed | oom | unsupported | interrupted"""
    reason: str
    step: int
    samples: int
    metrics: tuple[Any, ...] = ()
    """bertbench.common.measure.metric.Metric values."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[str] = ()
    """The end for people; by default status and reason."""


class Observer:
    """Base of all observers: override what you need."""

    files: Sequence[str] = ()
    """Names of the files that it writes into the record: no other is sealed there."""

    def init_start(self) -> None:
        """Before anything is built."""

    def init_stop(self) -> None:
        """Model, optimizer and process group are ready; data is untouched."""

    def run_start(self, *, step: int, samples: int) -> None:
        """The timed run begins (a resumed one at ``step`` > 0)."""

    def on_step(self, event: StepEvent) -> None:
        """A reported step."""

    def eval_start(self, *, step: int, samples: int) -> None:
        """Before an evaluation."""

    def on_eval(self, event: EvalEvent) -> None:
        """After an evaluation."""

    def on_checkpoint(self, *, path: str, step: int, samples: int, seconds: float) -> None:
        """A checkpoint is complete on disk; ``seconds`` are those of its writing."""

    def run_stop(self, *, step: int, samples: int, status: str) -> None:
        """The timed run ended: ``status`` is success or aborted, as in MLPerf."""

    def close(self, summary: RunSummary) -> None:
        """The run is over: finish your files."""

    def note(self, text: str) -> None:
        """A remark for people, printed once and kept."""
