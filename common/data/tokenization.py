# SPDX-License-Identifier: Apache-2.0
"""BERT tokenisation: a plain path by Hugging Face ``tokenizers``, and a bulk path equal to it.

The bulk path rests on one fact: BERT's normaliser and pre-tokeniser look at characters only, never
across a space or an ASCII sign, so the ids of a line are those of the words between them, end to
end. Each distinct word is therefore tokenised once and looked up afterwards.
"""

from __future__ import annotations

import ctypes
import re
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from bertbench.common.data.foreign import read_text
from bertbench.common.data.samples import IntArray, from_lengths
from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.native import NativeUnavailable, load

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNK, CLS, SEP, MASK)
_FUNCTIONS = ("wordpiece_new", "wordpiece_free", "wordpiece_encode", "wordpiece_learn")
LARGEST_VOCAB = 64 << 20
"""Bytes of a vocabulary's file."""
LONGEST = 100
"""Characters of a word: BERT's tokeniser makes a longer one [UNK]."""
_BREAKS = r"\s!-/:-@\[-`{-~\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
_ENDLESS = re.compile(f"[^{_BREAKS}]{{{LONGEST + 1},}}")


def read_vocab(path: Path, *, pads: bool = True) -> list[str]:
    """Read the tokens of a ``vocab.txt``, one a line; the line number, from 0, is the id.

    A column of ids behind tabs is read as such. Where nothing ``pads`` or masks, [PAD] and [MASK]
    may be anywhere or missing. Raises BadInput for an unreadable file, an empty or repeated line,
    a missing special token, or [PAD] other than 0, the padding of the HDF5 layouts.
    """
    try:
        lines = read_text(path, LARGEST_VOCAB).rstrip("\r\n").split("\n")
    except OSError as error:
        raise BadInput(
            f"vocabulary {path}: {error.strerror}: name an existing vocab.txt"
        ) from error
    except ValueError as error:
        raise BadInput(f"vocabulary {path} {error}") from error
    tokens = _in_order([line.removesuffix("\r") for line in lines])
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if not token:
            raise BadInput(f"vocabulary {path}, line {number + 1} is empty: every line is a token")
        if token in seen:
            raise BadInput(
                f"vocabulary {path}, line {number + 1}: {shown(repr(token), 60)} is also line "
                f"{seen[token] + 1}: "
                f"every token must be there once"
            )
        seen[token] = number
    missing = [token for token in (SPECIAL if pads else (UNK, CLS, SEP)) if token not in seen]
    if missing:
        raise BadInput(
            f"vocabulary {path} lacks {', '.join(missing)} (its first line is "
            f"{shown(repr(tokens[0]), 40)}): use a BERT vocab.txt, one token a line"
        )
    if pads and seen[PAD] != 0:
        raise BadInput(f"vocabulary {path}: [PAD] is id {seen[PAD]}, it must be 0 (the first line)")
    return tokens


def is_padded(tokens: int, rows: int) -> bool:
    """Return whether ``rows`` of an embedding may be for ``tokens``, the rest being padding.

    Software pads a vocabulary to a multiple of 8 up to one of 1,024 (128 on 8 devices). More rows
    of padding than tokens are another model's.
    """
    multiples = (2**power for power in range(3, 11))
    more = rows - tokens
    return 0 <= more < 8 or (more < tokens and rows in (-(-tokens // m) * m for m in multiples))


def _in_order(lines: list[str]) -> list[str]:
    """Return the tokens of lines "token, tab, id" by id, where all lines are so; else the lines."""
    pairs = [line.rpartition("\t") for line in lines]
    order = {int(i): token for token, _, i in pairs if token and i.isdecimal() and len(i) < 10}
    if order.keys() != set(range(len(lines))):
        return lines
    return [order[number] for number in range(len(lines))]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialIds:
    """The properties of a vocabulary that the creation of samples needs."""

    cls: int
    sep: int
    mask: int
    vocab_size: int


class BertTokenizer:
    """Text to ids of a vocabulary, as BERT's basic tokeniser and WordPiece do."""

    def __init__(self, vocab: Sequence[str], *, lowercase: bool = True) -> None:
        ids = {token: number for number, token in enumerate(vocab)}
        self.special = SpecialIds(cls=ids[CLS], sep=ids[SEP], mask=ids[MASK], vocab_size=len(vocab))
        self.unk = ids[UNK]
        # Special tokens are not registered: "[MASK]" written in a text is text.
        self._plain = _pipeline(
            models.WordPiece(ids, unk_token=UNK, max_input_chars_per_word=LONGEST), lowercase
        )
        self.implementation = "c"
        self._words: _Words | None = None
        try:
            self._words = _Words(vocab, self.unk, lowercase)
        except NativeUnavailable as reason:
            self.implementation = f"tokenizers: {str(reason).splitlines()[0]}"

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text, by the plain path."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_lines(self, lines: Sequence[str]) -> tuple[IntArray, IntArray]:
        """Return the ids of L ``lines`` end to end, int32 [T], and their counts, int64 [L].

        No line may hold a line feed.
        """
        if self._words is not None:
            return self._words.encode(lines, self._plain)
        encodings = self._plain.encode_batch_fast(list(lines), add_special_tokens=False)
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        counts = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.concatenate([np.zeros(0, np.int32), *ids]), counts


class _Words:
    """The bulk path: wordpiece.c remembers words; the plain path tokenises new ones."""

    def __init__(self, vocab: Sequence[str], unknown: int, lowercase: bool) -> None:
        self._library = load(Path(__file__).with_name("wordpiece.c"), *_FUNCTIONS)
        self._library.wordpiece_new.restype = ctypes.c_void_p
        self._library.wordpiece_free.restype = None
        self._library.wordpiece_encode.restype = ctypes.c_int64
        tokens = [token.encode() for token in vocab]
        offsets = from_lengths(np.array([len(token) for token in tokens]))
        handle = self._library.wordpiece_new(
            b"".join(tokens), _at(offsets), ctypes.c_int64(len(vocab)), unknown, int(lowercase)
        )
        if not handle:
            raise MemoryError("no memory for the vocabulary")
        self._handle = ctypes.c_void_p(handle)
        weakref.finalize(self, self._library.wordpiece_free, self._handle)

    def encode(self, lines: Sequence[str], plain: Tokenizer) -> tuple[IntArray, IntArray]:
        """As ``BertTokenizer.encode_lines``. Raises MemoryError, ValueError for a line feed."""
        text = "".join(f"{line}\n" for line in lines).encode()
        if text.count(b"\n") != len(lines):
            raise ValueError("a line holds a line feed: split it first")
        ids = np.empty(2 * len(text), np.int32)
        counts = np.empty(len(lines), np.int64)
        spans = np.empty((len(text) // 2 + 1, 2), np.int64)
        number = ctypes.c_int64(0)
        for attempt in range(2):
            made = self._library.wordpiece_encode(
                self._handle,
                text,
                ctypes.c_int64(len(text)),
                _at(ids),
                ctypes.c_int64(len(ids)),
                _at(counts),
                _at(spans),
                ctypes.byref(number),
            )
            if made < 0:
                raise MemoryError(f"no memory to tokenise {len(text)} bytes; use smaller parts")
            if not number.value:
                return ids[:made].copy(), counts
            assert attempt == 0
            self._learn(text, spans[: number.value], plain)
        raise AssertionError("words are still unknown after they were learned")

    def _learn(self, text: bytes, spans: IntArray, plain: Tokenizer) -> None:
        words = [text[start:end].decode() for start, end in spans.tolist()]
        ids, offsets = encode_words(plain, words)
        if not self._library.wordpiece_learn(
            self._handle, text, _at(spans), ctypes.c_int64(len(words)), _at(ids), _at(offsets)
        ):
            raise MemoryError(f"no memory to remember {len(words)} words")


def encode_words(tokenizer: Tokenizer, words: list[str]) -> tuple[IntArray, IntArray]:
    """Return the ids of W ``words`` end to end, int32 [T], and their offsets, int64 [W + 1]."""
    # One call for many words: word_ids holds, ascending, each id's word.
    encoding = tokenizer.encode(words, is_pretokenized=True, add_special_tokens=False)
    owners = np.array(encoding.word_ids, np.int64)
    counts = np.bincount(owners, minlength=len(words))
    return np.array(encoding.ids, np.int32), from_lengths(counts)


def _at(array: IntArray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def train_vocab(
    lines: Sequence[str], size: int, *, lowercase: bool = True, coverage: float = 0.9999
) -> list[str]:
    """Train a WordPiece vocabulary of at most ``size`` tokens on ``lines``; deterministic.

    The special tokens come first, then the most frequent characters that make up ``coverage`` of
    the text, alone and as continuation, then the trainer's merges. A small text gives fewer than
    ``size`` tokens. Words with a rarer character become [UNK], as do words of more than LONGEST
    characters, which are not trained on: time grows with the square of their length. Raises
    BadInput when ``size`` is too small for the characters.
    """
    counts: Counter[str] = Counter()
    normalize = _normalizer(lowercase).normalize_str
    for line in lines:
        counts.update(normalize(line))
    ranked = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    needed = coverage * sum(counts[c] for c in ranked)
    reached = accumulate(counts[c] for c in ranked)
    characters = sorted(
        c for c, total in zip(ranked, reached, strict=True) if total - counts[c] < needed
    )
    # The trainer numbers continuations in the order of a randomly seeded hash map, and breaks ties
    # by number. Naming them all beforehand fixes both.
    fixed = [*SPECIAL, *characters, *(f"##{c}" for c in characters)]
    if size < len(fixed):
        raise BadInput(
            f"a vocabulary of {size} does not hold the {len(fixed)} characters and special tokens "
            f"of this text: give at least {len(fixed) + 100}"
        )
    tokenizer = _pipeline(models.WordPiece(unk_token=UNK), lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=fixed,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    chunks = ([*map(_bounded, lines[at : at + 1000])] for at in range(0, len(lines), 1000))
    tokenizer.train_from_iterator(chunks, trainer)
    ids = tokenizer.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def _bounded(line: str) -> str:
    """Return ``line`` without words that are always [UNK]."""
    if len(line) <= LONGEST or max(map(len, line.split()), default=0) <= LONGEST:
        return line
    return _ENDLESS.sub(" ", line)


def _normalizer(lowercase: bool) -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(lowercase=lowercase)


def _pipeline(model: models.Model, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer(lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
