# SPDX-License-Identifier: Apache-2.0
"""The examples, vocabulary and starting weights of a GLUE run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from bertbench.benchmarks.finetuning import check_vocabulary
from bertbench.benchmarks.glue.features import Encoder, Features, made_up_features
from bertbench.benchmarks.glue.formats import Examples, held_out, read_examples
from bertbench.benchmarks.glue.layout import Files, locate, missing, own_column
from bertbench.benchmarks.glue.recipes import GlueOptions, GlueRecipe
from bertbench.benchmarks.glue.scores import check_libraries
from bertbench.benchmarks.glue.tasks import TASKS, GlueTask
from bertbench.common.config.recipe import Settings
from bertbench.common.data.foreign import read_text
from bertbench.common.data.minilm import minilm_file
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256, shown
from bertbench.common.training.task import Source

LENGTHS = (6, 15, 18, 21, 23, 26, 28, 30, 32, 34, 36, 38, 41, 43, 46, 49, 53, 57, 63, 72, 128)
"""Quantiles (0, 5, ... 100 %) of the lengths of MNLI's matched dev set at 128."""
SYNTHETIC = 392_702
"""Examples of made-up data: those of MNLI's train.tsv."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """A set that is evaluated or labelled: N examples."""

    kind: Literal["dev", "test"]
    column: str
    """The name of its score."""
    submission: str
    """The name, without .tsv, that GLUE's server knows."""
    index: list[str]
    """The N examples' numbers in the file."""
    features: Features

    @property
    def file(self) -> str:
        """Return the name of the predictions' file."""
        return f"{'dev_' if self.kind == 'dev' else ''}{self.submission}.tsv"


@dataclass(frozen=True, kw_only=True, eq=False)
class GlueSource(Source):
    """The files of one run and their features."""

    recipe: GlueRecipe
    train: Features | None
    """None: no training."""
    parts: tuple[Part, ...] = ()
    """The dev sets, then the test sets."""
    hashes: dict[str, str] = field(default_factory=dict)
    """Name of a file that the result depends on -> sha256; empty for synthetic data."""
    own: dict[str, Any] = field(default_factory=dict)
    """Counts and names for the record."""

    @property
    def has_eval(self) -> bool:
        """Whether there are examples to label."""
        return bool(self.parts)

    def hash(self) -> str | None:
        """Return the identity of training and dev sets and vocabulary; None for synthetic data."""
        if not self.hashes:
            return None
        return hashlib.sha256(json.dumps(self.hashes, sort_keys=True).encode()).hexdigest()


def check_files(settings: Settings) -> Files:
    """Return the run's files, or refuse; writes and fetches nothing.

    Raises BadInput where a file is missing or belongs to another model, with the fix; Unsupported
    where there is to be a score and the libraries for it are not installed.
    """
    recipe, run = _parts(settings)
    if not (run.do_train or run.do_eval or run.do_predict):
        raise BadInput("neither --do_train, --do_eval nor --do_predict: there is nothing to do")
    if recipe.starts_from == "random" and run.init_checkpoint is not None:
        raise BadInput("--init_checkpoint beside --starts_from random: leave one of them out")
    if run.synthetic:
        if not run.do_train:
            raise BadInput("--synthetic only trains: it has no labels to predict")
        return Files()
    if recipe.eval_share is not None and run.dev_file is not None:
        raise BadInput("--eval_share beside --dev_file: leave one of them out")
    if run.do_eval:
        check_libraries()
    files = locate(recipe, run)
    lacking = missing(files, recipe, run)
    if lacking:
        raise BadInput(
            "\n  ".join((f"{settings.preset.name} (task {recipe.task}) lacks", *lacking))
            + "\nGive --data ROOT (GLUE's folder, or the task's) or the flags above. "
            + "For speed alone: --starts_from random, and without any data --synthetic"
        )
    if files.config is not None:
        recipe.model.check_agrees(files.config)
    if files.vocab is not None:
        check_vocabulary(files.vocab, recipe.model.vocab_size, lowercase=recipe.lowercase)
    return files


def find_source(settings: Settings) -> GlueSource:
    """Return the run's features and weights; fetches the weights that a recipe starts from.

    Raises BadInput as ``check_files``, and for damaged files.
    """
    recipe, run = _parts(settings)
    files = check_files(settings)
    if run.synthetic:
        return synthetic_source(settings)
    checkpoint, vocab = files.checkpoint, files.vocab
    if recipe.starts_from == "minilm" and checkpoint is None:
        checkpoint = minilm_file("model.safetensors")
    if vocab is None:
        vocab = minilm_file("vocab.txt")
        check_vocabulary(vocab, recipe.model.vocab_size, lowercase=recipe.lowercase)
    train, sets = read_sets(recipe, run, files)
    encoder = Encoder(vocab, lowercase=recipe.lowercase, max_seq_length=recipe.max_seq_length)
    hashes = {"vocab": file_sha256(vocab)}
    own: dict[str, Any] = {"task": recipe.task}
    notes = [f"vocabulary {shown(vocab)}"]
    features = None
    if run.do_train and train is not None:
        features, own["train"] = _encoded(encoder, train, notes)
        hashes["train"] = train.sha256
    parts = []
    for kind, column, submission, examples in sets:
        made, own[f"{kind}_{column}"] = _encoded(encoder, examples, notes)
        if kind == "dev":
            hashes[column] = examples.sha256
        parts.append(
            Part(
                kind=kind,
                column=column,
                submission=submission,
                index=examples.index,
                features=made,
            )
        )
    if files.dev_ids is not None:
        hashes["dev_ids"] = file_sha256(files.dev_ids)
    if recipe.eval_share is not None:
        own["split"] = f"eval_share {recipe.eval_share:g} by the sha256 of the first text"
    files_read = dict.fromkeys(str(e.path) for e in (train, *(s[3] for s in sets)) if e is not None)
    return GlueSource(
        recipe=recipe,
        description=" and ".join(files_read),
        train=features,
        parts=tuple(parts),
        hashes=hashes,
        own=own,
        init_checkpoint=checkpoint,
        notes=tuple(dict.fromkeys(notes)),
    )


def _parts(settings: Settings) -> tuple[GlueRecipe, GlueOptions]:
    return cast("GlueRecipe", settings.recipe), cast("GlueOptions", settings.run)


LabelledSet = tuple[Literal["dev", "test"], str, str, Examples]
"""Kind, the name of its score, the submission's name and its examples."""


def read_sets(
    recipe: GlueRecipe, run: GlueOptions, files: Files
) -> tuple[Examples | None, list[LabelledSet]]:
    """Return the examples to train on, and the sets to label; raises BadInput as read_examples."""
    task, skip = TASKS[recipe.task], recipe.malformed_lines == "skip"
    train, sets = None, list[LabelledSet]()
    own = own_column(recipe.task)
    splits = recipe.eval_share is not None or files.dev_ids is not None
    if files.train is not None and (run.do_train or (run.do_eval and splits)):
        train = read_examples(files.train, task, labelled=True, skip=skip)
        if splits:
            dev = _dev_rows(recipe, files, train)
            if run.do_eval:
                sets.append(("dev", own, task.sets[0].submission, train.take(dev)))
            train = train.take(~dev)
    names = {one.column: one.submission for one in task.sets}
    for column, path in files.dev if run.do_eval else ():
        examples = read_examples(path, task, labelled=True, skip=skip)
        sets.append(("dev", column, names.get(column, task.sets[0].submission), examples))
    for one, path in files.test if run.do_predict else ():
        # Never skipping here: a submission needs every line.
        examples = read_examples(path, task, labelled=False)
        sets.append(("test", one.column, one.submission, examples))
    return train, sets


def _dev_rows(recipe: GlueRecipe, files: Files, train: Examples) -> NDArray[np.bool_]:
    """Return bool [N]: the examples of the training file that are the dev set."""
    if recipe.eval_share is not None:
        return held_out(train, recipe.eval_share)
    assert files.dev_ids is not None
    if train.pair_ids is None:
        raise BadInput(f"{train.path} has no pair ids, which {files.dev_ids} lists")
    try:
        listed = {line.strip() for line in read_text(files.dev_ids, 1 << 24).splitlines()}
    except (OSError, ValueError) as error:
        raise BadInput(f"{files.dev_ids}: {error}: fetch it again, or --eval_share") from error
    return np.array([pair in listed for pair in train.pair_ids])


def _encoded(
    encoder: Encoder, examples: Examples, notes: list[str]
) -> tuple[Features, dict[str, Any]]:
    """Return features and their counts; notes what was left out."""
    made, cut = encoder.features(examples)
    name = examples.path.name
    if examples.malformed:
        some = ", ".join(map(str, examples.malformed[:5]))
        more = ", ..." if len(examples.malformed) > 5 else ""
        notes.append(f"{name}: {len(examples.malformed)} malformed lines left out ({some}{more})")
    if examples.unlabelled:
        notes.append(f"{name}: {examples.unlabelled} examples without an agreed label left out")
    counts = {
        "file": name,
        "examples": len(examples),
        "cut": cut,
        "unlabelled": examples.unlabelled,
        "malformed": len(examples.malformed),
    }
    return made, counts


def class_names(task: GlueTask) -> list[str]:
    """Return the names of a task's classes, in the order of the model's outputs."""
    return list(task.names or task.labels)


def synthetic_source(settings: Settings) -> GlueSource:
    """Return random tokens of real lengths with random labels: for speed only."""
    recipe, run = _parts(settings)
    task = TASKS[recipe.task]
    rng = np.random.default_rng(0)
    quantiles = np.linspace(0, 1, len(LENGTHS))
    lengths = np.interp(rng.random(SYNTHETIC), quantiles, LENGTHS).astype(np.int64)
    made = made_up_features(
        np.minimum(lengths, recipe.max_seq_length),
        recipe.model.vocab_size,
        len(task.labels),
        pair=len(task.texts) == 2,
    )
    return GlueSource(
        recipe=recipe,
        description="synthetic tokens, lengths like those of MNLI's matched dev set",
        train=made,
        own={"task": recipe.task},
        init_checkpoint=run.init_checkpoint,
        notes=("synthetic data: without evaluation",),
    )
