# SPDX-License-Identifier: Apache-2.0
"""Questions and paragraphs to the model's input: the reference's windows, without its padding.

Source: ``convert_examples_to_features`` of NVIDIA's and Enflame's ``run_squad.py``. A feature is
[CLS] question [SEP] window [SEP]; a paragraph too long for one window gets several, each
``doc_stride`` further. With the bert-base-uncased vocabulary, 384/128/64 and lower case, dev-v1.1
gives 10,833 features and train-v1.1 88,641.

Shapes: F features of T tokens in all, Q questions, P paragraphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import numpy as np

from bertbench.benchmarks.bert_squad.examples import NO_WORD, WORD, Squad
from bertbench.benchmarks.bert_squad.wordpieces import WordPieces
from bertbench.common.data.samples import IntArray, Sequences, from_lengths, places, ragged_index
from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.prepare.build import each

NO_TOKEN = -1
"""The word of tokens outside the paragraph: [CLS], [SEP] and the question."""

_BLOCK = 8192
"""Questions made into features at a time: bounds the memory of intermediate arrays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureOptions:
    """The options that features depend on, besides the file and the vocabulary."""

    max_seq_length: int = 384
    doc_stride: int = 128
    max_query_length: int = 64
    """Wordpieces kept of a question, from its beginning."""
    lowercase: bool = True

    def __post_init__(self) -> None:
        for name, least in (("max_seq_length", 4), ("doc_stride", 1), ("max_query_length", 0)):
            if getattr(self, name) < least:
                raise BadInput(f"--{name} {getattr(self, name)} must be at least {least}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features(Sequences):
    """F features laid end to end; feature f is tokens offsets[f]:offsets[f + 1]."""

    input_ids: IntArray
    """int32 [T]."""
    offsets: IntArray
    """int64 [F + 1], ascending from 0 to T."""
    split: IntArray
    """int32 [F], tokens of segment 0, [CLS] question [SEP]; the window begins here."""
    words: IntArray
    """int32 [T], each token's word in the paragraph, else NO_TOKEN."""
    max_context: IntArray
    """bool [T], whether this window has the most context around this token of the paragraph. An
    answer may start only where it is true."""
    example: IntArray
    """int32 [F], index of the question, never descending."""
    window: IntArray
    """int32 [F], which window of its question, from 0."""
    start: IntArray | None = None
    """int32 [F], the answer's first token in the feature; 0, [CLS], where the window does not hold
    all of it. None unless read for training."""
    end: IntArray | None = None
    """int32 [F], its last token, inclusive."""

    @property
    def segment_ids(self) -> IntArray:
        """uint8 [T], 0 for [CLS] question [SEP], 1 for window [SEP]."""
        starts = np.repeat(self.split, self.lengths)
        return (places(self.offsets) >= starts).astype(np.uint8)


def make_features(
    squad: Squad, vocab: Sequence[str], options: FeatureOptions, *, processes: int = 1
) -> Features:
    """Return the features of all questions in order, whatever the number of processes.

    Args:
        squad: the questions.
        vocab: tokens in the order of their ids (bertbench.common.data.tokenization.read_vocab).
        options: lengths and lower case.
        processes: how many share the work; one does about 10,000 features a second.

    Raises:
        BadInput: a question leaves no room for its paragraph in max_seq_length.
    """
    jobs = [(part, vocab, options) for part in _parts(squad, processes)]
    if len(jobs) == 1:
        return _convert(jobs[0])
    made = dict(each(_convert, {str(i): job for i, job in enumerate(jobs)}, processes))
    parts, first = [], 0
    for i, (part, _, _) in enumerate(jobs):
        features = made[str(i)]
        parts.append(replace(features, example=features.example + np.int32(first)))
        first += len(part.examples)
    return Features.concatenate(parts)


def _parts(squad: Squad, number: int) -> Iterator[Squad]:
    """Yield about ``number`` runs of near-equally many questions, each with its paragraphs."""
    total = len(squad.examples)
    bounds = sorted({total * i // number for i in range(number + 1)})
    for low, high in pairwise(bounds):
        examples = squad.examples[low:high]
        first, last = examples[0].paragraph, examples[-1].paragraph
        yield replace(
            squad,
            paragraphs=squad.paragraphs[first : last + 1],
            examples=[replace(e, paragraph=e.paragraph - first) for e in examples],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tokens:
    """A part's texts as wordpieces."""

    docs: IntArray
    """int32, of all paragraphs end to end."""
    doc_offsets: IntArray
    """int64 [P + 1]."""
    doc_words: IntArray
    """int32, the word of each wordpiece, from 0 in each paragraph."""
    questions: IntArray
    question_offsets: IntArray
    paragraph: IntArray
    """int64 [Q]."""
    answer: tuple[IntArray, IntArray] | None
    """int64 [Q] each: first and last wordpiece of the answer in its paragraph, -1 if impossible."""


def _convert(job: tuple[Squad, Sequence[str], FeatureOptions]) -> Features:
    squad, vocab, options = job
    pieces = WordPieces(vocab, lowercase=options.lowercase)
    tokens = _tokenize(squad, pieces)
    blocks = []
    for low in range(0, len(squad.examples), _BLOCK):
        rows = np.arange(low, min(low + _BLOCK, len(squad.examples)))
        blocks.append(_windows(squad, tokens, rows, pieces, options))
    return Features.concatenate(blocks)


def _tokenize(squad: Squad, pieces: WordPieces) -> _Tokens:
    # All at once, so that a word is looked up once: paragraphs, then questions, then answers.
    texts = [p.words for p in squad.paragraphs]
    texts += [WORD.findall(e.question) for e in squad.examples]
    if squad.training:
        texts += [WORD.findall(e.answer) for e in squad.examples]
    ids, per_word = pieces.encode(chain.from_iterable(texts))
    text_words = from_lengths(np.fromiter(map(len, texts), np.int64, len(texts)))
    per_text = per_word[text_words]

    paragraphs, number = len(squad.paragraphs), len(squad.examples)
    words = text_words[: paragraphs + 1]
    counts = np.diff(per_word[: words[-1] + 1])
    questions = slice(per_text[paragraphs], per_text[paragraphs + number])
    return _Tokens(
        docs=ids[: per_text[paragraphs]],
        doc_offsets=per_text[: paragraphs + 1],
        doc_words=np.repeat(places(words), counts).astype(np.int32),
        questions=ids[questions],
        question_offsets=per_text[paragraphs : paragraphs + number + 1] - questions.start,
        paragraph=np.array([e.paragraph for e in squad.examples], np.int64),
        answer=_answers(squad, ids, per_word, per_text, words) if squad.training else None,
    )


def _answers(
    squad: Squad, ids: IntArray, per_word: IntArray, per_text: IntArray, words: IntArray
) -> tuple[IntArray, IntArray]:
    """Return each answer's wordpieces: those of its words, or the part of them that spells it."""
    first_answer = len(squad.paragraphs) + len(squad.examples)
    spans = np.full((2, len(squad.examples)), NO_WORD, np.int64)
    for row, example in enumerate(squad.examples):
        if example.is_impossible:
            continue
        base, of_doc = words[example.paragraph], per_text[example.paragraph]
        # The last word's end, or the beginning of the next, are the same offset.
        low = per_word[base + example.start_word]
        high = per_word[base + example.end_word + 1]
        found = ids[low:high].tolist()
        wanted = ids[per_text[first_answer + row] : per_text[first_answer + row + 1]].tolist()
        size = len(wanted)
        for at in range(len(found) - size + 1 if size else 0):
            if found[at : at + size] == wanted:
                low, high = low + at, low + at + size
                break
        spans[:, row] = low - of_doc, high - 1 - of_doc
    return spans[0], spans[1]


def _windows(
    squad: Squad, tokens: _Tokens, rows: IntArray, pieces: WordPieces, options: FeatureOptions
) -> Features:
    """Return the features of the questions ``rows``."""
    doc = tokens.paragraph[rows]
    size = np.diff(tokens.doc_offsets)[doc]
    kept = np.minimum(np.diff(tokens.question_offsets)[rows], options.max_query_length)
    room = options.max_seq_length - kept - 3
    if room.min() < 1:
        worst = int(np.argmin(room))
        raise BadInput(
            f"question {shown(squad.examples[rows[worst]].id, 60)} of {squad.path} has "
            f"{kept[worst]} wordpieces and leaves no room for its paragraph: make "
            f"--max_seq_length {options.max_seq_length} larger or --max_query_length "
            f"{options.max_query_length} smaller than --max_seq_length - 3"
        )
    step = np.minimum(room, options.doc_stride)
    number = np.where(size > room, 1 - (room - size) // step, size > 0)

    owner = np.repeat(np.arange(len(rows)), number)
    window = places(from_lengths(number))
    begin = window * step[owner]
    length = np.minimum(room[owner], size[owner] - begin)
    split = kept[owner] + 2
    offsets = from_lengths(split + length + 1)

    ids = np.empty(offsets[-1], np.int32)
    ids[offsets[:-1]] = pieces.cls
    ids[offsets[:-1] + split - 1] = pieces.sep
    ids[offsets[1:] - 1] = pieces.sep
    question_from = tokens.question_offsets[rows][owner]
    ids[_ranges(offsets[:-1] + 1, kept[owner])] = tokens.questions[
        _ranges(question_from, kept[owner])
    ]
    at = _ranges(offsets[:-1] + split, length)
    source = _ranges(tokens.doc_offsets[doc][owner] + begin, length)
    ids[at] = tokens.docs[source]
    words = np.full(len(ids), NO_TOKEN, np.int32)
    words[at] = tokens.doc_words[source]
    max_context = np.zeros(len(ids), bool)
    max_context[at] = _max_context(owner, window, begin, length, size)

    start = end = None
    if tokens.answer is not None:
        first, last = (span[rows][owner] for span in tokens.answer)
        inside = (first >= begin) & (last < begin + length)
        start, end = (
            np.where(inside, span - begin + split, 0).astype(np.int32) for span in (first, last)
        )
    return Features(
        input_ids=ids,
        offsets=offsets,
        split=split.astype(np.int32),
        words=words,
        max_context=max_context,
        example=rows[owner].astype(np.int32),
        window=window.astype(np.int32),
        start=start,
        end=end,
    )


def _max_context(
    owner: IntArray, window: IntArray, begin: IntArray, length: IntArray, size: IntArray
) -> IntArray:
    """Return bool [t], for the windows' tokens end to end: whether this window scores best.

    A window's score is the smaller of the token's distances to its two ends plus 0.01 times its
    length; among equals the first window has it.
    """
    left = places(from_lengths(length))
    lengths = np.repeat(length, length)
    score = np.minimum(left, lengths - 1 - left) + 0.01 * lengths
    token = _ranges(from_lengths(size)[owner] + begin, length)
    order = np.repeat(window, length)
    best = np.full(size.sum(), -1.0)
    np.maximum.at(best, token, score)
    candidate = score == best[token]
    first = np.full(len(best), np.iinfo(np.int64).max)
    np.minimum.at(first, token[candidate], order[candidate])
    chosen: IntArray = candidate & (order == first[token])
    return chosen


def _ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """Return the integers start .. start + length - 1 of each pair, end to end, int64."""
    offsets = np.stack([starts, starts + lengths], axis=1).reshape(-1)
    return ragged_index(offsets, np.arange(0, len(offsets), 2))[0]
