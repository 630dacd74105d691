# SPDX-License-Identifier: Apache-2.0
"""All that a run builds before its clock starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bertbench.common.training import rehearsal

if TYPE_CHECKING:
    from bertbench.backends.base import DeviceInfo, Telemetry
    from bertbench.common.measure.utilisation import Calibrated
    from bertbench.common.training.checkpoint import Saved
    from bertbench.common.training.facts import RunFacts
    from bertbench.common.training.task import Plan, Source, Task


@dataclass(slots=True, kw_only=True)
class Built:
    """All that exists before the clock starts."""

    source: Source
    task: Task
    plan: Plan
    devices: list[DeviceInfo]
    """Of each rank."""
    telemetry: Telemetry | None
    facts: RunFacts
    resumed: Path | None
    """The checkpoint that the run continues."""
    saved: Saved | None
    """Its content."""
    calibrated: Calibrated | None = None

    def sizes(self) -> rehearsal.Sizes:
        """Return what a rank computes at a time."""
        split = self.task.split
        return rehearsal.Sizes(
            micro_batch=split.micro_batch,
            accumulation=split.accumulation,
            eval_batch=self.task.eval_batch_size,
        )
