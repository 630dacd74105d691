# SPDX-License-Identifier: Apache-2.0
"""What is trained: the contract between a benchmark and the loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from bertbench.common.training.distributed import World

if TYPE_CHECKING:
    from bertbench.backends.base import Backend
from typing import TYPE_CHECKING

from bertbench.common.config.batch_split import Split, split
from bertbench.common.model.ops import Ops
from bertbench.common.model.weights import WeightsReport

if TYPE_CHECKING:
    from bertbench.backends.base import Backend


class Batch(Protocol):
    """A micro-batch that can move to a device and knows its size on the host."""

    @property
    def num_samples(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    def to(self, device: torch.device) -> Any: ...


class StepBatch(Protocol):
    """One optimizer step's data: this rank's micro-batches, and the global number of samples."""

    @property
    def micro_batches(self) -> Sequence[Batch]: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def position(self) -> dict[str, int]: ...


class Task(Protocol):
    """What is trained. Sums are vectors named by ``sum_names``, added over ranks and passes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    sum_names: tuple[str, ...]
    target_metric: str

    def train_batches(self, position: dict[str, int] | None) -> Iterator[Any]:
        """Endless steps, from ``position`` of a checkpoint or from the beginning; a generator."""

    def loss(self, model: nn.Module, batch: Any, step: Any) -> tuple[Tensor, Tensor]:
        """This micro-batch's share of the step's global mean loss, and its sums (detached)."""

    def eval_batches(self) -> Sequence[Any]:
        """This rank's part of the held-out samples."""

    def eval_sums(self, model: nn.Module, batch: Any) -> Tensor:
        """The sums of one evaluation batch."""

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Named results of a training step's globally added sums; includes ``loss``."""

    def eval_result(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Named results of the evaluation whose last batch just ended, the same on every rank;
        includes ``target_metric``. Called on every rank: here results beyond sums are gathered."""

    def learning_rate(self, step: int) -> float:
        """Of the step with this index, from 0."""

    def model_flops(self, batch: Any) -> int:
        """Of training on this micro-batch once (common/measure/flops.py)."""

    def made_up_step(self, size: int, passes: int, *, typical: bool = False) -> Any:
        """A step of ``passes`` micro-batches of the largest shape there can be, or of the usual
        one, for common/training/rehearsal.py. It touches no data and no random state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """When to evaluate, save, report and stop."""

    precision: str
    max_steps: int
    max_samples: int
    target_value: float | None
    eval_start_samples: int
    eval_every_samples: int
    """0 = not while training."""
    eval_at_end: bool = False
    """Evaluate after the last step; with ``max_steps`` 0 there is nothing else to do."""
    padded_length: int
    """Tokens that one sequence would take if it were padded: for padded_tokens_per_second."""
    skip_steps: int = 0
    """Steps of this process, and batches of each evaluation, that rates and energy leave out."""
    max_grad_norm: float | None = 1.0
    clipping: Literal["global", "per_parameter"] = "global"
    """Whose norm ``max_grad_norm`` bounds: of all gradients together, or of each matrix."""
    clip_after_allreduce: bool = True
    init_loss_scale: float = 2.0**16
    log_freq: int = 10
    checkpoint_every_samples: int = 0
    """0 = no checkpoints, not even on interruption."""
    checkpoint_start_samples: int = 0
    max_minutes: float | None = None


class SharedTask:
    """Base of a benchmark's task (Task), which sets these attributes."""

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
