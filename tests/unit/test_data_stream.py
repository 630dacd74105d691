# SPDX-License-Identifier: Apache-2.0
"""Order, division, resume and errors of the training stream, and the evaluation split."""

from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_files import Plain, plain_samples, to_samples, write_packed_slowly

from bertbench.common.data.batch import PretrainingBatch
from bertbench.common.data.collate import balance, collate
from bertbench.common.data.hdf5 import Limits
from bertbench.common.data.schema import write_fixed, write_varlen
from bertbench.common.data.shards import find_shards
from bertbench.common.data.steps import StepBatch, shuffled
from bertbench.common.data.stream import TrainStream, WindowStream, eval_batches
from bertbench.common.data.synthetic import SyntheticStream, synthetic_eval_batches
from bertbench.common.errors import BadInput

LIMITS = Limits(max_seq_length=48, max_predictions=8, vocab_size=30522)
SHARDS = 5
PER_SHARD = 13


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        path = folder / f"part_{shard}_of_{SHARDS}.hdf5"
        write_varlen(path, to_samples(plain_samples(PER_SHARD, seed=shard)))
    return find_shards(folder, "train")


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Any:
    yield
    left = [t.name for t in threading.enumerate() if t.name == "prefetch"]
    assert left == []


def stream(files: list[Path], **changes: Any) -> TrainStream:
    options: dict[str, Any] = {
        "seed": 7, "global_batch": 8, "micro_batch": 2, "world": 1, "rank": 0,
        "window_shards": 2, "limits": LIMITS,
    }  # fmt: skip
    return TrainStream(files, **{**options, **changes})


def take(source: Any, n: int) -> list[StepBatch]:
    steps = iter(source)
    try:
        return list(islice(steps, n))
    finally:
        steps.close()


def apart(batch: PretrainingBatch) -> list[Plain]:
    """The sequences of a batch as plain lists, each read from its own tokens."""
    result, tokens = [], batch.tokens
    indices, labels = batch.masked_indices.tolist(), batch.masked_labels.tolist()
    for b in range(len(tokens.lengths)):
        start, stop = tokens.cu_seqlens[b : b + 2].tolist()
        assert tokens.position_ids[start:stop].tolist() == list(range(stop - start))
        assert stop - start == tokens.lengths[b]
        masked = [(i - start, y) for i, y in zip(indices, labels, strict=True) if start <= i < stop]
        result.append(
            Plain(
                tokens.input_ids[start:stop].tolist(),
                tokens.segment_ids[start:stop].tolist(),
                [i for i, _ in masked],
                [y for _, y in masked],
                int(batch.next_sentence_labels[b]),
            )
        )
    return result


def key(sample: Plain) -> str:
    return repr(sample)


def step_keys(steps: list[StepBatch]) -> list[Counter[str]]:
    """What each step trains, whatever the division."""
    return [Counter(key(p) for m in s.micro_batches for p in apart(m)) for s in steps]


def bits(steps: list[StepBatch]) -> list[Any]:
    """Everything in the batches, for exact comparison."""
    return [
        (
            s.num_samples, s.num_masked, s.num_tokens, s.position,
            [(m.tokens.lengths, m.tokens.input_ids.tolist(), m.masked_indices.tolist(),
              m.masked_labels.tolist(), m.next_sentence_labels.tolist()) for m in s.micro_batches],
        )
        for s in steps
    ]  # fmt: skip


def test_collate_is_exact() -> None:
    plain = plain_samples(9)
    rows = np.array([4, 0, 8, 4])
    batch = collate(to_samples(plain), rows)
    assert apart(batch) == [plain[r] for r in rows]
    assert batch.tokens.cu_seqlens.dtype == torch.int32
    for tensor in (
        batch.tokens.input_ids, batch.tokens.segment_ids, batch.tokens.position_ids,
        batch.masked_indices, batch.masked_labels, batch.next_sentence_labels,
    ):  # fmt: skip
        assert tensor.dtype == torch.int64


def test_each_sample_once_per_epoch(files: list[Path]) -> None:
    everything = Counter(
        key(p) for shard in range(SHARDS) for p in plain_samples(PER_SHARD, seed=shard)
    )
    # 65 samples: 8 steps of 65/5 = 13 make exactly one epoch and straddle shards and windows.
    steps = step_keys(take(stream(files, global_batch=13, micro_batch=1), 15))
    epochs = [sum(steps[e : e + 5], Counter()) for e in (0, 5, 10)]
    assert epochs == [everything] * 3
    assert steps[:5] != steps[5:10]
    # And when the batch does not divide the epoch, nothing is dropped at its end.
    steps = step_keys(take(stream(files, global_batch=8, micro_batch=8), 65))
    assert sum(steps, Counter()) == Counter({k: 8 * v for k, v in everything.items()})


def test_totals_describe_the_global_batch(files: list[Path]) -> None:
    ranks = [take(stream(files, world=2, rank=r), 4) for r in (0, 1)]
    for a, b in zip(*ranks, strict=True):
        micro = [*a.micro_batches, *b.micro_batches]
        assert [len(m.tokens.lengths) for m in micro] == [2] * 4
        assert a.num_samples == b.num_samples == 8
        assert a.num_tokens == b.num_tokens == sum(m.tokens.num_tokens for m in micro)
        assert a.num_masked == b.num_masked == sum(len(m.masked_labels) for m in micro)
        assert a.position == b.position


@settings(max_examples=12, deadline=None)
@given(
    world=st.sampled_from([1, 2, 3, 4]),
    micro=st.sampled_from([1, 2, 3, 6]),
    seed=st.integers(0, 2**64 - 1),
)
def test_order_does_not_depend_on_the_division(
    files: list[Path], world: int, micro: int, seed: int
) -> None:
    if (24 // world) % micro:
        micro = 1
    whole = step_keys(take(stream(files, seed=seed, global_batch=24, micro_batch=24), 4))
    split: list[Counter[str]] = [Counter() for _ in whole]
    for rank in range(world):
        part = stream(files, seed=seed, global_batch=24, micro_batch=micro, world=world, rank=rank)
        split = [a + b for a, b in zip(split, step_keys(take(part, 4)), strict=True)]
    assert split == whole


def test_seed_and_epoch_change_the_order(files: list[Path]) -> None:
    first = step_keys(take(stream(files, seed=1), 3))
    assert first == step_keys(take(stream(files, seed=1), 3))
    assert first != step_keys(take(stream(files, seed=2), 3))
    whole = {"window_shards": SHARDS, "global_batch": 13, "micro_batch": 13}
    steps = step_keys(take(stream(files, **whole), 10))
    assert steps[:5] != steps[5:]
    assert sum(steps[:5], Counter()) == sum(steps[5:], Counter())
    assert sorted(shuffled(100, 3, 4).tolist()) == list(range(100))
    assert shuffled(5, 1, 2, 3).tolist() == [1, 3, 2, 0, 4]  # must never change between releases


@pytest.mark.parametrize("window_shards", [1, 2, 8])
def test_resume_is_exact_everywhere(files: list[Path], window_shards: int) -> None:
    # 65 samples, batches of 8: windows of 1, 2 and 2 shards end in the middle of steps.
    unbroken = take(stream(files, window_shards=window_shards), 20)
    seen = set()
    for at in range(19):
        position = unbroken[at].position
        seen.add((position["epoch"], position["window"]))
        resumed = stream(files, window_shards=window_shards, position=position)
        assert bits(take(resumed, 1)) == bits(unbroken[at + 1 : at + 2])
    assert len(seen) >= 3
    again = take(stream(files, window_shards=window_shards, position=unbroken[3].position), 16)
    assert bits(again) == bits(unbroken[4:])


def test_the_first_window_is_small_unless_everything_fits(files: list[Path]) -> None:
    for window_shards, sizes in ((1, [1] * 5), (2, [1, 2, 2]), (4, [1, 2, 2]), (5, [5])):
        windows = stream(files, window_shards=window_shards).windows(3)
        assert [len(w) for w in windows] == sizes
        assert sorted(shard for w in windows for shard in w) == list(range(SHARDS))


def test_resume_with_another_division(files: list[Path]) -> None:
    unbroken = take(stream(files), 12)
    for at in (1, 4, 8):
        position = unbroken[at].position
        parts = [
            step_keys(take(stream(files, world=4, micro_batch=1, rank=r, position=position), 3))
            for r in range(4)
        ]
        merged = [sum(p, Counter()) for p in zip(*parts, strict=True)]
        assert merged == step_keys(unbroken[at + 1 : at + 4])


def test_positions_of_other_runs_are_refused(files: list[Path]) -> None:
    position = take(stream(files), 1)[0].position
    for changes, message in (
        ({"seed": 8}, "was made with seed 7, this run has 8"),
        ({"window_shards": 3}, "was made with window_shards 2, this run has 3"),
    ):
        with pytest.raises(BadInput, match=message):
            stream(files, position=position, **changes)
    with pytest.raises(BadInput, match="was made with num_shards 5, this run has 4"):
        stream(files[:4], position=position)
    with pytest.raises(BadInput, match="index is missing"):
        stream(files, position={"epoch": 0, "window": 0})
    for wrong in ({"index": 27}, {"window": 3}):
        with pytest.raises(BadInput, match="beyond"):
            take(stream(files, position={**position, **wrong}), 1)


def test_divisions_that_do_not_fit_name_those_that_do(files: list[Path]) -> None:
    def division(global_batch: int, micro_batch: int, world: int) -> int:
        return stream(
            files, global_batch=global_batch, micro_batch=micro_batch, world=world
        ).accumulation

    assert division(416, 26, 8) == 2
    for micro_batch in (8, 64, 0):
        with pytest.raises(BadInput, match=r"does not divide the 52 .* 1, 2, 4, 13, 26, 52"):
            division(416, micro_batch, 8)
    with pytest.raises(BadInput, match=r"250 cannot be shared by 8"):
        division(250, 2, 8)


@given(
    hands=st.integers(1, 9),
    each=st.integers(1, 9),
    data=st.data(),
)
def test_deal_gives_everyone_as_many(hands: int, each: int, data: Any) -> None:
    weights = np.array(data.draw(st.lists(st.integers(1, 512), min_size=hands * each,
                                          max_size=hands * each)))  # fmt: skip
    dealt = balance(weights, hands)
    assert dealt.shape == (hands, each)
    assert sorted(dealt.ravel().tolist()) == list(range(hands * each))
    # Dealing in rounds, lightest hand first, never leaves a gap above the heaviest item.
    totals = weights[dealt].sum(axis=1)
    assert totals.max() - totals.min() <= weights.max()


@pytest.mark.parametrize(
    ("global_batch", "micro", "world"), [(416, 52, 8), (416, 13, 8), (768, 6, 16), (256, 4, 2)]
)
def test_ranks_are_balanced_at_real_lengths(global_batch: int, micro: int, world: int) -> None:
    ranks = [
        take(
            SyntheticStream(
                seed=3, global_batch=global_batch, micro_batch=micro, world=world, rank=rank,
                limits=Limits(), num_samples=2048,
            ),
            2,
        )
        for rank in range(world)
    ]  # fmt: skip
    for steps in zip(*ranks, strict=True):
        tokens = np.array([[m.tokens.num_tokens for m in s.micro_batches] for s in steps])
        if micro > 4:  # of 4, two that fill all 512 tokens can be above the mean by themselves
            assert tokens.max() / tokens.mean() < 1.05
        per_rank = tokens.sum(axis=1)
        assert per_rank.max() / per_rank.mean() < 1.005


def test_a_bad_shard_stops_the_consumer(files: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "part_bad"
    bad.write_bytes(files[0].read_bytes()[:-100])
    with pytest.raises(BadInput, match="part_bad: cannot be opened"):
        take(stream([*files, bad], window_shards=6), 1)


def test_dropping_or_closing_the_iterator_ends_its_threads(files: list[Path]) -> None:
    steps = iter(stream(files))
    next(steps)
    assert any(t.name == "prefetch" for t in threading.enumerate())
    del steps
    assert not any(t.name == "prefetch" for t in threading.enumerate())


class Slow(WindowStream):
    """A stream whose window takes five seconds to load, in many pieces."""

    def __init__(self) -> None:
        self.pieces = 0
        super().__init__({}, seed=0, global_batch=8, micro_batch=8, world=1, rank=0)

    def windows(self, epoch: int) -> list[tuple[int, ...]]:
        return [(0,)] if epoch == 0 else [(1,)]

    def load(self, window: tuple[int, ...]) -> Any:
        for _ in range(1 if window == (0,) else 5000):
            self.pieces += 1
            yield to_samples(plain_samples(8))
            time.sleep(0.001)


def test_closing_does_not_wait_for_a_window() -> None:
    source = Slow()
    take(source, 1)
    assert source.pieces < 5000


@pytest.mark.parametrize("world", [1, 3, 8])
def test_eval_shares_are_contiguous_and_complete(tmp_path: Path, world: int) -> None:
    plain = plain_samples(30)
    write_fixed(tmp_path / "part_eval_10k.hdf5", to_samples(plain[:12]), 48, 8)
    rows = [plain[i : i + 2] for i in range(12, 30, 2)]
    write_packed_slowly(tmp_path / "part_more", rows)
    files = find_shards(tmp_path, "eval")
    shares = []
    for rank in range(world):
        batches = eval_batches(
            files, num_examples=26, batch_size=4, world=world, rank=rank, limits=LIMITS
        )
        assert all(len(b.tokens.lengths) == 4 for b in batches[:-1])
        lengths = [n for b in batches for n in b.tokens.lengths]
        assert lengths == sorted(lengths, reverse=True)
        shares.append([p for b in batches for p in apart(b)])
    sizes = [26 // world + (r < 26 % world) for r in range(world)]
    assert [len(s) for s in shares] == sizes
    start = 0
    for share in shares:
        wanted = plain[start : start + len(share)]
        assert Counter(map(key, share)) == Counter(map(key, wanted))
        start += len(share)


def test_eval_with_too_few_samples(files: list[Path]) -> None:
    with pytest.raises(BadInput, match="needs 100 samples and there are only 65; pass --num_eval"):
        eval_batches(files, num_examples=100, batch_size=4, world=1, rank=0, limits=LIMITS)


def test_num_samples_and_defaults(files: list[Path]) -> None:
    assert stream(files).num_samples == SHARDS * PER_SHARD
    with pytest.raises(BadInput, match="no training files"):
        stream([])
    with pytest.raises(BadInput, match="seed -1"):
        stream(files, seed=-1)


def test_synthetic_has_the_same_interface() -> None:
    options: dict[str, Any] = {
        "seed": 1, "global_batch": 6, "micro_batch": 3, "world": 2, "num_samples": 20,
        "limits": LIMITS,
    }  # fmt: skip
    ranks = [take(SyntheticStream(rank=r, **options), 9) for r in range(2)]
    assert [len(s.micro_batches) for s in ranks[0]] == [1] * 9
    resumed = SyntheticStream(rank=1, position=ranks[1][4].position, **options)
    assert bits(take(resumed, 4)) == bits(ranks[1][5:])
    with pytest.raises(BadInput, match="num_samples"):
        SyntheticStream(rank=0, position=ranks[0][0].position, **{**options, "num_samples": 30})
    batches = [
        synthetic_eval_batches(num_examples=10, batch_size=4, world=2, rank=r, limits=LIMITS)
        for r in range(2)
    ]
    assert [[len(b.tokens.lengths) for b in share] for share in batches] == [[4, 1], [4, 1]]


@pytest.mark.parametrize("pin", [False, True])
def test_pinning_happens_in_the_prefetch_thread_only_when_asked(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, pin: bool
) -> None:
    """Page-locked memory needs an accelerator: a stand-in marks what it was called for."""
    threads: set[str] = set()
    page_locked: list[torch.Tensor] = []

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        threads.add(threading.current_thread().name)
        page_locked.append(tensor.clone())
        return page_locked[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", fake)
    plain = take(stream(files), 2)
    assert not page_locked
    for source in (stream(files, pin=pin), SyntheticStream(**{**SYNTHETIC, "pin": pin})):
        step = take(source, 2)[1]
        for batch in step.micro_batches:
            held = [*tensors_of(batch.tokens), *tensors_of(batch)]
            assert len(held) == 7
            assert all(any(t is p for p in page_locked) for t in held) == pin
    assert threads == ({"prefetch"} if pin else set())
    pinned = take(stream(files, pin=pin), 2)
    for before, after in zip(plain, pinned, strict=True):
        for a, b in zip(before.micro_batches, after.micro_batches, strict=True):
            assert a.tokens.lengths == b.tokens.lengths
            mine, theirs = ([*tensors_of(x.tokens), *tensors_of(x)] for x in (a, b))
            assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


SYNTHETIC: dict[str, Any] = {
    "seed": 1, "global_batch": 4, "micro_batch": 2, "world": 1, "rank": 0, "num_samples": 16,
    "limits": LIMITS,
}  # fmt: skip


def tensors_of(value: Any) -> list[torch.Tensor]:
    fields = (getattr(value, name) for name in value.__dataclass_fields__)
    return [field for field in fields if isinstance(field, torch.Tensor)]
