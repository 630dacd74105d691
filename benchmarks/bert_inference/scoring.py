# SPDX-License-Identifier: Apache-2.0
"""The questions of an inference run, and the scores of its logits: SQuAD's, unchanged."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bertbench.benchmarks.bert_inference.batches import Inputs
from bertbench.benchmarks.bert_squad.answers import AnswerOptions, Answers, find_answers
from bertbench.benchmarks.bert_squad.cache import stored_features
from bertbench.benchmarks.bert_squad.examples import read_squad
from bertbench.benchmarks.bert_squad.features import FeatureOptions, Features
from bertbench.benchmarks.bert_squad.formats import LARGEST_FILE
from bertbench.benchmarks.bert_squad.score import score_answers
from bertbench.benchmarks.finetuning import check_vocabulary
from bertbench.common.data.samples import ragged_index
from bertbench.common.data.tokenization import read_vocab
from bertbench.common.errors import BadInput
from bertbench.common.files import host_cores, read_bytes
from bertbench.common.native import cache_dir
from bertbench.engines.exported import Exported


@dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
    """A SQuAD file and its features, as the exported model takes them."""

    file: Path
    content: bytes
    features: Features
    vocab: list[str]
    lowercase: bool
    hash: str
    """Of the file and the vocabulary."""

    @property
    def inputs(self) -> Inputs:
        f = self.features
        return Inputs(input_ids=f.input_ids, offsets=f.offsets, split=f.split)

    def answers(self, logits: NDArray[Any], options: AnswerOptions) -> Answers:
        """Return the answers to all questions from the logits, float [T, 2], of all features.

        Raises BadInput where a logit is not finite.
        """
        return find_answers(
            read_squad(self.file, training=False, raw=self.content),
            self.features,
            logits[:, 0],
            logits[:, 1],
            vocab=self.vocab,
            lowercase=self.lowercase,
            options=options,
        )

    def score(self, answers: Answers) -> dict[str, Any]:
        """Return the scores and counts of SQuAD v1.1's official script."""
        return score_answers(self.file, answers.predictions, v2=False, raw=self.content)

    def part(self, rows: NDArray[Any]) -> Questions:
        """Return the features ``rows`` [n] alone; the other questions are then unanswered."""
        f = self.features
        index, offsets = ragged_index(f.offsets, rows)
        tokens = {n: getattr(f, n)[index] for n in ("input_ids", "words", "max_context")}
        whole = {n: getattr(f, n)[rows] for n in ("split", "example", "window")}
        return Questions(
            file=self.file, content=self.content, vocab=self.vocab, lowercase=self.lowercase,
            hash=self.hash, features=Features(offsets=offsets, **tokens, **whole),
        )  # fmt: skip


def read_questions(file: Path, exported: Exported) -> Questions:
    """Return the questions of a SQuAD v1.1 file.

    Raises BadInput for a file or vocabulary that is damaged, or does not fit the model.
    """
    check_vocabulary(exported.vocab, exported.model.vocab_size, lowercase=exported.lowercase)
    options = FeatureOptions(
        max_seq_length=exported.max_seq_length,
        doc_stride=exported.doc_stride,
        max_query_length=exported.max_query_length,
        lowercase=exported.lowercase,
    )
    stored = stored_features(
        file, exported.vocab, options, training=False, v2=False, folder=cache_dir() / "squad",
        processes=min(8, host_cores()), say=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    try:
        content = read_bytes(file, LARGEST_FILE)
    except (OSError, ValueError) as error:
        raise BadInput(f"SQuAD file {file}: {error}: name an existing file") from error
    known = {name: stored.ingredients[name] for name in ("dataset_sha256", "vocab_sha256")}
    if hashlib.sha256(content).hexdigest() != known["dataset_sha256"]:
        raise BadInput(f"SQuAD file {file} changed while it was read: start again")
    score_answers(file, {}, v2=False, raw=content)  # now, where it would fail after the tests
    return Questions(
        file=file,
        content=content,
        features=stored.features,
        vocab=list(read_vocab(exported.vocab, pads=False)),
        lowercase=exported.lowercase,
        hash=hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest(),
    )
