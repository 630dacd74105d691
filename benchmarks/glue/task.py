# SPDX-License-Identifier: Apache-2.0
"""GLUE fine-tuning and evaluation as a Task of the common loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bertbench.benchmarks.finetuning import weights_note
from bertbench.benchmarks.glue.data import GlueSource, Part, class_names
from bertbench.benchmarks.glue.features import Features, made_up_features
from bertbench.benchmarks.glue.layout import own_column
from bertbench.benchmarks.glue.model import (
    BertForSequenceClassification,
    LabelledBatch,
    label_flops,
    label_loss,
)
from bertbench.benchmarks.glue.recipes import GlueOptions, GlueRecipe
from bertbench.benchmarks.glue.scores import quality, score
from bertbench.benchmarks.glue.tasks import TASKS
from bertbench.common.config.recipe import Settings
from bertbench.common.data.collate import collate_tokens
from bertbench.common.data.memory import MemoryStream
from bertbench.common.data.samples import IntArray
from bertbench.common.data.steps import StepBatch
from bertbench.common.distributed.world import World
from bertbench.common.measure.metric import Metric
from bertbench.common.model.config import Gelu
from bertbench.common.model.ops import Ops
from bertbench.common.optim.schedule import warmup_linear
from bertbench.common.training.events import EvalEvent
from bertbench.common.training.task import OptimizerOptions, Plan, Task

if TYPE_CHECKING:
    from bertbench.backends.base import Backend


def collate(features: Features, rows: IntArray) -> LabelledBatch:
    """Lay the sequences ``rows`` [B] end to end, in that order."""
    labels = None if features.labels is None else torch.from_numpy(features.labels[rows])
    return LabelledBatch(tokens=collate_tokens(features, rows), labels=labels)


class LabelledStream(MemoryStream[Features, LabelledBatch]):
    """Endless steps over a training file; iterate it once."""

    def collate(self, pool: Features, rows: IntArray) -> LabelledBatch:
        """Lay the sequences ``rows`` [B] end to end, in that order."""
        return collate(pool, rows)


class GlueTask(Task):
    """Model, data and scores of one GLUE recipe on one rank."""

    recipe: GlueRecipe
    sum_names = ("loss", "sequences")

    def __init__(
        self, settings: Settings, backend: Backend, world: World, source: GlueSource
    ) -> None:
        self.recipe, self.source = cast("GlueRecipe", settings.recipe), source
        self.run = run = cast("GlueOptions", settings.run)
        self.glue = TASKS[self.recipe.task]
        # Weights that label without training must include the head.
        self.required_weights = "encoder" if run.do_train else "all"
        super().__init__(settings, backend, world, source)
        self.eval_batch_size = settings.impl.eval_batch_size if source.has_eval else None
        dev = [part.column for part in source.parts if part.kind == "dev"]
        self.target_metric = dev[0] if dev else "examples"
        self.target_score = self.recipe.target_score if dev else None
        self.predicted: list[NDArray[Any]] = []
        """Of the last evaluation, each part's int64 [N], classes, or float32 [N], numbers; on rank
        0 only."""
        parts = [replace(part.features, labels=None) for part in source.parts]
        self._pool = Features.concatenate(parts) if parts else None
        self._eval: Sequence[LabelledBatch] | None = None
        self._keep_eval = settings.impl.cache_eval_data
        self._logits: list[Tensor] = []
        what = f"the score of {own_column(self.recipe.task)}"
        self.notes += (weights_note(source, self.weights_report, what),)
        if self.recipe.target_score is not None and not dev:
            self.notes += (
                "no target: without evaluation, --target_score has nothing to compare with",
            )

    def make_model(self, ops: Ops) -> BertForSequenceClassification:
        return BertForSequenceClassification(self.recipe.model, self.glue.outputs, ops)

    def optimizer_options(self) -> OptimizerOptions:
        r = self.recipe
        return OptimizerOptions(
            name="adamw" if r.bias_correction else "bert_adam",
            learning_rate=r.learning_rate,
            betas=(r.adam_beta_1, r.adam_beta_2),
            eps=r.adam_epsilon,
            weight_decay_rate=r.weight_decay_rate,
        )

    @property
    def gelu(self) -> Gelu:
        return self.recipe.model.gelu

    # -- how long -----------------------------------------------------------------------------
    @property
    def schedule_steps(self) -> int:
        """Steps that see every example ``num_train_epochs`` times; the last batch is filled up."""
        r, train = self.recipe, self.source.train
        return 0 if train is None else math.ceil(len(train) * r.num_train_epochs / r.global_batch)

    @property
    def total_steps(self) -> int:
        """The last optimizer step; 0 without training."""
        return min(self.schedule_steps, self.recipe.max_steps or self.schedule_steps)

    def plan(self, settings: Settings) -> Plan:
        r, run = self.recipe, settings.run
        samples = self.total_steps * r.global_batch
        every = min(run.num_samples_per_checkpoint, samples)
        return Plan.of(
            settings,
            precision=self.precision,
            max_steps=self.total_steps,
            max_samples=max(1, samples),
            target_value=self.target_score,
            eval_start_samples=0,
            eval_every_samples=0,
            eval_at_end=self.source.has_eval,
            padded_length=r.max_seq_length,
            max_grad_norm=r.max_grad_norm,
            checkpoint_every_samples=0 if run.skip_checkpoint else every,
            checkpoint_start_samples=min(run.min_samples_to_start_checkpoints, samples),
        )

    def learning_rate(self, step: int) -> float:
        r = self.recipe
        return warmup_linear(
            step,
            base=r.learning_rate,
            total_steps=max(1, self.schedule_steps),
            warmup_proportion=r.warmup_proportion,
        )

    # -- training -----------------------------------------------------------------------------
    def train_batches(self, position: dict[str, int] | None) -> Iterator[Any]:
        train = self.source.train
        if train is None:
            return _nothing()
        return iter(
            LabelledStream(
                train,
                (train.offsets, train.input_ids, train.split, train.labels),
                seed=self.seed,
                global_batch=self.recipe.global_batch,
                micro_batch=self.split.micro_batch,
                world=self.world.size,
                rank=self.world.rank,
                position=position,
                pin=self.pin_memory,
            )
        )

    def loss(self, model: nn.Module, batch: LabelledBatch, step: Any) -> tuple[Tensor, Tensor]:
        """Return the share of the global mean loss, [], and the sums [2]."""
        assert batch.labels is not None
        loss = label_loss(model(batch), batch.labels)
        return loss / step.num_samples, _sums(loss.detach(), batch)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["sequences"]}

    def model_flops(self, batch: LabelledBatch) -> int:
        return label_flops(self.recipe.model, batch.tokens.lengths, self.glue.outputs)

    def made_up_step(self, size: int, passes: int, *, typical: bool = False) -> StepBatch:
        length = self.recipe.max_seq_length
        length = min(length, max(5, length // 3)) if typical else length
        made = made_up_features(
            np.full(size, length),
            self.recipe.model.vocab_size,
            len(self.glue.labels),
            pair=len(self.glue.texts) == 2,
        )
        batch = collate(made, np.arange(size))
        return StepBatch(
            micro_batches=(batch,) * passes,
            num_samples=size * passes,
            num_tokens=batch.num_tokens * passes,
            position={},
        )

    # -- evaluation ---------------------------------------------------------------------------
    def eval_batches(self) -> Sequence[LabelledBatch]:
        """Return this rank's batches: every ``world``-th example of all sets, end to end."""
        self._logits = []
        assert self._pool is not None and self.eval_batch_size is not None
        if self._eval is None or not self._keep_eval:
            rows, size = self._rows(self.world.rank), self.eval_batch_size
            made = (collate(self._pool, rows[i : i + size]) for i in range(0, len(rows), size))
            self._eval = [batch.pinned() if self.pin_memory else batch for batch in made]
        return self._eval

    def _rows(self, rank: int) -> IntArray:
        assert self._pool is not None
        return np.arange(rank, len(self._pool), self.world.size)

    def eval_sums(self, model: nn.Module, batch: LabelledBatch) -> Tensor:
        """Return the sums [2]; the loss is 0, since the model does not see the labels."""
        logits = model(batch)
        self._logits.append(logits.detach())
        return _sums(logits.new_zeros(()), batch)

    def eval_result(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Turn all ranks' logits into labels and scores on rank 0; every rank returns them."""
        own = torch.cat(self._logits).cpu().numpy() if self._logits else None
        self._logits = []
        gathered = self.world.gather(own)
        result: dict[str, float] = {}
        if self.world.is_main:
            result = self._score(gathered)
            result["num_samples"] = sums["sequences"]
        shared: dict[str, float] = self.world.gather(result)[0]
        return shared

    def _score(self, gathered: Sequence[NDArray[Any] | None]) -> dict[str, float]:
        """Keep the labels of all parts, and return their scores; ``gathered`` are logits [n, C]."""
        assert self._pool is not None
        logits = np.full((len(self._pool), self.glue.outputs), np.nan, np.float32)
        for rank, own in enumerate(gathered):
            if own is not None:
                logits[self._rows(rank)] = own
        labels = logits[:, 0] if self.glue.range else logits.argmax(1)
        ends = np.cumsum([len(part.features) for part in self.source.parts])
        self.predicted = np.split(labels, ends[:-1])
        result: dict[str, float] = {"examples": len(labels)}
        for part, found in zip(self.source.parts, self.predicted, strict=True):
            if part.kind == "dev":
                assert part.features.labels is not None
                result |= score(self.glue, part.column, part.features.labels, found)
        return result

    def quality(self, event: EvalEvent) -> list[Metric]:
        share = self.recipe.eval_share
        if share is not None:
            where = f"the {share:g} of the training file that is held out"
        else:
            where = "the user's --dev_file" if self.run.dev_file is not None else "the dev set"
        return quality(event.metrics, where)

    # -- the record ---------------------------------------------------------------------------
    def own_facts(self) -> dict[str, Any]:
        return {
            "labels": class_names(self.glue),
            "schedule_steps": self.schedule_steps,
            "total_steps": self.total_steps,
            "glue": self.source.own,
        }

    def predictions(self) -> Iterator[tuple[Part, list[str]]]:
        """Yield each part with its examples' labels as GLUE's server takes them."""
        for part, found in zip(self.source.parts, self.predicted, strict=True):
            if self.glue.range is None:
                yield part, [self.glue.labels[label] for label in found.tolist()]
            else:
                # The server takes no number out of the range.
                numbers = np.clip(found, *self.glue.range) if part.kind == "test" else found
                yield part, [f"{number:.6g}" for number in numbers.tolist()]


def _nothing() -> Iterator[Any]:
    yield from ()


def _sums(loss: Tensor, batch: LabelledBatch) -> Tensor:
    return torch.stack([loss, torch.full_like(loss, len(batch.tokens.lengths))])
