# SPDX-License-Identifier: Apache-2.0
"""Sparse BERT as a benchmark: pretraining under a fixed attention mask, or in search of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertbench.benchmarks.base import Division
from bertbench.benchmarks.bert_pretraining.benchmark import BertPretraining
from bertbench.benchmarks.sparse_bert.recipes import PRESETS, SparseRecipe
from bertbench.common.config.recipe import Settings
from bertbench.common.errors import BadInput

if TYPE_CHECKING:
    from bertbench.backends.base import Backend
    from bertbench.common.distributed.world import World
    from bertbench.common.training.events import Observer
    from bertbench.common.training.task import Source, Task


class SparseBert(BertPretraining):
    """SparseBERT's pretraining: eight searches, six fixed masks, and dense attention."""

    name = "sparse_bert"
    presets = PRESETS
    example = tuple(
        """sparse_bert_mini --synthetic --hidden_size 64 --num_hidden_layers 2
        --num_attention_heads 2 --intermediate_size 128 --vocab_size 512 --max_seq_length 64
        --max_predictions_per_seq 10 --global_batch 16 --max_steps 6""".split()
    )

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if _searches(settings) and settings.impl.compile is not None:
            raise BadInput("--compile: a mask search is not compiled, since its mask is drawn anew")

    def build(self, settings: Settings, backend: Backend, world: World, source: Source) -> Task:
        if not _searches(settings):
            return super().build(settings, backend, world, source)
        from bertbench.benchmarks.bert_pretraining.data import PretrainingSource
        from bertbench.benchmarks.sparse_bert.task import SearchTask

        assert isinstance(source, PretrainingSource)
        return SearchTask(settings, backend, world, source)

    def division(self, settings: Settings) -> Division:
        """Return MLPerf's open division; raises BadInput for a search in the closed one."""
        found = super().division(settings)
        if not _searches(settings):
            return found
        if found == "closed":
            raise BadInput("--division closed: attention is dense")
        return "open"

    def observers(
        self, task: Task, settings: Settings, folder: Path, **rest: Any
    ) -> Sequence[Observer]:
        from bertbench.benchmarks.sparse_bert.task import MaskFiles, SearchTask

        found = super().observers(task, settings, folder, **rest)
        return [*found, MaskFiles(folder, task)] if isinstance(task, SearchTask) else found

    def closing(self, folder: Path) -> Sequence[str]:
        from bertbench.benchmarks.sparse_bert.task import MASK

        mask = folder / MASK
        return [*super().closing(folder), *([f"mask        {mask}"] if mask.exists() else [])]


def _searches(settings: Settings) -> bool:
    assert isinstance(settings.recipe, SparseRecipe)
    return settings.recipe.search is not None
