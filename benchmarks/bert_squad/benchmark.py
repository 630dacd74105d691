# SPDX-License-Identifier: Apache-2.0
"""SQuAD as a benchmark: fine-tuning, answering and scoring, as the reference scripts do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bertbench.benchmarks.base import Benchmark
from bertbench.benchmarks.bert_squad.flags import translate
from bertbench.benchmarks.bert_squad.recipes import PRESETS, SquadRecipe
from bertbench.common.config.recipe import Preset, Settings

if TYPE_CHECKING:
    from bertbench.backends.base import Backend
    from bertbench.common.distributed.world import World
    from bertbench.common.training.events import Observer
    from bertbench.common.training.task import Source, Task


class BertSquad(Benchmark):
    """Extractive question answering on SQuAD v1.1 or v2.0."""

    name = "bert_squad"
    presets = PRESETS
    example = tuple(
        """squad_mini --synthetic --starts_from random --hidden_size 64 --num_hidden_layers 2
        --num_attention_heads 2 --intermediate_size 128 --vocab_size 512 --max_seq_length 64
        --global_batch 16 --max_steps 6""".split()
    )
    verbs = {"score squad": "bertbench.benchmarks.bert_squad.verbs:score_main"}  # noqa: RUF012

    def translate(self, argv: Sequence[str], preset: Preset) -> tuple[list[str], list[str]]:
        return translate(argv, cast("SquadRecipe", preset.recipe))

    def check(self, settings: Settings) -> None:
        from bertbench.benchmarks.bert_squad.data import check_files

        check_files(settings)

    def prepare(self, settings: Settings) -> Source:
        from bertbench.benchmarks.bert_squad.data import find_source

        return find_source(settings)

    def stand_in(self, settings: Settings) -> Source:
        from bertbench.benchmarks.bert_squad.data import synthetic_source

        return synthetic_source(settings)

    def build(self, settings: Settings, backend: Backend, world: World, source: Source) -> Task:
        from bertbench.benchmarks.bert_squad.data import SquadSource
        from bertbench.benchmarks.bert_squad.task import SquadTask

        assert isinstance(source, SquadSource)
        return SquadTask(settings, backend, world, source)

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
        from bertbench.benchmarks.bert_squad.outputs import Outputs
        from bertbench.benchmarks.bert_squad.task import SquadTask

        assert isinstance(task, SquadTask)
        return [Outputs(task, settings, folder, resumed=resumed is not None)]

    def closing(self, folder: Path) -> Sequence[str]:
        from bertbench.benchmarks.bert_squad.outputs import closing

        return closing(folder)
