# SPDX-License-Identifier: Apache-2.0
"""``bertbench score glue``: the scores of predictions in the layout of GLUE's server."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from bertbench.benchmarks.glue.data import LabelledSet, read_sets
from bertbench.benchmarks.glue.formats import Examples, read_predictions
from bertbench.benchmarks.glue.layout import locate, missing
from bertbench.benchmarks.glue.recipes import PRESETS, GlueOptions, GlueRecipe
from bertbench.benchmarks.glue.scores import check_libraries, score
from bertbench.benchmarks.glue.tasks import TASKS
from bertbench.common.config.parser import Parser
from bertbench.common.data.samples import IntArray
from bertbench.common.errors import BadInput
from bertbench.common.files import shown

COLUMNS = tuple(one.column for task in TASKS.values() for one in task.sets)
"""The nine numbers of GLUE's tables."""
MEAN = "glue_average"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One file's scores."""

    metrics: Mapping[str, float]
    """In percent, by the names of a run's metrics."""
    examples: int
    extra: int
    """Predictions of no labelled example; they are left out."""


def score_main(argv: Sequence[str]) -> int:
    """Print each score in percent, and with all nine columns their mean.

    Raises BadInput for damaged files, or predictions that are not those of the labelled examples;
    Unsupported without scikit-learn.
    """
    parser = Parser("score glue", __doc__)
    parser.add_argument(
        "predictions", type=Path, nargs="+", help="files such as dev_MNLI-m.tsv or RTE.tsv"
    )
    parser.add_argument("--data", type=Path, help="GLUE's folder, or the task's")
    parser.add_argument("--dev_file", type=Path, help="labelled file, instead of --data")
    parser.add_argument(
        "--task", choices=tuple(TASKS), help="of all files; default: by each file's name"
    )
    parser.add_argument(
        "--eval_share", type=float, help="score the part of the training file that a run held out"
    )
    parser.add_argument("--train_file", type=Path, help="the file of --eval_share")
    given = parser.parse_args(argv)
    if given.eval_share is not None and not 0 < given.eval_share < 1:
        raise BadInput(f"--eval_share {given.eval_share:g} is not between 0 and 1")
    if given.eval_share is not None and given.dev_file is not None:
        raise BadInput("--eval_share beside --dev_file: leave one of them out")
    check_libraries()
    result: dict[str, Any] = {}
    counts = {"examples": 0, "extra": 0}
    for path in given.predictions:
        task = given.task or _task_of(path)
        options = GlueOptions(
            data=given.data, dev_file=given.dev_file, train_file=given.train_file, do_train=False
        )
        found = score_file(path, task, options, given.eval_share)
        twice = sorted(result.keys() & found.metrics)
        if twice:
            raise BadInput(f"{path} is a second file of {twice[0]}: give one a column")
        result |= found.metrics
        counts["examples"] += found.examples
        counts["extra"] += found.extra
        if found.extra:
            print(f"{path}: {found.extra} predictions of no labelled example", file=sys.stderr)
    if all(column in result for column in COLUMNS):
        result[MEAN] = statistics.mean(result[column] for column in COLUMNS)
    if given.json:
        print(json.dumps(result | counts))
    else:
        for name, value in result.items():
            print(f"{name:<18}{value:8.2f} %")
    return 0


def score_file(path: Path, task: str, options: GlueOptions, share: float | None) -> Scored:
    """Score one file of ``task`` against the labels that ``options`` name.

    ``share`` is the part of the training file that the run held out; None: the dev set. Raises
    BadInput where labels or predictions are missing, double or damaged.
    """
    preset = PRESETS["glue_mini"]
    try:
        recipe = replace(
            cast("GlueRecipe", preset.recipe), task=cast("Any", task), eval_share=share
        )
    except ValueError as error:
        raise BadInput(str(error)) from error
    files = locate(recipe, options)
    if lacking := missing(files, recipe, options):
        raise BadInput("\n  ".join((f"score glue (task {task}) lacks", *lacking)))
    _, sets = read_sets(recipe, options, files)
    _, column, _, examples = _set_of(path, sets)
    predictions = read_predictions(path, TASKS[task])
    chosen, extra = _matched(predictions, examples)
    assert predictions.labels is not None and examples.labels is not None
    metrics = score(TASKS[task], column, examples.labels, predictions.labels[chosen])
    return Scored(metrics=metrics, examples=len(examples), extra=extra)


def _matched(predictions: Examples, examples: Examples) -> tuple[IntArray, int]:
    """Return the prediction's row of each example, int64 [N], and the number of the others."""
    rows = _row_of(predictions)
    _row_of(examples)
    without = [index for index in examples.index if index not in rows]
    if without:
        raise BadInput(
            f"{predictions.path} lacks {len(without)} of the {len(examples)} examples of "
            f"{examples.path}, the first with index {shown(without[0], 40)}: give a prediction of "
            f"each; those of a run on a split are scored with --train_file and --eval_share"
        )
    return np.array([rows[index] for index in examples.index]), len(rows) - len(examples)


def _row_of(part: Examples) -> dict[str, int]:
    """Return index -> row; raises BadInput for an index that is there twice."""
    rows = {index: row for row, index in enumerate(part.index)}
    if len(rows) < len(part):
        twice = next(index for row, index in enumerate(part.index) if rows[index] != row)
        raise BadInput(
            f"{part.path}: index {shown(twice, 40)} is there twice: give each example one line"
        )
    return rows


def _name(path: Path) -> str:
    return path.stem.removeprefix("dev_")


def _task_of(path: Path) -> str:
    found = {one.submission: name for name, task in TASKS.items() for one in task.sets}
    if _name(path) not in found:
        raise BadInput(
            f"{path} is none of {', '.join(f'{name}.tsv' for name in found)}: name its task with "
            f"--task"
        )
    return found[_name(path)]


def _set_of(path: Path, sets: Sequence[LabelledSet]) -> LabelledSet:
    """Return the labelled set that the file's name means, or the only one."""
    named = [one for one in sets if one[2] == _name(path)]
    if len(named or sets) != 1:
        raise BadInput(
            f"{path}: name it after one of {', '.join(f'{one[2]}.tsv' for one in sets)}, or give "
            f"the labels with --dev_file"
        )
    return (named or list(sets))[0]
