# SPDX-License-Identifier: Apache-2.0
"""BERT pretraining as a benchmark: what the runner asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from bertbench.benchmarks.bert_pretraining.data import Source, find_source
from bertbench.benchmarks.bert_pretraining.mlperf import why_not_closed
from bertbench.benchmarks.bert_pretraining.recipes import PretrainingRecipe
from bertbench.benchmarks.bert_pretraining.task import PretrainingTask
from bertbench.common.config.batch_split import told
from bertbench.common.config.recipe import Settings
from bertbench.common.errors import BadInput
from bertbench.common.mlperf.log import LOG, MlperfLog, bert_tensors
from bertbench.common.training.distributed import World
from bertbench.common.training.events import Observer

if TYPE_CHECKING:
    from bertbench.backends.base import Backend


def division(settings: Settings) -> Literal["closed", "open"]:
    """MLPerf's division of a run. Raises BadInput when closed is asked for and a rule is broken."""
    recipe = cast("PretrainingRecipe", settings.recipe)
    broken = why_not_closed(recipe)
    if settings.run.division == "closed" and broken:
        raise BadInput(f"--division closed: {'; '.join(broken)}")
    if settings.run.division == "auto":
        return "open" if broken or settings.run.synthetic else "closed"
    return settings.run.division


def observers(
    task: PretrainingTask,
    settings: Settings,
    folder: Path,
    *,
    system: str,
    began: float,
    resumed: Path | None,
) -> list[Observer]:
    """MLPerf's log in the record ``folder``; ``began`` is when initialisation did (time.time)."""
    run = settings.run
    log = MlperfLog(
        folder / LOG,
        division=division(settings),
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


def closing(folder: Path) -> list[str]:
    """What the reader of a terminal is told at the very end."""
    return [f"MLPerf log  {folder / LOG}"]


def split_of(settings: Settings, world: World) -> dict[str, Any]:
    """How the global batch would be cut up, for --dry_run."""
    recipe = cast("PretrainingRecipe", settings.recipe)
    return told(recipe.global_batch, settings.impl, world)


prepare = find_source


def build(settings: Settings, backend: Backend, world: World, source: Source) -> PretrainingTask:
    """The task of this benchmark on this rank."""
    return PretrainingTask(settings, backend, world, source)
