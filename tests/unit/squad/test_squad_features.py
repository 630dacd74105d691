# SPDX-License-Identifier: Apache-2.0
"""Examples and features against the rules written out (squad_reference.py), field by field."""

from __future__ import annotations

import json

import numpy as np
import pytest
import squad_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from squad_files import IDS, TEXT, VOCAB, paragraphs, write

from bertbench.benchmarks.bert_squad.examples import Paragraph, Squad, read_squad
from bertbench.benchmarks.bert_squad.features import (
    NO_TOKEN,
    FeatureOptions,
    Features,
    make_features,
)
from bertbench.benchmarks.bert_squad.wordpieces import WordPieces, basic_tokens
from bertbench.common.data.tokenization import read_vocab
from bertbench.common.errors import BadInput


def one(features: Features, number: int, max_seq: int) -> dict:
    """Feature ``number`` in the reference's shape: padded, dictionaries from token to word."""
    part = slice(*features.offsets[number : number + 2].tolist())
    ids = features.input_ids[part].tolist()
    words = features.words[part].tolist()
    padding = [0] * (max_seq - len(ids))
    is_max = features.max_context[part].tolist()
    inside = [i for i, word in enumerate(words) if word != NO_TOKEN]
    assert not any(is_max[i] for i in range(len(ids)) if i not in inside)
    return {
        "ids": ids + padding,
        "mask": [1] * len(ids) + padding,
        "segments": features.segment_ids[part].tolist() + padding,
        "words": {i: words[i] for i in inside},
        "is_max": {i: is_max[i] for i in inside},
        "start": None if features.start is None else int(features.start[number]),
        "end": None if features.end is None else int(features.end[number]),
        "window": int(features.window[number]),
    }


def assert_equal(squad: Squad, features: Features, slow: list, options, ids, rows=None):
    """Compare the features of the questions ``rows`` (default all)."""
    asked = range(len(slow)) if rows is None else rows
    assert [squad.examples[row].id for row in asked] == [slow[row]["id"] for row in asked]
    compared = 0
    for row in asked:
        example = slow[row]
        assert squad.paragraphs[squad.examples[row].paragraph].words == example["words"]
        expected = squad_reference.features(
            example, ids, options.lowercase, options.max_seq_length, options.doc_stride,
            options.max_query_length, squad.training,
        )  # fmt: skip
        numbers = np.flatnonzero(features.example == row)
        assert len(numbers) == len(expected)
        for number, wanted in zip(numbers.tolist(), expected, strict=True):
            got = one(features, number, options.max_seq_length)
            assert got == {key: wanted[key] for key in got}, f"feature {number}"
            compared += 1
    return compared


SMALL = st.builds(
    FeatureOptions,
    max_seq_length=st.integers(12, 40),
    doc_stride=st.integers(1, 12),
    max_query_length=st.integers(0, 8),
    lowercase=st.booleans(),
)


@settings(max_examples=250, deadline=None)
@given(text=TEXT | st.text(), lowercase=st.booleans())
def test_wordpieces_of_any_text(text, lowercase):
    assert basic_tokens(text, lowercase=lowercase) == squad_reference.basic(text, lowercase)
    ids, offsets = WordPieces(VOCAB, lowercase=lowercase).encode([text, "one", text])
    expected = [IDS[piece] for piece in squad_reference.wordpieces(text, IDS, lowercase)]
    assert ids.tolist() == [*expected, IDS["one"], *expected]
    assert offsets.tolist() == [0, len(expected), len(expected) + 1, 2 * len(expected) + 1]


def test_words_of_more_than_100_characters_are_unknown():
    ids, offsets = WordPieces(VOCAB, lowercase=True).encode(["a" * n for n in (99, 100, 101)])
    assert np.diff(offsets).tolist() == [99, 100, 1]
    assert ids[-1] == IDS["[UNK]"]


def test_the_first_spelling_of_the_answer_is_taken(make_squad):
    answer = {"text": "one", "answer_start": 8}
    path = make_squad(
        [("ten one-one-one ten", [{"id": "x", "question": "q", "answers": [answer]}])]
    )
    features = make_features(read_squad(path, training=True), VOCAB, FeatureOptions())
    # [CLS] q [SEP] ten one - one - one ten [SEP]
    assert (features.start.tolist(), features.end.tolist()) == ([4], [4])


@settings(max_examples=150, deadline=None)
@given(made=st.lists(paragraphs(answered=False), min_size=1, max_size=3), options=SMALL)
def test_features_for_prediction(tmp_path_factory, made, options):
    path = tmp_path_factory.mktemp("squad") / "made.json"
    slow = squad_reference.examples(write(path, made), training=False)
    squad = read_squad(path, training=False)
    features = make_features(squad, VOCAB, options)
    assert_equal(squad, features, slow, options, IDS)
    assert features.start is None and features.end is None
    assert len(features) == len(features.split) == len(features.window)


@settings(max_examples=250, deadline=None)
@given(made=st.lists(paragraphs(answered=True), min_size=1, max_size=3), options=SMALL)
def test_features_for_training_with_impossible_questions(tmp_path_factory, made, options):
    path = tmp_path_factory.mktemp("squad") / "made.json"
    whole = write(path, made)
    slow = squad_reference.examples(whole, training=True, v2=True)
    if not slow:
        return
    squad = read_squad(path, training=True, v2=True)
    kept = {example.id for example in squad.examples}
    all_ids = [qa["id"] for p in whole["data"][0]["paragraphs"] for qa in p["qas"]]
    assert squad.dropped == [i for i in all_ids if i not in kept]
    for example, wanted in zip(squad.examples, slow, strict=True):
        assert (example.answer, example.is_impossible) == (wanted["answer"], wanted["impossible"])
        assert example.end_word == wanted["end"]
    assert_equal(squad, make_features(squad, VOCAB, options), slow, options, IDS)


def test_real_dev_features(dev, uncased_vocab):
    """10,833 features, and 500 of them spread over the file equal the rules in every field."""
    vocab = read_vocab(uncased_vocab)
    squad = read_squad(dev, training=False)
    options = FeatureOptions()
    features = make_features(squad, vocab, options)
    assert (len(squad.examples), len(features)) == (10_570, 10_833)
    assert features.lengths.max() == 384
    # Every 25th question, and half of those with more than one window.
    several = np.flatnonzero(np.bincount(features.example) > 1)
    rows = sorted({*range(0, len(squad.examples), 25), *several[::2].tolist()})
    slow = squad_reference.examples(json.loads(dev.read_bytes()), training=False)
    ids = {token: number for number, token in enumerate(vocab)}
    assert assert_equal(squad, features, slow, options, ids, rows) >= 500


def test_real_training_features(train_subset, uncased_vocab):
    """Every 80th question of the subset with its answer, in short windows so that some miss it."""
    vocab = read_vocab(uncased_vocab)
    squad = read_squad(train_subset, training=True)
    options = FeatureOptions(max_seq_length=128, doc_stride=64, max_query_length=16)
    features = make_features(squad, vocab, options)
    slow = squad_reference.examples(json.loads(train_subset.read_bytes()), training=True)
    assert len(slow) == len(squad.examples)
    ids = {token: number for number, token in enumerate(vocab)}
    assert_equal(squad, features, slow, options, ids, range(0, len(slow), 80))
    assert features.start is not None
    share = (features.start == 0).mean()
    assert 0.1 < share < 0.7, "windows without the answer are kept"


def test_processes_do_not_change_features(make_squad):
    made = [
        (f"one ten the cat {i} " * (i % 5 + 1), [{"id": f"{i}-{j}", "question": "ten"}])
        for i in range(12)
        for j in range(1)
    ]
    squad = read_squad(make_squad(made), training=False)
    options = FeatureOptions(max_seq_length=16, doc_stride=3)
    alone = make_features(squad, VOCAB, options)
    shared = make_features(squad, VOCAB, options, processes=3)
    for name in ("input_ids", "offsets", "split", "words", "max_context", "example", "window"):
        assert np.array_equal(getattr(alone, name), getattr(shared, name)), name


def test_words_split_where_the_reference_splits():
    paragraph = Paragraph.of("\n one\u202ftwo\u00a0three\tfour ")
    assert paragraph.words == ["one", "two\u00a0three", "four"]
    assert [paragraph.word_at(i) for i in (0, 1, 2, 5, 6, 15, 16, 20)] == [-1, -1, 0, 0, 1, 1, 2, 2]


def test_a_window_is_not_left_without_room(make_squad):
    path = make_squad([("one", [{"id": "long", "question": "ten " * 9}])])
    squad = read_squad(path, training=False)
    for length, query, fits in ((12, 9, False), (13, 9, True), (12, 64, False), (12, 8, True)):
        options = FeatureOptions(max_seq_length=length, max_query_length=query)
        if fits:
            assert len(make_features(squad, VOCAB, options)) == 1
        else:
            with pytest.raises(BadInput, match=r"question long.*leaves no room"):
                make_features(squad, VOCAB, options)


@pytest.mark.parametrize("name", ["max_seq_length", "doc_stride", "max_query_length"])
def test_impossible_options(name):
    with pytest.raises(BadInput, match=f"--{name} -1"):
        FeatureOptions(**{name: -1})


# --- damaged files --------------------------------------------------------------------------------

GOOD = {"id": "x", "question": "q", "answers": [{"text": "two", "answer_start": 4}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 7.5}, r"article 1 \(T\), paragraph 1, question 1: its id is 7.5"),
        ({"question": None}, r"question 1 \(id x\) has no text 'question'"),
        ({"answers": None}, r"question 1 \(id x\) has no list of answers with a text"),
        ({"answers": []}, r"has 0 answers, training needs exactly 1.*version_2_with_negative"),
        ({"answers": GOOD["answers"] * 2}, "has 2 answers"),
        ({"answers": ["two"]}, "no list of answers with a text"),
        ({"answers": [{"text": " ", "answer_start": 3}]}, "its answer is empty"),
        ({"answers": [{"text": "two", "answer_start": 6}]}, "starts at character 6 with 3"),
        ({"answers": [{"text": "two", "answer_start": -1}]}, "starts at character -1"),
        ({"answers": [{"text": "two"}]}, "starts at character None"),
    ],
)
def test_damaged_question(make_squad, change, message):
    path = make_squad([("one two", [{**GOOD, **change}])])
    with pytest.raises(BadInput, match=message):
        read_squad(path, training=True)


def test_answers_are_not_looked_at_for_prediction(make_squad):
    path = make_squad([("one two", [{**GOOD, "answers": "none"}])])
    assert read_squad(path, training=False).examples[0].answer == ""


def test_question_without_the_mark_of_v2(make_squad):
    with pytest.raises(BadInput, match="no true or false is_impossible"):
        read_squad(make_squad([("one two", [GOOD])]), training=True, v2=True)


def test_repeated_id(make_squad):
    path = make_squad([("one two", [GOOD]), ("two", [{**GOOD}])])
    with pytest.raises(BadInput, match=r"paragraph 2, question 1 \(id x\): this id is also that"):
        read_squad(path, training=False)


def test_answer_that_is_elsewhere_is_dropped_and_said(make_squad):
    wrong = {**GOOD, "id": "y", "answers": [{"text": "two", "answer_start": 0}]}
    squad = read_squad(make_squad([("one two", [wrong, GOOD])]), training=True)
    assert (squad.dropped, [e.id for e in squad.examples]) == (["y"], ["x"])
    with pytest.raises(BadInput, match=r"no usable question \(1 left out"):
        read_squad(make_squad([("one two", [wrong])]), training=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"data": [', "is not JSON .line 1"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[]", "has no list 'data'"),
        (b'{"data": [3]}', "article 1 has no list 'paragraphs'"),
        (b'{"data": [{"paragraphs": [{"qas": []}]}]}', "paragraph 1 has no text 'context'"),
        (b'{"data": []}', "no usable question"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_damaged_file(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_squad(path, training=False)


def test_a_byte_order_mark_is_no_damage(make_squad):
    file = make_squad([("one two", [GOOD])])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert [e.id for e in read_squad(file, training=True).examples] == ["x"]


def test_missing_file(tmp_path):
    with pytest.raises(BadInput, match="No such file"):
        read_squad(tmp_path / "none.json", training=False)
