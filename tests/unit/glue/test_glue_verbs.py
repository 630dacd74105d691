# SPDX-License-Identifier: Apache-2.0
"""``bertbench score glue``: each column by its definition, and predictions that do not fit."""

from __future__ import annotations

import json
import statistics

import pytest
from glue_files import table

from bertbench.benchmarks.glue.tasks import TASKS
from bertbench.benchmarks.glue.verbs import COLUMNS, MEAN
from bertbench.common.cli.main import main

RTE = "index|sentence1|sentence2|label"
YES, NO = "entailment", "not_entailment"


@pytest.fixture(autouse=True)
def _sklearn():
    pytest.importorskip("sklearn", reason="scikit-learn (the extra glue) is absent")


@pytest.fixture
def labels(tmp_path):
    rows = [f"{i}|a {i}|b|{label}" for i, label in zip("5678", (YES, NO, NO, YES), strict=True)]
    return table(tmp_path / "RTE" / "dev.tsv", RTE, rows)


def predicted(path, *rows, head="index|prediction"):
    return str(table(path, head, list(rows)))


def test_predictions_in_any_order_are_scored_by_index(labels, tmp_path, capsys):
    rows = [f"8|{NO}", f"7|{NO}", f"6|{NO}", f"5|{YES}", f"99|{YES}"]
    file = predicted(tmp_path / "dev_RTE.tsv", *rows)
    assert main(["score", "glue", file, "--data", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"rte": 75.0, "examples": 4, "extra": 1}
    assert "1 predictions of no labelled example" in err
    other = predicted(tmp_path / "mine.tsv", *rows)
    flags = ["--task", "rte", "--dev_file", str(labels)]
    assert main(["score", "glue", other, *flags]) == 0
    assert capsys.readouterr().out.split() == ["rte", "75.00", "%"]


def test_a_part_of_the_training_file_is_scored_by_our_split(tmp_path, capsys):
    rows = [f"{i}|text {i}|b|{YES}" for i in range(40)]
    train = table(tmp_path / "train.tsv", RTE, rows)
    file = predicted(tmp_path / "dev_RTE.tsv", *(f"{i}|{YES}" for i in range(40)))
    flags = ["--train_file", str(train), "--eval_share", "0.5", "--json"]
    assert main(["score", "glue", file, *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rte"] == 100.0 and 5 < found["examples"] < 35
    assert found["examples"] + found["extra"] == 40


def test_nine_columns_have_a_mean(tmp_path, capsys):
    """Each task's columns from its own file; numbers out of STS-B's range are numbers."""
    heads = {"cola": "", "sst2": "sentence|label", "qqp": "id|question1|question2|is_duplicate",
             "qnli": "index|question|sentence|label", "stsb": "index|sentence1|sentence2|score",
             "mnli": "index|sentence1|sentence2|gold_label",
             "mrpc": "Quality|#1 ID|#2 ID|#1 String|#2 String"}  # fmt: skip
    forms = {"cola": "g|{label}||text", "sst2": "text|{label}", "mrpc": "{label}|1|2|a|b"}
    files = []
    for name, task in TASKS.items():
        values = task.labels or ("0.0", "2.5", "5.0")
        form = forms.get(name, "{i}|a|b|{label}")
        for one in task.sets:
            rows = [form.format(i=i, label=values[i % len(values)]) for i in range(6)]
            table(tmp_path / task.folder / one.dev, heads.get(name, RTE), rows)
            given = [*values[1:], "7.5"] if name == "stsb" else values
            answers = (f"{i}|{given[i % len(given)]}" for i in range(6))
            files.append(predicted(tmp_path / f"{one.submission}.tsv", *answers))
    assert main(["score", "glue", *files, "--data", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stsb_pearson"] == pytest.approx(100, abs=1)
    assert found["cola"] == found["mnli_mismatched"] == found["mrpc"] == 100
    assert found[MEAN] == pytest.approx(statistics.mean(found[name] for name in COLUMNS))
    assert len(COLUMNS) == 9
    assert main(["score", "glue", *files[:-1], "--data", str(tmp_path), "--json"]) == 0
    assert MEAN not in json.loads(capsys.readouterr().out)


WHOLE = (f"5|{YES}", f"6|{NO}", f"7|{NO}", f"8|{YES}")


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (WHOLE[:3], [], "lacks 1 of the 4 examples"),
        ((*WHOLE, WHOLE[0]), [], "index 5 is there twice"),
        ((*WHOLE[:3], "8|maybe"), [], "line 5: label 'maybe' is none of RTE's"),
        ((*WHOLE[:3], "8"), [], "line 5: 1 fields instead of 2"),
        ((*WHOLE[:3], "8|"), [], "line 5: no prediction"),
        (WHOLE, ["--task", "sst2"], "lacks"),
        (WHOLE, ["--eval_share", "2"], "not between 0 and 1"),
        (WHOLE, ["--eval_share", "0.5"], "RTE/train.tsv"),
        (WHOLE, ["--task", "glue"], "invalid choice"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(labels, tmp_path, capsys, rows, more, message):
    file = predicted(tmp_path / "RTE.tsv", *rows)
    assert main(["score", "glue", file, "--data", str(tmp_path), *more]) == 2
    out, err = capsys.readouterr()
    assert message in err and out == ""
    assert "malformed_lines" not in err


def test_a_file_whose_task_is_not_known_or_that_holds_no_predictions(labels, tmp_path, capsys):
    for name, head, message in (
        ("mine.tsv", "index|prediction", "name its task with --task"),
        ("RTE.tsv", "idx|prediction", "line 2: a prediction without its index"),
        ("RTE.tsv", "id|answer", "its first line must be index, a tab and prediction"),
    ):
        file = predicted(tmp_path / name, *WHOLE, head=head)
        assert main(["score", "glue", file, "--data", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    file = predicted(tmp_path / "RTE.tsv", *WHOLE)
    assert main(["score", "glue", file, file, "--data", str(tmp_path)]) == 2
    assert "second file of rte" in capsys.readouterr().err
