# SPDX-License-Identifier: Apache-2.0
"""SQuAD fine-tuning and inference as a Task of the common loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from bertbench.benchmarks.bert_squad.answers import Answers
from bertbench.benchmarks.bert_squad.data import SquadSource, made_up_features
from bertbench.benchmarks.bert_squad.model import (
    BertForQuestionAnswering,
    SpanBatch,
    answer_divergence,
    span_loss,
)
from bertbench.benchmarks.bert_squad.recipes import SquadOptions, SquadRecipe
from bertbench.benchmarks.bert_squad.scoring import (
    answer_and_score,
    assemble,
    quality,
    script_scores,
)
from bertbench.benchmarks.bert_squad.stream import (
    FeatureStream,
    StepBatch,
    answer_batches,
    collate,
    share,
)
from bertbench.benchmarks.finetuning import weights_note
from bertbench.common.compress.layers import weights_of
from bertbench.common.compress.start import Compression, ranges_in
from bertbench.common.config.recipe import CHOSEN, Settings
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.measure.flops import span_flops
from bertbench.common.measure.metric import Metric
from bertbench.common.model.config import SIZES, Gelu
from bertbench.common.model.ops import Ops
from bertbench.common.optim.schedule import warmup_linear
from bertbench.common.training.events import EvalEvent
from bertbench.common.training.task import OptimizerOptions, Plan, Task, TaskFacts

if TYPE_CHECKING:
    from bertbench.backends.base import Backend


class SquadTask(Task):
    """Model, data and scores of one SQuAD recipe on one rank."""

    recipe: SquadRecipe
    sum_names = ("loss", "sequences")

    def __init__(
        self, settings: Settings, backend: Backend, world: World, source: SquadSource
    ) -> None:
        self.recipe, self.source = cast("SquadRecipe", settings.recipe), source
        self.run = run = cast("SquadOptions", settings.run)
        # Weights that answer without training, or teach, must include the head.
        distills = run.do_train and self.recipe.distillation > 0
        self.required_weights = "encoder" if run.do_train and not distills else "all"
        if distills:
            check_teacher(self.recipe, source)
        self.teacher: BertForQuestionAnswering | None = None
        """The model as it starts, dense and in floating point; its answers are learnt, too."""
        self._check_schedule()
        super().__init__(settings, backend, world, source)
        self.backend_name = backend.name
        self._in_precision = partial(backend.precision, self.precision)
        self.eval_batch_size = settings.impl.eval_batch_size if source.has_eval else None
        self.target_metric = "f1" if run.do_eval else "questions"
        self.target_f1 = self.recipe.target_f1 if source.has_eval and run.do_eval else None
        self.answers: Answers | None = None
        """Of the last evaluation; on rank 0 only."""
        self.scores: dict[str, Any] = {}
        """What scoring counted, beyond the metrics; on rank 0 only."""
        self._eval: Sequence[SpanBatch] | None = None
        self._keep_eval = settings.impl.cache_eval_data
        self._logits: list[Tensor] = []
        report = self.weights_report
        if report is not None and self.compression is not None:
            own = {name for name, _ in self.model.named_buffers()}  # masks and ranges
            unused = tuple(name for name in report.unexpected if name not in own)
            self.weights_report = replace(report, unexpected=unused)
        self.notes += (weights_note(source, self.weights_report, "an F1"),)
        self._check_target(settings)
        self.notes += self._uncounted(world)

    def make_model(self, ops: Ops) -> BertForQuestionAnswering:
        model = BertForQuestionAnswering(self.recipe.model, ops)
        self.compression = Compression.of(self.recipe, model)
        if self.precision == "fp8" and self.recipe.quantization is not None:
            raise BadInput(
                "--quantization: fp8 would round again what INT8 engines do not; use bf16"
            )
        return model

    def facts(self) -> TaskFacts:
        found = super().facts()
        if self.compression is None or not self.compression.quantize:
            return found
        kernels = {**found.kernels, "attention": "int8-rounded-per-sequence"}
        return replace(found, kernels=kernels)

    def check_start(self, evaluate: Callable[[], EvalEvent]) -> list[str]:
        if self.recipe.distillation and self.source.train is not None:
            self.teacher = self._dense_copy()
        if self.compression is None:
            return []
        if self.compression.quantize:
            self.compression.ranges = ranges_in(self.source.init_checkpoint)
        if self.source.train is None and not self.compression.ranges:
            raise BadInput(
                "--weight_sparsity and --quantization need --do_train: the calibration reads "
                "training samples. `bertbench infer` measures a compressed model without training"
            )
        with self._in_precision():
            return self.compression.start(
                self.model, self.train_batches(None), partial(self.loss, self.model), self.world
            )

    def _dense_copy(self) -> BertForQuestionAnswering:
        device = next(self.model.parameters()).device
        copy = BertForQuestionAnswering(self.recipe.model, self.ops).to(device)
        copy.load_state_dict(weights_of(self.model.state_dict()))
        return copy.eval().requires_grad_(False)

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

    def _check_schedule(self) -> None:
        """Refuse to train with a rate that is 0 from the first step to the last."""
        r, train = self.recipe, self.source.train
        if train is None or r.schedule_length != "examples":
            return
        if train.num_examples < r.global_batch:
            raise BadInput(
                f"{train.num_examples} questions do not fill one batch of {r.global_batch}, and "
                f"the learning rate's schedule counts whole batches of questions: every rate would "
                f"be 0. Pass --schedule_length features, or a --global_batch of at most "
                f"{train.num_examples}"
            )

    def _check_target(self, settings: Settings) -> None:
        """Drop the preset's F1 for another model or SQuAD v2.0; a --target_f1 always holds."""
        recipe, published = self.recipe, cast("SquadRecipe", settings.preset.recipe)
        asked_for = settings.origins.get("target_f1") in CHOSEN
        if recipe.target_f1 is not None and self.target_f1 is None:
            if asked_for:
                self.notes += (
                    "no target: without scoring, --target_f1 has nothing to compare with",
                )
            return
        other = None
        if recipe.v2:
            other = "of SQuAD v1.1"
        elif any(getattr(recipe.model, n) != getattr(published.model, n) for n in SIZES):
            other = "of another model"
        if self.target_f1 is not None and other is not None and not asked_for:
            self.notes += (f"no target: the recipe's F1 of {self.target_f1:g} is {other}",)
            self.target_f1 = None

    def _uncounted(self, world: World) -> tuple[str, ...]:
        """Return notes on the rates that --skip_steps leaves without a step or batch."""
        skip, predict = self.run.skip_steps, self.source.predict
        found = []
        if 0 < self.total_steps <= skip:
            found.append(f"no training rate: all {self.total_steps} steps are skipped")
        if predict is not None and self.eval_batch_size is not None:
            batches = math.ceil(len(predict.features) / world.size / self.eval_batch_size)
            if batches <= skip:
                found.append(f"no inference rate or latency: all {batches} batches are skipped")
        return tuple(f"{text} (--skip_steps {skip})" for text in found)

    # -- how long -----------------------------------------------------------------------------
    @property
    def schedule_steps(self) -> int:
        """Length of the learning rate's schedule: of all epochs, by features or by questions."""
        r, train = self.recipe, self.source.train
        if train is None:
            return 1
        if r.schedule_length == "features":
            return self._epochs_steps
        # run_squad.py: int(examples / batch) * epochs. With several cards it takes a card's batch
        # and divides by the cards behind it: 2,737 steps, not 2,736, for Enflame's 8 x 8.
        return max(1, int(train.num_examples // r.global_batch * r.num_train_epochs))

    @property
    def _epochs_steps(self) -> int:
        """Steps that see every feature ``num_train_epochs`` times; the last batch is filled up."""
        assert self.source.train is not None
        features = len(self.source.train.features)
        return math.ceil(features * self.recipe.num_train_epochs / self.recipe.global_batch)

    @property
    def total_steps(self) -> int:
        """The last optimizer step; 0 without training."""
        if self.source.train is None:
            return 0
        return min(self._epochs_steps, self.recipe.max_steps or self._epochs_steps)

    def plan(self, settings: Settings) -> Plan:
        r, run = self.recipe, settings.run
        steps = self.total_steps
        samples = steps * r.global_batch
        every = min(run.num_samples_per_checkpoint, samples)
        return Plan.of(
            settings,
            precision=self.precision,
            max_steps=steps,
            max_samples=max(1, samples),
            target_value=self.target_f1,
            eval_start_samples=0,
            eval_every_samples=0,
            eval_at_end=self.source.has_eval,
            padded_length=r.max_seq_length,
            skip_steps=self.run.skip_steps,
            max_grad_norm=None if r.gradient_clipping == "none" else r.max_grad_norm,
            clipping="per_parameter" if r.gradient_clipping == "per_parameter" else "global",
            checkpoint_every_samples=0 if run.skip_checkpoint else every,
            checkpoint_start_samples=min(run.min_samples_to_start_checkpoints, samples),
        )

    def own_facts(self) -> dict[str, Any]:
        source = self.source
        data = {"train": source.train, "predict": source.predict}
        return {
            "pooler": "none: the answer does not depend on it, nor is it trained in the references",
            "padding": "none: the references' softmax also runs over padded positions",
            "schedule_steps": self.schedule_steps,
            "total_steps": self.total_steps,
            "squad": {
                name: {
                    "questions": stored.num_examples,
                    "features": len(stored.features),
                    "dropped": len(stored.dropped),
                    "from_cache": stored.reused,
                }
                for name, stored in data.items()
                if stored is not None
            },
        }

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = {"scoring": self.scores} if self.scores else {}
        if self.compression is not None:
            found["compression"] = self.compression.facts(self.model)
        return found

    def train_batches(self, position: dict[str, int] | None) -> Iterator[Any]:
        if self.source.train is None:
            return _nothing()
        return iter(
            FeatureStream(
                self.source.train.features,
                seed=self.seed,
                global_batch=self.recipe.global_batch,
                micro_batch=self.split.micro_batch,
                world=self.world.size,
                rank=self.world.rank,
                position=position,
                pin=self.pin_memory,
            )
        )

    def loss(self, model: nn.Module, batch: SpanBatch, step: Any) -> tuple[Tensor, Tensor]:
        """Return the share of the global mean loss, [], and the sums [2]."""
        logits = model(batch)
        loss = span_loss(logits, batch)
        if self.teacher is not None and model.training:
            with torch.no_grad():
                wanted = self.teacher(batch)
            share, degree = self.recipe.distillation, self.recipe.distillation_temperature
            learnt = answer_divergence(logits, wanted, batch, degree)
            loss = (1 - share) * loss + share * learnt
        return loss / step.num_samples, _sums(loss.detach(), batch)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["sequences"]}

    def eval_batches(self) -> Sequence[SpanBatch]:
        """Return this rank's batches; the logits of the evaluation are kept from here on."""
        self._logits = []
        assert self.source.predict is not None and self.eval_batch_size is not None
        if self._eval is None or not self._keep_eval:
            features = self.source.predict.features
            rows = share(len(features), self.world.size, self.world.rank)
            self._eval = answer_batches(features, rows, self.eval_batch_size, pin=self.pin_memory)
        return self._eval

    def eval_sums(self, model: nn.Module, batch: SpanBatch) -> Tensor:
        """Return the sums [2]; the loss is 0, since the model does not see the answers."""
        logits = model(batch)
        self._logits.append(logits.detach())
        return _sums(logits.new_zeros(()), batch)

    def eval_result(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Turn all ranks' logits into answers and scores on rank 0; every rank returns them."""
        source, world = self.source, self.world
        assert source.predict is not None
        own = torch.cat(self._logits).float().cpu().numpy() if self._logits else None
        self._logits = []
        gathered = world.gather(own)
        result: dict[str, float] = {}
        if world.is_main:
            logits = assemble(source.predict.features, gathered)
            self.answers, result, self.scores = answer_and_score(
                source, self.recipe, self.run, logits
            )
            result["num_samples"] = sums["sequences"]
        shared: dict[str, float] = world.gather(result)[0]
        return shared

    def quality(self, event: EvalEvent) -> list[Metric]:
        return quality(event.metrics)

    def further_quality(self, event: EvalEvent) -> list[Metric]:
        """Return the scores of --eval_script."""
        if self.run.eval_script is not None and self.run.do_eval and self.answers is not None:
            assert self.source.predict_file is not None
            scores, self.scores["eval_script"] = script_scores(
                self.run.eval_script,
                self.source.predict_file,
                self.answers.predictions,
                self.run.eval_script_minutes,
            )
            return quality(scores)
        return []

    def model_flops(self, batch: SpanBatch) -> int:
        return span_flops(self.recipe.model, batch.tokens.lengths)

    def made_up_step(self, size: int, passes: int, *, typical: bool = False) -> StepBatch:
        length = self.recipe.max_seq_length
        length = min(length, max(4, length // 2)) if typical else length
        made = made_up_features([length] * size, self.recipe.model.vocab_size)
        batch = collate(made, np.arange(size))
        return StepBatch(
            micro_batches=(batch,) * passes,
            num_samples=size * passes,
            num_tokens=batch.num_tokens * passes,
            position={},
        )

    def learning_rate(self, step: int) -> float:
        r, steps = self.recipe, self.schedule_steps
        linear = partial(
            warmup_linear, step, total_steps=steps, warmup_proportion=r.warmup_proportion
        )
        if r.schedule == "linear" or step / steps < r.warmup_proportion:
            return linear(base=r.learning_rate)
        # Half a cosine (Loshchilov and Hutter 2017) in the place of the line from 1 to 0.
        return r.learning_rate * (1 - math.cos(math.pi * linear(base=1.0))) / 2


def check_teacher(recipe: SquadRecipe, source: SquadSource) -> None:
    """Raise BadInput where the starting weights cannot teach what --distillation asks for."""
    if source.init_checkpoint is None:
        raise BadInput(
            "--distillation: the starting weights are the teacher: give --init_checkpoint, the "
            "weights of a SQuAD run (`bertbench export-weights`)"
        )
    if recipe.attention_mask is not None:
        raise BadInput("--distillation beside --attention_mask: leave one of them out")


def _nothing() -> Iterator[Any]:
    yield from ()


def _sums(loss: Tensor, batch: SpanBatch) -> Tensor:
    return torch.stack([loss, torch.full_like(loss, len(batch.tokens.lengths))])
