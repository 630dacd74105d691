# SPDX-License-Identifier: Apache-2.0
"""Scores: the published ones, and equality with a second implementation to the last digit."""

from __future__ import annotations

import json

import pytest
import squad_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from squad_files import content

from bertbench.benchmarks.bert_squad.score import normalized, score
from bertbench.common.errors import BadInput


@pytest.mark.parametrize(
    ("name", "exact_match", "f1", "missing", "extra"),
    [
        ("logistic-regression-baseline.json", 40.14191106906339, 50.98153647324461, 13, 28),
        ("r-net-plus-ensemble.json", 82.46925260170293, 88.47785965423249, 0, 0),
    ],
)
def test_published_scores(dev, published, name, exact_match, f1, missing, extra):
    assert score(dev, published / name) == {
        "exact_match": exact_match,
        "f1": f1,
        "total": 10_570,
        "missing": missing,
        "extra": extra,
        "not_text": 0,
        "version": "1.1",
    }


PIECES = ["the", "a", "An", "one", "One", "ten", "\u00e9t\u00e9", "\u4e2d\u6587", "\u201cone\u201d",
          "'one'", "one.", "-", "!", "", " ", "\u202f", "\u00a0", "the-one", "\u0130", "\u00df",
          "a\u0301", "10,5", "\u2019s", "_the_", "\x1f"]  # fmt: skip
SAID = st.lists(st.sampled_from(PIECES), max_size=6).map(" ".join) | st.text(max_size=12)


def scored(folder, asked, *, v2=None, version="1.1"):
    """Ours for [(truths, answer)], and the dataset and answers for the second implementation."""
    questions = [
        {"question": "q", "answers": [{"text": truth} for truth in truths]} for truths, _ in asked
    ]
    dataset = {**content([("c", questions)]), "version": version}
    answers = {f"q{i}": answer for i, (_, answer) in enumerate(asked)}
    paths = folder / "dataset.json", folder / "predictions.json"
    for path, made in zip(paths, (dataset, answers), strict=True):
        path.write_text(json.dumps(made), encoding="utf-8")
    return score(*paths, v2=v2), dataset, answers


@settings(max_examples=300, deadline=None)
@given(asked=st.lists(st.tuples(st.lists(SAID, min_size=1, max_size=3), SAID), min_size=1))
def test_v1_equals_the_second_implementation(tmp_path_factory, asked):
    found, dataset, answers = scored(tmp_path_factory.mktemp("score"), asked)
    assert (found["exact_match"], found["f1"]) == squad_reference.scores(dataset, answers)


@settings(max_examples=300, deadline=None)
@given(asked=st.lists(st.tuples(st.lists(SAID, max_size=3), SAID), min_size=1))
def test_v2_equals_the_second_implementation(tmp_path_factory, asked):
    found, dataset, answers = scored(tmp_path_factory.mktemp("score"), asked, version="v2.0")
    expected = squad_reference.scores_v2(dataset, answers)
    expected["exact_match"] = expected.pop("exact")
    counts = {"missing": 0, "extra": 0, "not_text": 0, "version": "2.0"}
    assert found == {**expected, **counts}


def test_scores_by_hand(tmp_path):
    """One right; two of three words of two; nothing; nothing where both are empty."""
    asked = [
        (["The Broncos!", "x"], "broncos"),
        (["one two"], "one two, ten"),
        (["one"], "ten"),
        (["the"], "..."),
    ]
    found, _, _ = scored(tmp_path, asked)
    assert (found["exact_match"], found["f1"]) == (50.0, 100 * (1 + 0.8) / 4)
    found, _, _ = scored(tmp_path, [*asked, ([], "")], v2=True)
    assert (found["exact_match"], found["f1"]) == (60.0, 100 * (1 + 0.8 + 1 + 1) / 5)
    assert (found["HasAns_total"], found["NoAns_total"]) == (4, 1)
    assert (found["HasAns_exact"], found["NoAns_exact"]) == (50.0, 100.0)


def test_missing_extra_and_no_text(tmp_path):
    asked = [(["one"], "one"), (["one"], None), (["one"], 1), (["one"], ["one"]), (["one"], "one")]
    found, _, answers = scored(tmp_path, asked)
    assert (found["exact_match"], found["not_text"], found["total"]) == (60.0, 2, 5)
    del answers["q4"]
    answers |= {"zzz": "one", "yyy": None}
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(answers))
    for v2 in (False, True):
        found = score(tmp_path / "dataset.json", path, v2=v2)
        assert (found["exact_match"], found["f1"], found["total"]) == (40.0, 40.0, 5)
        assert (found["missing"], found["extra"], found["not_text"]) == (1, 2, 1 if v2 else 2)
    path.write_text("{}")
    found = score(tmp_path / "dataset.json", path)
    assert (found["exact_match"], found["f1"], found["missing"]) == (0.0, 0.0, 5)


def test_which_script(tmp_path):
    asked = [(["one"], "one")]
    assert scored(tmp_path, asked)[0]["version"] == "1.1"
    assert scored(tmp_path, asked, version="v2.0")[0]["version"] == "2.0"
    assert scored(tmp_path, asked, version="v2.0", v2=False)[0]["version"] == "1.1"
    assert scored(tmp_path, asked, version="2")[0]["version"] == "2.0"
    for name in ("SQuAD2.0", "SQuAD v2.0", "squad_v2", "version 2", " V2.0 ", "dev-v2.0"):
        assert scored(tmp_path, asked, version=name)[0]["version"] == "2.0", name
    for name in ("SQuAD1.1", "v1.12", "12", "squad", "fquad-1.2"):
        assert scored(tmp_path, asked, version=name)[0]["version"] == "1.1", name
    assert scored(tmp_path, asked, version="2021-03")[0]["version"] == "1.1"  # a date
    path = tmp_path / "marked.json"
    marked = [{"question": "q", "answers": [], "is_impossible": True}]
    path.write_text(json.dumps(content([("c", marked)])))
    (tmp_path / "p.json").write_text('{"q0": ""}')
    found = score(path, tmp_path / "p.json")
    assert (found["version"], found["exact_match"]) == ("2.0", 100.0)
    assert "HasAns_exact" not in found


def test_normalized():
    assert normalized("The  theA-b's \u00c9t\u00e9, an\u00a0a!") == ["theabs", "\u00e9t\u00e9"]


@pytest.mark.parametrize(
    ("dataset", "answers", "message"),
    [
        (None, "[]", "must be one JSON object"),
        (None, "{", "predictions file .* is not JSON"),
        (None, None, "predictions file .*No such file"),
        ({"data": []}, "{}", "has no question"),
        (content([("c", [{"question": "q"}])]), "{}", r"question 1 \(id q0\) has no list of answ"),
        (content([("c", [{"question": "q", "answers": ["x"]}])]), "{}", "no list of answers with"),
        (content([("c", [{"question": "q", "answers": []}])]), "{}", "has no answer: score it as"),
    ],
)
def test_damaged_files(tmp_path, dataset, answers, message):
    good = content([("c", [{"question": "q", "answers": [{"text": "x"}]}])])
    (tmp_path / "d.json").write_text(json.dumps(good if dataset is None else dataset))
    if answers is not None:
        (tmp_path / "p.json").write_text(answers)
    with pytest.raises(BadInput, match=message):
        score(tmp_path / "d.json", tmp_path / "p.json")
