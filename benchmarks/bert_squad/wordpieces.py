# SPDX-License-Identifier: Apache-2.0
"""Words to wordpieces exactly as the reference, each distinct word once.

BERT's first step (cleaning, lower case, accents, signs) is here in Python, because the reference's
is, and the ``tokenizers`` library's differs from it in places: a capital sigma at a word's end, an
unassigned character, a special token written in the text. The second step, the search in the
vocabulary, is that library's. Both look at one word between blanks at a time, so the pieces of a
text are those of its words.

Nothing here imports torch: processes that make features start in a fraction of a second.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from tokenizers import Tokenizer, models

from bertbench.common.data.samples import IntArray, from_lengths, ragged_index
from bertbench.common.data.tokenization import CLS, SEP, SPECIAL, UNK, encode_words

NEVER_SPLIT = frozenset(SPECIAL)
"""Special tokens even in text, when alone between blanks: the reference's rule. In our pretraining
they are plain text."""

_ASCII_SIGN = r"!-/:-@\[-`{-~"
_ASCII_TOKENS = re.compile(f"[{_ASCII_SIGN}]|[^ {_ASCII_SIGN}]+")
_CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def basic_tokens(text: str, *, lowercase: bool) -> list[str]:
    """Run BERT's first step: separate signs and CJK characters, split the rest at blanks.

    Characters of the categories C are dropped (tab, line feed and carriage return are blanks), and
    with ``lowercase`` capitals and accents go, word by word.
    """
    if text.isascii() and text.isprintable() and not _holds_special(text):
        return _ASCII_TOKENS.findall(text.lower() if lowercase else text)
    tokens: list[str] = []
    for word in "".join(map(_cleaned, text)).split():
        if word in NEVER_SPLIT:
            tokens.append(word)
            continue
        if lowercase:
            decomposed = unicodedata.normalize("NFD", word.lower())
            word = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
        tokens += "".join(f" {c} " if _is_sign(c) else c for c in word).split()
    return tokens


def _holds_special(text: str) -> bool:
    return "[" in text and not NEVER_SPLIT.isdisjoint(text.split())


def _cleaned(character: str) -> str:
    """Return a character's replacement before the text is split at blanks."""
    if character in "\t\n\r":
        return " "
    category = unicodedata.category(character)
    if category[0] == "C" or character == "\ufffd":
        return ""
    if category == "Zs":
        return " "
    point = ord(character)
    return f" {character} " if any(low <= point <= high for low, high in _CJK) else character


def _is_sign(character: str) -> bool:
    if character.isascii():
        return character.isprintable() and not character.isalnum() and character != " "
    return unicodedata.category(character)[0] == "P"


class WordPieces:
    """Words to ids of a vocabulary."""

    def __init__(self, vocab: Sequence[str], *, lowercase: bool) -> None:
        ids = {token: number for number, token in enumerate(vocab)}
        self.cls, self.sep = ids[CLS], ids[SEP]
        self._lowercase = lowercase
        model = models.WordPiece(ids, unk_token=UNK, max_input_chars_per_word=100)
        self._tokenizer = Tokenizer(model)

    def encode(self, words: Iterable[str]) -> tuple[IntArray, IntArray]:
        """Return the ids of W ``words`` end to end, int32 [T], and their offsets, int64 [W + 1].

        A word may hold blanks, and may give no id at all.
        """
        rows: dict[str, int] = {}
        index = np.fromiter((rows.setdefault(word, len(rows)) for word in words), np.int64)
        tokens = [basic_tokens(word, lowercase=self._lowercase) for word in rows]
        pieces, piece_offsets = encode_words(self._tokenizer, list(chain(*tokens)))
        per_word = from_lengths(np.fromiter(map(len, tokens), np.int64, len(tokens)))
        taken, offsets = ragged_index(piece_offsets[per_word], index)
        return pieces[taken], offsets
