# SPDX-License-Identifier: Apache-2.0
"""Files that say what SQuAD's say in other words, and files that are something else."""

from __future__ import annotations

import gzip
import json
import os
import resource

import pytest

from bertbench.benchmarks.bert_squad import formats
from bertbench.benchmarks.bert_squad.examples import read_squad
from bertbench.benchmarks.bert_squad.score import language_note, score
from bertbench.common.cli.main import main
from bertbench.common.errors import BadInput

TEXTS = ("one two three", "four five six")
ANSWER = {"text": "two", "answer_start": 4}
GOLD = {"0": "two", "1": "two", "2": "five"}


def asked(**changes):
    """Three questions about two paragraphs, each with ``changes``."""
    marks = [(0, ANSWER), (0, ANSWER), (1, {"text": "five", "answer_start": 5})]
    return [
        (TEXTS[p], {"id": str(i), "question": "?", "answers": [answer], **changes})
        for i, (p, answer) in enumerate(marks)
    ]


def nested(rows, **top):
    parts = [
        {"context": text, "qas": [qa for where, qa in rows if where == text]} for text in TEXTS
    ]
    return {"version": "1.1", "data": [{"title": "T", "paragraphs": parts}], **top}


def flat(rows):
    return [
        {
            **qa,
            "context": text,
            "answers": {
                "text": [a["text"] for a in qa["answers"]],
                "answer_start": [a["answer_start"] for a in qa["answers"]],
            },
        }
        for text, qa in rows
    ]


def changed(change):
    """The questions, each changed by ``change`` of its fields."""
    rows = asked()
    for _, qa in rows:
        change(qa)
    return nested(rows)


def starts_as(kind):
    def change(qa):
        (answer,) = qa["answers"]
        qa["answers"] = [{**answer, "answer_start": kind(answer["answer_start"])}]

    return changed(change)


def dumped(content):
    return json.dumps(content).encode()


SAME = {
    "plain": dumped(nested(asked())),
    "byte order mark": b"\xef\xbb\xbf" + dumped(nested(asked())),
    "gzip": gzip.compress(dumped(nested(asked()))),
    "1.0 as id": dumped(changed(lambda qa: qa.update(id=float(qa["id"])))),
    "numbers as ids": dumped(changed(lambda qa: qa.update(id=int(qa["id"])))),
    "start as text": dumped(starts_as(str)),
    "start as blank text": dumped(starts_as(" {}".format)),
    "start as 4.0": dumped(starts_as(float)),
    "start as text of 4.0": dumped(starts_as(lambda at: f"{at}.0")),
    "not impossible, text": dumped(nested(asked(is_impossible="false"))),
    "not impossible, Python's text": dumped(nested(asked(is_impossible="False"))),
    "not impossible, 0": dumped(nested(asked(is_impossible=0))),
    "not impossible, text of 0": dumped(nested(asked(is_impossible="0"))),
    "no mark": dumped(nested(asked(is_impossible=None))),
    "rows": dumped(flat(asked())),
    "rows under data": dumped({"version": "1.1", "data": flat(asked())}),
    "rows with lists of answers": dumped([{**qa, "context": text} for text, qa in asked()]),
    "JSON lines": b"\n".join(map(dumped, flat(asked()))),
    "JSON lines in gzip, CRLF": gzip.compress(b"\r\n".join([*map(dumped, flat(asked())), b""])),
    "articles alone": dumped(nested(asked())["data"]),
    "one answer alone": dumped(changed(lambda qa: qa.update(answers=qa["answers"][0]))),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_in_other_words(tmp_path, name):
    """Equal questions, answers and scores, by the same rules."""
    (tmp_path / "same").write_bytes(SAME[name])
    (tmp_path / "p.json").write_text(json.dumps(GOLD))
    squad = read_squad(tmp_path / "same", training=True)
    found = [(e.id, e.paragraph, e.answer, e.start_word) for e in squad.examples]
    assert found == [("0", 0, "two", 1), ("1", 0, "two", 1), ("2", 1, "five", 1)]
    assert [p.text for p in squad.paragraphs] == list(TEXTS)
    result = score(tmp_path / "same", tmp_path / "p.json")
    assert (result["exact_match"], result["version"], result["missing"]) == (100.0, "1.1", 0)


@pytest.mark.parametrize("mark", ["true", "True", 1, "1", 1.0, True])
def test_impossible_in_any_words(tmp_path, mark):
    rows = asked()
    rows[1][1].update(answers=[], is_impossible=mark)
    for _, qa in (rows[0], rows[2]):
        qa["is_impossible"] = type(mark)(0) if not isinstance(mark, str) else "false"
    (tmp_path / "d").write_bytes(dumped(nested(rows)))
    (tmp_path / "p").write_text(json.dumps({**GOLD, "1": ""}))
    squad = read_squad(tmp_path / "d", training=True, v2=True)
    assert [e.is_impossible for e in squad.examples] == [False, True, False]
    found = score(tmp_path / "d", tmp_path / "p")
    assert (found["version"], found["exact_match"], found["NoAns_total"]) == ("2.0", 100.0, 1)


def test_rows_without_answers_are_impossible(tmp_path):
    """Hugging Face's squad_v2 has no other mark."""
    rows = flat(asked())
    rows[1]["answers"] = {"text": [], "answer_start": []}
    (tmp_path / "d").write_bytes(dumped(rows))
    (tmp_path / "p").write_text(json.dumps({**GOLD, "1": ""}))
    assert read_squad(tmp_path / "d", training=True, v2=True).examples[1].is_impossible is True
    assert score(tmp_path / "d", tmp_path / "p")["version"] == "2.0"


def one_column(of):
    rows = flat(asked())
    for row in rows:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        row["answers"] = of(text, start)
    return dumped(rows)


@pytest.mark.parametrize(
    "of",
    [
        lambda text, start: {"text": [text], "answer_start": start},
        lambda text, start: {"text": text, "answer_start": [start]},
    ],
)
def test_a_column_of_one_without_its_list(tmp_path, of):
    (tmp_path / "d").write_bytes(one_column(of))
    squad = read_squad(tmp_path / "d", training=True)
    assert [(e.answer, e.start_word) for e in squad.examples] == [("two", 1), ("two", 1),
                                                                  ("five", 1)]  # fmt: skip


@pytest.mark.parametrize("empty", [None, [], {"text": []}, ""])
def test_no_answer_in_other_words(tmp_path, empty):
    rows = asked()
    rows[1][1].update(answers=[], is_impossible=True)
    (tmp_path / "d").write_bytes(dumped(nested(rows)))
    (tmp_path / "p").write_text(json.dumps({**GOLD, "1": empty}))
    found = score(tmp_path / "d", tmp_path / "p")
    assert (found["exact_match"], found["NoAns_exact"], found["not_text"]) == (100.0, 100.0, 0)


def test_one_line_of_json_lines(tmp_path):
    (tmp_path / "d").write_bytes(SAME["plain"])
    (tmp_path / "p").write_bytes(dumped({"id": "0", "prediction_text": "two"}))
    found = score(tmp_path / "d", tmp_path / "p")
    assert (found["missing"], found["extra"], found["not_text"]) == (2, 0, 0)


DEEP = b'{"data": ' + b"[" * 100_000
REFUSED = {
    "empty": (b"", "is not JSON: it is empty"),
    "blank": (b" \n\n", "it is empty"),
    "cut": (dumped(nested(asked()))[:-9], "it is cut short; fetch it again"),
    "cut in a text": (b'{"data": [{"title": "T', "it is cut short; fetch it again"),
    "wrong": (b'{"data": [,]}', "is not JSON .line 1, column 11.*: correct it"),
    "a page": (b"<html><body>404</body></html>", r"is a web page \(HTML\): download the file"),
    "another page": (b"\n<!DOCTYPE html>\n<html>", "is a web page"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "`git lfs pull`"),
    "zip": (b"PK\x03\x04rest", "is a zip archive: unpack it"),
    "xz": (b"\xfd7zXZ\x00rest", "is packed by xz"),
    "bzip2": (b"BZh91AY", "is packed by bzip2"),
    "Parquet": (b"PAR1....", "is a Parquet table"),
    "tar in gzip": (gzip.compress(b"x" * 257 + b"ustar"), "is a tar archive"),
    "cut gzip": (SAME["gzip"][:-9], "is gzip that is damaged or cut short: fetch it again"),
    "UTF-16": (json.dumps(nested(asked())).encode("utf-16"), "is not UTF-8 but UTF-16"),
    "UTF-16 without a mark": (b"{\x00}\x00", "is not UTF-8 but UTF-16"),
    "other bytes": (b'{"data": "\xe9"}', r"is not UTF-8 \(byte 10\)"),
    "deep": (DEEP, "nested too deeply"),
    "huge": (b'{"data": [%s]}' % (b"9" * 5000), "is too large"),
    "no number": (b'{"data": [NaN]}', "NaN is not JSON"),
    "nothing": (b'{"data": []}', "has no usable question: name"),
    "a list of nothing": (b"[]", "has no list 'data'"),
    "no data": (b'{"rows": [], "features": []}', r"no list 'data' \(it has 'rows', 'features'\)"),
    "columns": (dumped({"id": ["0"], "context": ["one"]}), r"\(it has 'id', 'context'\)"),
    "damaged JSON line": (b'{"context": "one", "question": "?"}\n{', "line 2 is not JSON"),
    "KorQuAD 2": (
        dumped({"data": [{"title": "T", "context": "one", "raw_html": "<p>", "qas": []}]}),
        "is in KorQuAD 2's layout .*convert it to SQuAD's",
    ),
    "CMRC": (
        dumped([{"context_id": "c", "context_text": "one", "qas": []}]),
        r"another layout \(it has 'context_id', 'context_text', 'qas'\)",
    ),
    "true as id": (dumped(changed(lambda qa: qa.update(id=True))), "its id is True"),
    "ids equal as text": (
        dumped(nested([(TEXTS[0], {**asked()[0][1], "id": i}) for i in (5, "5")])),
        r"\(id 5\): this id is also that of",
    ),
    "start of true": (dumped(starts_as(bool)), "starts at character True"),
    "start of a word": (dumped(starts_as(lambda _: "four")), "starts at character four"),
    "start of 4.5": (dumped(starts_as(lambda _: 4.5)), "starts at character 4.5"),
    "uneven columns": (
        dumped(changed(lambda qa: qa.update(answers={"text": ["two"], "answer_start": []}))),
        "no list of answers with a text",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_by_name_in_one_line(tmp_path, name):
    raw, message = REFUSED[name]
    (tmp_path / "d.json").write_bytes(raw)
    with pytest.raises(BadInput, match=message) as caught:
        read_squad(tmp_path / "d.json", training=True)
    text = str(caught.value)
    assert str(tmp_path / "d.json") in text and "\n" not in text and len(text) < 500


@pytest.mark.parametrize("mark", ["maybe", "", 2, [], "no"])
def test_a_mark_without_meaning_is_refused(tmp_path, mark):
    (tmp_path / "d").write_bytes(dumped(nested(asked(is_impossible=mark))))
    (tmp_path / "p").write_text(json.dumps(GOLD))
    with pytest.raises(BadInput, match=r"is_impossible is .*give true or false"):
        score(tmp_path / "d", tmp_path / "p")
    with pytest.raises(BadInput, match="give true or false"):
        read_squad(tmp_path / "d", training=True, v2=True)


@pytest.mark.parametrize(
    "raw",
    [
        dumped(GOLD),
        b"\xef\xbb\xbf" + dumped(GOLD),
        gzip.compress(dumped(GOLD), mtime=0),
        dumped([{"id": i, "prediction_text": text} for i, text in GOLD.items()]),
        dumped([{"id": int(i), "prediction_text": text} for i, text in GOLD.items()]),
        b"\n".join(dumped({"id": i, "prediction_text": text}) for i, text in GOLD.items()),
        dumped([{"id": float(i), "prediction_text": [text]} for i, text in GOLD.items()]),
        dumped({i: [text] for i, text in GOLD.items()}),
        dumped({i: {"text": text} for i, text in GOLD.items()}),
        dumped({i: {"text": [text], "answer_start": [4]} for i, text in GOLD.items()}),
        dumped({i: {"prediction_text": text, "id": i} for i, text in GOLD.items()}),
        dumped({"predictions": GOLD}),
        dumped({"predictions": [{"id": i, "prediction_text": t} for i, t in GOLD.items()]}),
    ],
)
@pytest.mark.parametrize("name", ["plain", "numbers as ids"])
def test_answers_in_other_words(tmp_path, raw, name):
    (tmp_path / "d").write_bytes(SAME[name])
    (tmp_path / "p").write_bytes(raw)
    assert score(tmp_path / "d", tmp_path / "p")["exact_match"] == 100.0


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (dumped({"0": [{"text": "two", "probability": 1.0}]}), "lists candidates .question 0"),
        (b'{"0": "two", "0": "three"}', "'0' is there twice"),
        (dumped([{"id": "0", "prediction_text": t} for t in "ab"]), "'0' is there twice"),
        (dumped({"q0": "two", "q1": "two"}), "answers no question of .*its first id is q0"),
        (dumped({"answers": GOLD}), "answers no question of .*its first id is answers"),
        (dumped([{"id": "0", "answer": "two"}]), "'prediction_text' .it has 'id', 'answer'"),
        (dumped({"0": None, "1": None}), "no answer that is text .that to 0 is null"),
        (dumped({"0": {"tokens": ["two"]}}), "no answer that is text"),
        (dumped({"0": ["two", "three"]}), "no answer that is text"),
        (dumped([{"id": 0.5, "prediction_text": "two"}]), "its id is 0.5: give a text or a whole"),
        (b"[]", "must be one JSON object"),
        (b'"two"', "must be one JSON object"),
        (b'{"0": ' + b"[" * 90_000, "nested too deeply"),
        (b'{"0": %s}' % (b"9" * 5000), "is too large"),
    ],
)
def test_answers_that_cannot_be_scored(tmp_path, raw, message):
    (tmp_path / "d").write_bytes(SAME["plain"])
    (tmp_path / "p").write_bytes(raw)
    with pytest.raises(BadInput, match=message) as caught:
        score(tmp_path / "d", tmp_path / "p")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_only_plain_files_are_read(tmp_path, kind):
    path = tmp_path / "d"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(BadInput, match="not a plain file"):
        read_squad(path, training=False)


def test_memory_is_bounded(tmp_path, monkeypatch):
    """What unpacks to 256 MiB is not unpacked to the end."""
    monkeypatch.setattr(formats, "LARGEST_FILE", 8 << 20)
    (tmp_path / "bomb").write_bytes(gzip.compress(b"[" + b" " * (1 << 28), compresslevel=1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadInput, match="is larger than 8 MiB when unpacked"):
        read_squad(tmp_path / "bomb", training=False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    (tmp_path / "large").write_bytes(b" " * (9 << 20))
    with pytest.raises(BadInput, match="it is larger than 8 MiB"):
        read_squad(tmp_path / "large", training=False)


def test_chinese_by_the_official_rules_with_a_remark(tmp_path, capsys):
    rows = [("\u4e2d\u6587\u4e00\u4e8c", {"id": "z", "question": "?", "answers": [
        {"text": "\u4e2d\u6587\u4e00", "answer_start": 0}]})]  # fmt: skip
    parts = [{"context": text, "qas": [qa]} for text, qa in rows]
    (tmp_path / "d").write_bytes(dumped({"data": [{"paragraphs": parts}]}))
    (tmp_path / "p").write_text(json.dumps({"z": "\u4e2d\u6587"}))
    command = ["score", "squad", "--dataset", tmp_path / "d", "--predictions", tmp_path / "p"]
    assert main([str(word) for word in command]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"exact_match": 0.0, "f1": 0.0}
    assert "note: the answers are Chinese or Japanese" in err
    (tmp_path / "e").write_bytes(SAME["plain"])
    assert language_note(tmp_path / "e") is None


def test_escapes_and_directions_in_a_file_are_not_printed(tmp_path):
    for identity in ("\x1b[2Jx", "\u202ex", "a\nb", "\ud800"):
        rows = [(TEXTS[0], {"id": identity, "question": "?", "answers": []})] * 2
        (tmp_path / "d").write_bytes(dumped(nested(rows)))
        with pytest.raises(BadInput) as caught:
            read_squad(tmp_path / "d", training=False)
        assert str(caught.value).isprintable()
