# SPDX-License-Identifier: Apache-2.0
"""The contract between a benchmark and the loop: a task, its data, its plan and its facts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from bertbench.backends.attention_costs import choose_kernels
from bertbench.backends.choosing import time_kernels
from bertbench.common.config.batch_split import requested, split
from bertbench.common.config.recipe import Recipe, Settings
from bertbench.common.distributed.sharding import Shards
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256
from bertbench.common.masks.attach import RecipeMask
from bertbench.common.measure.flops import scores_flops
from bertbench.common.model.config import BertConfig
from bertbench.common.model.ops import Ops
from bertbench.common.model.weights import WeightsReport, load_pretrained
from bertbench.common.optim.factory import build_optimizer
from bertbench.common.optim.lamb import parameter_groups

if TYPE_CHECKING:
    from bertbench.backends.base import Backend
    from bertbench.common.distributed.world import World
    from bertbench.common.masks.mask import AttentionMask
    from bertbench.common.measure.metric import Metric
    from bertbench.common.training.events import EvalEvent


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


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files or synthetic samples of one run; benchmarks add their own fields."""

    description: str
    """For the console and the record."""
    init_checkpoint: Path | None = None
    """Weights to start from; None: random ones."""
    vocab_file: Path | None = None
    """The data's vocabulary, where it is known."""
    notes: tuple[str, ...] = ()
    """Facts about the data that the user should see."""
    recipe: Recipe | None = None
    """The run's, as this data allows it; None: unchanged."""

    @property
    def has_eval(self) -> bool:
        """Whether there are samples to evaluate on."""
        return False

    def hash(self) -> str | None:
        """Return the identity of the data; None for synthetic data."""
        return None

    def checkpoint_hash(self) -> str | None:
        """Return the sha256 of the starting weights; None for random ones."""
        return None if self.init_checkpoint is None else file_sha256(self.init_checkpoint)


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
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    log_freq: int = 10
    checkpoint_every_samples: int = 0
    """0 = no checkpoints, not even on interruption."""
    checkpoint_start_samples: int = 0
    max_minutes: float | None = None

    @classmethod
    def of(cls, settings: Settings, **own: Any) -> Plan:
        """Return a plan with the fields that follow from the settings of any benchmark.

        ``own`` are the other fields, and those that differ.
        """
        run = settings.run
        every = 0 if run.skip_checkpoint else run.num_samples_per_checkpoint
        common: dict[str, Any] = {
            "init_loss_scale": settings.impl.init_loss_scale,
            "reduce_dtype": settings.impl.reduce_dtype,
            "log_freq": run.log_freq,
            "checkpoint_every_samples": every,
            "checkpoint_start_samples": run.min_samples_to_start_checkpoints,
            "max_minutes": run.max_minutes,
        }
        return cls(**common | own)


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """The optimizer of a recipe."""

    name: str
    """lamb, adamw or bert_adam (common/optim/factory.py)."""
    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay_rate: float
    """Not applied to biases and LayerNorm."""

    def __post_init__(self) -> None:
        """Raise BadInput for numbers with which no step can be taken."""
        for name, value, low, high in (
            ("learning rate", self.learning_rate, 0.0, 1e38),
            *((f"beta {i}", b, 0.0, math.nextafter(1, 0)) for i, b in enumerate(self.betas, 1)),
            ("epsilon", self.eps, 1e-30, 1e38),
            ("weight decay", self.weight_decay_rate, 0.0, 1e38),
        ):
            if not low <= value <= high:
                raise BadInput(
                    f"the optimizer's {name} is {value}: it must be from {low:g} to {high:g}"
                )


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """Choices that a task made for the user; all of them are recorded."""

    data: str
    precision: str
    kernels: Mapping[str, str]
    parameters: int
    micro_batch: int
    gradient_accumulation_steps: int
    world_size: int
    init_checkpoint: Mapping[str, Any] | None
    """Tensors of the starting weights that were used, missing and unexpected."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the record, of one benchmark."""


class Task(ABC):
    """Model, optimizer, data, loss and scores of one recipe on one rank.

    A subclass names its sums and gives the abstract methods. Its constructor may refuse settings
    before it calls this one, which builds the model, loads the weights and makes the optimizer.
    Sums are vectors named by ``sum_names``, added over ranks and micro-batches.
    """

    recipe: Recipe
    sum_names: tuple[str, ...]
    target_metric: str
    required_weights: Literal["all", "encoder"] = "all"
    """Tensors that the starting weights must hold."""
    eval_batch_size: int | None = None
    """Most sequences of an evaluation batch; None without evaluations."""

    def __init__(self, settings: Settings, backend: Backend, world: World, source: Source) -> None:
        impl, seed = settings.impl, settings.run.seed
        self.recipe = settings.recipe
        self.world, self.seed = world, seed
        self.data_description, self.notes = source.description, source.notes
        self.pin_memory = backend.capabilities.pinned_memory
        self.precision = backend.resolve_precision(impl.precision)
        self.split = requested(self.recipe.global_batch, impl, world.size)
        self.attention_mask = RecipeMask.of(self.recipe)
        self.kernel_choice = time_kernels(settings, backend, world.gather, self.split.micro_batch)
        choose = backend.ops if self.attention_mask is None else backend.masked_ops
        self.ops = choose(impl.kernels, self.precision)
        self.weights_report: WeightsReport | None = None
        backend.seed(seed)  # the same weights on every rank
        self.model = self.make_model(self.ops)
        if source.init_checkpoint is not None:
            self.weights_report = load_pretrained(
                self.model, source.init_checkpoint, require=self.required_weights,
                extend_positions=self.recipe.extend_positions == "tile",
            )  # fmt: skip
        elif self.recipe.extend_positions is not None:
            raise BadInput("--extend_positions without weights to start from: leave it out")
        self.model.to(backend.device)
        if self.attention_mask is not None:
            masks = self.attention_mask.attach(self.model, backend.device)
            model = self.recipe.model  # type: ignore[attr-defined]  # RecipeMask.of has checked it
            self.attention_costs = choose_kernels(
                self.ops, masks, model, backend, world, self.precision
            )
            self.notes += (self.attention_mask.note(self.ops, self.attention_costs),)
        if impl.compile is not None:
            self.ops.keep_out_of_graphs()
        backend.compile(self.model, impl.compile)
        backend.seed(seed + 1 + world.rank)  # other dropout on every rank
        self._make_optimizer(backend, impl.kernels)
        shards = world.size if impl.optimizer_sharding == "zero1" else 1
        self.shards = Shards(self.optimizer, world.rank if shards > 1 else 0, shards)

    def _make_optimizer(self, backend: Backend, kernels: str) -> None:
        options = self.optimizer_options()
        kernel = backend.lamb_kernel(kernels) if options.name == "lamb" else None
        self.optimizer: torch.optim.Optimizer = build_optimizer(
            options.name,
            parameter_groups(self.model, options.weight_decay_rate),
            lr=options.learning_rate,
            betas=options.betas,
            eps=options.eps,
            lamb_kernel=kernel,
            fused=backend.fused_adamw,
        )
        lamb = f"lamb-{'fused' if kernel else 'foreach'}"
        other = f"torch-{'fused' if backend.fused_adamw else 'unfused'} {options.name}"
        self._optimizer_kernel = lamb if options.name == "lamb" else other

    # -- given by each benchmark ------------------------------------------------------------------
    @abstractmethod
    def make_model(self, ops: Ops) -> nn.Module:
        """Return the initialised model on the host; ``ops`` are the operations of the device."""

    @abstractmethod
    def optimizer_options(self) -> OptimizerOptions:
        """Return the recipe's optimizer."""

    @abstractmethod
    def plan(self, settings: Settings) -> Plan:
        """Return when the loop evaluates, saves, reports and stops (``Plan.of``)."""

    @abstractmethod
    def train_batches(self, position: dict[str, int] | None) -> Iterator[Any]:
        """Return endless steps (``StepBatch``), from a checkpoint's ``position`` or the start.

        The iterator is a generator: the loop closes it.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, step: Any) -> tuple[Tensor, Tensor]:
        """Return this micro-batch's share of the step's global mean loss, a scalar, and its sums.

        The sums are detached, [len(sum_names)]. Divide by ``step.num_samples`` (or another global
        count), so that every split into micro-batches and ranks gives the same gradient.
        """

    @abstractmethod
    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the results of a training step from its global sums; includes ``loss``."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """Return the rate of the step with this index, from 0."""

    @abstractmethod
    def model_flops(self, batch: Any) -> int:
        """Return the dense model's FLOPs of training on this once (common/measure/flops.py)."""

    def effective_flops(self, batch: Any) -> int:
        """Return ``model_flops`` without the scores that the mask leaves out; 0 without a mask."""
        if self.attention_mask is None:
            return 0
        model: BertConfig = self.recipe.model  # type: ignore[attr-defined]  # the mask needs one
        left_out = self.attention_mask.left_out(
            batch.tokens.lengths, layers=model.num_hidden_layers, heads=model.num_attention_heads
        )
        return self.model_flops(batch) - scores_flops(model, left_out)

    @abstractmethod
    def made_up_step(self, size: int, passes: int, *, typical: bool = False) -> Any:
        """Return a step of ``passes`` micro-batches of ``size`` sequences for a rehearsal.

        The sequences have the largest shape that the recipe allows, or the usual one. It touches
        no data and no random state.
        """

    # -- given where there is something to evaluate -----------------------------------------------
    def eval_batches(self) -> Sequence[Any]:
        """Return this rank's part of the held-out samples."""
        return ()

    def eval_sums(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the sums of one evaluation batch: [len(sum_names)]. Override it with eval_batches.

        Raises NotImplementedError without an evaluation.
        """
        raise NotImplementedError(f"{type(self).__name__} evaluates nothing")

    def eval_result(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the results of an evaluation, the same on every rank; includes ``target_metric``.

        Called on every rank, so that results beyond sums can be gathered here.
        """
        return self.metrics(sums)

    def quality(self, event: EvalEvent) -> list[Metric]:
        """Return the metrics that the record keeps of the last evaluation."""
        return []

    def further_quality(self, event: EvalEvent) -> list[Metric]:
        """Return metrics that may take long or fail, such as those of a user's script.

        Called on every rank behind all clocks, with the result already in the record.
        """
        return []

    def check_start(self, evaluate: Callable[[], EvalEvent]) -> list[str]:
        """Return notes on the starting weights; ``evaluate`` scores them before the clock starts.

        Raises BadInput where they are not the weights that the recipe expects.
        """
        return []

    # -- the record -------------------------------------------------------------------------------
    def mask_now(self) -> AttentionMask | None:
        """Return the attention mask that a checkpoint keeps; None for dense attention."""
        return None if self.attention_mask is None else self.attention_mask.mask

    @property
    def gelu(self) -> Literal["erf", "tanh"] | None:
        """The form of GELU that the model asks for; None where it has none."""
        return None

    @property
    def share(self) -> int:
        """Sequences that this rank trains per step."""
        return self.split.micro_batch * self.split.accumulation

    def use_micro_batch(self, size: int) -> None:
        """Divide the same global batch differently, before the first step."""
        self.split = split(self.recipe.global_batch, size, size, self.world.size)

    def own_facts(self) -> dict[str, Any]:
        """Return further keys of the record that are known at the start."""
        return {}

    def results(self) -> dict[str, Any]:
        """Return further keys of the record that are known only at the end."""
        return {}

    def closing_notes(self) -> list[str]:
        """Return notes that are known only at the end, once the data was hashed."""
        return []

    def facts(self) -> TaskFacts:
        """Return the choices made for the user."""
        report, mask = self.weights_report, self.attention_mask
        kernels = self.ops.kernels if mask is None else mask.kernels(self.ops)
        return TaskFacts(
            data=self.data_description,
            precision=self.precision,
            kernels=dict(kernels) | {"optimizer": self._optimizer_kernel},
            parameters=sum(p.numel() for p in self.model.parameters()),
            micro_batch=self.split.micro_batch,
            gradient_accumulation_steps=self.split.accumulation,
            world_size=self.split.world_size,
            init_checkpoint=None
            if report is None
            else {
                "matched": len(report.matched),
                "missing": list(report.missing),
                "unexpected": list(report.unexpected),
                "notes": list(report.notes),
            },
            own={"kernel_choice": self.kernel_choice}
            | ({} if self.shards.size == 1 else {"optimizer_elements": self.shards.elements})
            | self.own_facts()
            | ({} if mask is None else mask.facts(self.attention_costs)),
        )
