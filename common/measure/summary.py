# SPDX-License-Identifier: Apache-2.0
"""The metrics of a finished run, from what the loop and the devices counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from common.measure.metric import Metric, metric

if TYPE_CHECKING:
    from backends.base import PeakMemory, Telemetry
    from common.training import Outcome


class Energy(NamedTuple):
    """What one process's sensor says of the timed windows."""

    energy_j: float
    power_w: float
    source: str


def reading(telemetry: Telemetry | None) -> Energy | None:
    """The energy of this process's device, or None where nothing was measured."""
    if telemetry is None:
        return None
    joules, watts = telemetry.energy_j(), telemetry.power_w()
    if joules is None or watts is None:
        return None
    return Energy(joules, watts, telemetry.source)


def summarise(
    outcome: Outcome,
    *,
    whole: bool,
    init_s: float | None,
    e2e_s: float,
    memory: Sequence[PeakMemory | None],
    energy: Sequence[Energy | None],
) -> list[Metric]:
    """What was measured; what was not is left out.

    ``whole`` is false for a resumed run: its times are of this process only, so it has no time to
    target. ``memory`` and ``energy`` hold one entry per rank.
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
    for name in ("sequences_per_second", "real_tokens_per_second", "padded_tokens_per_second"):
        rate = getattr(window, name)
        if rate is not None:
            metrics.append(metric(name, rate))
    if window.samples:
        metrics.append(metric("sequences_per_second_e2e", window.samples / outcome.run_s))
    for last in outcome.evals[-1:]:
        name = last.target_metric
        metrics.append(
            Metric(
                name=name,
                value=last.metrics[name],
                unit="1",
                direction="higher",
                clock="none",
                scope="global",
                definition=f"last evaluation, at {last.samples} samples",
            )
        )
    known = [m for m in memory if m is not None]
    if known and len(known) == len(memory):
        peak = max(known, key=lambda m: m.peak_memory_bytes)
        metrics.append(metric("peak_memory_bytes", peak.peak_memory_bytes, note=peak.definition))
    sources = [e for e in energy if e is not None]
    if sources:
        metrics.append(metric("energy_j", sum(e.energy_j for e in sources), note=sources[0].source))
        metrics.append(metric("power_w", sum(e.power_w for e in sources), note=sources[0].source))
    return metrics
