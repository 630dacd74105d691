# SPDX-License-Identifier: Apache-2.0
"""The metrics of a finished run, from what the loop and the devices counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bertbench.common.measure.metric import Metric, metric
from bertbench.common.measure.telemetry import Sampler

if TYPE_CHECKING:
    from bertbench.backends.base import PeakMemory, Telemetry
    from bertbench.common.training.events import EvalEvent
    from bertbench.common.training.loop import Outcome


class Reading(NamedTuple):
    """What one process's sensors say of the timed windows; None is unknown."""

    source: str
    energy_j: float | None = None
    power_w: float | None = None
    throttled_s: float | None = None
    temperature_max_c: float | None = None
    problem: str | None = None
    """Why the sampling stopped early."""


def reading(telemetry: Telemetry | None) -> Reading | None:
    """What this process's device told, or None where it has no sensors."""
    if telemetry is None:
        return None
    told = Reading(telemetry.source, telemetry.energy_j(), telemetry.power_w())
    if not isinstance(telemetry, Sampler):
        return told
    return told._replace(
        throttled_s=telemetry.throttled_s(),
        temperature_max_c=telemetry.highest("temperature_c"),
        problem=telemetry.problem,
    )


def summarise(
    outcome: Outcome,
    *,
    whole: bool,
    init_s: float | None,
    e2e_s: float,
    memory: Sequence[PeakMemory | None],
    sensors: Sequence[Reading | None],
    all_reduce_s: float | None = None,
    quality: Sequence[Metric] = (),
) -> list[Metric]:
    """What was measured; what was not is left out.

    ``quality`` is what the task makes of the last evaluation; ``all_reduce_s`` is what
    common/measure/communication.py measured.

    ``whole`` is false for a resumed run: its times are of this process only, so it has no time to
    target. ``memory`` and ``sensors`` hold one entry per rank; a rank without sensors of its own
    (one counter for several processes) has None, and one whose sensors failed makes sums unknown.
    """
    window = outcome.train_window
    assert window is not None
    metrics = []
    reached = outcome.status == "ok" and any(e.reached for e in outcome.evals)
    if reached and whole:
        metrics.append(metric("time_to_target_s", outcome.run_s))
    metrics.append(metric("run_time_s", outcome.run_s))
    metrics.append(metric("e2e_time_s", e2e_s))
    if init_s is not None:
        metrics.append(metric("init_s", init_s))
    metrics.append(metric("eval_s", outcome.eval_s))
    metrics.append(metric("checkpoint_s", outcome.checkpoint_s))
    metrics.append(metric("data_wait_s", outcome.data_wait_s))
    if all_reduce_s is not None:
        metrics.append(metric("gradient_all_reduce_s", all_reduce_s))
    skipped = f"without the first {outcome.skipped} steps" if outcome.skipped else ""
    for name in (
        *("sequences_per_second", "real_tokens_per_second", "padded_tokens_per_second"),
        "model_flops_per_second",
    ):
        rate = getattr(window, name)
        if rate is not None:
            metrics.append(metric(name, rate, note=skipped))
    if outcome.samples_done:
        metrics.append(metric("sequences_per_second_e2e", outcome.samples_done / outcome.run_s))
    for last in outcome.evals[-1:]:
        metrics += _inference(last, outcome.skipped)
    metrics += quality
    known = [m for m in memory if m is not None]
    if known and len(known) == len(memory):
        peak = max(known, key=lambda m: m.peak_memory_bytes)
        metrics.append(metric("peak_memory_bytes", peak.peak_memory_bytes, note=peak.definition))
    told = [r for r in sensors if r is not None]
    for name in ("energy_j", "power_w"):
        values = [v for v in (getattr(r, name) for r in told) if v is not None]
        if values and len(values) == len(told):
            metrics.append(metric(name, sum(values), note=told[0].source))
    for name in ("throttled_s", "temperature_max_c"):
        values = [v for v in (getattr(r, name) for r in told) if v is not None]
        if values:
            metrics.append(metric(name, max(values), note=told[0].source))
    return metrics


def _inference(event: EvalEvent, skipped: int) -> list[Metric]:
    """How fast an evaluation went."""
    note = f"without each process's first {skipped} batches" if skipped else ""
    metrics = []
    if event.inference_sequences_per_second is not None:
        rate = event.inference_sequences_per_second
        metrics.append(metric("inference_sequences_per_second", rate, note=note))
    note = "; ".join(filter(None, (f"{event.batches} batches of {event.batch_size}", note)))
    for name, seconds in event.latency_s.items():
        name = f"inference_latency_{name}_s"
        metrics.append(metric(name, seconds, note=note, clock=event.latency_clock))
    return metrics
