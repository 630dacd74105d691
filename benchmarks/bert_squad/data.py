# SPDX-License-Identifier: Apache-2.0
"""The questions, vocabulary and starting weights of a SQuAD run."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from bertbench.benchmarks.bert_squad.answers import AnswerOptions
from bertbench.benchmarks.bert_squad.cache import StoredFeatures, stored_features
from bertbench.benchmarks.bert_squad.features import NO_TOKEN, FeatureOptions, Features
from bertbench.benchmarks.bert_squad.formats import LARGEST_FILE
from bertbench.benchmarks.bert_squad.layout import Files, locate, missing, opened, sources
from bertbench.benchmarks.bert_squad.recipes import SquadOptions, SquadRecipe
from bertbench.benchmarks.bert_squad.score import language_note, score_answers
from bertbench.benchmarks.finetuning import check_vocabulary
from bertbench.common.config.launched import number
from bertbench.common.config.recipe import Settings
from bertbench.common.data.minilm import minilm_file
from bertbench.common.data.samples import from_lengths
from bertbench.common.data.tokenization import read_vocab
from bertbench.common.errors import BadInput
from bertbench.common.files import host_cores, read_bytes
from bertbench.common.native import cache_dir
from bertbench.common.training.task import Source

LENGTHS = (41, 88, 110, 120, 127, 133, 139, 145, 150, 157, 164, 171, 179, 188, 198, 210, 223, 247,
           272, 320, 384)  # fmt: skip
"""Quantiles (0, 5, ... 100 %) of the lengths of dev-v1.1's 10,833 features at 384/128/64."""
SYNTHETIC = (88_641, 87_599)
"""Features and questions of made-up data: those of train-v1.1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SquadSource(Source):
    """The files of one run and their features."""

    recipe: SquadRecipe
    train: StoredFeatures | None
    """None: no training."""
    predict: StoredFeatures | None = None
    """None: no inference."""
    predict_file: Path | None = None
    predict_bytes: bytes = b""
    """The file's content: what is answered and scored whatever becomes of the file."""
    vocab: Sequence[str] = ()
    """Tokens by id."""

    @property
    def has_eval(self) -> bool:
        """Whether there are questions to answer."""
        return self.predict is not None

    def hash(self) -> str | None:
        """Return the identity of both data sets and the vocabulary; None for synthetic data."""
        known = {"train": self.train, "predict": self.predict}
        parts = {name: s.ingredients for name, s in known.items() if s is not None}
        if not all(parts.values()):
            return None
        hashes = {
            name: {key: found[key] for key in ("dataset_sha256", "vocab_sha256")}
            for name, found in parts.items()
        }
        return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def check_files(settings: Settings) -> Files:
    """Return the run's files, or refuse; writes and fetches nothing.

    Raises BadInput where a file is missing or belongs to another model, with the fix.
    """
    recipe, run = _parts(settings)
    if not run.do_train and not run.do_predict:
        raise BadInput("neither --do_train nor --do_predict: there is nothing to do")
    AnswerOptions.of(recipe)
    if run.synthetic:
        _check_synthetic(settings)
        return Files()
    files = _files(settings)
    if files.predict is not None and run.do_predict and run.do_eval:
        _check_scorable(files.predict, recipe.v2)
    if run.eval_script is not None and not run.eval_script.is_file():
        raise BadInput(
            f"--eval_script {run.eval_script}: no such file; leave it out: the official scores are "
            f"computed here anyway"
        )
    if recipe.starts_from == "random" and run.init_checkpoint is not None:
        raise BadInput("--init_checkpoint beside --starts_from random: leave one of them out")
    if files.config is not None:
        recipe.model.check_agrees(files.config)
    if files.vocab is not None:
        check_vocabulary(files.vocab, recipe.model.vocab_size, lowercase=recipe.lowercase)
    return files


def find_source(settings: Settings) -> SquadSource:
    """Return the run's features and weights; fetches the weights that a recipe starts from.

    Raises BadInput as ``check_files``.
    """
    recipe, run = _parts(settings)
    files = check_files(settings)
    if run.json_summary is not None:
        opened(run.json_summary, "a").close()
    if run.synthetic:
        return synthetic_source(settings)
    train_file = files.train if run.do_train else None
    predict_file = files.predict if run.do_predict else None
    checkpoint = files.checkpoint
    if recipe.starts_from == "minilm" and run.init_checkpoint is None:
        checkpoint = minilm_file("model.safetensors")
    vocab = files.vocab
    if vocab is None:
        vocab = minilm_file("vocab.txt")
        check_vocabulary(vocab, recipe.model.vocab_size, lowercase=recipe.lowercase)
    tokens = read_vocab(vocab, pads=False)
    features = {}
    notes: list[str] = []
    for training, file in ((True, train_file), (False, predict_file)):
        if file is not None:
            features[training] = found = _features(settings, file, vocab, training=training)
            if found.dropped:
                notes.append(
                    f"{file.name}: {len(found.dropped)} questions left out, as in the references, "
                    f"because their answer is not found where they say"
                )
    content = _same_bytes(predict_file, features.get(False))
    if predict_file is not None and run.do_eval:
        notes += filter(None, [language_note(predict_file, content)])
    shown = " and ".join(str(file) for file in (train_file, predict_file) if file is not None)
    return SquadSource(
        recipe=recipe,
        description=shown,
        train=features.get(True),
        predict=features.get(False),
        predict_file=predict_file,
        predict_bytes=content,
        vocab=tokens,
        init_checkpoint=checkpoint,
        notes=tuple(notes),
    )


def _parts(settings: Settings) -> tuple[SquadRecipe, SquadOptions]:
    return cast("SquadRecipe", settings.recipe), cast("SquadOptions", settings.run)


def _files(settings: Settings) -> Files:
    """Return given files and those under --data; raises BadInput with the missing ones."""
    recipe, run = _parts(settings)
    needed = recipe.starts_from == "checkpoint" or run.init_checkpoint is not None
    files = locate(
        run.data,
        v2=recipe.v2,
        weights=needed,
        train=run.train_file,
        predict=run.predict_file,
        checkpoint=run.init_checkpoint,
        vocab=run.vocab_file,
        config=run.bert_config_path,
    )
    lacking = missing(
        files, train=run.do_train, predict=run.do_predict, checkpoint=needed, v2=recipe.v2
    )
    if lacking:
        where = sources(lacking, layers=recipe.model.num_hidden_layers, v2=recipe.v2)
        raise BadInput(
            "\n  ".join((f"{settings.preset.name} lacks", *lacking))
            + "\n  ".join(("\nPublished:", *where) if where else ())
            + "\nGive --data ROOT (with squad/ and checkpoint/) or the flags above. "
            + ("Without weights: the recipe squad_mini, which fetches its own. " if needed else "")
            + "For speed alone: --starts_from random, and without any data --synthetic"
        )
    return files


def _features(settings: Settings, file: Path, vocab: Path, *, training: bool) -> StoredFeatures:
    recipe, run = _parts(settings)
    return stored_features(
        file,
        vocab,
        _feature_options(recipe),
        training=training,
        v2=training and recipe.v2,
        folder=None if run.skip_cache else run.cache_dir or cache_dir() / "squad",
        processes=min(8, host_cores()),
        say=_say,
    )


def _same_bytes(file: Path | None, stored: StoredFeatures | None) -> bytes:
    """Return the bytes that the features were made from; raise BadInput where they changed."""
    if file is None or stored is None:
        return b""
    try:
        content = read_bytes(file, LARGEST_FILE)
    except (OSError, ValueError) as error:
        raise BadInput(f"SQuAD file {file}: {error}: name an existing file") from error
    if hashlib.sha256(content).hexdigest() != stored.ingredients["dataset_sha256"]:
        raise BadInput(f"SQuAD file {file} changed while it was read: start again")
    return content


def _feature_options(recipe: SquadRecipe) -> FeatureOptions:
    return FeatureOptions(
        max_seq_length=recipe.max_seq_length,
        doc_stride=recipe.doc_stride,
        max_query_length=recipe.max_query_length,
        lowercase=recipe.lowercase,
    )


def _say(text: str) -> None:
    if number("RANK") == 0:
        print(text, file=sys.stderr)


def _check_scorable(file: Path, v2: bool) -> None:
    """Raise BadInput now where scoring would raise it after the training."""
    try:
        score_answers(file, {}, v2=v2 or None)
    except BadInput as error:
        raise BadInput(f"{error}; to answer without scoring: --no_do_eval") from error


def _check_synthetic(settings: Settings) -> None:
    recipe, run = _parts(settings)
    if not run.do_train:
        raise BadInput(
            "--synthetic only trains: it has no questions to answer. For the speed of inference: "
            "--predict_file and --starts_from random instead"
        )
    _feature_options(recipe)


def synthetic_source(settings: Settings) -> SquadSource:
    """Return random tokens of real lengths with random answers: for speed only."""
    recipe, run = _parts(settings)
    number, questions = SYNTHETIC
    rng = np.random.default_rng(0)
    quantiles = np.linspace(0, 1, len(LENGTHS))
    lengths = np.interp(rng.random(number), quantiles, LENGTHS).astype(np.int64)
    made = made_up_features(np.minimum(lengths, recipe.max_seq_length), recipe.model.vocab_size)
    stored = StoredFeatures(
        features=made, num_examples=questions, dropped=[], ingredients={}, path=None, reused=False
    )
    return SquadSource(
        recipe=recipe,
        description="synthetic tokens, lengths like dev-v1.1's",
        train=stored,
        init_checkpoint=run.init_checkpoint,
        notes=("synthetic data: without inference and F1",),
    )


def made_up_features(lengths: Sequence[int] | np.ndarray, vocab_size: int) -> Features:
    """Return features of these lengths [B] with random tokens and the answer (1, 2)."""
    rng = np.random.default_rng(1)
    offsets = from_lengths(np.asarray(lengths))
    total, number = int(offsets[-1]), len(offsets) - 1
    return Features(
        input_ids=rng.integers(0, vocab_size, total, np.int32),
        offsets=offsets,
        split=np.full(number, 2, np.int32),
        words=np.full(total, NO_TOKEN, np.int32),
        max_context=np.zeros(total, bool),
        example=np.arange(number, dtype=np.int32),
        window=np.zeros(number, np.int32),
        start=np.ones(number, np.int32),
        end=np.full(number, 2, np.int32),
    )
