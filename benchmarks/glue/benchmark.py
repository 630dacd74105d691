# SPDX-License-Identifier: Apache-2.0
"""GLUE as a benchmark: fine-tuning, evaluation and submissions of nine columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bertbench.benchmarks.base import Benchmark
from bertbench.benchmarks.glue.flags import translate
from bertbench.benchmarks.glue.recipes import PRESETS, GlueRecipe
from bertbench.common.config.recipe import Preset, Settings

if TYPE_CHECKING:
    from bertbench.backends.base import Backend
    from bertbench.common.distributed.world import World
    from bertbench.common.training.events import Observer
    from bertbench.common.training.task import Source, Task


class Glue(Benchmark):
    """Classification and regression of one or two texts (Wang et al. 2019)."""

    name = "glue"
    presets = PRESETS
    example = tuple(
        """glue_mini --synthetic --starts_from random --hidden_size 64 --num_hidden_layers 2
        --num_attention_heads 2 --intermediate_size 128 --vocab_size 512 --max_seq_length 64
        --global_batch 16 --max_steps 6""".split()
    )

    verbs = {"score glue": "bertbench.benchmarks.glue.verbs:score_main"}  # noqa: RUF012

    def translate(self, argv: Sequence[str], preset: Preset) -> tuple[list[str], list[str]]:
        return translate(argv, cast("GlueRecipe", preset.recipe))

    def check(self, settings: Settings) -> None:
        from bertbench.benchmarks.glue.data import check_files

        check_files(settings)

    def prepare(self, settings: Settings) -> Source:
        from bertbench.benchmarks.glue.data import find_source

        return find_source(settings)

    def stand_in(self, settings: Settings) -> Source:
        from bertbench.benchmarks.glue.data import synthetic_source

        return synthetic_source(settings)

    def build(self, settings: Settings, backend: Backend, world: World, source: Source) -> Task:
        from bertbench.benchmarks.glue.data import GlueSource
        from bertbench.benchmarks.glue.task import GlueTask

        assert isinstance(source, GlueSource)
        return GlueTask(settings, backend, world, source)

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
        from bertbench.benchmarks.glue.outputs import Predictions
        from bertbench.benchmarks.glue.task import GlueTask

        assert isinstance(task, GlueTask)
        return [Predictions(task, folder)]

    def closing(self, folder: Path) -> Sequence[str]:
        from bertbench.benchmarks.glue.outputs import closing

        return closing(folder)
