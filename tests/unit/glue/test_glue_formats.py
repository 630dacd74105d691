# SPDX-License-Identifier: Apache-2.0
"""GLUE's files: every official layout is read, damaged lines are named, the split is ours."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from bertbench.benchmarks.glue.formats import held_out, read_examples
from bertbench.benchmarks.glue.tasks import TASKS
from bertbench.common.errors import BadInput

MNLI_HEAD = "index promptID pairID genre sentence1 sentence2 label1 gold_label".split()
MNLI = [
    *("0 1 1e slate".split()),
    'He said "no',  # a lone quote is a character of the text
    "He refused.",
    *("neutral entailment".split()),
]
MADE = {
    "mnli": (MNLI_HEAD, MNLI, ('He said "no', "He refused."), 0),
    "qqp": (
        "id qid1 qid2 question1 question2 is_duplicate".split(),
        ["7", "1", "2", "What?", "Why?", "1"],
        ("What?", "Why?"),
        1,
    ),
    "qnli": (
        "index question sentence label".split(),
        ["7", "Who?", "I.", "not_entailment"],
        ("Who?", "I."),
        1,
    ),
    "sst2": ("sentence label".split(), ["good ", "1"], ("good ",), 1),
    "cola": (None, ["gj04", "0", "*", "Me goed."], ("Me goed.",), 0),
    "stsb": (
        "index genre sentence1 sentence2 score".split(),
        ["7", "news", "A.", "B.", "3.800"],
        ("A.", "B."),
        3.8,
    ),
    "mrpc": (
        ["\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
        ["1", "11", "12", "A.", "B."],
        ("A.", "B."),
        1,
    ),
    "rte": (
        "index sentence1 sentence2 label".split(),
        ["7", "A.", "B.", "entailment"],
        ("A.", "B."),
        0,
    ),
}


def written(path, head, *rows, end="\n"):
    lines = ["\t".join(row) for row in ([head] if head else []) + list(rows)]
    path.write_bytes((end.join(lines) + end).encode())
    return path


@pytest.mark.parametrize("task", MADE)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_of_each_task(tmp_path, task, end):
    head, row, texts, label = MADE[task]
    found = read_examples(written(tmp_path / "f.tsv", head, row, end=end), TASKS[task],
                          labelled=True)  # fmt: skip
    assert tuple(part[0] for part in found.texts) == texts
    assert found.labels is not None and found.labels.tolist() == [pytest.approx(label)]
    assert found.labels.dtype == (np.float32 if task == "stsb" else np.int64)
    has_number = head is not None and head[0] in ("index", "id")
    assert found.index == [row[0] if has_number else "0"]
    assert found.pair_ids == (["11\t12"] if task == "mrpc" else None)
    assert len(found.sha256) == 64


OFFICIAL = {
    "MNLI": ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"),
    **dict.fromkeys(("QQP", "QNLI", "SST-2", "CoLA", "STS-B", "RTE"), ("train", "dev", "test")),
}


@pytest.mark.parametrize("task", [name for name in TASKS if name != "mrpc"])
def test_real_lines_of_each_file(five_lines, task):
    folder = TASKS[task].folder
    for name in OFFICIAL[folder]:
        labelled = not name.startswith("test")
        path = five_lines / folder / f"{name}.tsv"
        found = read_examples(path, TASKS[task], labelled=labelled)
        lines = path.read_text().rstrip("\n").count("\n") + (folder == "CoLA" and labelled)
        assert len(found) == lines
        assert all(text.strip() for part in found.texts for text in part)
        assert (found.labels is None) != labelled


def test_real_lines_of_mrpc(five_lines):
    for name in ("train", "test"):
        path = five_lines / "MRPC" / f"msr_paraphrase_{name}.txt"
        found = read_examples(path, TASKS["mrpc"], labelled=True)
        assert len(found) >= 2 and set(found.labels.tolist()) <= {0, 1}
        assert all(pair.replace("\t", "").isdigit() for pair in found.pair_ids)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["7\tA.\tB."], r"line 2: 3 fields instead of 4.*--malformed_lines skip"),
        (["7\tA.\tB.\tentailment", "", "8\tA\tB\tentailment"], r"line 3: 1 fields instead of 4"),
        (["7\tA.\tB.\tC.\tentailment"], r"line 2: 5 fields"),
        (["7\tA.\tB.\t"], r"line 2: no label"),
        (["7\tA.\tB.\tmaybe"],
         r"line 2: label 'maybe' is none of RTE's, which are entailment, not_entailment.*--task"),
        ([], r"has no example"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_named(tmp_path, lines, message):
    path = tmp_path / "train.tsv"
    path.write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *lines]) + "\n")
    with pytest.raises(BadInput, match=message) as refused:
        read_examples(path, TASKS["rte"], labelled=True)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_malformed_lines_can_be_left_out_but_not_other_labels(tmp_path):
    path = tmp_path / "train.tsv"
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    # Lines of GLUE's QQP that a line break cuts in two (nyu-mll/GLUE-baselines, issue 5).
    path.write_text(f"{head}\n1\t2\t3\tWhat?\tWas it\n\tso?\t0\n4\t5\t6\tA?\tB?\t1\n")
    found = read_examples(path, TASKS["qqp"], labelled=True, skip=True)
    assert (found.texts, found.labels.tolist()) == ((["A?"], ["B?"]), [1])
    assert found.malformed == (2, 3)
    path.write_text(f"{head}\n4\t5\t6\tA?\tB?\t2\n")
    with pytest.raises(BadInput, match="label '2' is none of QQP's"):
        read_examples(path, TASKS["qqp"], labelled=True, skip=True)


@pytest.mark.parametrize("score", ["5.1", "-0.5", "nan", "high", "0_1", "\u0663"])
def test_a_similarity_out_of_range_is_refused(tmp_path, score):
    head, row, *_ = MADE["stsb"]
    path = written(tmp_path / "f.tsv", head, [*row[:-1], score])
    with pytest.raises(BadInput, match=r"line 2: label .* is not a number from 0 to 5"):
        read_examples(path, TASKS["stsb"], labelled=True)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    for head in ("index label sentence label", "sentence sentence label"):
        path = written(tmp_path / "f.tsv", head.split(), ["0"] * len(head.split()))
        with pytest.raises(BadInput, match=r"line 1: two columns (label|sentence)"):
            read_examples(path, TASKS["sst2"], labelled=True)
    path = written(tmp_path / "f.tsv", ["mark", "mark", "sentence", "label"], ["x", "y", "A", "1"])
    assert read_examples(path, TASKS["sst2"], labelled=True).texts == (["A"],)


def test_half_a_character_is_refused_and_a_whole_one_is_read(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"sentence": "\\ud83d\\ude00", "label": 1}\n')
    assert read_examples(path, TASKS["sst2"], labelled=True).texts == (["\U0001f600"],)
    for half in ('"sentence": "\\ud83d"', '"sentence": "A", "index": "\\ud83d"'):
        path.write_text('{"sentence": "A", "label": 1}\n{"label": 1, ' + half + "}\n")
        with pytest.raises(BadInput, match="line 2: not a JSON object"):
            read_examples(path, TASKS["sst2"], labelled=True)


def test_a_file_of_another_task_is_refused_with_its_columns(tmp_path):
    head, row, *_ = MADE["qnli"]
    path = written(tmp_path / "f.tsv", head, row)
    with pytest.raises(BadInput, match=r"no column sentence1 or premise.*among index, question"):
        read_examples(path, TASKS["mnli"], labelled=True)
    with pytest.raises(BadInput, match="name an existing file"):
        read_examples(tmp_path / "absent.tsv", TASKS["mnli"], labelled=True)
    path.write_bytes(b"PK\x03\x04rest")
    with pytest.raises(BadInput, match="zip archive: unpack it"):
        read_examples(path, TASKS["mnli"], labelled=True)


def test_snli_in_both_of_its_json_forms(tmp_path):
    own = tmp_path / "snli_1.0_dev.jsonl"
    pair = {"sentence1": "A.", "sentence2": "B."}
    rows = [pair | {"gold_label": label} for label in ("neutral", "-", "contradiction")]
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    theirs = tmp_path / "snli.jsonl"
    pair = {"premise": "A.", "hypothesis": "B\nC."}
    rows = [pair | {"label": label} for label in (1, -1, 2)]
    theirs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path, second in ((own, "B."), (theirs, "B C.")):
        found = read_examples(path, TASKS["mnli"], labelled=True)
        assert found.labels.tolist() == [1, 2] and found.unlabelled == 1
        assert found.texts == (["A.", "A."], [second, second])
    for label in (3, True, None, "maybe"):
        theirs.write_text(json.dumps(pair | {"label": label}))
        with pytest.raises(BadInput, match="line 1: label"):
            read_examples(theirs, TASKS["mnli"], labelled=True)
    theirs.write_text(json.dumps(pair | {"label": 1}) + "\n{cut")
    for labelled, advice in ((True, "--malformed_lines skip"), (False, "needs every line")):
        with pytest.raises(BadInput, match=f"line 2: not a JSON object.*{advice}"):
            read_examples(theirs, TASKS["mnli"], labelled=labelled)


def test_the_split_follows_the_first_text_alone(tmp_path):
    rows = [["0", f"premise {i // 3}", f"text {i}", "entailment"] for i in range(600)]
    path = written(tmp_path / "f.tsv", "index sentence1 sentence2 label".split(), *rows)
    found = read_examples(path, TASKS["rte"], labelled=True)
    dev = held_out(found, 0.25)
    assert 0.15 < dev.mean() < 0.35
    assert all(len(set(dev[i : i + 3])) == 1 for i in range(0, 600, 3))
    backwards = written(tmp_path / "b.tsv", "index sentence1 sentence2 label".split(), *rows[::-1])
    again = held_out(read_examples(backwards, TASKS["rte"], labelled=True), 0.25)
    assert again.tolist() == dev.tolist()[::-1]
    # A larger share holds out the same ones and more; the rule is the documented one.
    assert (held_out(found, 0.5) >= dev).all()
    digest = hashlib.sha256(b"premise 0").digest()
    assert dev[0] == (int.from_bytes(digest[:8], "big") / 2**64 < 0.25)
    taken = found.take(dev)
    assert len(taken) == dev.sum() and set(taken.texts[0]).isdisjoint(found.take(~dev).texts[0])
    with pytest.raises(BadInput, match="no example is left"):
        found.take(dev & ~dev)
