# SPDX-License-Identifier: Apache-2.0
"""SQuAD fine-tuning as a benchmark: what the runner asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bertbench.benchmarks.bert_squad.data import Source, find_source
from bertbench.benchmarks.bert_squad.outputs import Outputs, closing
from bertbench.benchmarks.bert_squad.recipes import SquadRecipe
from bertbench.benchmarks.bert_squad.task import SquadTask
from bertbench.common.config.batch_split import told
from bertbench.common.config.recipe import Settings
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.training.distributed import World
from bertbench.common.training.events import Observer

if TYPE_CHECKING:
    from bertbench.backends.base import Backend

__all__ = ["build", "closing", "division", "observers", "prepare", "split_of"]


def division(settings: Settings) -> None:
    """MLPerf has no SQuAD benchmark, hence no division and no log."""
    run = settings.run
    if run.division != "auto":
        raise Unsupported(f"--division {run.division}: MLPerf has no SQuAD benchmark; leave it out")
    if run.verify_checkpoint:
        raise Unsupported(
            "--verify_checkpoint: no F1 is known of weights that are to be fine-tuned; to answer "
            "with fine-tuned ones: --no_do_train"
        )


def observers(
    task: SquadTask,
    settings: Settings,
    folder: Path,
    *,
    system: str,
    began: float,
    resumed: Path | None,
) -> list[Observer]:
    """Predictions, DLLogger's lines and the final report, into the record ``folder``."""
    return [Outputs(task, settings, folder, resumed=resumed is not None)]


def split_of(settings: Settings, world: World) -> dict[str, Any]:
    """How the global batch would be cut up, for --dry_run."""
    return told(cast("SquadRecipe", settings.recipe).global_batch, settings.impl, world)


def prepare(settings: Settings) -> Source:
    """Files and features of the run."""
    if settings.run.text is not None or settings.run.input_dir or settings.run.eval_dir:
        raise BadInput("SQuAD takes --data, or --train_file and --predict_file")
    return find_source(settings)


def build(settings: Settings, backend: Backend, world: World, source: Source) -> SquadTask:
    """The task of this benchmark on this rank."""
    return SquadTask(settings, backend, world, source)
