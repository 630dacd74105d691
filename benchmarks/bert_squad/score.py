# SPDX-License-Identifier: Apache-2.0
"""Exact match and F1 of a predictions file, equal to the official scripts' to the last digit.

Sources: ``evaluate-v1.1.py`` and ``evaluate-v2.0.py`` of SQuAD (the latter without its
``--na-prob-file``). Sums are made in the same order by the same operations. A missing answer scores
0, and so does one that is not text; null is v2.0's empty answer. The official scripts stop on what
is not text, and on v2.0 also on missing answers.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertbench.benchmarks.bert_squad.formats import (
    Question,
    questions,
    read_answers,
    read_document,
)
from bertbench.common.errors import BadInput
from bertbench.common.files import shown

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_SIGNS = str.maketrans("", "", string.punctuation)
_UNSPACED = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]{2}"
)
UNSPACED = (
    "the answers are Chinese or Japanese: SQuAD's English rules take text without spaces as one "
    "word, so F1 is nearly exact match; scripts such as CMRC 2018's count characters"
)


def normalized(text: str) -> list[str]:
    """Return the words of ``text`` in lower case, without ASCII signs and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_SIGNS)).split()


def f1(prediction: Sequence[str], truth: Sequence[str]) -> float:
    """Return F1 of two normalized texts as bags of words; 0 when both are empty."""
    same = sum((Counter(prediction) & Counter(truth)).values())
    if same == 0:
        return 0
    precision, recall = same / len(prediction), same / len(truth)
    return (2 * precision * recall) / (precision + recall)


def f1_v2(prediction: Sequence[str], truth: Sequence[str]) -> float:
    """Return F1 by v2.0's rule, by which two empty texts agree."""
    if not prediction or not truth:
        return int(prediction == truth)
    return f1(prediction, truth)


@dataclass(frozen=True, slots=True)
class _Graded:
    """One question's scores."""

    exact: int
    f1: float
    answerable: bool


def score(dataset: Path, predictions: Path, *, v2: bool | None = None) -> dict[str, Any]:
    """Score a JSON file of question ids to answers against a SQuAD file.

    Returns what ``score_answers`` returns. Raises BadInput as it does, and for a file of answers
    none of which belongs to the questions.
    """
    answers = read_answers(predictions)
    result = score_answers(dataset, answers, v2=v2)
    if answers and result["missing"] == result["total"]:
        raise BadInput(
            f"predictions file {predictions} answers no question of {dataset} (its first id is "
            f"{shown(next(iter(answers)), 60)}): give the answers to this file"
        )
    if answers and result["not_text"] == result["total"] - result["missing"]:
        name, value = next(iter(answers.items()))
        raise BadInput(
            f"predictions file {predictions} has no answer that is text (that to "
            f"{shown(name, 60)} is {shown(json.dumps(value), 60)}): give one text a question"
        )
    return result


def score_answers(
    dataset: Path, answers: Mapping[str, Any], *, v2: bool | None = None, raw: bytes | None = None
) -> dict[str, Any]:
    """Score answers by question id against a SQuAD file.

    Args:
        dataset: the SQuAD file with the true answers.
        answers: the answers.
        v2: which official script to follow; None detects v2.0 by the file's ``version`` or by a
            question marked ``is_impossible``.
        raw: the dataset's bytes, where they are known; it is not read then.

    Returns:
        exact_match and f1, in percent of all questions; total; the counts missing, extra (without
        a question) and not_text, of which the first and last score 0; version, the script
        followed. For v2 also HasAns_ and NoAns_ with exact, f1 and total, where the file has such
        questions; the official script's ``exact`` is our exact_match.

    Raises:
        BadInput: the dataset cannot be read or is damaged.
    """
    content = read_document(dataset, "SQuAD file", raw)
    found = list(questions(dataset, content))
    if not found:
        raise BadInput(f"SQuAD file {dataset} has no question: name another file")
    if v2 is None:
        v2 = _is_v2(content, found)
    truths = [_truths(question, v2) for question in found]
    if v2:  # null is no answer
        answers = {name: "" if value is None else value for name, value in answers.items()}
    graded = [_grade(true, answers.get(q.id), v2) for q, true in zip(found, truths, strict=True)]
    ids = {question.id for question in found}
    return {
        **_totals(graded, v2),
        "total": len(graded),
        "missing": len(ids - answers.keys()),
        "extra": len(answers.keys() - ids),
        "not_text": sum(not isinstance(answers[i], str) for i in ids & answers.keys()),
        "version": "2.0" if v2 else "1.1",
    }


def language_note(dataset: Path, raw: bytes | None = None) -> str | None:
    """Return a remark where most answers are in a script that the English rules do not suit.

    ``raw`` are the bytes where they are known. Raises BadInput as ``score_answers``.
    """
    found = questions(dataset, read_document(dataset, "SQuAD file", raw))
    answered = [true for q in found if (true := _truths(q, v2=True))]
    unspaced = sum(any(map(_UNSPACED.search, true)) for true in answered)
    return UNSPACED if 2 * unspaced > len(answered) else None


def _is_v2(content: Any, every: Sequence[Question]) -> bool:
    version = str(content.get("version", "")) if isinstance(content, dict) else ""
    return re.fullmatch(r"([a-z]+[ _-]*)?v?2(\.\d+)*", version.strip().lower()) is not None or any(
        question.is_impossible() for question in every
    )


def _truths(question: Question, v2: bool) -> list[str]:
    try:
        answers = question.answers()
    except BadInput as error:
        raise BadInput(f"{error}: it cannot be scored") from error
    if not answers and not v2:
        raise BadInput(
            f"{question.where} has no answer: score it as v2.0, or use a file with answers"
        )
    return [text for text, _ in answers]


def _grade(truths: list[str], answer: Any, v2: bool) -> _Graded:
    answerable = bool(truths)
    if not isinstance(answer, str):
        return _Graded(0, 0, answerable)
    bags = [normalized(truth) for truth in truths]
    if v2:  # an annotation without a word counts as none; no annotation asks for no answer
        bags = [bag for bag in bags if bag] or [[]]
    given = normalized(answer)
    best = max((f1_v2 if v2 else f1)(given, bag) for bag in bags)
    return _Graded(int(given in bags), best, answerable)


def _totals(graded: list[_Graded], v2: bool) -> dict[str, Any]:
    if not v2:
        exact, total_f1 = 0, 0.0
        for each in graded:  # one by one: sum() of Python 3.12 and later rounds differently
            exact += each.exact
            total_f1 += each.f1
        return {"exact_match": 100.0 * exact / len(graded), "f1": 100.0 * total_f1 / len(graded)}
    result: dict[str, Any] = dict(zip(("exact_match", "f1"), _mean(graded), strict=True))
    for name, wanted in (("HasAns", True), ("NoAns", False)):
        part = [each for each in graded if each.answerable == wanted]
        if part:
            result[f"{name}_exact"], result[f"{name}_f1"] = _mean(part)
            result[f"{name}_total"] = len(part)
    return result


def _mean(graded: list[_Graded]) -> tuple[float, float]:
    """Return means in percent, by sum() as in the official v2.0 script."""
    size = len(graded)
    return 100.0 * sum(g.exact for g in graded) / size, 100.0 * sum(g.f1 for g in graded) / size
