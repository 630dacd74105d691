# SPDX-License-Identifier: Apache-2.0
"""SQuAD v1.1 and v2.0 files as the reference scripts read them, and refused where damaged.

Source: ``read_squad_examples`` of NVIDIA's and Enflame's ``run_squad.py``; the two are the same.
"""

from __future__ import annotations

import json
import re
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bertbench.common.errors import BadInput
from bertbench.common.files import shown

T = TypeVar("T")

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


@dataclass(frozen=True, slots=True)
class Question:
    """A question as in the file, its structure checked except for the answers."""

    where: str
    context: str
    fields: dict[str, Any]
    """Holds ``id`` and ``question``, both text."""
    first: bool
    """Whether it is the first of its paragraph."""


def read_json(path: Path, what: str) -> Any:
    """Return the content of a JSON file; raise BadInput, naming it ``what``, when unreadable."""
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise BadInput(f"{what} {path}: {error.strerror}: name an existing file") from error
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{what} {path} is not UTF-8 (byte {error.start}): fetch it again"
        ) from error
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{what} {path} is not JSON (line {error.lineno}, column {error.colno}: {error.msg}): "
            f"it may be cut short; fetch it again"
        ) from error
    except RecursionError:
        raise BadInput(f"{what} {path} is nested too deeply: fetch it again") from None


def questions(path: Path, content: Any) -> Iterator[Question]:
    """Yield all questions of a SQuAD file's ``content`` in order.

    Raises BadInput, naming article, paragraph and question, for a part that is missing or of
    another type, and for a repeated id, which identifies predictions.
    """
    seen: dict[str, str] = {}
    here = f"SQuAD file {path}"
    for a, article in enumerate(_member(content, "data", list, here), 1):
        at_article = f"{here}: article {a}"
        if isinstance(article, dict) and isinstance(article.get("title"), str):
            at_article += f" ({shown(article['title'], 60)})"
        for p, paragraph in enumerate(_member(article, "paragraphs", list, at_article), 1):
            at_paragraph = f"{at_article}, paragraph {p}"
            context = _member(paragraph, "context", str, at_paragraph)
            for q, fields in enumerate(_member(paragraph, "qas", list, at_paragraph), 1):
                where = f"{at_paragraph}, question {q}"
                identity = _member(fields, "id", str, where)
                where += f" (id {shown(identity, 60)})"
                _member(fields, "question", str, where)
                if identity in seen:
                    raise BadInput(
                        f"{where}: this id is also that of {seen[identity].partition(': ')[2]}: "
                        f"every question needs a unique id"
                    )
                seen[identity] = where
                yield Question(where, context, fields, first=q == 1)


def read_squad(path: Path, *, training: bool, v2: bool = False) -> Squad:
    """Read a file for training, or for prediction without its answers.

    Args:
        path: a SQuAD v1.1 or v2.0 JSON file.
        training: each question must then have exactly one answer.
        v2: in training, questions marked ``is_impossible`` are kept as such; such a mark is then
            required of every question.

    Raises:
        BadInput: the file is damaged, or has no question; the message names the place.
    """
    paragraphs: list[Paragraph] = []
    examples: list[Example] = []
    dropped: list[str] = []
    for item in questions(path, read_json(path, "SQuAD file")):
        if item.first:
            paragraphs.append(Paragraph.of(item.context))
        answer: dict[str, Any] | None = {}
        if training:
            answer = _answer(item, paragraphs[-1], v2)
        if answer is None:
            dropped.append(item.fields["id"])
            continue
        examples.append(
            Example(
                id=item.fields["id"],
                question=item.fields["question"],
                paragraph=len(paragraphs) - 1,
                **answer,
            )
        )
    if not examples:
        raise BadInput(
            f"SQuAD file {path} has no usable question ({len(dropped)} left out because their "
            f"answer is not in their paragraph): name a SQuAD file with questions"
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
        impossible = item.fields.get("is_impossible")
        if not isinstance(impossible, bool):
            raise BadInput(
                f"{item.where} has no true or false is_impossible: use a v2.0 file, or leave out "
                f"--version_2_with_negative"
            )
        if impossible:
            return {"is_impossible": True}
    answers = _member(item.fields, "answers", list, item.where)
    if len(answers) != 1:
        raise BadInput(
            f"{item.where} has {len(answers)} answers, training needs exactly 1: use a train file"
            + ("" if v2 or answers else ", with --version_2_with_negative for v2.0")
        )
    where = f"{item.where}, its answer"
    text = _member(answers[0], "text", str, where)
    start = answers[0].get("answer_start")
    if not text.strip():
        raise BadInput(f"{where} is empty: remove the question or give it an answer")
    if not isinstance(start, int) or not 0 <= start <= len(paragraph.text) - len(text):
        raise BadInput(
            f"{where} starts at character {shown(start, 40)} with {len(text)} characters, the "
            f"paragraph has {len(paragraph.text)}: correct answer_start"
        )
    words = paragraph.words
    first, last = paragraph.word_at(start), paragraph.word_at(start + len(text) - 1)
    if " ".join(text.split()) not in " ".join(words[first : last + 1]):
        return None
    # A start in the blanks before the first word is -1, by which the reference then means the
    # last word: only a paragraph of one word gets here with it.
    return {"answer": text, "start_word": first % len(words), "end_word": last}


def _member(holder: Any, key: str, kind: type[T], where: str) -> T:
    """Return a list or a text of an object; raise BadInput for anything else."""
    found = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(found, kind):
        what = "list" if kind is list else "text"
        raise BadInput(f"{where} has no {what} {key!r}: the file is damaged or not SQuAD")
    return found
