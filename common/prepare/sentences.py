# SPDX-License-Identifier: Apache-2.0
"""Split a paragraph into sentences: by one rule for all scripts, or by a language's own rules.

The rule is for paragraphs of WikiExtractor, WikiText and JSON lines. The package sentencex has the
rules of 300 languages, and is for text whose language the user names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise

from bertbench.common.errors import BadInput, Unsupported, install
from bertbench.common.files import shown

Split = Callable[[str], list[str]]
"""A paragraph to its sentences, none of them empty."""
MOST_SEVERAL, FEW_SEVERAL, MOST_CUT = 0.3, 0.1, 0.3
"""Shares of lines that hold several sentences, or end within one. Of the sentences that sentencex
finds in MLPerf's sample of Wikipedia, 0.01 are several to our rule; of its paragraphs, 0.82."""
ENDS = 8
"""Such lines, or ends of sentences within lines, that a file of few lines may have by chance."""

# fmt: off
ABBREVIATIONS = frozenset((
    "Mr.", "Mrs.", "Ms.", "Dr.", "Prof.", "Rev.", "Gen.", "Col.", "Capt.", "Lt.", "Sgt.", "Sen.",
    "Gov.", "St.", "Mt.", "Jr.", "Sr.", "No.", "vs.", "etc.", "ca.", "cf.", "approx.", "Inc.",
    "Ltd.", "Co.", "Corp.", "Jan.", "Feb.", "Mar.", "Apr.", "Aug.", "Sept.", "Oct.", "Nov.", "Dec.",
    "Vol.", "pp.", "fl.", "op.",
))
# fmt: on
JOIN = r"""awk -v RS= -v ORS='\n\n' '{gsub(/\n/, " "); print}' FILE"""
SPLIT_IT = "bertbench data prepare --split_sentences en (or the code of its language)"
_OPEN = "\"'(\\[\u201c\u2018\u00ab"
_CLOSE = "\"')\\]\u201d\u2019\u00bb"

_WIDE_END = (
    "\u3002\uff01\uff1f\uff1b\uff61"  # Chinese and Japanese: full stop, !, ?, ;, half-width stop
    "\u0964\u0965"  # danda and double danda, of Devanagari, Bengali and others
    "\u06d4\u061f\u061e"  # Arabic and Urdu
    "\u0589\u055e\u055c"  # Armenian
    "\u1362\u1367\u1368"  # Ethiopic
    "\u104b\u17d4\u17d5\u0f0d\u0f0e"  # Burmese, Khmer, Tibetan
    "\u0700\u0701\u0702\u07f9\u1803\u1809\u1c7e\u1c7f\u203c\u203d\u2047\u2048\u2049"
)
"""Signs that end a sentence whether or not white space follows."""
_WIDE_CLOSE = _CLOSE + "\u300d\u300f\uff09\u3011\u300b\u3009\uff3d\uff02\uff07"
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LATIN = rf"[.!?][{_CLOSE}]*(?P<space>\s+)(?=[{_OPEN}]*[^\W_a-z])"
# A full-width full stop is also the point of a number. A Japanese quotation goes on after its
# bracket with a particle.
_WIDE = (
    rf"(?P<wide>(?:[{_WIDE_END}]|\uff0e(?!\d)|(?<=[{_CJK}])[.!?](?=[{_WIDE_CLOSE}]*[{_CJK}]))"
    rf"(?![{_WIDE_END}{_WIDE_CLOSE}]{{0,9}}[\u300d\u300f][\u3068\u3063])"
    rf"[{_WIDE_END}\uff0e.!?]*[{_WIDE_CLOSE}]*)\s*"
)
_BREAK = re.compile(_LATIN)
_WIDE_BREAK = re.compile(f"{_LATIN}|{_WIDE}")
_IS_WIDE = re.compile(f"[{_WIDE_END}\uff0e{_CJK}]")
_LETTERS = re.compile(r"(?:[^\W\d_]\.)+")


def split_sentences(paragraph: str) -> list[str]:
    """Split a paragraph into sentences, by one rule and no model.

    A sentence ends at ``.``, ``!`` or ``?`` (with closing quotes or brackets) before white space
    and anything that is not a lower-case ASCII letter, unless the word there is one of
    ABBREVIATIONS or only letters with dots (``J.``, ``U.S.``). The full stops of other scripts end
    one without white space, and so do ``.``, ``!`` and ``?`` between two CJK characters.
    """
    sentences, start = [], 0
    wide = not paragraph.isascii() and _IS_WIDE.search(paragraph)
    for match in (_WIDE_BREAK if wide else _BREAK).finditer(paragraph):
        end = match.end("wide") if match.lastgroup == "wide" else match.start("space")
        if match.lastgroup == "space":
            begin = max(start, paragraph.rfind(" ", start, match.start()) + 1)
            word = paragraph[begin : match.start() + 1].lstrip("\"'([\u201c\u2018\u00ab")
            if word in ABBREVIATIONS or _LETTERS.fullmatch(word):
                continue
        sentences.append(paragraph[start:end].strip())
        start = match.end()
    sentences.append(paragraph[start:].strip())
    return [sentence for sentence in sentences if sentence]


@functools.cache
def splitter(language: str) -> tuple[Split, str]:
    """Return the function that splits text of ``language`` with sentencex, and its description.

    The language is a code as in ``en`` or ``zh-hans``. Raises BadInput for another word, and
    Unsupported where the package is not installed.
    """
    if not re.fullmatch(r"[a-z]{2,3}(-[a-z0-9]+)*", language):
        raise BadInput(
            f"--split_sentences {shown(language, 40)}: give the code of the text's language, for "
            f"example en, de or zh"
        )
    try:
        from sentencex import segment
    except ImportError as error:
        raise Unsupported(
            f"--split_sentences: {error}; {install('text')}, or write the text with one "
            f"sentence a line"
        ) from error

    def split(paragraph: str) -> list[str]:
        return [found for one in segment(language, paragraph) if (found := one.strip())]

    return split, f"{language}, sentencex {version('sentencex')}"


def require_sentences(name: str, documents: Sequence[Sequence[str]], *, split: bool) -> None:
    """Raise BadInput where lines of ``documents`` are paragraphs, or break off within sentences.

    A wrapped line ends without a punctuation mark, and the next begins with a lower-case letter;
    others hold the ends of sentences, unlike a text without any marks. With ``split`` paragraphs
    will be split, and only wrapped lines are refused.
    """
    counts = [len(split_sentences(line)) for one in documents for line in one]
    several = sum(count > 1 for count in counts) / max(1, len(counts))
    pairs = [pair for one in documents for pair in pairwise(one)]
    cut = sum(line[-1:].isalnum() and after[:1].islower() for line, after in pairs)
    if cut > max(ENDS, MOST_CUT * len(pairs)) and several > FEW_SEVERAL:
        raise BadInput(
            f"{shown(name)}: {cut} of the first {len(counts)} lines end within a sentence: join "
            f"the lines of each paragraph ({JOIN}), and split it: {SPLIT_IT}"
        )
    if not split and several > MOST_SEVERAL and sum(counts) > len(counts) + ENDS:
        raise BadInput(
            f"{shown(name)}: {several:.0%} of the first {len(counts)} lines hold several "
            f"sentences: write one a line, and a blank line between documents, or split it: "
            f"{SPLIT_IT}"
        )
