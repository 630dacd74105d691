# SPDX-License-Identifier: Apache-2.0
"""`bertbench data prepare`: what comes out, holding out, restarts, refusals."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from sample_files import plain_samples, to_samples
from text_files import articles, rows, tokenized, write_plain, write_vocab, write_wiki

from bertbench.common.data.hdf5 import Limits, read
from bertbench.common.data.samples import Samples
from bertbench.common.data.shards import locate
from bertbench.common.data.tokenization import BertTokenizer, read_vocab
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256
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


def cut(path):
    os.truncate(path, 1000)


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", [os.unlink, cut, flip, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize(
    "name",
    ["3_shards_uncompressed/part_1_of_3.hdf5", "eval_set_uncompressed/part_eval_10k.hdf5"],
)
def test_a_finished_folder_that_was_damaged_is_not_well(options, damage, name):
    prepare.prepare(options)
    damage(options.output / name)
    with pytest.raises(BadInput, match=f"{name} (is missing|has .*): .*: delete .*out, and run"):
        prepare.prepare(options)


def test_another_vocabulary_or_a_manifest_without_files_is_not_well(options):
    prepare.prepare(options)
    with (options.output / "vocab.txt").open("a") as file:
        file.write("more\n")
    with pytest.raises(BadInput, match=r"vocab\.txt has not the sha256"):
        prepare.prepare(options)
    manifest = json.loads((options.output / "manifest.json").read_text())
    for files in (None, [], {"a": 3}, {"a": {}}):
        (options.output / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
        with pytest.raises(BadInput, match="delete"):
            prepare.prepare(options)


def test_other_settings_or_text_are_refused_in_a_used_folder(options, tmp_path):
    prepare.prepare(options)
    with pytest.raises(BadInput, match=r"dupe_factor 2 there, 3 now.*another --output"):
        prepare.prepare(replace(options, masking=replace(MASKING, dupe_factor=3)))
    write_plain(tmp_path / "text" / "more", articles(2, seed=9))
    with pytest.raises(BadInput, match=r"other inputs: more\).*another --output"):
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


def test_a_vocabulary_that_the_text_does_not_fill_is_said_with_the_flag_for_it(options):
    manifest = prepare.prepare(replace(options, vocab=None, train_vocab=30522))
    size = manifest["vocab"]["size"]
    assert size == len(read_vocab(options.output / "vocab.txt")) < 30522
    (note,) = manifest["notes"]
    assert note.startswith(f"the text gives {size:,} tokens of vocabulary, not the 30,522 asked")
    assert f"--vocab_size {size}`" in note


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


def test_a_spool_that_cannot_be_listed_is_not_damaged(tmp_path, monkeypatch):
    """Damaged pieces are removed; these are all right."""
    save_spool(tmp_path / "mixture", Mixture.draw([3], 1, 0))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionError):
        open_spool(Mixture, tmp_path / "mixture")


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


def one_each(count: int) -> list[list[str]]:
    """Documents of one sentence: what a blank line after each sentence gives."""
    return [[sentence] for document in articles(count) for sentence in document][:count]


PAIRS = {
    "a blank line after each sentence": (one_each(300), {}, "each of the 300 documents has one"),
    "and none held out": (one_each(300), {"eval_fraction": 0}, "each of the 300 documents has one"),
    "no blank line": (
        [list(chain(*articles(50)))],
        {},
        "one document: separate documents with a blank",
    ),
    "no blank line, none held out": (
        [list(chain(*articles(50)))],
        {"eval_fraction": 0},
        "one document: separate documents with a blank",
    ),
    "no text": ([["\n"]], {}, "holds no text"),
    "one is left": (articles(9), {"num_eval_articles": 8}, r"1 of the 9 documents are to train on"),
    "one is held out": (articles(9), {"num_eval_articles": 1}, "1 of the 9 documents are to eval"),
    "documents of one sentence, but one": (
        [*one_each(400), ["A b .", "B c ."]],
        {"eval_fraction": 0},
        r"training text: (99|100)\.\d% of the next sentences are random",
    ),
    "another language": (
        [["\u0432\u043e\u0434\u0430 \u0438 \u0434\u043e\u043c ."] * 3] * 90,
        {"eval_fraction": 0},
        r"training text: 75\.0% of the text is not in the vocabulary",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_text_without_pairs_of_both_kinds_is_refused(options, tmp_path, name):
    text, change, match = PAIRS[name]
    path = write_plain(tmp_path / "mine", text)
    with pytest.raises(BadInput, match=match):
        prepare.prepare(replace(options, text=(path,), **change))
    assert list(options.output.iterdir()) == []
    prepare.prepare(options)  # the folder is free


@pytest.mark.parametrize("change", [{"eval_fraction": 0.02}, {"num_eval_articles": 12}])
@pytest.mark.parametrize("names", [1, 3])
@pytest.mark.parametrize("form", ["json", "wiki"])
def test_names_that_repeat_are_said(options, tmp_path, names, form, change):
    path, text = tmp_path / "mine", [" ".join(one) for one in articles(300)]
    with path.open("w") as file:
        for number, one in enumerate(text):
            name = number % names
            row = json.dumps({"id": name, "title": "news", "text": one})
            doc = f'<doc id="{name}" title="news">\n{one}\n</doc>'
            file.write(f"{row if form == 'json' else doc}\n")
    given = replace(options, text=(path,), **change)
    with pytest.raises(BadInput, match=f"300 documents have {names} different names .*news"):
        prepare.prepare(given)
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in text))
    assert prepare.prepare(given)["eval"]["documents"] > 0


def test_held_out_documents_of_one_sentence_are_refused(options, tmp_path, monkeypatch):
    single = one_each(9)
    path = write_plain(tmp_path / "mine", [*single, *articles(60, seed=3)])
    monkeypatch.setattr(parts.Document, "identity", lambda self: self.sentences not in single)
    with pytest.raises(BadInput, match="9 of the 69 documents are to evaluate on, 9 of one sent"):
        prepare.prepare(replace(options, text=(path,), num_eval_articles=9))


def test_text_with_few_pairs_is_noted(options, tmp_path):
    path = write_plain(tmp_path / "mine", [*one_each(300), *articles(15, seed=5)])
    manifest = prepare.prepare(replace(options, text=(path,), eval_fraction=0))
    (note,) = manifest["notes"]
    assert "of the next sentences are random, where MLPerf's procedure gives 50 to 90%" in note
    assert prepare.prepare(replace(options, output=tmp_path / "two"))["notes"] == []


def test_every_part_has_two_documents(tmp_path, small_parts):
    """A random next sentence comes from another document of the part."""
    large = [[f"{word} a{n} ." for n in range(600)] for word in "ABCDE"]
    files = [write_plain(tmp_path / str(number), [one]) for number, one in enumerate(large)]
    found, _ = parts.split_text(files, tmp_path / "text", 0)
    assert [part.documents for part in found] == [2, 3]
    assert sum(part.sentences for part in found) == 3000
    texts = [(tmp_path / "text" / f"{part.name}.txt").read_text() for part in found]
    assert "".join(texts) == "".join("\n".join(one) + "\n\n" for one in large)
    assert [part.bytes for part in found] == [len(text) for text in texts]


def test_more_shards_than_samples_are_refused_before_the_work(options, monkeypatch):
    monkeypatch.setattr(prepare, "make_part", None)
    with pytest.raises(BadInput, match="--num_shards 5000 is more than the"):
        prepare.prepare(replace(options, num_shards=5000))


def test_the_same_text_twice_is_refused(options, tmp_path):
    one = tmp_path / "text" / "wiki_00"
    (tmp_path / "text" / "wiki_00 (1)").write_bytes(one.read_bytes())
    with pytest.raises(BadInput, match=r"wiki_00 \(1\) and .*wiki_00 are the same text"):
        prepare.prepare(options)


def test_text_that_changes_meanwhile_is_refused(options, tmp_path, monkeypatch):
    real = prepare.split_text

    def then_change(*args):
        found = real(*args)
        write_wiki(tmp_path / "text" / "wiki_03", articles(9, seed=77))
        return found

    monkeypatch.setattr(prepare, "split_text", then_change)
    with pytest.raises(BadInput, match="wiki_03 changed while it was read"):
        prepare.prepare(options)


def test_one_builds_at_a_time(options, monkeypatch):
    real = prepare.make_part

    def meanwhile(job):
        with pytest.raises(BadInput, match="another process prepares"):
            prepare.prepare(options)
        return real(job)

    monkeypatch.setattr(prepare, "make_part", meanwhile)
    prepare.prepare(options)


def test_another_vocabulary_in_the_same_folder(options):
    """The tokenizer that a process keeps is of the vocabulary as it is."""
    tokens = read_vocab(options.vocab)
    first = prepare.prepare(options)["train"]["unknown"]
    for path in sorted(options.output.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    write_vocab(options.vocab, [token for token in tokens if token != "the"])
    assert prepare.prepare(options)["train"]["unknown"] > first


@pytest.mark.parametrize("lost", ["out", "samples", "part"])
def test_folders_that_go_away_end_in_one_line(options, tmp_path, monkeypatch, lost):
    real = build._write_shard

    def gone(job):
        target = {"out": options.output, "samples": job.work / "samples", "part": job.spools[0]}
        shutil.rmtree(target[lost])
        return real(job)

    monkeypatch.setattr(build, "_write_shard", gone)
    with pytest.raises(BadInput) as caught:
        prepare.prepare(options)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\1\0", b"not an array", None])
def test_damaged_pieces_end_in_one_line(options, monkeypatch, damage):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(build, "_write_shard", lambda job: 1 / 0)
        prepare.prepare(options)
    path = options.output / ".work" / "samples" / "part-00000" / "split.npy"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    with pytest.raises(BadInput, match=r"is damaged .*delete .*work and prepare"):
        prepare.prepare(options)


@pytest.mark.parametrize("text", ["[]", "[" * 10**5, "9" * 5000, "{", "\0", '{"parameters": 3}'])
def test_damaged_manifests_end_in_one_line(options, text):
    options.output.mkdir()
    (options.output / "manifest.json").write_text(text)
    with pytest.raises(BadInput, match=r"is not JSON|made with other settings") as caught:
        prepare.prepare(options)
    assert str(caught.value).isprintable()


def test_a_lost_shard_is_written_again(options, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(prepare, "finish", lambda *args, **kwargs: 1 / 0)
        prepare.prepare(options)
    before = all_files(options.output)
    (options.output / "3_shards_uncompressed" / "part_1_of_3.hdf5").unlink()
    (options.output / "3_shards_uncompressed" / ".x.tmp").write_bytes(b"of a killed process")
    prepare.prepare(options)
    assert all_files(options.output) == before
    assert not list(options.output.rglob(".x.tmp"))


def test_a_fault_at_the_very_end_leaves_whole_data(options, monkeypatch):
    real = build.write_json

    def then_full(path, content):
        real(path, content)
        if path.name == build.MANIFEST:
            raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(BadInput, match=r"out: No space left .*free"),
    ):
        patch.setattr(build, "write_json", then_full)
        prepare.prepare(options)
    prepare.prepare(options)
    assert not (options.output / build.WORK).exists()


def test_dry_run_refuses_what_is_not_text(options, tmp_path):
    (tmp_path / "text" / "rows.csv").write_text("id,text\n1,It is\n2,So\n")
    with pytest.raises(BadInput, match=r"rows\.csv is a table"):
        prepare.plan(options)


HOLES = 20 << 30


@pytest.mark.parametrize(
    ("name", "head", "said"),
    [
        ("text.txt", b"", "binary, not text"),
        ("text.txt.gz", b"", "cannot be read"),
        ("text.txt.gz", b"One sentence.\n", "cannot be read"),
        ("text.txt.xz", b"", "cannot be read"),
        ("text.tar", b"", "cannot be read"),
        ("vocab.txt", b"", "is larger than 64 MiB"),
    ],
)
def test_what_is_no_text_is_refused_before_it_is_hashed(
    options, tmp_path, monkeypatch, name, head, said
):
    (tmp_path / "text" / name).write_bytes(head)
    os.truncate(tmp_path / "text" / name, HOLES)
    if name == "vocab.txt":
        (tmp_path / "text" / name).replace(options.vocab)

    def hashed(path):
        assert path.stat().st_size < HOLES, f"{path} was hashed"
        return file_sha256(path)

    monkeypatch.setattr(prepare, "file_sha256", hashed)
    with pytest.raises(BadInput, match=said):
        prepare.prepare(options)
