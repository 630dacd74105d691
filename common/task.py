# SPDX-License-Identifier: Apache-2.0
"""What the tasks of all benchmarks share: how the batch is divided, and what the record says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from common.distributed import World
from common.model.ops import Ops
from common.model.weights import WeightsReport
from common.split import Split, split

if TYPE_CHECKING:
    from backends.base import Backend


class SharedTask:
    """Base of a benchmark's task (common.training.Task), which sets these attributes."""

    recipe: Any
    model: nn.Module
    ops: Ops
    precision: str
    split: Split
    weights_report: WeightsReport | None = None
    """Of the starting checkpoint; None where there is none."""
    _world: World
    _optimizer_kernel: str

    def _compile(self, backend: Backend, compiler: str | None) -> None:
        """Compile the model's layers in place where ``--compile`` asks for it."""
        if compiler is not None:
            self.ops.keep_out_of_graphs()
        backend.compile(self.model, compiler)

    def use_micro_batch(self, size: int) -> None:
        """Another division of the same global batch, before the first step."""
        self.split = split(self.recipe.global_batch, size, size, self._world.size)

    @property
    def share(self) -> int:
        """Sequences that this rank trains per step."""
        return self.split.micro_batch * self.split.accumulation

    def facts(self) -> dict[str, Any]:
        """What was chosen for the user: all of it recorded, none of it silent."""
        report = self.weights_report
        return {
            "precision": self.precision,
            "kernels": dict(self.ops.kernels) | {"optimizer": self._optimizer_kernel},
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "micro_batch": self.split.micro_batch,
            "gradient_accumulation_steps": self.split.accumulation,
            "world_size": self.split.world_size,
            "init_checkpoint": None
            if report is None
            else {
                "matched": len(report.matched),
                "missing": list(report.missing),
                "unexpected": list(report.unexpected),
                "notes": list(report.notes),
            },
        }
