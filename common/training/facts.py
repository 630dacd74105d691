# SPDX-License-Identifier: Apache-2.0
"""The recorded facts of a run beyond its settings: choices, checks and findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bertbench.common.measure.device_facts import DeviceFacts
from bertbench.common.training.task import TaskFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchChoice:
    """The result of ``--micro_batch auto``."""

    asked: str
    chosen: int
    per_rank: list[int]
    """The largest micro-batch that fits each rank."""
    tried: dict[str, str]
    """Size -> ``fits``, or why not; on this rank."""


@dataclass(slots=True, kw_only=True)
class RunFacts:
    """All facts of one run on one rank."""

    task: TaskFacts
    device: DeviceFacts
    micro_batch_choice: MicroBatchChoice | None = None
    fallbacks: dict[str, int] | None = None
    """Operations that the host computed in the device's place; None: unknown."""
    telemetry_problems: list[str] = field(default_factory=list)
    results: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the benchmark that are known only at the end."""

    def extras(self) -> dict[str, Any]:
        """Return the ``extras`` of the record's manifest, as JSON values."""
        task, choice = dataclasses.asdict(self.task), self.micro_batch_choice
        own = task.pop("own")
        return {
            **task,
            **own,
            "micro_batch_choice": None if choice is None else dataclasses.asdict(choice),
            **dataclasses.asdict(self.device),
            "fallbacks": self.fallbacks,
            **({"telemetry_problems": self.telemetry_problems} if self.telemetry_problems else {}),
            **self.results,
        }
