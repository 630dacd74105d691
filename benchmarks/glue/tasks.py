# SPDX-License-Identifier: Apache-2.0
"""GLUE's tasks: files, columns, labels and scores. Pure data: importing this is instant.

Source: the official archives (Wang et al. 2019, gluebenchmark.com/tasks), whose files train.tsv and
dev.tsv have a header except CoLA's; MRPC's are Microsoft's own. Class numbers are in the order of
Hugging Face's ``glue``, so that weights can be exchanged. WNLI is left out, as in BERT's paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

Names = tuple[str, ...]


class EvalSet(NamedTuple):
    """An evaluation set and its files in the task's folder."""

    column: str
    """GLUE's column, under the name of our published tables; also the name of its score."""
    dev: str
    test: str
    submission: str
    """The file's name, without .tsv, in an archive for GLUE's server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GlueTask:
    """One task."""

    folder: str
    """In GLUE's download."""
    texts: tuple[Names, ...]
    """Each text's possible columns; two texts make a pair."""
    label: Names = ("label",)
    """The label's possible columns."""
    labels: Names = ()
    """The classes as the files write them; () where the label is a number."""
    names: Names = ()
    """The classes' names, where the files number them."""
    range: tuple[float, float] | None = None
    """Of a label that is a number."""
    sets: tuple[EvalSet, ...]
    score: str = "accuracy"
    """accuracy, f1 (and accuracy), matthews or correlation (mean of Pearson's and Spearman's)."""
    positions: Names = ()
    """The columns of a file without header."""
    unlabelled: Names = ()
    """Labels of examples on which the annotators did not agree; they are left out."""

    @property
    def outputs(self) -> int:
        """Return the outputs of the model's head: one a class, or one number."""
        return len(self.labels) or 1


def _one(column: str, folder: str) -> tuple[EvalSet]:
    return (EvalSet(column, "dev.tsv", "test.tsv", folder),)


_PAIR = (("sentence1", "premise"), ("sentence2", "hypothesis"))
_ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "mnli": GlueTask(
        folder="MNLI",
        texts=_PAIR,
        label=("gold_label", "label"),
        labels=("entailment", "neutral", "contradiction"),
        unlabelled=("-", "-1"),
        sets=(
            EvalSet("mnli_matched", "dev_matched.tsv", "test_matched.tsv", "MNLI-m"),
            EvalSet("mnli_mismatched", "dev_mismatched.tsv", "test_mismatched.tsv", "MNLI-mm"),
        ),
    ),
    "qqp": GlueTask(
        folder="QQP",
        texts=(("question1",), ("question2",)),
        label=("is_duplicate", "label"),
        labels=("0", "1"),
        names=("not_duplicate", "duplicate"),
        sets=_one("qqp", "QQP"),
        score="f1",
    ),
    "qnli": GlueTask(
        folder="QNLI",
        texts=(("question",), ("sentence",)),
        labels=_ENTAILMENT,
        sets=_one("qnli", "QNLI"),
    ),
    "sst2": GlueTask(
        folder="SST-2",
        texts=(("sentence",),),
        labels=("0", "1"),
        names=("negative", "positive"),
        sets=_one("sst2", "SST-2"),
    ),
    "cola": GlueTask(
        folder="CoLA",
        texts=(("sentence",),),
        labels=("0", "1"),
        names=("unacceptable", "acceptable"),
        sets=_one("cola", "CoLA"),
        score="matthews",
        positions=("source", "label", "mark", "sentence"),
    ),
    "stsb": GlueTask(
        folder="STS-B",
        texts=(("sentence1",), ("sentence2",)),
        label=("score", "label"),
        range=(0.0, 5.0),
        sets=_one("stsb", "STS-B"),
        score="correlation",
    ),
    "mrpc": GlueTask(
        folder="MRPC",
        texts=(("#1 String", "sentence1"), ("#2 String", "sentence2")),
        label=("Quality", "label"),
        labels=("0", "1"),
        names=("not_equivalent", "equivalent"),
        sets=_one("mrpc", "MRPC"),
        score="f1",
    ),
    "rte": GlueTask(
        folder="RTE",
        texts=(("sentence1",), ("sentence2",)),
        labels=_ENTAILMENT,
        sets=_one("rte", "RTE"),
    ),
}
"""By the name that ``--task`` takes."""

MRPC_TRAIN, MRPC_TEST, MRPC_DEV_IDS = (
    "msr_paraphrase_train.txt",
    "msr_paraphrase_test.txt",
    "dev_ids.tsv",
)
"""Microsoft's files, and GLUE's list of the training pairs that are its dev set."""
PAIR_IDS = ("#1 ID", "#2 ID")
"""MRPC's columns that the list of dev pairs refers to."""
INDEX = ("index", "id")
"""Columns of an example's number, which a submission repeats."""
