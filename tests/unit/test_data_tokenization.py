# SPDX-License-Identifier: Apache-2.0
"""Tokenisation: the bulk path against the tokenizers library, vocabularies read and trained."""

from __future__ import annotations

import gzip
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_files import SAMPLE, VOCAB, articles, write_vocab

from bertbench.common.data import tokenization
from bertbench.common.data.tokenization import BertTokenizer, is_padded, read_vocab, train_vocab
from bertbench.common.errors import BadInput
from bertbench.common.native import NativeUnavailable
from bertbench.common.prepare.corpus import documents

LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789", "\u00e9", "\u4e2d", "\u03c3", "\u1100"]
RICH = [*VOCAB, *LETTERS, *(f"##{c}" for c in LETTERS), *"!-'$", "\u2014", "\u20ac"]


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def tokenizer(request):
    made = BertTokenizer(RICH, lowercase=request.param)
    assert made.implementation == "c", "these tests compare the C path; a C compiler is needed"
    return made


def assert_equal(tokenizer, lines):
    ids, counts = tokenizer.encode_lines(lines)
    plain = [tokenizer.encode(line) for line in lines]
    assert counts.tolist() == [len(line) for line in plain]
    assert ids.tolist() == [i for line in plain for i in line]


# Characters for which Python, C and Unicode disagree on what a space, a sign or a letter is.
ODD = "\x00\x01\x0b\x0c\x1c\x1f\x7f\x85\xa0\u200b\u2028\u3000\ufeff\ufffd\u0301\u0345\u00df\u0130"
SIGNS = " .,-_[]{}~!$+\t\r\u2014\u201c\u20ac\u00b0"
TEXT = st.text(st.sampled_from([*"abzAZ019", *ODD, *SIGNS, *LETTERS[-4:], "\u03a3", "\ud7a3"]))

ANY = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))


@settings(max_examples=300, deadline=None)
@given(lines=st.lists(TEXT | ANY, max_size=6))
def test_bulk_equals_plain_on_any_text(tokenizer, lines):
    assert_equal(tokenizer, lines)


def test_bulk_equals_plain_on_long_words_and_special_tokens(tokenizer):
    assert_equal(tokenizer, ["a" * n for n in (99, 100, 101, 5000)] + ["\u00e9" * 101])
    assert_equal(tokenizer, ["[MASK] the [CLS]river[SEP]", "", " ", "running rivers, THE stone."])


def test_special_tokens_in_a_text_are_text(tokenizer):
    ids, _ = tokenizer.encode_lines(["[MASK]"])
    assert tokenizer.special.mask not in ids.tolist()


def test_words_are_forgotten_when_there_are_too_many(monkeypatch):
    """Beyond MAX_WORDS of wordpiece.c (2**20) the memory starts anew; ids stay right."""
    tokenizer = BertTokenizer(RICH)
    for start in range(0, 1_200_000, 150_000):
        lines = [" ".join(f"{n:x}" for n in range(start, start + 150_000))]
        tokenizer.encode_lines(lines)
    assert_equal(tokenizer, ["10000 fffff \u00e9t\u00e9", "the river sings"])


def test_without_a_compiler_the_library_does_it(monkeypatch):
    def missing(*_):
        raise NativeUnavailable("no C compiler found; install gcc")

    quick = BertTokenizer(RICH)
    monkeypatch.setattr(tokenization, "load", missing)
    slow = BertTokenizer(RICH)
    assert slow.implementation == "tokenizers: no C compiler found; install gcc"
    lines = [sentence for article in articles(5) for sentence in article] + [""]
    for one, two in zip(quick.encode_lines(lines), slow.encode_lines(lines), strict=True):
        assert one.dtype == two.dtype
        assert one.tolist() == two.tolist()


@pytest.mark.skipif(not SAMPLE.is_file(), reason=f"{SAMPLE.name} is not beside the repository")
@pytest.mark.parametrize("lowercase", [True, False])
def test_bulk_equals_plain_on_wikipedia(lowercase):
    lines = [s for d in documents(SAMPLE) for s in d.sentences]
    lines = random.Random(0).sample(lines, 6000)
    vocab = train_vocab(lines[:2000], 3000, lowercase=lowercase)
    assert_equal(BertTokenizer(vocab, lowercase=lowercase), lines)


def test_vocabulary_round_trip(tmp_path):
    path = write_vocab(tmp_path / "vocab.txt")
    assert read_vocab(path) == VOCAB
    lines = [token.encode() for token in VOCAB]
    for same in (
        b"\r\n".join(lines),
        b"\n".join([*lines, b"", b""]),
        b"\xef\xbb\xbf" + b"\n".join(lines),
        gzip.compress(b"\n".join(lines)),
        b"\n".join(b"%s\t%d" % (token, i) for i, token in enumerate(lines)),
        b"\n".join(b"%s\t%d" % (token, i) for i, token in sorted(enumerate(lines), reverse=True)),
    ):
        path.write_bytes(same)
        assert read_vocab(path) == VOCAB


def test_where_nothing_pads_or_masks_only_what_is_used_must_be_there(tmp_path):
    for tokens in (["[UNK]", "[PAD]", *VOCAB[2:]], ["[UNK]", "[CLS]", "[SEP]", "river"]):
        path = write_vocab(tmp_path / "vocab.txt", tokens)
        assert read_vocab(path, pads=False) == tokens
        with pytest.raises(BadInput, match="PAD"):
            read_vocab(path)
    for name in ("[UNK]", "[CLS]", "[SEP]"):
        path = write_vocab(tmp_path / "vocab.txt", [t for t in VOCAB if t != name])
        with pytest.raises(BadInput, match=rf"lacks \{name[:-1]}\]"):
            read_vocab(path, pads=False)


@pytest.mark.parametrize(
    ("tokens", "rows", "fits"),
    [
        *((30522, rows, True) for rows in (30522, 30528, 30592, 30720, 30525)),
        *((30522, rows, False) for rows in (30521, 30530, 31090, 21128, 65536)),
        *((104, 128, True), (104, 112, True), (104, 256, False), (104, 120, False)),
        *((32, 64, False), (33, 64, True)),
    ],
)
def test_rows_may_be_padded_to_any_usual_multiple(tokens, rows, fits):
    assert is_padded(tokens, rows) is fits


@pytest.mark.parametrize(
    ("tokens", "match"),
    [
        ([*VOCAB, "", "x"], f"line {len(VOCAB) + 1} is empty"),
        ([*VOCAB, "river"], f"line {len(VOCAB) + 1}: 'river' is also line"),
        ([t for t in VOCAB if t != "[MASK]"], r"lacks \[MASK\]"),
        (["[UNK]", "[PAD]", *VOCAB[2:]], r"\[PAD\] is id 1, it must be 0"),
        (["just text"], r"lacks \[PAD\], \[UNK\].*its first line is 'just text'"),
        ([f"{token}\t-{i}" for i, token in enumerate(VOCAB)], r"first line is '\[PAD\]\\t-0'"),
        (["<html>", *VOCAB], r"is a web page \(HTML\)"),
        (["version https://git-lfs.github.com/spec/v1", "oid"], "`git lfs pull`"),
        (['{"model": {"type": "WordPiece"}}'], "lacks .*one token a line"),
        ([*VOCAB, "\x1b[2J\u202e", "\x1b[2J\u202e"], "is also line"),
    ],
)
def test_malformed_vocabulary(tmp_path, tokens, match):
    path = write_vocab(tmp_path / "vocab.txt", tokens)
    with pytest.raises(BadInput, match=match) as caught:
        read_vocab(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_absent_or_binary_vocabulary(tmp_path):
    with pytest.raises(BadInput, match="No such file"):
        read_vocab(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not UTF-8"):
        read_vocab(tmp_path / "vocab.txt")


def test_training_is_deterministic_and_covers_the_text():
    lines = [sentence for article in articles(60, sentences=12) for sentence in article]
    vocab = train_vocab(lines, 150)
    assert vocab == train_vocab(lines, 150)
    assert len(vocab) == 150 == len(set(vocab))
    assert vocab[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert "river" in vocab
    tokenizer = BertTokenizer(vocab)
    assert tokenizer.unk not in tokenizer.encode_lines(lines)[0]


def test_training_leaves_rare_characters_out_and_says_when_size_is_too_small():
    lines = ["ab ab abab ba"] * 2000 + ["\u4e2d"]
    assert "\u4e2d" not in train_vocab(lines, 20)
    assert "\u4e2d" in train_vocab(lines, 20, coverage=1.0)
    with pytest.raises(BadInput, match=r"a vocabulary of 8 does not hold the 9 .* at least"):
        train_vocab(lines, 8)


def test_words_without_end_are_not_trained_on():
    """They become [UNK], and the trainer's time grows with the square of their length."""
    lines = [" ".join(d) for d in articles(30)]
    endless = ["x" * 10**6, "\u0301" * 10**5, "ab" * 10**5 + "."]
    words = "".join(chr(0x4E00 + n % 50) for n in range(3000))
    started = time.monotonic()
    found = train_vocab([*lines, *endless, words, words], 400)
    assert time.monotonic() - started < 30
    assert chr(0x4E00) in found  # no word of those lines is long
    assert "xx" not in "".join(found)
    assert found == train_vocab([*lines, *endless, words, words], 400)
