# SPDX-License-Identifier: Apache-2.0
"""The files of a GLUE folder, and those missing from it. This module opens no data file.

The folder is the one that GLUE's download script fills, the folder of one task in it, or any folder
above the two. MRPC may be as Microsoft distributes it, with or without GLUE's list of dev pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bertbench.benchmarks.glue.recipes import GlueOptions, GlueRecipe
from bertbench.benchmarks.glue.tasks import (
    MRPC_DEV_IDS,
    MRPC_TEST,
    MRPC_TRAIN,
    TASKS,
    EvalSet,
    GlueTask,
)
from bertbench.common.errors import BadInput

CONFIGS = ("bert_config.json", "config.json")
_ABOVE = (".", "glue_data", "glue", "GLUE", "download/glue")


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Files of one run; None: not given and not found."""

    train: Path | None = None
    dev_ids: Path | None = None
    """MRPC's list of the training pairs that are the dev set."""
    dev: tuple[tuple[str, Path], ...] = ()
    """Name of the score -> labelled file."""
    test: tuple[tuple[EvalSet, Path], ...] = ()
    checkpoint: Path | None = None
    vocab: Path | None = None
    config: Path | None = None


def locate(recipe: GlueRecipe, run: GlueOptions) -> Files:
    """Return the run's files, which need not exist where a flag names them.

    Raises BadInput where --data names a file, or nothing.
    """
    task = TASKS[recipe.task]
    folder = None
    if run.data is not None:
        if not run.data.is_dir():
            raise BadInput(f"--data {run.data} is not a folder: it must hold {task.folder}/")
        folder = _folder(run.data, task)
    train, dev_ids = run.train_file, None
    if train is None and folder is not None:
        train = _first((folder / "train.tsv", folder / MRPC_TRAIN))
        if train is not None and train.name == MRPC_TRAIN and recipe.eval_share is None:
            dev_ids = _first((folder / MRPC_DEV_IDS, folder / f"mrpc_{MRPC_DEV_IDS}"))
    near = [f for f in (folder, run.data) if f is not None]
    if run.init_checkpoint is not None:
        near.append(run.init_checkpoint.parent)
    return Files(
        train=train,
        dev_ids=dev_ids,
        dev=tuple(_dev(recipe, run, task, folder)),
        test=tuple(_test(run, task, folder)),
        checkpoint=run.init_checkpoint,
        vocab=run.vocab_file or _first(f / "vocab.txt" for f in near),
        config=run.bert_config_path
        or (run.init_checkpoint and _first(run.init_checkpoint.parent / n for n in CONFIGS))
        or None,
    )


def _folder(root: Path, task: GlueTask) -> Path:
    """Return the task's folder below ``root``, or ``root``, where its files would be."""
    names = ["train.tsv", MRPC_TRAIN, *(s.dev for s in task.sets), *(s.test for s in task.sets)]
    folders = [root / above / task.folder for above in _ABOVE]
    return next((f for f in folders if any((f / n).is_file() for n in names)), root)


def _dev(
    recipe: GlueRecipe, run: GlueOptions, task: GlueTask, folder: Path | None
) -> Iterator[tuple[str, Path]]:
    if run.dev_file is not None:
        yield own_column(recipe.task), run.dev_file
    elif folder is not None and recipe.eval_share is None:
        for one in task.sets:
            if (folder / one.dev).is_file():
                yield one.column, folder / one.dev


def _test(run: GlueOptions, task: GlueTask, folder: Path | None) -> Iterator[tuple[EvalSet, Path]]:
    if run.test_file is not None:
        yield task.sets[0], run.test_file
    elif folder is not None:
        for one in task.sets:
            found = _first((folder / one.test, folder / MRPC_TEST))
            if found is not None:
                yield one, found


def own_column(task: str) -> str:
    """Return the score's name for a file of the user's or a split of ours: not GLUE's of MNLI."""
    return "mnli" if task == "mnli" else TASKS[task].sets[0].column


def missing(files: Files, recipe: GlueRecipe, run: GlueOptions) -> list[str]:
    """Return a line for each needed file that is missing, with its flag."""
    task = TASKS[recipe.task]
    splits = recipe.eval_share is not None or files.dev_ids is not None
    found_dev = len(files.dev) >= (1 if run.dev_file is not None else len(task.sets))
    dev = [one.dev for one in task.sets if one.column not in dict(files.dev)]
    found_test = len(files.test) >= (1 if run.test_file is not None else len(task.sets))
    test = [one.test for one in task.sets if one not in [one for one, _ in files.test]]
    trains = run.do_train or (run.do_eval and splits)
    wanted = [
        (trains and files.train is None, f"{task.folder}/train.tsv (--train_file)"),
        (
            run.do_eval and not splits and not found_dev,
            f"{task.folder}/{' and '.join(dev)} (--dev_file; or --eval_share 0.1 to hold out a "
            f"part of the training file; or --no_do_eval)",
        ),
        (
            run.do_predict and not found_test,
            f"{task.folder}/{' and '.join(test)} (--test_file; without --do_predict only the dev "
            f"set is labelled)",
        ),
        (
            files.checkpoint is None and recipe.starts_from == "checkpoint",
            "the weights to start from (--init_checkpoint)",
        ),
    ]
    named = [
        (files.train if trains else None, "--train_file"),
        *((path, "--dev_file") for _, path in files.dev if run.do_eval),
        *((path, "--test_file") for _, path in files.test if run.do_predict),
        (files.vocab, "the vocabulary (--vocab_file)"),
        (files.config, "the model's shape (--config_file)"),
    ]
    lacking = [what for lacks, what in wanted if lacks]
    lacking += [
        f"{what}: {p} {'is not a plain file' if p.exists() else 'does not exist'}"
        for p, what in named
        if p and not p.is_file()
    ]
    if files.checkpoint is not None and not files.checkpoint.is_file():
        from bertbench.common.model.weight_files import why_no_file  # only here: it loads torch

        why = why_no_file(files.checkpoint) or "does not exist"
        lacking.append(f"--init_checkpoint: {files.checkpoint} {why}")
    return lacking


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)
