# SPDX-License-Identifier: Apache-2.0
"""SQuAD v1.1 and v2.0 files as the reference scripts read them, and refused where damaged.

Source: ``read_squad_examples`` of NVIDIA's and Enflame's ``run_squad.py``; the two are the same.
"""

from __future__ import annotations

import re
import sys
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertbench.benchmarks.bert_squad.formats import Question, questions, read_document, whole
from bertbench.common.errors import BadInput
from bertbench.common.files import shown

WORD = re.compile("[^ \t\r\n\u202f]+")
"""The reference splits a paragraph at these five characters and no other (not at U+00A0, say)."""

NO_WORD = -1
"""The reference's word index of an answer that does not exist."""


@dataclass(frozen=True, slots=True, eq=False)
class Paragraph:
    """A paragraph; answers are cut from its words."""

    text: str
    words: list[str]
    starts: array[int]
    """The character at which each word begins, ascending."""

    @classmethod
    def of(cls, text: str) -> Paragraph:
        """Split ``text`` into its words."""
        found = list(WORD.finditer(text))
        # Interned, since the words of 19,000 paragraphs are mostly the same ones.
        return cls(
            text, [sys.intern(m.group()) for m in found], array("I", (m.start() for m in found))
        )

    def word_at(self, character: int) -> int:
        """Return the word that holds a character or precedes a space; -1 before the first word."""
        return bisect_right(self.starts, character) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One question about one paragraph."""

    id: str
    question: str
    paragraph: int
    """Index into Squad.paragraphs; never descends from one example to the next."""
    answer: str = ""
    """The annotated text; empty unless read for training."""
    start_word: int = NO_WORD
    """First word of the answer; NO_WORD unless read for training, or if impossible."""
    end_word: int = NO_WORD
    """Last word of the answer, inclusive."""
    is_impossible: bool = False
    """Without an answer in the paragraph; known only when read for training on v2."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Squad:
    """A file, read."""

    path: Path
    training: bool
    v2: bool
    paragraphs: list[Paragraph]
    examples: list[Example]
    dropped: list[str]
    """Ids of training questions left out, as the reference does, because their answer's text is
    not found among the words that it points at."""


def read_squad(path: Path, *, training: bool, v2: bool = False, raw: bytes | None = None) -> Squad:
    """Read a file for training, or for prediction without its answers.

    Args:
        path: a SQuAD v1.1 or v2.0 JSON file.
        training: each question must then have exactly one answer.
        v2: in training, questions marked ``is_impossible`` are kept as such; such a mark is then
            required of every question.
        raw: the file's bytes, where they are known; it is not read then.

    Raises:
        BadInput: the file is damaged, or has no question; the message names the place.
    """
    paragraphs: list[Paragraph] = []
    examples: list[Example] = []
    dropped: list[str] = []
    for item in questions(path, read_document(path, "SQuAD file", raw)):
        if item.first:
            paragraphs.append(Paragraph.of(item.context))
        answer: dict[str, Any] | None = {}
        if training:
            answer = _answer(item, paragraphs[-1], v2)
        if answer is None:
            dropped.append(item.id)
            continue
        examples.append(
            Example(
                id=item.id,
                question=item.text,
                paragraph=len(paragraphs) - 1,
                **answer,
            )
        )
    if not examples:
        raise BadInput(
            f"SQuAD file {path} has no usable question"
            + f" ({len(dropped)} left out because their answer is not in their paragraph)"
            * bool(dropped)
            + ": name a SQuAD file with questions"
        )
    return Squad(
        path=path,
        training=training,
        v2=v2,
        paragraphs=paragraphs,
        examples=examples,
        dropped=dropped,
    )


def _answer(item: Question, paragraph: Paragraph, v2: bool) -> dict[str, Any] | None:
    """Return the answer's fields of an Example; None where its text is not found."""
    if v2:
        impossible = item.is_impossible()
        if impossible is None:
            raise BadInput(
                f"{item.where} has no true or false is_impossible: use a v2.0 file, or leave out "
                f"--version_2_with_negative"
            )
        if impossible:
            return {"is_impossible": True}
    answers = item.answers()
    if len(answers) != 1:
        raise BadInput(
            f"{item.where} has {len(answers)} answers, training needs exactly 1: use a train file"
            + ("" if v2 or answers else ", with --version_2_with_negative for v2.0")
        )
    where = f"{item.where}, its answer"
    text, written = answers[0]
    start = whole(written)
    if not text.strip():
        raise BadInput(f"{where} is empty: remove the question or give it an answer")
    if start is None or not 0 <= start <= len(paragraph.text) - len(text):
        raise BadInput(
            f"{where} starts at character {shown(written, 40)} with {len(text)} characters, the "
            f"paragraph has {len(paragraph.text)}: correct answer_start"
        )
    words = paragraph.words
    first, last = paragraph.word_at(start), paragraph.word_at(start + len(text) - 1)
    if " ".join(text.split()) not in " ".join(words[first : last + 1]):
        return None
    # A start in the blanks before the first word is -1, by which the reference then means the
    # last word: only a paragraph of one word gets here with it.
    return {"answer": text, "start_word": first % len(words), "end_word": last}
