# SPDX-License-Identifier: Apache-2.0
"""Made-up questions and a vocabulary for them."""

from __future__ import annotations

import itertools
import json

from hypothesis import strategies as st

SIGNS = [*".,-()'\"[]#$", "\u201c", "\u2019", "\u2014", "\u00bf"]
LETTERS = [*"abcdehintoz019", "\u4e2d", "\u6587", "\u03c3", "\u03c2", "\u00df", "\u3042"]
VOCAB = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "an", "ten", "one", "##ne", "##ten"),
    *SIGNS,
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
]
IDS = {token: number for number, token in enumerate(VOCAB)}

BLANKS = [" ", "  ", "\t", "\n", "\r", "\u202f"]
ODD = ["\u00a0", "\u2028", "\u3000", "\u200b", "\x00", "\x0b", "\x1c", "\x7f", "\u00ad", "\ufffd",
       "\u0378", "\U000323b0", "\u0301"]  # fmt: skip
WORDS = ["one", "The", "ten", "tenten", "cat", "Ann's", "(10-19).", "\u00e9t\u00e9", "\u0130z",
         "\u039f\u03a3", "\u03a3", "\u1e9e", "\u4e2d\u6587", "\u6587a", "[MASK]", "[SEP].", "zzz",
         "a\u0301", "\u201cone\u201d", "d\u2019oh", "a" * 101, "\u00bdx", "##ne", "q"]  # fmt: skip

TEXT = st.lists(
    st.sampled_from([*WORDS, *BLANKS, *BLANKS, *BLANKS, *ODD, *SIGNS, *LETTERS]), max_size=30
).map("".join)


def content(paragraphs):
    """A SQuAD file's content of (context, [fields without id]); ids are numbered."""
    numbers = itertools.count()
    return {
        "version": "1.1",
        "data": [
            {
                "title": "T",
                "paragraphs": [
                    {"context": text, "qas": [{"id": f"q{next(numbers)}", **qa} for qa in qas]}
                    for text, qas in paragraphs
                ],
            }
        ],
    }


@st.composite
def paragraphs(draw, answered):
    """A text with one to three questions; ``answered``: each with a stretch of the text."""
    text = draw(TEXT)
    made = []
    for _ in range(draw(st.integers(1, 3))):
        fields = {"question": draw(TEXT)}
        if answered:
            spots = [i for i, c in enumerate(text) if c.strip()]
            if not spots or draw(st.integers(0, 4)) == 0:
                fields |= {"answers": [], "is_impossible": True}
            else:
                at = draw(st.sampled_from(spots))
                begin = draw(st.integers(0, at))
                stop = draw(st.integers(at, min(len(text) - 1, at + 20)))
                answer = {"text": text[begin : stop + 1], "answer_start": begin}
                fields |= {"answers": [answer], "is_impossible": False}
        made.append(fields)
    return text, made


def write(path, made):
    """Write ``made``, a list of paragraphs, as a SQuAD file; returns its content."""
    whole = content(made)
    path.write_text(json.dumps(whole), encoding="utf-8")
    return whole
