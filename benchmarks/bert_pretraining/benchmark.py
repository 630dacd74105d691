# SPDX-License-Identifier: Apache-2.0
"""BERT pretraining as a benchmark: from MLPerf's checkpoint to 0.72, or from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bertbench.benchmarks.base import Benchmark, Division
from bertbench.benchmarks.bert_pretraining.flags import translate
from bertbench.benchmarks.bert_pretraining.mlperf import why_not_closed
from bertbench.benchmarks.bert_pretraining.recipes import (
    PRESETS,
    PretrainingOptions,
    PretrainingRecipe,
)
from bertbench.benchmarks.phases import recipes as phases
from bertbench.common.config.recipe import Preset, Settings
from bertbench.common.errors import BadInput

if TYPE_CHECKING:
    from bertbench.backends.base import Backend
    from bertbench.common.distributed.world import World
    from bertbench.common.training.events import Observer
    from bertbench.common.training.task import Source, Task


class BertPretraining(Benchmark):
    """Masked-language-model and next-sentence pretraining, logged as MLPerf does."""

    name = "bert_pretraining"
    presets = PRESETS | phases.PRESETS
    example = tuple(
        """mini --synthetic --hidden_size 64 --num_hidden_layers 2 --num_attention_heads 2
        --intermediate_size 128 --vocab_size 512 --max_seq_length 64
        --max_predictions_per_seq 10 --global_batch 16 --max_steps 6""".split()
    )

    def translate(self, argv: Sequence[str], preset: Preset) -> tuple[list[str], list[str]]:
        return translate(argv, cast("PretrainingRecipe", preset.recipe))

    def check(self, settings: Settings) -> None:
        from bertbench.benchmarks.bert_pretraining.data import check_data

        self.division(settings)
        check_data(settings)

    def prepare(self, settings: Settings) -> Source:
        from bertbench.benchmarks.bert_pretraining.data import find_source

        return find_source(settings)

    def stand_in(self, settings: Settings) -> Source:
        from bertbench.benchmarks.bert_pretraining.data import stand_in

        return stand_in(settings)

    def build(self, settings: Settings, backend: Backend, world: World, source: Source) -> Task:
        from bertbench.benchmarks.bert_pretraining.data import PretrainingSource
        from bertbench.benchmarks.bert_pretraining.task import PretrainingTask

        assert isinstance(source, PretrainingSource)
        return PretrainingTask(settings, backend, world, source)

    def division(self, settings: Settings) -> Division:
        """Return MLPerf's division; raises BadInput where --division closed breaks a rule."""
        run = cast("PretrainingOptions", settings.run)
        broken = why_not_closed(cast("PretrainingRecipe", settings.recipe))
        if run.division == "closed" and broken:
            raise BadInput(f"--division closed: {'; '.join(broken)}")
        if run.division == "auto":
            return "open" if broken or run.synthetic else "closed"
        return run.division

    def observers(
        self,
        task: Task,
        settings: Settings,
        folder: Path,
        *,
        system: str,
        began: float,
        resumed: Path | None,
    ) -> Sequence[Observer]:
        from bertbench.benchmarks.bert_pretraining.task import PretrainingTask
        from bertbench.common.mlperf.log import LOG, MlperfLog, bert_tensors

        assert isinstance(task, PretrainingTask)
        run = cast("PretrainingOptions", settings.run)
        log = MlperfLog(
            folder / LOG,
            division=self.division(settings),
            org=run.submission_org,
            platform=run.submission_platform or system,
            status=run.submission_status,
            seed=run.seed,
            values=task.mlperf_values(),
            weights=bert_tensors(task.recipe.model.num_hidden_layers),
            began=began,
            previous=resumed.parent.parent / LOG if resumed else None,
        )
        return [log]

    def closing(self, folder: Path) -> Sequence[str]:
        from bertbench.common.mlperf.log import LOG

        return [f"MLPerf log  {folder / LOG}"]
