# SPDX-License-Identifier: Apache-2.0
"""A data set's hash changes with every value, and a set that changes under a run has none."""

from __future__ import annotations

import json
import os
import time
from itertools import islice
from pathlib import Path

import h5py
import pytest
from sample_files import plain_samples, write_fixed_slowly, write_varlen_slowly

from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_pretraining.data import PretrainingSource, find_source
from bertbench.common.data import identity
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256

FLAGS = """--max_seq_length 48 --max_predictions_per_seq 8 --num_eval_examples 20
    --vocab_size 30522 --target_mlm_accuracy None""".split()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BERTBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for kind, seeds in (("train", (1, 2)), ("eval", (3,))):
        (root / kind).mkdir(parents=True)
        for seed in seeds:
            write_fixed_slowly(root / kind / f"part_{seed}.hdf5", plain_samples(90, seed=seed))
    return root


def shard(root: Path) -> Path:
    return root / "train" / "part_1.hdf5"


def described(root: Path) -> Path:
    """With a manifest, as `data prepare` writes it."""
    files = {
        path.relative_to(root).as_posix(): {"samples": 90, "sha256": file_sha256(path)}
        for path in root.glob("*/part_*")
    }
    (root / "manifest.json").write_text(
        json.dumps({"format": "bertbench.dataset/1", "files": files})
    )
    return root


def flip_label(path: Path, row: int, *, quietly: bool = False) -> None:
    before = path.stat()
    with h5py.File(path, "a") as file:
        file["next_sentence_labels"][row] ^= 1
    if quietly:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def source(root: Path) -> PretrainingSource:
    return find_source(resolve("mini", ["--data", str(root), *FLAGS]))


def train(found: PretrainingSource) -> None:
    steps = found.train(seed=1, world=World(), micro_batch=8, position=None)
    list(islice(steps, 2))
    steps.close()  # type: ignore[attr-defined]


def test_every_label_is_in_the_hash(root: Path) -> None:
    hashes = {source(root).hash()}
    for row in range(0, 90, 9):
        flip_label(shard(root), row)
        hashes.add(source(root).hash())
    assert len(hashes) == 11
    assert None not in hashes


def test_place_and_order_do_not_count_and_the_manifest_gives_the_same(root: Path) -> None:
    bare = source(root)
    assert bare.hash() is not None
    assert bare.opened.found.kind == "content"
    moved = root.rename(root.with_name("elsewhere"))
    with_manifest = source(described(moved))
    assert with_manifest.hash() == bare.opened.found.hash
    assert with_manifest.opened.found.kind == "manifest"


@pytest.mark.parametrize("quietly", [False, True])
@pytest.mark.parametrize("manifest", [False, True])
def test_data_that_changes_under_the_run_has_no_hash(
    root: Path, quietly: bool, manifest: bool
) -> None:
    found = source(described(root) if manifest else root)
    train(found)
    flip_label(shard(root), 5, quietly=quietly)
    assert found.hash() is None
    (note,) = (n for n in found.closing_notes() if "hash" in n)
    assert "part_1.hdf5 changed during the run: what was trained on has no hash" in note


def test_data_that_is_replaced_or_gone(root: Path) -> None:
    one, two, three = source(root), source(root), source(root)
    content = shard(root).read_bytes()
    shard(root).rename(root / "old")
    assert one.hash() is None
    assert "no hash of the data" in str(one.opened.found.note)
    shard(root).write_bytes(content)  # the same bytes in another file: who knows
    assert two.hash() is None
    shard(root).unlink()
    shard(root).mkdir()
    assert three.hash() is None


def test_checksums_of_a_manifest_outlive_the_files(root: Path) -> None:
    found = source(described(root))
    want = found.hash()
    root.rename(root.with_name("unmounted"))
    assert found.hash() == want is not None


def test_prepared_shards_are_verified_before_use(root: Path) -> None:
    """Also one of which three blocks are as before, with the old time stamps."""
    described(root)
    train(source(root))
    flip_label(shard(root), 50, quietly=True)
    with pytest.raises(BadInput, match=r"part_1.hdf5: its sha256 is .*, its manifest says"):
        train(source(root))


def test_evaluation_data_is_verified(root: Path) -> None:
    described(root)
    flip_label(root / "eval" / "part_3.hdf5", 50)
    with pytest.raises(BadInput, match=r"part_3.hdf5: its sha256 is"):
        source(root).evaluation(8, World())


def test_a_verified_shard_is_not_hashed_again(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described(root)
    found = source(root)
    assert found.opened.unverified(shard(root)) == file_sha256(shard(root))
    train(found)  # the files are too young to be remembered: they may change unseen
    assert found.opened.unverified(shard(root)) is not None
    monkeypatch.setattr(identity, "RACY_NS", 0)
    train(found)
    assert found.opened.unverified(shard(root)) is None
    (kept,) = (
        p for p in (cache / "checksums").iterdir() if p.read_text() == file_sha256(shard(root))
    )
    kept.write_text("1" * 64)  # not believed: it is compared with the manifest's
    assert found.opened.unverified(shard(root)) is not None
    flip_label(shard(root), 3, quietly=True)
    assert found.opened.unverified(shard(root)) is not None


def test_manifest_and_folder_must_agree(root: Path) -> None:
    described(root)
    write_varlen_slowly(root / "train" / "part_9.hdf5", plain_samples(3))
    with pytest.raises(BadInput, match=r"part_9.hdf5 is not in .*manifest.json: remove it"):
        source(root)
    (root / "train" / "part_9.hdf5").unlink()
    (root / "train" / "part_2.hdf5").unlink()
    with pytest.raises(BadInput, match=r"part_2.hdf5 is in .*manifest.json, but missing"):
        source(root)


@pytest.mark.parametrize(
    "text",
    [
        '{"format": "bertbench.dataset/1"}',
        '{"format": "bertbench.dataset/1", "files": [1]}',
        '{"format": "bertbench.dataset/1", "files": {"train/part_1.hdf5": {"sha256": "abc"}}}',
        '{"format": "bertbench.dataset/1", "files": {"train/part_1.hdf5": 7}}',
        "{" * 100_000,
        "no JSON",
    ],
)
def test_damaged_manifests(root: Path, text: str) -> None:
    (root / "manifest.json").write_text(text)
    with pytest.raises(BadInput, match=r"manifest.json is damaged .*build the data set again"):
        source(root)


def test_foreign_manifests_are_none_of_ours(root: Path) -> None:
    (root / "manifest.json").write_text('{"name": "something", "files": 3}')
    assert source(root).hash() is not None


def test_big_data_is_sampled_and_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = source(root).hash()
    monkeypatch.setattr(identity, "FULL_BYTES", 1000)
    monkeypatch.setattr(identity, "BLOCKS", 3)
    found = source(root)
    before = found.hash()
    assert found.opened.found.kind == "sampled"
    assert before not in (None, whole)
    flip_label(shard(root), 44)  # labels are hashed whole, wherever they lie
    assert source(root).hash() not in (None, before)


def test_an_unwritable_cache_is_no_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BERTBENCH_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(identity, "RACY_NS", 0)
    time.sleep(0.01)
    assert source(root).hash() is not None
