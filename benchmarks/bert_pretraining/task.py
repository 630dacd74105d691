# SPDX-License-Identifier: Apache-2.0
"""BERT pretraining as a Task of the common loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from bertbench.benchmarks.bert_pretraining.data import PretrainingSource
from bertbench.benchmarks.bert_pretraining.mlperf import log_values
from bertbench.benchmarks.bert_pretraining.recipes import PretrainingOptions, PretrainingRecipe
from bertbench.common.config.recipe import Settings
from bertbench.common.data.batch import PretrainingBatch
from bertbench.common.data.collate import collate
from bertbench.common.data.hdf5 import Limits
from bertbench.common.data.steps import StepBatch
from bertbench.common.data.synthetic import MASKED_SHARE, equal_samples, typical_length
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.measure.flops import pretraining_flops
from bertbench.common.measure.metric import Metric
from bertbench.common.model.config import Gelu
from bertbench.common.model.heads import BertForPreTraining
from bertbench.common.model.ops import Ops
from bertbench.common.optim.schedule import learning_rate
from bertbench.common.training.events import EvalEvent
from bertbench.common.training.task import OptimizerOptions, Plan, Task

if TYPE_CHECKING:
    from bertbench.backends.base import Backend


ACCURACY_TOLERANCE = 0.001
"""--verify_checkpoint: allowed distance from the starting checkpoint's known accuracy."""


class PretrainingTask(Task):
    """Model, data and metrics of one pretraining recipe on one rank."""

    recipe: PretrainingRecipe
    sum_names: tuple[str, ...] = (
        "mlm_loss", "mlm_correct", "masked", "nsp_loss", "nsp_correct", "sequences",
    )  # fmt: skip
    target_metric = "mlm_accuracy"

    def __init__(
        self, settings: Settings, backend: Backend, world: World, source: PretrainingSource
    ) -> None:
        super().__init__(settings, backend, world, source)
        self._source, self._impl = source, settings.impl
        self._eval: Sequence[PretrainingBatch] | None = None
        self._verify = cast("PretrainingOptions", settings.run).verify_checkpoint
        if source.has_eval and self.recipe.eval_iter_samples:
            self.eval_batch_size = min(self._impl.eval_batch_size, self.recipe.num_eval_examples)

    def make_model(self, ops: Ops) -> BertForPreTraining:
        return BertForPreTraining(self.recipe.model, ops)

    def optimizer_options(self) -> OptimizerOptions:
        r = self.recipe
        return OptimizerOptions(
            name=r.optimizer,
            learning_rate=r.learning_rate,
            betas=(r.opt_lamb_beta_1, r.opt_lamb_beta_2),
            eps=r.opt_epsilon,
            weight_decay_rate=r.weight_decay_rate,
        )

    def plan(self, settings: Settings) -> Plan:
        r = self.recipe
        return Plan.of(
            settings,
            precision=self.precision,
            max_steps=r.max_steps,
            max_samples=r.max_samples_termination,
            target_value=None if self._source.synthetic else r.target_mlm_accuracy,
            eval_start_samples=r.eval_iter_start_samples,
            eval_every_samples=r.eval_iter_samples if self._source.has_eval else 0,
            padded_length=r.max_seq_length,
            max_grad_norm=r.max_grad_norm,
            clip_after_allreduce=r.clip_after_allreduce,
        )

    def results(self) -> dict[str, Any]:
        return {"data_hash_kind": self._source.opened.found.kind}

    def closing_notes(self) -> list[str]:
        return self._source.closing_notes()

    @property
    def gelu(self) -> Gelu:
        return self.recipe.model.gelu

    def mlperf_values(self) -> dict[str, Any]:
        """Return the hyperparameters under MLPerf's names."""
        return log_values(self.recipe, self.split.accumulation, self._warmup_steps)

    def check_start(self, evaluate: Callable[[], EvalEvent]) -> list[str]:
        """--verify_checkpoint: compare with the starting weights' known accuracy; returns notes.

        Raises BadInput when there is nothing to evaluate, or the accuracy is another one.
        """
        if not self._verify:
            return []
        if not self._source.has_eval:
            raise BadInput("--verify_checkpoint needs held-out samples: give --data or --eval_dir")
        known = self.recipe.initial_mlm_accuracy
        value = evaluate().metrics[self.target_metric]
        text = f"accuracy before training {value:.5f}"
        if known is not None and abs(value - known) > ACCURACY_TOLERANCE:
            raise BadInput(
                f"{text}, but the recipe's checkpoint gives {known}: checkpoint, evaluation data "
                f"or model do not belong together"
            )
        return [text + (f", as expected ({known})" if known is not None else "")]

    def train_batches(self, position: dict[str, int] | None) -> Iterator[Any]:
        return self._source.train(
            seed=self.seed, world=self.world, micro_batch=self.split.micro_batch,
            position=position, pin=self.pin_memory,
        )  # fmt: skip

    def eval_batches(self) -> Sequence[PretrainingBatch]:
        if self._eval is None or not self._impl.cache_eval_data:
            self._eval = self._source.evaluation(self._impl.eval_batch_size, self.world)
        return self._eval

    def loss(self, model: nn.Module, batch: PretrainingBatch, step: Any) -> tuple[Tensor, Tensor]:
        """Return the share of both losses' global means, [], and the sums [6]."""
        out = model(batch)
        loss = out.mlm_loss / step.num_masked + out.nsp_loss / step.num_samples
        return loss, _sums(out, batch)

    def eval_sums(self, model: nn.Module, batch: PretrainingBatch) -> Tensor:
        return _sums(model(batch), batch)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Divide by the masked tokens of all ranks, which is MLPerf's weighting of accuracy."""
        mlm_loss = sums["mlm_loss"] / sums["masked"]
        nsp_loss = sums["nsp_loss"] / sums["sequences"]
        return {
            "loss": mlm_loss + nsp_loss,
            "mlm_loss": mlm_loss,
            "mlm_accuracy": sums["mlm_correct"] / sums["masked"],
            "nsp_loss": nsp_loss,
            "nsp_accuracy": sums["nsp_correct"] / sums["sequences"],
            "num_samples": sums["sequences"],
        }

    def quality(self, event: EvalEvent) -> list[Metric]:
        """Return the masked-token accuracy of the last evaluation."""
        own = Metric(
            name=self.target_metric, value=event.metrics[self.target_metric], unit="1",
            direction="higher", clock="none", scope="global",
            definition=f"last evaluation, at {event.samples} samples",
        )  # fmt: skip
        return [own]

    def model_flops(self, batch: PretrainingBatch) -> int:
        return pretraining_flops(self.recipe.model, batch.tokens.lengths, len(batch.masked_labels))

    def made_up_step(self, size: int, passes: int, *, typical: bool = False) -> StepBatch:
        r = self.recipe
        length, masked = r.max_seq_length, r.max_predictions_per_seq
        limits = Limits(
            max_seq_length=length, max_predictions=masked, vocab_size=r.model.vocab_size
        )
        if typical:
            length = typical_length(length)
            masked = min(masked, round(MASKED_SHARE * length))
        batch = collate(equal_samples(size, limits, length, masked), np.arange(size))
        return StepBatch(
            micro_batches=(batch,) * passes,
            num_samples=size * passes,
            num_masked=len(batch.masked_labels) * passes,
            num_tokens=batch.num_tokens * passes,
            position={},
        )

    @property
    def _warmup_steps(self) -> int:
        return self.recipe.warmup_steps or int(
            self.recipe.max_steps * self.recipe.warmup_proportion
        )

    def learning_rate(self, step: int) -> float:
        r = self.recipe
        return learning_rate(
            step,
            base=r.learning_rate,
            total_steps=r.max_steps,
            warmup_steps=self._warmup_steps,
            start_warmup_step=r.start_warmup_step,
            power=r.lr_power,
        )


def _sums(out: Any, batch: PretrainingBatch) -> Tensor:
    masked, sequences = len(batch.masked_labels), len(batch.next_sentence_labels)
    return torch.stack(
        [
            out.mlm_loss.detach(),
            out.mlm_correct.float(),
            torch.full_like(out.mlm_loss, masked),
            out.nsp_loss.detach(),
            out.nsp_correct.float(),
            torch.full_like(out.nsp_loss, sequences),
        ]
    )
