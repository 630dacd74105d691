# SPDX-License-Identifier: Apache-2.0
"""Answers against the rules written out (squad_reference.py), on random logits."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import squad_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from squad_files import IDS, VOCAB, paragraphs, write

from bertbench.benchmarks.bert_squad.answers import AnswerOptions, find_answers
from bertbench.benchmarks.bert_squad.examples import read_squad
from bertbench.benchmarks.bert_squad.features import FeatureOptions, make_features
from bertbench.common.data.tokenization import read_vocab
from bertbench.common.errors import BadInput


def both(path, whole, vocab, feature_options, options, seed, levels=None):
    """Ours and the slow answers to random logits; few ``levels`` make many equal ones."""
    squad = read_squad(path, training=False)
    features = make_features(squad, vocab, feature_options)
    random = np.random.default_rng(seed)
    logits = random.standard_normal((2, len(features.input_ids))).astype(np.float32)
    if levels:
        logits = np.round(logits * levels) / levels
    found = find_answers(
        squad, features, *logits, vocab=vocab, lowercase=feature_options.lowercase, options=options
    )
    ids = {token: number for number, token in enumerate(vocab)}
    asked, number = [], 0
    for example in squad_reference.examples(whole, training=False):
        parts = []
        for feature in squad_reference.features(
            example, ids, feature_options.lowercase, feature_options.max_seq_length,
            feature_options.doc_stride, feature_options.max_query_length, False,
        ):  # fmt: skip
            part = slice(*features.offsets[number : number + 2].tolist())
            parts.append((feature, *logits[:, part].tolist()))
            number += 1
        asked.append((example, parts))
    slow = squad_reference.answers(
        asked, options.n_best_size, options.max_answer_length, feature_options.lowercase,
        options.v2, options.null_score_diff_threshold,
    )  # fmt: skip
    assert number == len(features)
    return found, slow


def assert_equal(found, slow):
    predictions, nbest = slow
    assert list(found.predictions.items()) == list(predictions.items())
    assert list(found.nbest) == list(nbest)
    for question, entries in nbest.items():
        got = found.nbest[question]
        keys = ("text", "start_logit", "end_logit")
        assert [[e[k] for k in keys] for e in got] == [[e[k] for k in keys] for e in entries]
        for one, two in zip(got, entries, strict=True):
            assert one["probability"] == pytest.approx(two["probability"], rel=1e-14)
    assert json.loads(json.dumps([found.predictions, found.nbest])) == [
        found.predictions,
        found.nbest,
    ]


@settings(max_examples=200, deadline=None)
@given(
    made=st.lists(paragraphs(answered=False), min_size=1, max_size=3),
    lowercase=st.booleans(),
    n_best=st.integers(1, 25),
    longest=st.integers(1, 12),
    v2=st.booleans(),
    threshold=st.sampled_from([0.0, -1.5, 2.0]),
    levels=st.sampled_from([None, 1]),
    seed=st.integers(0, 99),
)
def test_any_text(tmp_path_factory, made, lowercase, n_best, longest, v2, threshold, levels, seed):
    path = tmp_path_factory.mktemp("squad") / "made.json"
    options = AnswerOptions(
        n_best_size=n_best,
        max_answer_length=longest,
        v2=v2,
        null_score_diff_threshold=threshold,
    )
    windows = FeatureOptions(
        max_seq_length=24, doc_stride=5, max_query_length=6, lowercase=lowercase
    )
    assert_equal(*both(path, write(path, made), VOCAB, windows, options, seed, levels))


@pytest.mark.parametrize("v2", [False, True])
def test_real_texts(tmp_path, dev, uncased_vocab, v2):
    """Three articles' first four paragraphs, some in several windows."""
    whole = json.loads(dev.read_bytes())
    whole["data"] = [
        {**article, "paragraphs": article["paragraphs"][:4]} for article in whole["data"][5:8]
    ]
    path = tmp_path / "part.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    options = AnswerOptions(v2=v2)
    windows = FeatureOptions(max_seq_length=160, doc_stride=64)
    found, slow = both(path, whole, read_vocab(uncased_vocab), windows, options, seed=1)
    assert_equal(found, slow)
    assert len(found.predictions) > 40
    texts = {answer for answer in found.predictions.values() if answer}
    contexts = [p["context"] for article in whole["data"] for p in article["paragraphs"]]
    assert sum(any(text in context for context in contexts) for text in texts) > 0.9 * len(texts)


def ask(make_squad, context, question, logits, options=None, max_seq_length=40, **more):
    """Answers to one question; ``logits``: {token in the feature: (start, end)}, others -9."""
    squad = read_squad(make_squad([(context, [{"id": "x", "question": question}])]), training=False)
    features = make_features(squad, VOCAB, FeatureOptions(max_seq_length=max_seq_length))
    start, end = (np.full(len(features.input_ids), -9.0, np.float32) for _ in range(2))
    for at, (first, last) in logits.items():
        start[at], end[at] = first, last
    return find_answers(
        squad, features, start, end,
        vocab=VOCAB, lowercase=True, options=options or AnswerOptions(**more),
    )  # fmt: skip


def test_capitals_and_signs_come_back(make_squad):
    # [CLS] q [SEP] the ( one ##ne ) . [SEP]: "q" is unknown, one token.
    found = ask(make_squad, "The (Onene).", "q", {5: (5, 0), 6: (0, 5)})
    assert found.predictions == {"x": "Onene"}
    best = found.nbest["x"][0]
    assert (best["start_logit"], best["end_logit"]) == (5, 5)
    assert sum(entry["probability"] for entry in found.nbest["x"]) == pytest.approx(1)


def test_alignment_in_doubt_gives_the_whole_words(make_squad):
    """The sharp s in capitals becomes two letters in no way, but a decomposed accent is dropped."""
    found = ask(make_squad, "a\u0301\u0301ne,", "q", {3: (5, 5), 4: (0, 0)})
    assert found.predictions == {"x": "a\u0301\u0301ne,"}


def test_nothing_qualifies(make_squad):
    """All ends before all starts: the reference's word, or no answer with v2."""
    logits = {3: (0, 9), 4: (9, 0)}
    options = {"n_best_size": 1}
    assert ask(make_squad, "one two ten", "q", logits, **options).predictions == {"x": "empty"}
    found = ask(make_squad, "one two ten", "q", logits, v2=True, **options)
    assert found.predictions == {"x": ""}
    assert found.nbest["x"] == [
        {"text": "", "probability": 1.0, "start_logit": -9.0, "end_logit": -9.0}
    ]


def test_a_paragraph_without_a_word(make_squad):
    empty = np.zeros(0, np.float32)
    squad = read_squad(make_squad([(" \n", [{"id": "x", "question": "q"}])]), training=False)
    features = make_features(squad, VOCAB, FeatureOptions())
    assert len(features) == 0
    for v2, expected in ((False, "empty"), (True, "")):
        found = find_answers(
            squad, features, empty, empty,
            vocab=VOCAB, lowercase=True, options=AnswerOptions(v2=v2),
        )  # fmt: skip
        assert found.predictions == {"x": expected}


def test_each_question_has_its_own_null_score(make_squad):
    """The reference's defect: the last question's null score was everybody's."""
    path = make_squad(
        [("one", [{"id": "first", "question": "q"}]), ("ten", [{"id": "last", "question": "q"}])]
    )
    squad = read_squad(path, training=False)
    features = make_features(squad, VOCAB, FeatureOptions())
    assert features.lengths.tolist() == [5, 5]
    start = np.array([8, 0, 0, 1, 0, -3, 0, 0, 1, 0], np.float32)
    found = find_answers(
        squad, features, start, start,
        vocab=VOCAB, lowercase=True, options=AnswerOptions(v2=True),
    )  # fmt: skip
    assert found.predictions == {"first": "", "last": "ten"}
    null = {i: [e["start_logit"] for e in found.nbest[i] if not e["text"]] for i in found.nbest}
    assert null == {"first": [8.0], "last": [-3.0]}


def test_the_threshold_decides(make_squad):
    logits = {0: (2, 2), 3: (1, 2)}  # null 4, "one" 3
    for threshold, expected in ((0.0, ""), (0.9, ""), (1.0, "one"), (math.inf, "one")):
        found = ask(make_squad, "one", "q", logits, v2=True, null_score_diff_threshold=threshold)
        assert found.predictions == {"x": expected}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite(make_squad, value):
    with pytest.raises(BadInput, match=r"1 of the model's 5 tokens .* question x"):
        ask(make_squad, "one", "q", {2: (0, value)})


def test_impossible_options():
    for name in ("n_best_size", "max_answer_length"):
        with pytest.raises(BadInput, match=f"--{name} 0"):
            AnswerOptions(**{name: 0})
    with pytest.raises(BadInput, match="must be a number"):
        AnswerOptions(null_score_diff_threshold=math.nan)


def test_all_tokens_are_known():
    assert len(IDS) == len(VOCAB), "a repeated token would make the comparisons above meaningless"
