# SPDX-License-Identifier: Apache-2.0
"""The feature cache: what its key holds, and that a stale or damaged one is never used."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save
from squad_files import VOCAB

from bertbench.benchmarks.bert_squad import cache
from bertbench.benchmarks.bert_squad.cache import cache_file, ingredients, stored_features
from bertbench.benchmarks.bert_squad.examples import read_squad
from bertbench.benchmarks.bert_squad.features import FeatureOptions, Features, make_features
from bertbench.common.errors import BadInput

REPOSITORY = Path(__file__).parents[3]

ANSWER = {"text": "two", "answer_start": 4}
PARAGRAPHS = [
    ("one two ten", [{"id": "x", "question": "q", "answers": [ANSWER], "is_impossible": False}]),
    ("one ten", [{"id": "y", "question": "q", "answers": [ANSWER], "is_impossible": False}]),
]
OPTIONS = FeatureOptions(max_seq_length=16, doc_stride=2, max_query_length=4)


@pytest.fixture
def files(tmp_path, make_squad):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    first, second = PARAGRAPHS
    second[1][0]["answers"] = [{"text": "two", "answer_start": 0}]  # dropped
    return make_squad([first, second]), vocab


class Store:
    """stored_features with its messages."""

    def __init__(self, files, folder):
        self.dataset, self.vocab = files
        self.folder = folder
        self.said: list[str] = []

    def get(self, options=OPTIONS, training=True, v2=False):
        self.said.clear()
        return stored_features(
            self.dataset, self.vocab, options, training=training, v2=v2,
            folder=self.folder, say=self.said.append,
        )  # fmt: skip


@pytest.fixture
def store(files, tmp_path):
    return Store(files, tmp_path / "cache" / "deep")


def assert_same(one: Features, two: Features) -> None:
    for field in fields(Features):
        a, b = getattr(one, field.name), getattr(two, field.name)
        assert (a is None) == (b is None), field.name
        if a is not None:
            assert a.dtype == b.dtype, field.name
            assert np.array_equal(a, b), field.name


@pytest.mark.parametrize("training", [True, False])
def test_second_time_comes_from_the_cache(store, monkeypatch, training):
    made = store.get(training=training)
    assert not made.reused
    assert store.said == [
        "made.json: no feature cache for this file, vocabulary and options: making it"
    ]
    assert made.path is not None
    assert [p.name for p in store.folder.iterdir()] == [made.path.name], "nothing is left behind"

    def never(*_, **__):
        raise AssertionError("features were made again")

    monkeypatch.setattr(cache, "make_features", never)
    again = store.get(training=training)
    assert again.reused and store.said == []
    assert_same(made.features, again.features)
    assert (again.num_examples, again.dropped) == ((1, ["y"]) if training else (2, []))
    assert (made.num_examples, made.dropped) == (again.num_examples, again.dropped)


CHANGES = ["dataset", "vocab", "max_seq_length", "doc_stride", "max_query_length", "lowercase",
           "training", "v2", "code", "unicode", "tokenizers"]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_ingredient_changes_the_key(files, tmp_path, monkeypatch, change):
    dataset, vocab = files
    options, told = OPTIONS, {"training": True, "v2": False}
    before = cache_file(tmp_path, dataset, ingredients(dataset, vocab, options, **told))
    if change == "dataset":
        dataset.write_text(dataset.read_text() + "\n")
    elif change == "vocab":
        vocab.write_text(vocab.read_text() + "more\n")
    elif change in told:
        told[change] = not told[change]
    elif change == "code":
        monkeypatch.setattr(cache, "_CODE", cache._CODE[:-1])
    elif change == "unicode":
        monkeypatch.setattr(cache.unicodedata, "unidata_version", "1.0.0")
    elif change == "tokenizers":
        monkeypatch.setattr(cache, "version", lambda name: f"{name} of tomorrow")
    elif change == "lowercase":
        options = replace(options, lowercase=False)
    else:
        options = replace(options, **{change: getattr(options, change) + 1})
    after = cache_file(tmp_path, dataset, ingredients(dataset, vocab, options, **told))
    assert before != after


def test_the_key_names_every_option(files):
    """A new option must not be forgotten: all fields of FeatureOptions are ingredients."""
    found = ingredients(*files, OPTIONS, training=True, v2=False)
    assert {field.name for field in fields(FeatureOptions)} <= set(found)


def test_a_copied_file_shares_the_key(files, tmp_path):
    """The key is of the content, not of the place."""
    dataset, vocab = files
    other = tmp_path / "elsewhere"
    other.mkdir()
    copies = [shutil.copy(path, other) for path in files]
    told = {"training": True, "v2": False}
    one = ingredients(dataset, vocab, OPTIONS, **told)
    assert one == ingredients(*map(type(dataset), copies), OPTIONS, **told)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def resealed(path, **changes):
    """Change arrays of a cache and make its digest right again."""
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    meta, arrays = json.loads(header["__metadata__"]["bertbench"]), load(raw)
    for name, change in changes.items():
        arrays[name] = np.ascontiguousarray(change(arrays[name]))
    meta.pop("digest")
    text = json.dumps({**meta, "digest": cache._digest(meta, arrays)})
    path.write_bytes(save(arrays, metadata={"bertbench": text}))


def deep(path):
    header = b'{"a": ' + b"[" * 100_000
    path.write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: flip(path, -1), "its content does not match its digest"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "it is not a feature cache"),
        (lambda path: path.write_bytes(b""), "it is not a feature cache"),
        (lambda path: path.write_bytes(b"\x80\x04K\x01." * 9), "it is not a feature cache"),
        (lambda path: (path.unlink(), path.mkdir()), "it cannot be read"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "it cannot be read: it is not a plain"),
        (lambda path: resealed(path, offsets=lambda a: a + 1), "its arrays do not fit"),
        (lambda path: resealed(path, input_ids=lambda a: a + 1000), "its arrays do not fit"),
        (lambda path: resealed(path, input_ids=lambda a: a - 1000), "its arrays do not fit"),
        (lambda path: resealed(path, start=lambda a: a + 9999), "its arrays do not fit"),
        (lambda path: resealed(path, words=lambda a: a[:-1]), "its arrays do not fit"),
        (lambda path: resealed(path, split=lambda a: a.astype("f4")), "its arrays do not fit"),
        (lambda path: resealed(path, example=lambda a: a[::-1] + 5), "its arrays do not fit"),
        (lambda path: resealed(path, offsets=lambda a: a[:0]), "its arrays do not fit"),
        (lambda path: deep(path), "nested too deeply"),
    ],
    ids=[
        *("last bit", "cut", "empty", "pickle", "folder", "fifo", "shifted", "ids", "negative ids"),
        *("answers", "short", "type", "questions", "nothing", "deep"),
    ],
)
def test_a_damaged_cache_is_made_anew(store, damage, reason):
    """Also where somebody made its checksum right again."""
    made = store.get()
    damage(made.path)
    again = store.get()
    assert not again.reused
    assert_same(made.features, again.features)
    assert "is not used (" in store.said[0] and reason in store.said[0]
    if again.path is not None:  # not written over a folder
        assert store.get().reused and store.said == []
    else:
        assert "could not be written" in store.said[1]


def test_no_flipped_bit_goes_unnoticed(store):
    """Wherever it is: the features are made anew, or they are the same."""
    made = store.get()
    content, anew = made.path.read_bytes(), 0
    for at in range(3, len(content), 23):
        made.path.write_bytes(content)
        flip(made.path, at)
        again = store.get()
        assert_same(made.features, again.features)
        anew += not again.reused
    assert anew > 0.9 * len(content) // 23, "only blanks that pad the header may change"


@pytest.mark.parametrize("what", ["num_examples", "dropped"])
def test_a_changed_note_counts_as_damage(store, what):
    path = store.get().path
    content = path.read_bytes()
    old, new = {"num_examples": (b's\\": 1,', b's\\": 2,'), "dropped": (b'"y', b'"z')}[what]
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    assert not store.get().reused
    assert "its content does not match its digest" in store.said[0]


def test_a_cache_under_another_name_is_stale(store):
    """As if two keys collided, or a file was renamed by hand."""
    other = store.get(replace(OPTIONS, doc_stride=3))
    wanted = store.get()
    other.path.replace(wanted.path)
    again = store.get()
    assert not again.reused
    assert "(it was made from another doc_stride): making it again" in store.said[0]
    assert_same(again.features, wanted.features)


def test_a_folder_that_cannot_be_written_is_no_error(store, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    made = store.get()
    assert (made.path, made.num_examples) == (None, 1)
    assert "is not used" in store.said[0] or "no feature cache" in store.said[0]
    assert "could not be written" in store.said[1]


def test_a_full_disk_is_no_error_and_leaves_nothing(store, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "sync", full)
    made = store.get()
    assert made.path is None and "could not be written: No space left" in store.said[1]
    assert list(store.folder.iterdir()) == []
    store.folder = None
    assert store.get().path is None and store.said == []


def test_a_killed_process_is_said_and_its_work_done_here(store, monkeypatch):
    wanted, calls = store.get().features, []

    def killed_once(*args, **options):
        calls.append(options)
        if len(calls) == 1:
            raise BrokenProcessPool
        return make_features(*args, **options)

    monkeypatch.setattr(cache, "make_features", killed_once)
    store.folder = None
    assert_same(wanted, store.get().features)
    assert "was killed: this one makes all" in store.said[0] and len(calls) == 2


def test_a_file_that_changes_while_it_is_read_is_refused(store, monkeypatch):
    def slow(path, **options):
        squad = read_squad(path, **options)
        path.write_text(path.read_text() + " ")
        return squad

    monkeypatch.setattr(cache, "read_squad", slow)
    with pytest.raises(BadInput, match="changed while it was read"):
        store.get()


def test_a_file_that_cannot_be_read_is_one_line(store, monkeypatch):
    def failing(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(cache, "file_sha256", failing)
    with pytest.raises(BadInput, match=r"SQuAD file .*Input/output error"):
        store.get()


def test_processes_do_not_run_the_users_script_again(tmp_path):
    """It may have no __main__ guard."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('once')\n"
        "import os\n"
        "from bertbench.common.prepare.build import each\n"
        "print(dict(each(os.path.basename, {'x': 'a/b', 'y': 'c/d'}, 2)))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.splitlines() == ["once", "{'x': 'b', 'y': 'd'}"], done.stderr


def test_missing_files(store, tmp_path):
    store.vocab = tmp_path / "none.txt"
    with pytest.raises(BadInput, match=r"vocabulary .*none.txt: no such file"):
        store.get()
    store.dataset = tmp_path / "none.json"
    with pytest.raises(BadInput, match=r"SQuAD file .*none.json: no such file"):
        store.get()


@pytest.mark.parametrize("large", [0, 1])
def test_a_file_too_large_to_be_read_is_not_hashed(files, monkeypatch, large):
    os.truncate(files[large], 20 << 30)
    small = files[1 - large]

    def hashed(path):
        assert path == small, f"{path} was hashed"
        return "0" * 64

    monkeypatch.setattr(cache, "file_sha256", hashed)
    with pytest.raises(BadInput, match=f"{files[large].name}: it is larger than"):
        ingredients(*files, OPTIONS, training=True, v2=False)
