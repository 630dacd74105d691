# SPDX-License-Identifier: Apache-2.0
"""Text whose lines are no sentences: refused, or split by the rules of its language."""

from __future__ import annotations

import sys

import pytest

from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.prepare.corpus import documents
from bertbench.common.prepare.from_text import PrepareOptions, prepare
from bertbench.common.prepare.sentences import splitter

FIRST = "Number {0} was a good year for the old town by the river and for its people."
SECOND = "In {0} more of them had bread than in the {0} years before, and nobody asked why."


def sentences(count, first=0):
    return [s.format(n) for n in range(first, first + count) for s in (FIRST, SECOND)]


def wrapped(text, width=40):
    """``text`` in lines of about ``width`` characters that end between words."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}"
    return [line.strip() for line in lines]


def write(path, documents):
    path.write_text("\n\n".join("\n".join(lines) for lines in documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def english():
    pytest.importorskip("sentencex", reason="the extra 'text' is not installed")
    return splitter("en")[0]


def test_paragraphs_are_refused_with_the_flag_that_splits_them(tmp_path):
    path = write(tmp_path / "a.txt", [[" ".join(sentences(4, 10 * n))] for n in range(5)])
    with pytest.raises(BadInput, match=r"a\.txt: 100% of .* --split_sentences en") as caught:
        list(documents(path))
    assert "\n" not in str(caught.value)


def test_wrapped_lines_are_refused_split_or_not(tmp_path, english):
    text = [wrapped(" ".join(sentences(6, 10 * n))) for n in range(5)]
    path = write(tmp_path / "a.txt", text)
    for split in (None, english):
        with pytest.raises(BadInput, match=r"end within a sentence: join .*awk .*split_sentences"):
            list(documents(path, split))


@pytest.mark.parametrize(
    "text",
    [
        [sentences(20)],
        [[line.lower().rstrip(".") for line in sentences(20)]],  # without capitals and marks
        [[*sentences(20), " ".join(sentences(3))]],  # a splitter missed two ends of a hundred
        [[" ".join(sentences(1)), "It is."]],  # a short file
        [["\u5929\u6c17\u304c\u3044\u3044\u3002"] * 30],
    ],
)
def test_a_sentence_a_line_is_read_as_it_is(tmp_path, text):
    found = list(documents(write(tmp_path / "a.txt", text)))
    assert [one.sentences for one in found] == text


def test_paragraphs_of_every_layout_are_split_by_the_language(tmp_path, english):
    paragraph = "M. Dupont et al. came on Jan. 5. \u201cWhy?\u201d asked Prof. M. Smith, i.e. he."
    expected = english(paragraph)
    assert "".join(expected).replace(" ", "") == paragraph.replace(" ", "")
    layouts = {
        "plain": f"{paragraph}\n{paragraph}\n",
        "wiki": f'<doc id="1" title="T">\nT\n\n{paragraph}\n{paragraph}\n</doc>\n',
        "wikitext": f" = T = \n\n {paragraph}\n {paragraph}\n",
    }
    for name, content in layouts.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        (document,) = documents(tmp_path / name, english)
        assert document.sentences == expected * 2, name


def test_chinese_and_japanese_are_split_without_spaces(english):
    chinese = "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002\u6211\u4eec\u53bb\u516c\u56ed\u5427\uff01"
    assert len(splitter("zh")[0](chinese)) == 2
    japanese = (
        "\u543e\u8f29\u306f\u732b\u3067\u3042\u308b\u3002\u540d\u524d\u306f\u7121\u3044\u3002"
    )
    assert len(splitter("ja")[0](japanese)) == 2


def test_the_manifest_names_language_and_library(tmp_path, english):
    path = write(tmp_path / "a.txt", [[" ".join(sentences(4, 10 * n))] for n in range(60)])
    options = {"text": (path,), "train_vocab": 200, "eval_fraction": 0.2, "processes": 1}
    made = prepare(PrepareOptions(output=tmp_path / "out", split_sentences="en", **options))
    assert made["parameters"]["split_sentences"].startswith("en, sentencex ")
    assert made["train"]["sentences"] + made["eval"]["sentences"] == 60 * 8
    with pytest.raises(BadInput, match="split_sentences 'en, sentencex"):
        prepare(PrepareOptions(output=tmp_path / "out", **options))


@pytest.mark.parametrize("fraction", [0.0, 0.02])
def test_few_documents_are_split_wherever_they_are_read(tmp_path, english, fraction):
    """Far from the share that was asked for is held out: the documents are read once more."""
    path = write(tmp_path / "a.txt", [[" ".join(sentences(4, 10 * n))] for n in range(8)])
    asked = PrepareOptions(
        text=(path,), output=tmp_path / "out", train_vocab=200, eval_fraction=fraction,
        processes=1, split_sentences="en",
    )  # fmt: skip
    if fraction:
        with pytest.raises(BadInput, match="none of the 8 documents was held out"):
            prepare(asked)
    else:
        assert prepare(asked)["train"]["documents"] == 8


def test_a_missing_package_or_a_wrong_code_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with pytest.raises(Unsupported, match=r"pip install 'bertbench\[text\]', or .*a line$"):
        splitter("fr")
    with pytest.raises(BadInput, match="--split_sentences English: give the code"):
        splitter("English")
