# SPDX-License-Identifier: Apache-2.0
"""Pretraining with a mask search, as a Task of the common loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bertbench.benchmarks.bert_pretraining.data import PretrainingSource
from bertbench.benchmarks.bert_pretraining.task import PretrainingTask
from bertbench.benchmarks.sparse_bert.recipes import SparseRecipe
from bertbench.common.config.recipe import Settings
from bertbench.common.data.batch import PretrainingBatch
from bertbench.common.distributed.world import World
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.masks.search import MaskSearch, Temperature
from bertbench.common.measure.metric import Metric
from bertbench.common.model.heads import BertForPreTraining, PretrainingSums
from bertbench.common.model.ops import Ops
from bertbench.common.training.events import EvalEvent, Observer, RunSummary
from bertbench.common.training.task import TaskFacts

if TYPE_CHECKING:
    from bertbench.backends.base import Backend

MASK = "mask.json"
"""In the record of a search: its mask; the bits are in mask.safetensors."""


class BertForSearch(BertForPreTraining):
    """BERT whose layers attend through the mask of ``mask_search``."""

    def __init__(self, recipe: SparseRecipe, ops: Ops, seed: int) -> None:
        super().__init__(recipe.model, ops)
        assert recipe.search is not None
        self.mask_search = MaskSearch(
            recipe.max_seq_length,
            recipe.model.num_attention_heads,
            layers=recipe.model.num_hidden_layers if recipe.search_per_layer else 1,
            structured=recipe.search == "structured",
            block=recipe.search_block,
            window=recipe.search_window,
            globals=recipe.global_tokens,
            temperature=Temperature(
                start=recipe.search_temperature,
                end=recipe.search_end_temperature,
                steps=recipe.max_steps,
            ),
            ratio=recipe.target_sparsity,
            start=recipe.search_start,
            ramp=round(recipe.search_ramp * recipe.max_steps),
            rate=recipe.search_rate,
            seed=seed,
        )

    def forward(self, batch: PretrainingBatch) -> PretrainingSums:
        """Return the sums of a micro-batch under this step's mask, in evaluation the exported."""
        masks = self.mask_search()
        for index, layer in enumerate(self.encoder.layers):
            layer.attention_mask = masks[index if len(masks) > 1 else 0]
        return super().forward(batch)


class SearchTask(PretrainingTask):
    """Pretraining that learns its mask: losses and the penalty for what the mask keeps."""

    recipe: SparseRecipe
    sum_names = (*PretrainingTask.sum_names, "penalty", "density")

    def __init__(
        self, settings: Settings, backend: Backend, world: World, source: PretrainingSource
    ) -> None:
        super().__init__(settings, backend, world, source)
        self.optimizer.register_step_post_hook(lambda *_: self._search.advance())

    @property
    def _search(self) -> MaskSearch:
        model = self.model
        assert isinstance(model, BertForSearch)
        return model.mask_search

    def make_model(self, ops: Ops) -> BertForPreTraining:
        return BertForSearch(self.recipe, ops, self.seed)

    def loss(self, model: nn.Module, batch: PretrainingBatch, step: Any) -> tuple[Tensor, Tensor]:
        """Return the share of losses and penalty, [], and the sums [8]."""
        loss, sums = super().loss(model, batch, step)
        recipe, count = self.recipe, len(batch.next_sentence_labels)
        if recipe.lamb is not None:
            penalty = self._search.penalty(recipe.lamb)
        else:
            penalty = self._search.hinge(recipe.target_weight)
        return loss + penalty * (count / step.num_samples), self._with(sums, penalty, count)

    def eval_sums(self, model: nn.Module, batch: PretrainingBatch) -> Tensor:
        sums = super().eval_sums(model, batch)
        return self._with(sums, torch.zeros_like(sums[0]), len(batch.next_sentence_labels))

    def _with(self, sums: Tensor, penalty: Tensor, count: int) -> Tensor:
        """Return ``sums`` [6] with penalty [] and density for each of ``count`` sequences, [8]."""
        own = torch.stack([penalty.detach().float(), self._search.density()])
        return torch.cat([sums, own * count])

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        found = super().metrics(sums)
        penalty = sums["penalty"] / sums["sequences"]
        return found | {
            "loss": found["loss"] + penalty,
            "penalty": penalty,
            "sparsity_ratio": 1 - sums["density"] / sums["sequences"],
        }

    def quality(self, event: EvalEvent) -> list[Metric]:
        """Return the last evaluation's accuracy, and the sparsity of the mask it was under."""
        ratio = Metric(
            name="sparsity_ratio",
            value=event.metrics["sparsity_ratio"],
            unit="1",
            direction="higher",
            clock="none",
            scope="global",
            definition="1 - kept entries / n^2, mean over layers and heads, padding ignored",
        )
        return [*super().quality(event), ratio]

    # -- the mask ---------------------------------------------------------------------------------
    @property
    def has_learnt(self) -> bool:
        """Whether the search has done a step: before, its mask is only the seed's."""
        return bool(self._search.step)

    def mask_now(self) -> AttentionMask:
        return self._search.export()

    def closing_notes(self) -> list[str]:
        ratio = self.mask_now().sparsity_ratio(self.recipe.max_seq_length)
        target, notes = self.recipe.target_sparsity, super().closing_notes()
        if target is not None and ratio < target - 1e-6:
            notes = [
                *notes,
                f"the mask's sparsity ratio is {ratio:.4f}, below --target_sparsity {target:g}: "
                f"entries that are always kept (window, global tokens, each query's last key) take "
                f"more room than the target leaves",
            ]
        return notes

    def facts(self) -> TaskFacts:
        found = super().facts()
        kernels = {**found.kernels, "attention": "searched-unfused-per-sequence"}
        return replace(found, kernels=kernels)

    def results(self) -> dict[str, Any]:
        if not self.has_learnt:
            return super().results()
        mask = self.mask_now()
        found = {
            "length": self.recipe.max_seq_length,
            "cells_per_head": len(self._search.counts),
            "sparsity_ratio": mask.sparsity_ratio(self.recipe.max_seq_length),
            "hash": mask.hash,
            "file": MASK,
        }
        return super().results() | {"mask_search": found}


class MaskFiles(Observer):
    """Writes the mask that a search has found into the record."""

    def __init__(self, folder: Path, task: SearchTask) -> None:
        self._folder, self._task = folder, task
        self.files = (MASK, str(Path(MASK).with_suffix(".safetensors")))

    def close(self, summary: RunSummary) -> None:
        """Write the mask of a search that has learnt, whatever its end: one cut short has one."""
        if self._task.has_learnt:
            self._task.mask_now().save(self._folder / MASK)
