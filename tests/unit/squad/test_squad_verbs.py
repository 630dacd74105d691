# SPDX-License-Identifier: Apache-2.0
"""``bertbench score squad``: one line on stdout that parses as the official script's."""

from __future__ import annotations

import json

import pytest

from bertbench.common.cli.main import main


@pytest.fixture
def files(make_squad, tmp_path):
    def make(predictions):
        dataset = make_squad(
            [("a b", [{"id": i, "question": "?", "answers": [{"text": "b"}]} for i in "xyz"])]
        )
        file = tmp_path / "predictions.json"
        file.write_text(predictions if isinstance(predictions, str) else json.dumps(predictions))
        return ["score", "squad", "--dataset", str(dataset), "--predictions", str(file)]

    return make


def test_the_line_is_the_official_one(files, capsys):
    assert main(files({"x": "The b.", "y": "a", "z": "b"})) == 0
    out, err = capsys.readouterr()
    assert out == '{"exact_match": 66.66666666666667, "f1": 66.66666666666667}\n'
    assert err == ""


def test_what_is_odd_is_told_beside_it(files, capsys):
    command = files({"x": "b", "y": 3, "other": "b"})
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"exact_match": 100 / 3, "f1": 100 / 3}
    told = err.splitlines()
    assert len(told) == 3 and all(line.startswith("1 ") for line in told)
    assert main([*command, "--json"]) == 0
    everything = json.loads(capsys.readouterr().out)
    assert (everything["missing"], everything["extra"], everything["not_text"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("predictions", "extra", "message"),
    [
        ("{", [], "not JSON"),
        ("[]", [], "one JSON object"),
        ("{}", ["--version", "3"], "invalid choice"),
        ("{}", ["--dataset", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_cannot_be_scored_is_refused(files, capsys, predictions, extra, message):
    assert main([*files(predictions), *extra]) == 2
    out, err = capsys.readouterr()
    assert message in err and out == ""


@pytest.mark.parametrize("args", [["score"], ["score", "glue"], ["score", "squad"]])
def test_what_is_missing_is_named(capsys, args):
    assert main(args) == 2
    assert "usage: bertbench score" in capsys.readouterr().err or args != ["score", "squad"]
