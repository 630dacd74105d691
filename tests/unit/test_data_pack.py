# SPDX-License-Identifier: Apache-2.0
"""`bertbench data pack`: each sample at most once, from every layout, in random order."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from sample_files import plain_samples, to_samples, write_packed_slowly
from text_files import rows

from bertbench.common.data import identity
from bertbench.common.data.hdf5 import Limits, read
from bertbench.common.data.plausible import masked_at
from bertbench.common.data.samples import Samples
from bertbench.common.data.schema import write_fixed, write_varlen
from bertbench.common.data.shards import locate, quick_hash
from bertbench.common.errors import BadInput
from bertbench.common.prepare import build, pack
from bertbench.common.prepare.pack import PackOptions

SIZES = (40, 7, 53, 20)


@pytest.fixture(params=["fixed", "varlen", "packed"])
def options(request, tmp_path):
    """Four shards of different sizes and an evaluation file, in one of MLPerf's layouts."""
    root = tmp_path / "mlperf"
    train, held_out = root / "2048_shards_uncompressed", root / "eval_set_uncompressed"
    names = [(train / f"part_{i}_of_4.hdf5", n, i) for i, n in enumerate(SIZES)]
    for path, count, seed in [*names, (held_out / "part_eval_10k.hdf5", 9, 99)]:
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = plain_samples(count, seed=seed)
        if request.param == "fixed":
            write_fixed(path, to_samples(plain), 64, 10)
        elif request.param == "varlen":
            write_varlen(path, to_samples(plain))
        else:
            write_packed_slowly(path, [plain[i : i + 3] for i in range(0, count, 3)])
    (root / "bert_config.json").write_text('{"vocab_size": 30522}')
    return PackOptions(
        data_root=root, output=tmp_path / "out", samples=60, num_shards=4, processes=1
    )


def content(files):
    return rows(Samples.concatenate([read(path, Limits()) for path in files]))


def test_each_sample_at_most_once_and_only_real_ones(options):
    manifest = pack.pack(options)
    before, after = locate(options.data_root), locate(options.output)
    had, have = content(before.train_files), content(after.train_files)
    assert len(have) == len(set(have)) == 60
    assert set(have) <= set(had)
    assert content(after.eval_files) == content(before.eval_files)
    assert manifest["train"]["samples"] == 60
    assert manifest["before"]["samples_before"] == sum(SIZES)
    assert (options.output / "bert_config.json").read_text() == '{"vocab_size": 30522}'


def test_all_samples_exactly_once_in_another_order(options):
    pack.pack(replace(options, samples=None))
    had = content(locate(options.data_root).train_files)
    have = content(locate(options.output).train_files)
    assert sorted(had) == sorted(have)
    assert had != have
    origin = {row: i for i, row in enumerate(had)}
    places = [origin[row] for row in have]
    assert abs(np.corrcoef(places, range(len(places)))[0, 1]) < 0.3


@pytest.mark.parametrize("options", ["varlen"], indirect=True)
def test_draw_is_uniform_over_files_and_rows(options, tmp_path):
    """Over 12 seeds each file gives its share, from anywhere in it, and not always the same."""
    shards = [content([path]) for path in locate(options.data_root).train_files]
    place = {row: (shard, at) for shard, rows in enumerate(shards) for at, row in enumerate(rows)}
    drawn: list[list[tuple[int, int]]] = []
    for seed in range(12):
        output = tmp_path / f"out{seed}"
        pack.pack(replace(options, seed=seed, output=output, samples=40, num_shards=1))
        drawn.append([place[row] for row in content(locate(output).train_files)])
    shares = np.bincount([shard for one in drawn for shard, _ in one]) / (12 * 40)
    np.testing.assert_allclose(shares, np.array(SIZES) / 120, atol=0.07)
    for shard, size in ((0, 40), (2, 53)):
        at = [row for one in drawn for number, row in one if number == shard]
        assert abs(np.mean(at) / (size - 1) - 0.5) < 0.08
    assert len({tuple(one) for one in drawn}) == 12


def test_files_of_equal_size_give_different_rows(tmp_path):
    folder = tmp_path / "in" / "2_shards_uncompressed"
    for number in range(2):
        write_varlen(folder / f"part_{number}_of_2.hdf5", to_samples(plain_samples(60, number)))
    shards = [content([folder / f"part_{number}_of_2.hdf5"]) for number in range(2)]
    output = tmp_path / "out"
    pack.pack(PackOptions(data_root=tmp_path / "in", output=output, samples=60, processes=1))
    have = set(content(locate(output).train_files))
    zero, one = ({at for at, row in enumerate(shard) if row in have} for shard in shards)
    assert not zero <= one
    assert not one <= zero


def test_restart_gives_the_same_files(options, tmp_path, monkeypatch):
    pack.pack(replace(options, output=tmp_path / "unbroken"))
    real, calls = pack._draw, []

    def dies_at_the_third(job):
        calls.append(job.spool.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(pack, "_draw", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        pack.pack(options)
    pack.pack(options)
    assert not set(calls[:2]) & set(calls[3:])
    one, two = (sorted(o.rglob("*.hdf5")) for o in (options.output, tmp_path / "unbroken"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    assert not (options.output / build.WORK).exists()


def test_size_is_estimated_up_front_and_close(options):
    content = pack.plan(options)
    assert not options.output.exists()
    manifest = pack.pack(replace(options, num_shards=1))
    real = sum(f["bytes"] for n, f in manifest["files"].items() if "eval" not in n)
    assert content["samples_after"] == 60
    # A small file is mostly HDF5's own tables; the estimate, from as small a file, has them too.
    assert abs(content["bytes_after_estimate"] / real - 1) < 0.35


def test_too_many_samples_are_refused_with_the_number_there_are(options):
    with pytest.raises(BadInput, match=r"has 120 samples, fewer than --samples 121: give 120"):
        pack.pack(replace(options, samples=121))


def test_a_bad_row_stops_it_before_anything_is_trained_on(options):
    with pytest.raises(BadInput, match=r"part_\d_of_4\.hdf5: dataset input_ids, row \d+: value"):
        pack.pack(replace(options, vocab_size=1000))
    assert not (options.output / build.MANIFEST).exists()


@pytest.mark.parametrize("name", ["part_0_of_4 (1).hdf5", "part_0_of_4.hdf5.1", "part_9_of_4.hdf5"])
def test_second_copies_are_refused_before_anything_is_written(options, name):
    folder = options.data_root / "2048_shards_uncompressed"
    shutil.copy(folder / "part_0_of_4.hdf5", folder / name)
    for work in (pack.pack, pack.plan):
        with pytest.raises(BadInput, match=r"a second copy of part_0_of_4\.hdf5: remove it"):
            work(options)
    assert not options.output.exists()


def varlen_set(root, train, held_out=()):
    for number, samples in enumerate(train):
        write_varlen(root / "train" / f"part_{number}_of_{len(train)}.hdf5", samples)
    for number, samples in enumerate(held_out):
        write_varlen(root / "eval" / f"part_eval_{number}.hdf5", samples)
    return PackOptions(data_root=root, output=root / "out", samples=None, processes=1)


def some(n, seed=0):
    return to_samples(plain_samples(n, seed))


def shown(samples):
    """The inputs show the tokens to be predicted."""
    ids = samples.input_ids.copy()
    ids[masked_at(samples)] = samples.masked_labels
    return replace(samples, input_ids=ids)


def of_one_kind(samples):
    return replace(samples, next_sentence_labels=np.ones_like(samples.next_sentence_labels))


REPEATED = some(60, 5).take(np.tile(np.arange(10), 6))
SOUND = [some(60, seed) for seed in range(4)]
USELESS = {
    "one shard shows its labels": ([*SOUND, shown(some(60, 9))], [], r"part_4.*inputs show"),
    "one shard of one kind": ([*SOUND, of_one_kind(some(60, 9))], [], r"part_4.*labels are alike"),
    "evaluation data that shows": (SOUND, [some(9, 8), shown(some(60, 9))], "eval: the inputs"),
    "the same samples in another order": (
        [*SOUND, SOUND[1].take(np.arange(60)[::-1])],
        [],
        r"part_4.*100\.0% of the samples drawn occur before",
    ),
    "a shard of few samples": ([*SOUND, REPEATED], [], r"part_4.*83\.3% of .* occur before"),
    "an evaluation set of few": (SOUND, [REPEATED], "eval: 83.3% of the samples occur before"),
    "evaluation on what is trained on": (
        SOUND,
        [Samples.concatenate([one.take(np.arange(15)) for one in SOUND])],
        r"eval: 100\.0% of the samples have the text of a training sample",
    ),
}


@pytest.mark.parametrize("name", USELESS)
def test_what_a_run_would_refuse_is_not_hidden_in_a_mixture(tmp_path, name):
    train, held_out, match = USELESS[name]
    options = varlen_set(tmp_path, train, held_out)
    with pytest.raises(BadInput, match=match):
        pack.pack(options)
    assert not (options.output / build.MANIFEST).exists()


def test_some_repeats_are_noted_and_none_of_sound_data(tmp_path):
    assert pack.pack(varlen_set(tmp_path / "a", SOUND, [some(60, 9)]))["notes"] == []
    few = Samples.concatenate([some(60, 7), SOUND[0].take(np.arange(6))])
    (note,) = pack.pack(varlen_set(tmp_path / "b", [*SOUND, few]))["notes"]
    assert "part_4_of_5.hdf5: 9.1% of the samples drawn occur before" in note


def changed_in_the_middle(path, limits):
    """Turn a row's labels round, outside the blocks that a quick hash reads."""
    before, raw = quick_hash([path]), bytearray(path.read_bytes())
    samples = read(path, limits)
    for row in range(len(samples) // 4, len(samples)):
        span = slice(*samples.masked_offsets[row : row + 2])
        found = samples.masked_labels[span].astype("<i2").tobytes()
        at = raw.find(found)
        if len(found) > 8 and at > 8192 and abs(at - len(raw) // 2) > 8192:
            raw[at : at + len(found)] = samples.masked_labels[span][::-1].astype("<i2").tobytes()
            break
    path.write_bytes(raw)
    assert quick_hash([path]) == before
    assert rows(read(path, limits)) != rows(samples)


def test_a_changed_source_is_not_the_finished_pack(tmp_path):
    options = varlen_set(tmp_path, [some(900), some(50, 1)])
    first = pack.pack(options)
    assert pack.pack(options) == first
    changed_in_the_middle(tmp_path / "train" / "part_0_of_2.hdf5", options.limits())
    with pytest.raises(BadInput, match=r"other inputs.*another --output"):
        pack.pack(options)
    assert pack.pack(replace(options, output=tmp_path / "new"))["files"] != first["files"]


def test_large_sources_are_told_apart_by_time(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "FULL_BYTES", 1000)
    monkeypatch.setattr(identity, "BLOCKS", 1)
    options = varlen_set(tmp_path, [some(900), some(50, 1)])
    first = pack.pack(options)
    assert first["inputs"]["hash_kind"] == "sampled"
    assert pack.pack(options) == first
    os.utime(tmp_path / "train" / "part_0_of_2.hdf5")
    with pytest.raises(BadInput, match="other inputs"):
        pack.pack(options)


def test_a_source_that_differs_from_its_manifest_is_refused(tmp_path):
    pack.pack(varlen_set(tmp_path, [some(900), some(50, 1)]))
    options = PackOptions(data_root=tmp_path / "out", output=tmp_path / "again", samples=None)
    changed_in_the_middle(next((tmp_path / "out").glob("1_*/*")), options.limits())
    with pytest.raises(BadInput, match="its manifest says"):
        pack.pack(options)


def test_a_source_that_changes_meanwhile_is_refused(options, monkeypatch):
    real = pack._draw

    def then_change(job):
        found = real(job)
        os.utime(job.files[0])
        return found

    monkeypatch.setattr(pack, "_draw", then_change)
    with pytest.raises(BadInput, match="changed while it was read"):
        pack.pack(options)


def test_a_finished_pack_that_was_damaged_is_not_well(options):
    pack.pack(options)
    next(options.output.glob("4_*/part_2*")).unlink()
    with pytest.raises(BadInput, match=r"part_2_of_4\.hdf5 is missing: .*delete .*out, and run"):
        pack.pack(options)
