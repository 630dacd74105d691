# SPDX-License-Identifier: Apache-2.0
"""MLPerf's folders are found, and data sets are told apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bertbench.benchmarks import resolve
from bertbench.common.data.shards import find_shards, fitting, locate, quick_hash
from bertbench.common.errors import BadInput

LAYOUTS = [
    ("2048_shards_uncompressed", "eval_set_uncompressed", "", "model.ckpt-28252.apex.pt"),
    ("4096_shards_uncompressed", "eval_set_uncompressed", "", "model.ckpt-28252.pt"),
    ("hdf5/training-4320/hdf5_4320_shards_uncompressed", "hdf5/eval", "phase1/",
     "phase1/model.ckpt-28252.pt"),
    ("hdf5/training-4320/hdf5_4320_shards_varlength", "hdf5/eval_varlength", "phase1/", None),
    ("hdf5/training-4320/hdf5_4320_shards_varlength_shuffled", "hdf5/eval_varlength", "", None),
    ("packed_data", "hdf5/eval", "phase1/", None),
    ("train", "eval", "", None),
]  # fmt: skip


@pytest.mark.parametrize(("train", "held_out", "config", "checkpoint"), LAYOUTS)
def test_known_folders(
    tmp_path: Path, train: str, held_out: str, config: str, checkpoint: str | None
) -> None:
    wanted = [tmp_path / train / f"part_{i}_of_11.hdf5" for i in (1, 2, 10)]
    wanted_eval = [tmp_path / held_out / "part_eval_10k.hdf5"]
    for path in (*wanted[::-1], *wanted_eval):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / train / "README").touch()
    (tmp_path / train / ".part_x.tmp").touch()
    for name in (config + "bert_config.json", checkpoint):
        if name:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
    found = locate(tmp_path)
    assert found.train_files == wanted == find_shards(tmp_path / train, "train")
    assert found.eval_files == wanted_eval
    assert found.bert_config == tmp_path / (config + "bert_config.json")
    assert found.checkpoint == (tmp_path / checkpoint if checkpoint else None)


def test_folders_without_data(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no train data: neither it nor 2048_shards"):
        locate(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "part_0").touch()
    assert locate(tmp_path).eval_files == []
    with pytest.raises(BadInput, match="no eval data"):
        find_shards(tmp_path, "eval")
    with pytest.raises(BadInput, match="no such folder"):
        find_shards(tmp_path / "nowhere", "eval")
    assert find_shards(tmp_path / "train" / "part_0", "eval") == [tmp_path / "train" / "part_0"]


def test_quick_hash_is_stable_and_notices(tmp_path: Path) -> None:
    files, copies = [], []
    for folder, paths in (("a", files), ("b", copies)):
        (tmp_path / folder).mkdir()
        for i in range(3):
            paths.append(tmp_path / folder / f"part_{i}")
            paths[-1].write_bytes(bytes([i]) * 60_000)
    whole = quick_hash(files)
    assert quick_hash(copies[::-1]) == whole
    assert quick_hash(copies[1:]) != whole
    hashes = {whole}
    for at in (0, 30_000, 59_999):
        data = bytearray(files[2].read_bytes())
        data[at] ^= 1
        copies[2].write_bytes(data)
        hashes.add(quick_hash(copies))
    assert len(hashes) == 4


def test_names_of_deeplearningexamples(tmp_path: Path) -> None:
    """They have no `part`; training and evaluation files lie in one folder or two."""
    train = [f"books_wiki_en_corpus_training_{i}.hdf5" for i in (0, 2, 10)]
    held_out = "books_wiki_en_corpus_test_0.hdf5"
    for name in (*train, held_out, "training.log", "vocab.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in find_shards(tmp_path, "train")] == train
    assert [p.name for p in find_shards(tmp_path, "eval")] == [held_out]
    (tmp_path / "part_0").touch()  # MLPerf's rule comes first
    assert [p.name for p in find_shards(tmp_path, "train")] == ["part_0"]


def test_other_names_are_named(tmp_path: Path) -> None:
    (tmp_path / "wiki_0.h5").touch()
    with pytest.raises(BadInput, match=r"no train data: .*`part` in their name \(as wiki_0.h5 has"):
        find_shards(tmp_path, "train")


def _held_out(folder: Path, **entry: object) -> list[Path]:
    """An evaluation file whose manifest lists ``entry`` of it."""
    path = folder / "eval_set_uncompressed" / "part_eval_10k.hdf5"
    path.parent.mkdir()
    path.touch()
    listed = {"files": {"eval_set_uncompressed/part_eval_10k.hdf5": entry}}
    (folder / "manifest.json").write_text(json.dumps(listed))
    return [path]


def test_a_smaller_evaluation_set_is_taken_whole_and_said(tmp_path: Path) -> None:
    settings = resolve("mini", [])
    number, notes = fitting(settings, _held_out(tmp_path, samples=143))
    assert number == 143
    assert notes == ("evaluates on all 143 held-out samples, the recipe's 1,000 being more",)
    fitted = settings.fitted(replace(settings.recipe, num_eval_examples=number))  # type: ignore[call-arg]
    changed = {k for k, origin in fitted.origins.items() if origin != settings.origins[k]}
    assert changed == {"num_eval_examples"} and fitted.origins["num_eval_examples"] == "data"
    assert fitted.as_dict()["recipe"]["num_eval_examples"] == 143


def test_more_than_there_are_is_refused_where_a_flag_asks_for_it(tmp_path: Path) -> None:
    files = _held_out(tmp_path, samples=143)
    with pytest.raises(BadInput, match=r"needs 144 .* only 143; pass --num_eval_examples 143"):
        fitting(resolve("mini", ["--num_eval_examples", "144"]), files)
    (tmp_path / "own.toml").write_text("num_eval_examples = 144\n")
    with pytest.raises(BadInput, match="only 143"):  # a file of settings asks for it, too
        fitting(resolve("mini", ["--config", str(tmp_path / "own.toml")]), files)
    assert fitting(resolve("mini", ["--num_eval_examples", "143"]), files) == (143, ())
    off = [
        "--num_eval_examples",
        "144",
        "--eval_iter_samples",
        "0",
        "--target_mlm_accuracy",
        "None",
    ]
    assert fitting(resolve("mini", off), files) == (144, ())


@pytest.mark.parametrize("samples", [1000, 20_000, 0, None, "many"])
def test_an_evaluation_set_of_enough_or_of_unknown_size_changes_nothing(
    tmp_path: Path, samples: object
) -> None:
    assert fitting(resolve("mini", []), _held_out(tmp_path, samples=samples)) == (1000, ())
    assert fitting(resolve("mini", []), []) == (1000, ())
