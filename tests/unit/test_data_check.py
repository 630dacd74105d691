# SPDX-License-Identifier: Apache-2.0
"""`bertbench data check` finds each defect, names it, and is silent about sound data."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_files import plain_samples, to_samples
from text_files import articles, write_plain, write_vocab

from bertbench.common.data.hdf5 import Limits, read
from bertbench.common.data.identity import DataSet, Identity
from bertbench.common.data.plausible import hashes
from bertbench.common.data.samples import Samples
from bertbench.common.data.schema import write_varlen
from bertbench.common.errors import BadInput
from bertbench.common.prepare.check import CheckOptions, check
from bertbench.common.prepare.from_text import PrepareOptions, prepare
from bertbench.common.prepare.masking import MaskingOptions


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare(
        PrepareOptions(
            text=(write_plain(folder / "text", articles(150, sentences=20)),),
            output=folder / "data",
            vocab=write_vocab(folder / "vocab.txt"),
            masking=MaskingOptions(max_seq_length=64, max_predictions_per_seq=10, dupe_factor=2),
            num_shards=4,
            eval_fraction=0.1,
            processes=1,
        )
    )
    return folder / "data"


@pytest.fixture
def data(prepared, tmp_path):
    """A copy to break; without a manifest, as MLPerf's data has none."""
    shutil.copytree(prepared, tmp_path / "data")
    (tmp_path / "data" / "manifest.json").unlink()
    return tmp_path / "data"


def shard(data, number):
    return data / "4_shards_uncompressed" / f"part_{number}_of_4.hdf5"


def problems(data, **limits):
    return [(p.file, p.message) for p in check(CheckOptions(data_root=data, **limits)).problems]


def test_sound_data_has_no_problems_and_true_statistics(prepared):
    report = check(CheckOptions(data_root=prepared))
    assert report.problems == []
    train = report.statistics["train"]
    samples = Samples.concatenate([read(shard(prepared, i), Limits()) for i in range(4)])
    assert train["samples"] == len(samples)
    assert train["tokens"] == samples.offsets[-1]
    assert train["mean_length"] == samples.offsets[-1] / len(samples)
    assert train["longest"] == samples.lengths.max()
    assert train["random_next_fraction"] == samples.next_sentence_labels.mean()
    assert train["masked_fraction"] == len(samples.masked_labels) / samples.offsets[-1]
    counts = np.bincount(samples.masked_labels)
    vocab = (prepared / "vocab.txt").read_text().split()
    assert train["majority_token"] == vocab[counts.argmax()]
    assert train["majority_accuracy"] == counts.max() / counts.sum()
    assert 0.75 < train["mask_token_fraction"] < 0.85
    # A replacement drawn from this small vocabulary is now and then the token itself.
    assert 0.06 < train["kept_fraction"] < 0.16
    assert report.statistics["limits"]["max_seq_length"] == 64  # the manifest's
    json.dumps(report.statistics)


def test_identical_shards(data):
    """MLPerf v2.1's defect: every shard holds what the first one holds."""
    for number in (1, 2, 3):
        shutil.copy(shard(data, 0), shard(data, number))
    found = problems(data)
    assert [name for name, _ in found] == [
        f"4_shards_uncompressed/part_{number}_of_4.hdf5" for number in (1, 2, 3)
    ]
    assert "row 0 is row 0 of 4_shards_uncompressed/part_0_of_4.hdf5" in found[0][1]


def test_repeats_are_found_beside_samples_of_other_lengths(data):
    """A hash of a sample must not depend on the longest one of its file."""
    one = read(shard(data, 0), Limits())
    short = one.take(np.flatnonzero(one.lengths < one.lengths.max())[:30])
    write_varlen(shard(data, 1), short)
    ((name, message),) = problems(data)
    assert name.endswith("part_1_of_4.hdf5")
    assert "30 of 30 samples occur before" in message


def test_samples_of_one_shard_mixed_into_another(data):
    one, two = read(shard(data, 0), Limits()), read(shard(data, 2), Limits())
    mixed = Samples.concatenate([two, one.take(np.arange(20, 10, -1))])
    write_varlen(shard(data, 2), mixed)
    ((name, message),) = problems(data)
    assert name.endswith("part_2_of_4.hdf5")
    assert f"10 of {len(mixed):,} samples occur before" in message
    assert f"row {len(two)} is row 20 of 4_shards_uncompressed/part_0_of_4.hdf5" in message


def test_samples_repeated_within_a_shard(data):
    one = read(shard(data, 1), Limits())
    write_varlen(shard(data, 1), Samples.concatenate([one, one.take(np.arange(10))]))
    ((name, message),) = problems(data)
    assert name.endswith("part_1_of_4.hdf5")
    assert "row 0 of 4_shards_uncompressed/part_1_of_4.hdf5" in message


def test_evaluation_text_that_is_trained_on(data):
    """Even with other masks: the hash is of the text below them."""
    train = read(shard(data, 0), Limits()).take(np.arange(30))
    path = data / "eval_set_uncompressed" / "part_eval_10k.hdf5"
    bare = _unmask_first(train)
    write_varlen(path, Samples.concatenate([read(path, Limits()), bare]))
    ((name, message),) = problems(data)
    assert name == "eval_set_uncompressed/part_eval_10k.hdf5"
    assert "30 of" in message
    assert "text of a training sample" in message


def _unmask_first(samples: Samples) -> Samples:
    """The same texts, with the first masked position of each put back."""
    ids, first = samples.input_ids.copy(), samples.masked_offsets[:-1]
    ids[samples.offsets[:-1] + samples.masked_positions[first]] = samples.masked_labels[first]
    keep = np.ones(len(samples.masked_labels), bool)
    keep[first] = False
    counts = samples.masked_counts - 1
    return Samples(
        input_ids=ids,
        offsets=samples.offsets,
        split=samples.split,
        masked_positions=samples.masked_positions[keep],
        masked_labels=samples.masked_labels[keep],
        masked_offsets=np.concatenate([[0], np.cumsum(counts)]),
        next_sentence_labels=samples.next_sentence_labels,
    )


def test_out_of_range_names_file_dataset_and_row(data):
    with h5py.File(shard(data, 3), "r+") as file:
        row = file["masked_lm_ids"][5]
        row[0] = 29_999
        file["masked_lm_ids"][5] = row
    ((name, message),) = problems(data)  # vocab.txt, which lies there, is smaller
    assert name.endswith("part_3_of_4.hdf5")
    assert "dataset masked_lm_ids, row 5: value 29999 is not within" in message


def test_longer_than_the_limit(data):
    found = problems(data, max_seq_length=20)
    assert len(found) == 5
    assert all("max_seq_length is 20" in message for _, message in found)


def test_rows_of_different_count(data):
    with h5py.File(shard(data, 0), "r+") as file:
        labels = file["next_sentence_labels"][:-1]
        del file["next_sentence_labels"]
        file["next_sentence_labels"] = labels
    ((_, message),) = problems(data)
    assert "dataset next_sentence_labels has" in message


def test_foreign_and_cut_files(data):
    shard(data, 0).write_bytes(b"not hdf5 at all")
    content = shard(data, 1).read_bytes()
    shard(data, 1).write_bytes(content[: len(content) // 2])
    names = [name.rsplit("/", 1)[1] for name, _ in problems(data)]
    assert names == ["part_0_of_4.hdf5", "part_1_of_4.hdf5"]


def test_data_that_cannot_be_hashed(data, monkeypatch):
    unknown = Identity(None, None, "no hash of the data: shard: Too many open files")
    monkeypatch.setattr(DataSet, "identity", lambda self: unknown)
    assert problems(data) == [("", f"{kind}: {unknown.note}") for kind in ("train", "eval")]


def test_missing_shard(data):
    shard(data, 2).unlink()
    ((name, message),) = problems(data)
    assert name == "4_shards_uncompressed"
    assert "1 of 4 shards are missing: 2" in message


def test_against_the_manifest(prepared, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(prepared, root)
    one = read(shard(root, 0), Limits())
    write_varlen(shard(root, 0), one.take(np.arange(len(one) - 1)))
    with h5py.File(shard(root, 1), "r+") as file:
        file["next_sentence_labels"][0] = 1 - file["next_sentence_labels"][0]
    shutil.copy(shard(root, 2), root / "4_shards_uncompressed" / "party.hdf5")
    shard(root, 2).unlink()
    found = dict(problems(root))
    prefix = "4_shards_uncompressed"
    assert (
        f"has {len(one) - 1} samples, the manifest says {len(one)}"
        in (found[f"{prefix}/part_0_of_4.hdf5"])
    )
    assert "has sha256" in found[f"{prefix}/part_1_of_4.hdf5"]
    assert "in the manifest, but missing" in found[f"{prefix}/part_2_of_4.hdf5"]
    assert "is not in the manifest" in found[f"{prefix}/party.hdf5"]
    assert "1 of 4 shards are missing" in found[prefix]


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": [1]},
        {"parameters": {"max_seq_length": "64"}},
        {"vocab": {"size": -5}},
        {"vocab": 3},
        {"files": {"x": {"samples": "3", "sha256": "0"}}},
        {"files": {"x": {"samples": 3}}},
        {"files": {"x": None}},
    ],
)
def test_manifests_with_other_types(prepared, tmp_path, change):
    root = tmp_path / "data"
    shutil.copytree(prepared, root)
    content = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(content | change))
    with pytest.raises(BadInput, match=r"manifest.json is damaged: build the data set again"):
        check(CheckOptions(data_root=root))


def test_no_data_at_all(tmp_path):
    with pytest.raises(BadInput, match="no train data"):
        check(CheckOptions(data_root=tmp_path))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    field=st.sampled_from(["ids", "positions", "labels", "next_sentence", "segments"]),
)
def test_hash_changes_with_any_field_and_text_hash_only_with_the_text(seed, field):
    plain = plain_samples(3, seed=seed)
    before = hashes(to_samples(plain))
    sample = plain[1]
    if field == "ids":
        sample.ids[1] += 1
    elif field == "positions":  # another token is masked: the text below stays
        free = next(p for p in range(len(sample.ids) - 2, 0, -1) if p not in sample.positions)
        sample.labels[-1], kept = sample.ids[free], sample.labels[-1]
        sample.ids[sample.positions[-1]] = kept
        sample.positions[-1] = free
    elif field == "labels":
        sample.labels[0] += 1
    elif field == "next_sentence":
        sample.next_sentence = 1 - sample.next_sentence
    else:
        sample.segments[sample.segments.index(1)] = 0
    after = hashes(to_samples(plain))
    for one, two in zip(before, after, strict=True):
        assert one[0] == two[0]
        assert one[2] == two[2]
    assert before[0][1] != after[0][1]
    same_text = before[1][1] == after[1][1]
    masked = 1 in sample.positions  # then the id on show is not the text
    assert same_text == (field not in ("ids", "labels") or (field == "ids" and masked))
