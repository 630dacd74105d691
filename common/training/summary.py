# SPDX-License-Identifier: Apache-2.0
"""The metrics of a finished run, from the loop's counts and the devices' sensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bertbench.common.measure.energy import possible
from bertbench.common.measure.metric import Metric, metric
from bertbench.common.measure.telemetry import Sampler

if TYPE_CHECKING:
    from bertbench.backends.base import PeakMemory, Telemetry
    from bertbench.common.training.events import EvalEvent
    from bertbench.common.training.progress import Outcome


class Reading(NamedTuple):
    """One process's sensors over the timed windows; None is unknown."""

    source: str
    energy_j: float | None = None
    power_w: float | None = None
    throttled_s: float | None = None
    temperature_max_c: float | None = None
    problem: str | None = None
    """Why the sampling stopped early, or energy is unknown."""


def reading(telemetry: Telemetry | None) -> Reading | None:
    """Read this process's sensors and end their sampling; None without any."""
    if telemetry is None:
        return None
    source = str(telemetry.source)
    if isinstance(telemetry, Sampler):
        telemetry.close()
        return Reading(
            "; ".join((source, *telemetry.doubts())),
            telemetry.energy_j(),
            telemetry.power_w(),
            throttled_s=telemetry.throttled_s(),
            temperature_max_c=telemetry.highest("temperature_c"),
            problem=telemetry.why_unknown(),
        )
    try:  # another package's, which is not trusted either
        joules, watts = telemetry.energy_j(), telemetry.power_w()
    except Exception as error:
        return Reading(source, problem=f"{source}: {type(error).__name__}: {error}")
    return Reading(source, possible("energy_j", joules) or None, possible("power_w", watts))


def summarise(
    outcome: Outcome, *, whole: bool, init_s: float | None, e2e_s: float,
    memory: Sequence[PeakMemory | None] = (), sensors: Sequence[Reading | None] = (),
    quality: Sequence[Metric] = (),
) -> list[Metric]:  # fmt: skip
    """Return the metrics of a run; those not measured are left out.

    ``quality`` holds the task's metrics of the last evaluation.

    ``whole`` is false for a resumed run: its times are of this process only, so it has no time to
    target. ``memory`` and ``sensors`` hold one entry per rank. A rank without its own sensors (one
    counter for several processes) has None; one whose sensors failed makes the sums unknown.
    """
    reached = outcome.status == "ok" and any(e.reached for e in outcome.evals)
    times = {
        "time_to_target_s": outcome.run_s if reached and whole else None,
        "run_time_s": outcome.run_s,
        "e2e_time_s": e2e_s,
        "init_s": init_s,
        "eval_s": outcome.eval_s,
        "checkpoint_s": outcome.checkpoint_s,
        "checkpoint_write_s": outcome.checkpoint_write_s or None,
        "data_wait_s": outcome.data_wait_s,
    }
    metrics = [metric(name, value) for name, value in times.items() if value is not None]
    metrics += _training(outcome)
    for last in outcome.evals[-1:]:
        metrics += _inference(last, outcome.skipped)
    metrics += quality
    metrics += _peak_memory(memory)
    metrics += sensor_metrics([r for r in sensors if r is not None])
    return metrics


def _training(outcome: Outcome) -> list[Metric]:
    """Return the rates of the timed steps, and of the whole run."""
    note = f"without the first {outcome.skipped} steps" if outcome.skipped else ""
    metrics = []
    for name in (
        ()
        if outcome.train_window is None
        else (
            *("sequences_per_second", "real_tokens_per_second", "padded_tokens_per_second"),
            *("model_flops_per_second", "effective_flops_per_second"),
        )
    ):
        rate = getattr(outcome.train_window, name)
        if rate is not None:
            metrics.append(metric(name, rate, note=note))
    if outcome.samples_done:
        metrics.append(metric("sequences_per_second_e2e", outcome.samples_done / outcome.run_s))
    return metrics


def _inference(event: EvalEvent, skipped: int) -> list[Metric]:
    """Return an evaluation's rate and latencies."""
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


def _peak_memory(memory: Sequence[PeakMemory | None]) -> list[Metric]:
    """Return the largest peak, if every rank knows its own."""
    known = [m for m in memory if m is not None]
    if not known or len(known) < len(memory):
        return []
    peak = max(known, key=lambda m: m.peak_memory_bytes)
    return [metric("peak_memory_bytes", peak.peak_memory_bytes, note=peak.definition)]


def sensor_metrics(readings: Sequence[Reading]) -> list[Metric]:
    """Return energy and power if every reading has them, and the worst of the other values."""
    metrics = []
    for name, combine in (
        ("energy_j", sum), ("power_w", sum), ("throttled_s", max), ("temperature_max_c", max),
    ):  # fmt: skip
        values = [v for v in (getattr(r, name) for r in readings) if v is not None]
        if values and (combine is max or len(values) == len(readings)):
            metrics.append(metric(name, combine(values), note=readings[0].source))
    return metrics
