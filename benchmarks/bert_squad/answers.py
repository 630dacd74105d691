# SPDX-License-Identifier: Apache-2.0
"""Logits to answers in the paragraph's own words.

Source: ``get_answers`` and ``get_final_text`` of NVIDIA's and Enflame's ``run_squad.py``. Where
this differs, on purpose:

* v2: the reference gives every question's n-best list the null score of the *last* question of the
  file (``null_vals[ex.qas_id]`` after the loop over examples); here each has its own. The answers
  are the same, n-best probabilities are not.
* v2: the reference stops with an AttributeError where no candidate has text; here the answer is "".
* A question whose paragraph has no token is missing from the reference's predictions; here it is
  answered as one without a candidate: "empty", or "" with v2.
* The best starts and ends are sought among real tokens. The reference also ranks its padding, to
  drop it afterwards, and so may keep fewer candidates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bertbench.benchmarks.bert_squad.examples import Squad
from bertbench.benchmarks.bert_squad.features import NO_TOKEN, Features
from bertbench.benchmarks.bert_squad.recipes import SquadRecipe
from bertbench.benchmarks.bert_squad.wordpieces import basic_tokens
from bertbench.common.errors import BadInput

NO_CANDIDATE = "empty"
"""The reference's answer where nothing qualifies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """The reference's options of the same names."""

    n_best_size: int = 20
    max_answer_length: int = 30
    """Wordpieces."""
    v2: bool = False
    """Whether "" may be the answer (--version_2_with_negative)."""
    null_score_diff_threshold: float = 0.0
    """It is, when the null score exceeds the best text's by more than this."""

    def __post_init__(self) -> None:
        for name in ("n_best_size", "max_answer_length"):
            if getattr(self, name) < 1:
                raise BadInput(f"--{name} {getattr(self, name)} must be at least 1")
        if math.isnan(self.null_score_diff_threshold):
            raise BadInput("--null_score_diff_threshold nan must be a number")

    @classmethod
    def of(cls, recipe: SquadRecipe) -> AnswerOptions:
        """Return a recipe's options; raise BadInput for values that allow no answer."""
        return cls(**{field.name: getattr(recipe, field.name) for field in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Plain JSON values in the order of the questions, as the reference's two files hold them."""

    predictions: dict[str, str]
    """Question id to answer."""
    nbest: dict[str, list[dict[str, Any]]]
    """Question id to text, probability, start_logit and end_logit, best first; at least one."""


class _Candidate(NamedTuple):
    text: str
    start: float
    end: float


def find_answers(
    squad: Squad,
    features: Features,
    start_logits: NDArray[Any],
    end_logits: NDArray[Any],
    *,
    vocab: Sequence[str],
    lowercase: bool,
    options: AnswerOptions,
) -> Answers:
    """Return the answers to all questions.

    Args:
        squad: the questions that ``features`` were made from, with the paragraphs' words.
        features: F features of T tokens.
        start_logits: floating [T], for each token of ``features``.
        end_logits: floating [T].
        vocab: the tokens by their ids, as for ``features``.
        lowercase: as for ``features``.
        options: their number and length.

    Raises:
        BadInput: a logit is not finite, so candidates have no order.
    """
    assert start_logits.shape == end_logits.shape == features.input_ids.shape
    starts, ends = start_logits.astype(np.float64), end_logits.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(starts) & np.isfinite(ends)))
    if len(bad):
        feature = int(np.searchsorted(features.offsets, bad[0], side="right")) - 1
        question = squad.examples[features.example[feature]].id
        raise BadInput(
            f"{len(bad)} of the model's {len(starts)} tokens have a logit that is not finite, the "
            f"first in question {question}: its weights are damaged, or the precision overflowed"
        )
    texts = _Texts(vocab, lowercase)
    found: list[list[_Candidate]] = [[] for _ in squad.examples]
    nulls: list[_Candidate | None] = [None] * len(squad.examples)
    offsets = features.offsets.tolist()
    for number, example in enumerate(features.example.tolist()):
        part = slice(offsets[number], offsets[number + 1])
        start, end = starts[part], ends[part]
        null = _Candidate("", float(start[0]), float(end[0]))
        kept = nulls[example]
        if kept is None or null.start + null.end < kept.start + kept.end:
            nulls[example] = null
        spans = _spans(features.words[part], features.max_context[part], start, end, options)
        words = squad.paragraphs[squad.examples[example].paragraph].words
        tokens = (features.input_ids[part], features.words[part])
        found[example] += _texts_of(spans, tokens, words, texts, options.n_best_size)

    predictions: dict[str, str] = {}
    nbest: dict[str, list[dict[str, Any]]] = {}
    for row, question in enumerate(squad.examples):
        predictions[question.id], nbest[question.id] = _answer(found[row], nulls[row], options)
    return Answers(predictions=predictions, nbest=nbest)


_Span = tuple[int, int, float, float]
"""First and last token, inclusive, and their logits."""


def _spans(
    words: NDArray[Any],
    max_context: NDArray[Any],
    start: NDArray[Any],
    end: NDArray[Any],
    options: AnswerOptions,
) -> Iterator[_Span]:
    """Yield the possible answers of one feature, best first; equals in order of their starts."""
    # A stable sort: equal logits keep the order of their tokens, as in the reference.
    firsts = np.argsort(-start, kind="stable")[: options.n_best_size]
    lasts = np.argsort(-end, kind="stable")[: options.n_best_size]
    firsts = firsts[max_context[firsts]]
    lasts = lasts[words[lasts] != NO_TOKEN]
    length = lasts[None, :] - firsts[:, None] + 1
    rows, columns = np.nonzero((length >= 1) & (length <= options.max_answer_length))
    firsts, lasts = firsts[rows], lasts[columns]
    order = np.argsort(-(start[firsts] + end[lasts]), kind="stable")
    firsts, lasts = firsts[order], lasts[order]
    yield from zip(
        firsts.tolist(), lasts.tolist(), start[firsts].tolist(), end[lasts].tolist(), strict=True
    )


def _texts_of(
    spans: Iterator[_Span],
    tokens: tuple[NDArray[Any], NDArray[Any]],
    words: list[str],
    texts: _Texts,
    most: int,
) -> list[_Candidate]:
    """Return the first ``most`` different texts among ``spans`` of a feature (ids and words)."""
    ids, owners = (array.tolist() for array in tokens)
    seen: dict[str, _Candidate] = {}
    for first, last, start, end in spans:
        original = words[owners[first] : owners[last] + 1]
        text = texts.final(ids[first : last + 1], original)
        if text not in seen:
            seen[text] = _Candidate(text, start, end)
            if len(seen) == most:
                break
    return list(seen.values())


def _answer(
    found: list[_Candidate], null: _Candidate | None, options: AnswerOptions
) -> tuple[str, list[dict[str, Any]]]:
    """Return a question's answer and n-best list, from all its features' candidates."""
    if options.v2 and null is not None:
        found = [*found, null]
    best = sorted(found, key=lambda c: c.start + c.end, reverse=True)[: options.n_best_size]
    if not best:
        best = [_Candidate("" if options.v2 else NO_CANDIDATE, 0.0, 0.0)]
    total = [c.start + c.end for c in best]
    weights = [math.exp(score - total[0]) for score in total]
    normal = 0.0
    for weight in weights:  # as the reference adds: sum() of Python 3.12 and later rounds otherwise
        normal += weight
    listed = [
        {"text": c.text, "probability": w / normal, "start_logit": c.start, "end_logit": c.end}
        for c, w in zip(best, weights, strict=True)
    ]
    answer = best[0].text
    if options.v2:
        text = next((c for c in best if c.text), None)
        if null is None or text is None:
            answer = ""
        else:
            difference = null.start + null.end - text.start - text.end
            answer = "" if difference > options.null_score_diff_threshold else text.text
    return answer, listed


class _Texts:
    """Wordpieces to their original text in the paragraph."""

    def __init__(self, vocab: Sequence[str], lowercase: bool) -> None:
        self._vocab = vocab
        basic = functools.partial(basic_tokens, lowercase=lowercase)
        self._basic = functools.cache(lambda word: " ".join(basic(word)))

    def final(self, ids: list[int], words: list[str]) -> str:
        """Return the part of ``words`` that ``ids``, cut from them, spell; all when in doubt.

        Wordpieces lack capitals, accents and spacing, so their place is found by counting: after
        BERT's first step both texts must have equally many characters other than spaces.
        """
        original = " ".join(words)
        pieces = " ".join(map(self._vocab.__getitem__, ids))
        wanted = " ".join(pieces.replace(" ##", "").replace("##", "").split())
        tokens = " ".join(filter(None, map(self._basic, words)))
        if tokens == wanted:  # all, aligned or in doubt
            return original
        first = tokens.find(wanted)
        if first < 0 or not wanted:
            return original
        if len(original) - original.count(" ") != len(tokens) - tokens.count(" "):
            return original
        places = [i for i, c in enumerate(original) if c != " "]
        before = first - tokens.count(" ", 0, first)
        size = len(wanted) - wanted.count(" ")
        return original[places[before] : places[before + size - 1] + 1]
