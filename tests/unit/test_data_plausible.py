# SPDX-License-Identifier: Apache-2.0
"""Samples that MLPerf's procedure cannot give are found, and those that it gives are not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from text_files import articles, write_plain, write_vocab

from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_pretraining.data import PretrainingSource, check_data, find_source
from bertbench.common.data import plausible
from bertbench.common.data.hdf5 import Limits
from bertbench.common.data.plausible import Counts, Inspection, findings, hashes, masked_at
from bertbench.common.data.samples import Samples
from bertbench.common.data.schema import write_fixed, write_varlen
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.prepare.check import CheckOptions, check
from bertbench.common.prepare.from_text import PrepareOptions, prepare
from bertbench.common.prepare.masking import MaskingOptions

LIMITS = Limits(max_seq_length=64, max_predictions=10, vocab_size=200)
FLAGS = """--max_seq_length 64 --max_predictions_per_seq 10 --vocab_size 200 --num_eval_examples 50
    --target_mlm_accuracy None""".split()
CLS, SEP, MASK = 2, 3, 4


def made(n: int, seed: int, *, kept: float = 0.1, mask: float = 0.8, random_next: float = 0.55):
    """Samples with the procedure's shares, or others."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(30, 65, n)
    counts = np.minimum(10, np.round(0.15 * lengths)).astype(np.int64)
    offsets, masked = np.r_[0, np.cumsum(lengths)], np.r_[0, np.cumsum(counts)]
    ids = np.minimum(199, 5 + rng.geometric(0.03, offsets[-1])).astype(np.uint16)
    ids[offsets[:-1]], ids[offsets[1:] - 1] = CLS, SEP
    pairs = zip(lengths, counts, strict=True)
    positions = np.concatenate(
        [np.sort(rng.choice(np.arange(1, k - 1), c, replace=False)) for k, c in pairs]
    )
    where = positions + np.repeat(offsets[:-1], counts)
    labels, draw = ids[where], rng.random(len(where))
    shown = np.where(draw < mask, MASK, rng.integers(5, 200, len(where)))
    ids[where] = np.where(draw >= 1 - kept, labels, shown)
    return Samples(
        input_ids=ids,
        offsets=offsets,
        split=(lengths // 2).astype(np.uint16),
        masked_positions=positions.astype(np.uint16),
        masked_labels=labels,
        masked_offsets=masked,
        next_sentence_labels=(rng.random(n) < random_next).astype(np.int8),
    )


def found(samples: Samples, limits: Limits = LIMITS) -> list[tuple[str, bool]]:
    return [(f.text, f.impossible) for f in findings(Counts.of(samples, limits))]


@pytest.mark.parametrize("n", [1, 5, 50, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_sound_samples_of_any_number(n: int, seed: int) -> None:
    assert found(made(n, seed)) == []


@pytest.mark.parametrize("sentences", [3, 20])
def test_the_procedure_itself(tmp_path: Path, sentences: int) -> None:
    prepare(
        PrepareOptions(
            text=(write_plain(tmp_path / "text", articles(150, sentences=sentences)),),
            output=tmp_path / "data",
            vocab=write_vocab(tmp_path / "vocab.txt"),
            masking=MaskingOptions(max_seq_length=64, max_predictions_per_seq=10, dupe_factor=2),
            eval_fraction=0.1,
            processes=1,
        )
    )
    assert check(CheckOptions(data_root=tmp_path / "data")).problems == []


IMPOSSIBLE = [
    ({"kept": 1.0, "mask": 0.0}, "show 100.0% of the tokens to be predicted"),
    ({"kept": 0.5, "mask": 0.5}, r"show \d\d.\d% of the tokens to be predicted"),
    ({"kept": 0.3}, r"show (2|3)\d.\d% of the tokens"),
    ({"random_next": 0.0}, "next-sentence labels are alike .true"),
    ({"random_next": 1.0}, "next-sentence labels are alike .random"),
]
UNUSUAL = [
    ({"kept": 0.0, "mask": 1.0}, "show 0.0% of the tokens to be predicted, MLPerf's"),
    ({"mask": 0.5}, "5.% of the tokens to be predicted show one token|show one token"),
    ({"random_next": 0.2}, "2.* of the next sentences are random"),
    ({"random_next": 0.95}, "9.* of the next sentences are random"),
]


@pytest.mark.parametrize(("change", "message"), IMPOSSIBLE + UNUSUAL)
def test_other_shares_are_found(change: dict[str, float], message: str) -> None:
    results = found(made(1000, 0, **change))
    (impossible,) = {flag for text, flag in results if re.search(message, text)}
    assert impossible == ((change, message) in IMPOSSIBLE)


def with_labels(samples: Samples, label: int, share: float) -> Samples:
    labels = samples.masked_labels.copy()
    labels[: int(share * len(labels))] = label
    return replace(samples, masked_labels=labels)


def test_a_constant_answer() -> None:
    results = found(with_labels(made(1000, 0), 1, 0.7))
    assert any("a constant answer has that accuracy" in text and bad for text, bad in results)
    assert not found(with_labels(made(1000, 0), 7, 0.01))


def test_more_masks_than_the_procedure_gives() -> None:
    samples = made(1000, 0)
    wide = replace(LIMITS, max_predictions=3)
    assert any(
        "are to be predicted; MLPerf's procedure gives" in t for t, _ in found(samples, wide)
    )


def test_hashes_do_not_depend_on_the_longest_sample_beside() -> None:
    samples = made(50, 3)
    short = np.flatnonzero(samples.lengths < samples.lengths.max())
    for all_of, some in zip(hashes(samples), hashes(samples.take(short)), strict=True):
        assert (all_of[short] == some).all()


def folder(root: Path, train: dict[str, Samples], held_out: Samples | None = None) -> Path:
    for kind, files in (
        ("train", train),
        ("eval", {"part_eval.hdf5": made(100, 99) if held_out is None else held_out}),
    ):
        for name, samples in files.items():
            write_varlen(root / kind / name, samples)
    return root


def run(root: Path, flags: Sequence[str] = ()) -> PretrainingSource:
    """Begin to train; the data is looked at after the clock has started."""
    source = find_source(resolve("mini", ["--data", str(root), *FLAGS, *flags]))
    steps = source.train(seed=1, world=World(), micro_batch=8, position=None)
    try:
        list(islice(steps, 2))
    finally:
        steps.close()  # type: ignore[attr-defined]
    return source


def problems(root: Path) -> list[str]:
    options = CheckOptions(
        data_root=root, max_seq_length=64, max_predictions_per_seq=10, vocab_size=200
    )
    return [f"{p.file}: {p.message}" for p in check(options).problems]


def test_sound_data_runs_without_a_word(tmp_path: Path) -> None:
    source = run(folder(tmp_path, {"part_0.hdf5": made(200, 0), "part_1.hdf5": made(200, 1)}))
    assert source.closing_notes() == []
    assert problems(tmp_path) == []


@pytest.mark.parametrize(("change", "message"), IMPOSSIBLE)
@pytest.mark.parametrize("where", ["train", "eval"])
def test_run_refuses_what_cannot_be(
    tmp_path: Path, change: dict[str, float], message: str, where: str
) -> None:
    bad, good = made(300, 0, **change), made(300, 1)
    train, held_out = (bad, good) if where == "train" else (good, bad)
    folder(tmp_path, {"part_0.hdf5": train}, held_out)
    if change == {"kept": 0.3} and where == "eval":  # 50 samples are too few to be sure of that
        notes = run(tmp_path).closing_notes()
        assert any("evaluation data: the inputs show" in note for note in notes)
        return
    with pytest.raises(BadInput, match=rf"{where}.*: .*{message}"):
        run(tmp_path)
    assert any(p.startswith(where) for p in problems(tmp_path))


def test_run_says_what_is_unusual(tmp_path: Path) -> None:
    source = run(folder(tmp_path, {"part_0.hdf5": made(400, 0, mask=0.9)}))
    assert any("show 0.0% of the tokens" in note for note in source.closing_notes()) or any(
        "show one token" in note for note in source.closing_notes()
    )


def test_evaluation_data_sorted_by_kind_is_no_mistake(tmp_path: Path) -> None:
    """Unless the samples that are evaluated are all of one kind."""
    samples = made(100, 5, random_next=0.7)
    rows = np.argsort(samples.next_sentence_labels, kind="stable")
    assert samples.next_sentence_labels[rows[-50:]].all()
    folder(tmp_path, {"part_0.hdf5": made(200, 0)}, samples.take(rows[::-1]))
    run(tmp_path, flags=["--num_eval_examples", "100"])
    with pytest.raises(BadInput, match=r"eval, first 50 of 100 samples: 50 of 50 next-sentence la"):
        run(tmp_path)


def shown(samples: Samples) -> Samples:
    """The samples with their answers in place of the masks."""
    ids = samples.input_ids.copy()
    ids[masked_at(samples)] = samples.masked_labels
    return replace(samples, input_ids=ids)


def test_answers_shown_at_the_end_of_the_evaluation_set(tmp_path: Path) -> None:
    held_out = Samples.concatenate([made(2048, 1), shown(made(1000, 2))])
    folder(tmp_path, {"part_0.hdf5": made(200, 0)}, held_out)
    with pytest.raises(BadInput, match=r"eval: the inputs show \d\d\.\d% of the tokens to be pred"):
        run(tmp_path, flags=["--num_eval_examples", "3048"])
    assert run(tmp_path, flags=["--num_eval_examples", "2048"]).closing_notes() == []
    source = run(tmp_path, flags=["--num_eval_examples", "2148"])
    assert any("evaluation data: the inputs show" in note for note in source.closing_notes())


def test_an_evaluation_without_training_looks_too(tmp_path: Path) -> None:
    """--verify_checkpoint, without evaluations while training."""
    folder(tmp_path, {"part_0.hdf5": made(60, 0)}, shown(made(100, 2)))
    flags = ["--data", str(tmp_path), *FLAGS, "--eval_iter_samples", "0"]
    with pytest.raises(BadInput, match=r"eval, first 50 of 100 samples: the inputs show 100.0%"):
        find_source(resolve("mini", flags)).evaluation(8, World())


def test_the_end_of_a_training_shard_counts_too() -> None:
    samples = Samples.concatenate([made(4096, 1), shown(made(4000, 2))])
    with pytest.raises(BadInput, match="part_0: the inputs show"):
        Inspection(LIMITS, None)(Path("part_0"), samples)


def test_a_sorted_training_shard_is_no_mistake() -> None:
    samples = made(9000, 5)
    inspect = Inspection(LIMITS, None)
    inspect(Path("0"), samples.take(np.argsort(samples.next_sentence_labels, kind="stable")))
    assert inspect.notes() == []


def tiled(samples: Samples, times: int) -> Samples:
    return samples.take(np.tile(np.arange(len(samples)), times))


def test_an_evaluation_set_of_few_samples(tmp_path: Path) -> None:
    flags = ["--num_eval_examples", "1000"]
    folder(tmp_path, {"part_0.hdf5": made(200, 0)}, tiled(made(10, 1), 100))
    with pytest.raises(BadInput, match="eval: 990 of 1,000 samples are others again"):
        run(tmp_path, flags)
    assert any(
        p.startswith("eval/part_eval.hdf5: 990 of 1,000 samples") for p in problems(tmp_path)
    )
    part = made(800, 3)
    folder(tmp_path, {}, Samples.concatenate([part, part.take(np.arange(200))]))
    (note,) = run(tmp_path, flags).closing_notes()
    assert note.startswith("evaluation data: 200 of 1,000 samples are others again")
    folder(tmp_path, {}, Samples.concatenate([part, made(195, 4), part.take(np.arange(5))]))
    assert run(tmp_path, flags).closing_notes() == []


def test_a_shard_of_few_samples(tmp_path: Path) -> None:
    folder(tmp_path, {"part_0.hdf5": tiled(made(40, 0), 10)})
    with pytest.raises(BadInput, match=r"part_0.hdf5: 360 of 400 samples are others again"):
        run(tmp_path)


@pytest.mark.parametrize("n", [1000, 9000])
def test_shards_with_one_content_in_other_orders(n: int) -> None:
    """MLPerf v2.1's shuffle script made these; of large shards only some samples are compared."""
    samples, rng = made(n, 0), np.random.default_rng(0)
    inspect = Inspection(LIMITS, None)
    inspect(Path("part_0"), samples)
    inspect(Path("part_1"), made(n, 1))
    with pytest.raises(BadInput, match="part_2: it holds the samples of part_0: remove one"):
        inspect(Path("part_2"), samples.take(rng.permutation(n)))


@pytest.mark.parametrize("n", [1000, 9000])
def test_shards_that_share_some_samples(n: int) -> None:
    one, two = made(n, 0), made(n, 1)
    inspect = Inspection(LIMITS, None)
    inspect(Path("part_0"), one)
    inspect(Path("part_1"), Samples.concatenate([two, one.take(np.arange(n // 10, n // 2))]))
    (note,) = inspect.notes()
    share = re.fullmatch(
        r"part_1: (\d+\.\d)% of its samples are in shards before it, such as part_0", note
    )
    assert share
    assert float(share[1]) == pytest.approx(100 * 0.4 / 1.4, abs=6)


def test_other_masks_of_one_text_are_no_repeats() -> None:
    """A dupe factor gives them."""
    samples = made(500, 0)
    ids, first = samples.input_ids.copy(), samples.masked_offsets[:-1]
    where = samples.offsets[:-1] + samples.masked_positions[first]
    ids[where] = np.where(ids[where] == MASK, 5, MASK)
    inspect = Inspection(LIMITS, None)
    inspect(Path("part_0"), samples)
    inspect(Path("part_1"), replace(samples, input_ids=ids))
    assert not any("samples" in note for note in inspect.notes())


def test_evaluation_text_spread_over_the_shards() -> None:
    """Less than 1 % of it in each."""
    everything, rows = made(1000, 0), np.arange(1000).reshape(-1, 2)
    held_out = everything.take(np.arange(400))
    inspect = Inspection(LIMITS, held_out)
    with pytest.raises(BadInput, match=r"part_101: .* text of 50.5% of the evaluation samp"):
        for number in range(1, 102):
            inspect(Path(f"part_{number}"), everything.take(rows[number]))
    inspect = Inspection(LIMITS, held_out)
    for number in range(30):
        inspect(Path(f"part_{number}"), made(30, number + 1))
    inspect(Path("part_x"), everything.take(np.arange(50, 100)))
    inspect(Path("part_y"), everything.take(np.arange(398, 410)))
    note = (
        "training data: holds the text of 13.0% of the evaluation samples, most of them in part_x"
    )
    assert f"{note}: hold other text out" in inspect.notes()


def test_check_names_each_file_that_a_run_refuses(tmp_path: Path) -> None:
    """In the sum of all files the labels are sound, and the masks just unusual."""
    train = {f"part_{i}.hdf5": made(300, i) for i in range(8)}
    train["part_3.hdf5"] = made(300, 3, random_next=1.0)
    train["part_5.hdf5"] = shown(made(300, 5))
    folder(tmp_path, train)
    found = problems(tmp_path)
    assert any(p.startswith("train/part_3.hdf5: 300 of 300 next-sentence labels") for p in found)
    assert any(
        p.startswith("train/part_5.hdf5: the inputs show 100.0%") and "any accuracy can be" in p
        for p in found
    )
    assert any(p.startswith("train: the inputs show") for p in found)
    assert not any(re.match("train/part_[^35]", p) for p in found)


COPIES = [
    "part_0.hdf5.1",
    "part_0 (1).hdf5",
    "part_0(2).hdf5",
    "part_0 - Copy.hdf5",
    "part_0 copy.hdf5",
    "part_0_copy.hdf5",
    "part_0.hdf5~",
    "part_0.hdf5.bak",
]


@pytest.mark.parametrize("name", COPIES)
def test_second_copies_by_name(tmp_path: Path, name: str) -> None:
    """Refused before a byte is read: also where the copy is another version."""
    folder(tmp_path, {"part_0.hdf5": made(50, 0), name: made(50, 1)})
    with pytest.raises(BadInput, match=r"a second copy of part_0\.hdf5"):
        check_data(resolve("mini", ["--data", str(tmp_path), *FLAGS]))
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"train/{name}: a second copy of train/part_0.hdf5")


def test_names_that_only_look_like_copies(tmp_path: Path) -> None:
    names = ["part_0.1.hdf5", "part_0.2.hdf5", "part-00000-of-00002.hdf5", "part (1).hdf5"]
    run(folder(tmp_path, {name: made(50, i) for i, name in enumerate(names)}))


def test_one_content_under_two_names(tmp_path: Path) -> None:
    folder(tmp_path, {"part_0.hdf5": made(50, 0)})
    shutil.copy(tmp_path / "train" / "part_0.hdf5", tmp_path / "train" / "part_7.hdf5")
    with pytest.raises(BadInput, match=r"part_7.hdf5: a second copy of part_0.hdf5"):
        run(tmp_path)
    assert any("occur before" in p for p in problems(tmp_path))


def test_one_content_in_two_layouts(tmp_path: Path) -> None:
    folder(tmp_path, {"part_0.hdf5": made(50, 0)})
    write_fixed(tmp_path / "train" / "part_7.hdf5", made(50, 0), 64, 10)
    with pytest.raises(BadInput, match=r"holds the samples of part_.\.hdf5"):
        run(tmp_path)


def test_a_training_shard_in_the_evaluation_set(tmp_path: Path) -> None:
    folder(tmp_path, {"part_0.hdf5": made(60, 0), "part_1.hdf5": made(60, 1)}, made(60, 1))
    with pytest.raises(BadInput, match="a second copy of"):
        run(tmp_path)
    write_fixed(tmp_path / "eval" / "part_eval.hdf5", made(60, 1), 64, 10)
    with pytest.raises(BadInput, match=r"part_1.hdf5: it holds the text of 100.0% of the evalu"):
        run(tmp_path)


def test_hours_later_it_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plausible, "REFUSED_ROWS", 800)
    inspect = Inspection(LIMITS, None)
    for number in range(8):
        inspect(Path(f"part_{number}"), made(100, number))
    inspect(Path("part_8"), made(1000, 8, kept=1.0, mask=0.0))
    inspect(Path("part_8"), made(1000, 8, kept=1.0, mask=0.0))  # a second epoch
    assert sum("part_8: the inputs show 100.0%" in note for note in inspect.notes()) == 1
    for number in range(9, 20):
        inspect(Path(f"part_{number}"), made(60, number, kept=1.0, mask=0.0))
    assert "training data: 4 more such notes; see `bertbench data check`" in inspect.notes()


def test_masked_at_points_at_masks() -> None:
    samples = made(20, 0, kept=0.0, mask=1.0)
    assert (samples.input_ids[masked_at(samples)] == MASK).all()
