# SPDX-License-Identifier: Apache-2.0
"""`bertbench data prepare`: what comes out, holding out, restarts, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sample_files import plain_samples, to_samples
from text_files import articles, rows, tokenized, write_plain, write_vocab, write_wiki

from bertbench.common.data.hdf5 import Limits, read
from bertbench.common.data.samples import Samples
from bertbench.common.data.shards import locate
from bertbench.common.data.tokenization import BertTokenizer, read_vocab
from bertbench.common.errors import BadInput
from bertbench.common.prepare import build, parts
from bertbench.common.prepare import from_text as prepare
from bertbench.common.prepare.corpus import documents
from bertbench.common.prepare.from_text import PrepareOptions
from bertbench.common.prepare.masking import MaskingOptions, create_samples_reference
from bertbench.common.prepare.spool import Mixture, open_spool, save_spool

MASKING = MaskingOptions(max_seq_length=64, max_predictions_per_seq=10, dupe_factor=2)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of about 3 kB, so that a small text has several."""
    monkeypatch.setattr(parts, "PART_BYTES", 3000)


@pytest.fixture
def options(tmp_path, small_parts):
    for number in range(6):
        text = articles(20, seed=number)
        write_wiki(tmp_path / "text" / f"wiki_{number:02d}", text, first_id=100 * number)
    return PrepareOptions(
        text=(tmp_path / "text",),
        output=tmp_path / "out",
        vocab=write_vocab(tmp_path / "vocab.txt"),
        masking=MASKING,
        num_shards=3,
        eval_fraction=0.1,
        processes=1,
    )


def all_files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.hdf5")}


def read_all(files):
    return Samples.concatenate([read(path, Limits()) for path in files])


def test_output_is_every_parts_samples_shuffled_over_the_shards(options):
    manifest = prepare.prepare(options)
    found = locate(options.output)
    assert [p.name for p in found.train_files] == [f"part_{i}_of_3.hdf5" for i in range(3)]
    assert found.train_files[0].parent.name == "3_shards_uncompressed"
    assert [p.name for p in found.eval_files] == ["part_eval_10k.hdf5"]

    # The parts by hand: whole files until 3 kB, held-out documents left out.
    tokenizer = BertTokenizer(read_vocab(options.vocab))
    below = int(0.1 * 2**64)
    texts, held_out = [[]], []
    size = 0
    for path in sorted(options.text[0].iterdir()):
        for document in documents(path):
            ids = [tokenizer.encode(sentence) for sentence in document.sentences]
            if document.identity() < below:
                held_out.append(ids)
                continue
            texts[-1].append(ids)
            size += sum(len(s.encode()) + 1 for s in document.sentences) + 1
        if size >= 3000:
            texts.append([])
            size = 0
    expected = [create_samples_reference(tokenized(t), tokenizer.special, MASKING) for t in texts]
    train = read_all(found.train_files)
    assert len(expected) > 2
    assert sorted(rows(train)) == sorted(row for part in expected for row in rows(part))
    assert len(set(rows(train))) > 0.95 * len(train)

    evaluation = create_samples_reference(tokenized(held_out), tokenizer.special, MASKING)
    assert rows(read_all(found.eval_files)) == rows(evaluation)

    # Exchangeable: every shard has samples of every part, in no order.
    origin = {row: number for number, part in enumerate(expected) for row in rows(part)}
    for path in found.train_files:
        numbers = [origin[row] for row in rows(read(path, Limits()))]
        assert set(numbers) == set(range(len(expected)))
        assert numbers != sorted(numbers)
    sizes = [len(read(path, Limits())) for path in found.train_files]
    assert max(sizes) - min(sizes) <= 1
    assert manifest["train"]["samples"] == len(train)
    assert manifest["train"]["tokens"] == train.offsets[-1]
    assert manifest["train"]["documents"] == sum(map(len, texts))
    assert manifest["eval"]["documents"] == len(held_out)
    assert (options.output / "vocab.txt").read_bytes() == options.vocab.read_bytes()
    assert not (options.output / build.WORK).exists()


def test_processes_do_not_change_the_result(options, tmp_path):
    prepare.prepare(options)
    prepare.prepare(replace(options, output=tmp_path / "two", processes=2))
    assert all_files(options.output) == all_files(tmp_path / "two")


def test_fixed_format_holds_the_same_samples(options, tmp_path):
    prepare.prepare(options)
    prepare.prepare(replace(options, output=tmp_path / "fixed", format="fixed"))
    for one, two in zip(
        locate(options.output).train_files, locate(tmp_path / "fixed").train_files, strict=True
    ):
        assert rows(read(one, Limits())) == rows(read(two, Limits()))


class Killed(Exception):
    """Stands in for a kill at a chosen moment."""


@pytest.mark.parametrize("step", ["make_part", "_write_shard"])
def test_restart_keeps_finished_pieces_and_gives_the_same_files(
    options, tmp_path, monkeypatch, step
):
    prepare.prepare(replace(options, output=tmp_path / "unbroken"))
    module = prepare if step == "make_part" else build
    real, calls = getattr(module, step), []

    def dies_at_the_third(job):
        calls.append(job)
        if len(calls) == 3:
            raise Killed
        return real(job)

    monkeypatch.setattr(module, step, dies_at_the_third)
    with pytest.raises(Killed):
        prepare.prepare(options)
    assert not (options.output / build.MANIFEST).exists()
    prepare.prepare(options)
    jobs = [str(job) for job in calls]
    assert jobs[2] in jobs[3:]
    assert not set(jobs[:2]) & set(jobs[3:]), "finished pieces are not made again"
    assert all_files(options.output) == all_files(tmp_path / "unbroken")


def test_a_finished_folder_is_left_alone(options):
    first = prepare.prepare(options)
    before = {p: p.stat().st_mtime_ns for p in options.output.rglob("*")}
    assert prepare.prepare(options) == first
    assert {p: p.stat().st_mtime_ns for p in options.output.rglob("*")} == before


def test_other_settings_or_text_are_refused_in_a_used_folder(options, tmp_path):
    prepare.prepare(options)
    with pytest.raises(BadInput, match=r"dupe_factor 2 there, 3 now.*another --output"):
        prepare.prepare(replace(options, masking=replace(MASKING, dupe_factor=3)))
    write_plain(tmp_path / "text" / "more", articles(2, seed=9))
    with pytest.raises(BadInput, match=r"other inputs.*another --output"):
        prepare.prepare(options)


def test_a_folder_with_something_else_is_refused(options):
    options.output.mkdir()
    (options.output / "thesis.txt").write_text("keep me")
    with pytest.raises(BadInput, match="is not empty"):
        prepare.prepare(options)


def test_held_out_documents_are_not_trained_on_and_stay_the_same(options, tmp_path):
    """By id and title: other documents, or another order, do not move one to the other side."""

    def held_out(options):
        work = options.output / build.WORK
        files = prepare.input_files(options.text)
        prepare.claim(options.output, {"parameters": {}, "inputs": []})
        train, evaluation = prepare._split(options, files, work)
        text = (work / "text" / "eval.txt").read_text()
        rest = "".join((work / "text" / f"{part.name}.txt").read_text() for part in train)
        assert evaluation.documents == text.count("\n\n")
        assert evaluation.documents + sum(part.documents for part in train) == rest.count(
            "\n\n"
        ) + text.count("\n\n")
        assert not set(text.split("\n\n")[:-1]) & set(rest.split("\n\n")[:-1])
        return set(text.split("\n\n")[:-1])

    everything = held_out(options)
    half = replace(options, output=tmp_path / "half", text=(tmp_path / "text" / "wiki_03",))
    assert held_out(half) <= everything
    assert 4 <= len(everything) <= 24  # of 120, 10 %


def test_num_eval_articles_is_exact(options):
    manifest = prepare.prepare(replace(options, num_eval_articles=7))
    assert manifest["eval"]["documents"] == 7
    assert manifest["train"]["documents"] == 113
    assert manifest["parameters"]["eval_fraction"] is None


def test_evaluation_is_the_first_samples_only(options, tmp_path, monkeypatch):
    prepare.prepare(options)
    monkeypatch.setattr(prepare, "EVAL_SAMPLES", 5)
    prepare.prepare(replace(options, output=tmp_path / "few"))
    few, all_of_it = (read_all(locate(o).eval_files) for o in (tmp_path / "few", options.output))
    assert rows(few) == rows(all_of_it)[:5]


def test_vocabulary_is_trained_when_asked(options):
    manifest = prepare.prepare(replace(options, vocab=None, train_vocab=120))
    vocab = read_vocab(options.output / "vocab.txt")
    assert len(vocab) == 120 == manifest["vocab"]["size"]
    assert manifest["train"]["unknown"] == 0
    samples = read_all(locate(options.output).train_files)
    assert samples.input_ids.max() < 120


def test_vocabulary_beyond_int16(options):
    """MLPerf's varlen files hold int16; a larger vocabulary gets wider rows and stays right."""
    tokens = [*read_vocab(options.vocab), *(f"x{i}" for i in range(70_000))]
    wide = replace(options, vocab=write_vocab(options.vocab, tokens))
    prepare.prepare(wide)
    tokenizer = BertTokenizer(tokens)
    limits = Limits(vocab_size=len(tokens))
    train = [read(path, limits) for path in locate(options.output).train_files]
    assert max(samples.input_ids.max() for samples in train) > 1 << 16
    assert all((s.input_ids[s.offsets[:-1]] == tokenizer.special.cls).all() for s in train)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"vocab": None}, "either --vocab vocab.txt or --train_vocab"),
        ({"train_vocab": 100}, "either --vocab vocab.txt or --train_vocab"),
        ({"eval_fraction": 1.0}, "--eval_fraction 1.0 must be"),
        ({"num_shards": 0}, "--num_shards 0 must be at least 1"),
        ({"num_shards": 10**6}, "--num_shards 1000000 is more than the"),
        ({"num_eval_articles": 120}, r"no document is left to train on \(120 held out\)"),
        ({"eval_fraction": 1e-9}, "none of the 120 documents was held out"),
        ({"text": ()}, "name the text"),
    ],
)
def test_refusals(options, change, match):
    with pytest.raises(BadInput, match=match):
        prepare.prepare(replace(options, **change))


def test_corrected_parameters_are_taken_after_a_refusal(options):
    with pytest.raises(BadInput):
        prepare.prepare(replace(options, eval_fraction=1e-9))
    prepare.prepare(options)


def test_no_evaluation_set_when_nothing_is_to_be_held_out(options):
    manifest = prepare.prepare(replace(options, eval_fraction=0))
    assert locate(options.output).eval_files == []
    assert manifest["eval"]["samples"] == 0
    assert manifest["eval"]["documents"] is None


def test_plan_writes_nothing(options):
    content = json.loads(json.dumps(prepare.plan(options)))
    assert content["files"] == 6
    assert content["parameters"]["dupe_factor"] == 2
    assert not options.output.exists()


def test_mixture_is_a_permutation_and_uniform():
    """A spool's samples are equally likely anywhere: their mean place is the middle."""
    sizes = [50, 1, 349]
    places = []
    for seed in range(200):
        mixture = Mixture.draw(sizes, 4, seed)
        assert np.bincount(mixture.source).tolist() == sizes
        assert mixture.first[-1].tolist() == sizes
        places.append(np.flatnonzero(mixture.source == 0).mean() / 399)
    assert abs(np.mean(places) - 0.5) < 0.01
    assert Mixture.draw(sizes, 4, 1).source.tolist() != mixture.source.tolist()


def test_mixture_takes_each_spools_samples_in_their_order(tmp_path):
    samples = [to_samples(plain_samples(n, seed=n)) for n in (9, 1, 20)]
    spools = [tmp_path / str(number) for number in range(3)]
    for spool, one in zip(spools, samples, strict=True):
        save_spool(spool, one)
    save_spool(tmp_path / "mixture", Mixture.draw([9, 1, 20], 4, seed=0))
    mixture = open_spool(Mixture, tmp_path / "mixture")
    left = [rows(one) for one in samples]
    for number in range(4):
        source = mixture.source[mixture.bounds[number] : mixture.bounds[number + 1]]
        assert rows(mixture.shard(number, spools)) == [left[spool].pop(0) for spool in source]
    assert left == [[], [], []]
