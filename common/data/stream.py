# SPDX-License-Identifier: Apache-2.0
"""Training steps and evaluation batches from MLPerf's files (order and division: steps.py)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertbench.common.data.batch import PretrainingBatch
from bertbench.common.data.collate import collate
from bertbench.common.data.hdf5 import Limits, count, read
from bertbench.common.data.samples import Samples
from bertbench.common.data.shards import dataset_hash, find_shards, locate
from bertbench.common.data.steps import StepBatch, StepStream, Window, shuffled
from bertbench.common.errors import BadInput

__all__ = [
    "StepBatch",
    "TrainStream",
    "batches_of",
    "dataset_hash",
    "eval_batches",
    "find_shards",
    "locate",
]


class TrainStream(StepStream):
    """Endless steps over MLPerf files."""

    def __init__(
        self,
        files: Sequence[Path],
        *,
        seed: int,
        global_batch: int,
        micro_batch: int,
        world: int,
        rank: int,
        max_seq_length: int,
        max_predictions: int,
        vocab_size: int,
        window_shards: int = 8,
        position: dict[str, int] | None = None,
        pin: bool = False,
    ) -> None:
        """Nothing is read before iteration; see StepStream for the rest.

        Args:
            files: the shards; their order is part of the sample order (``find_shards`` sorts).
            seed: seeds the order, the same on all ranks.
            global_batch: sequences per step over all ranks.
            micro_batch: sequences per rank and pass; must divide global_batch / world.
            world: number of ranks.
            rank: this one.
            max_seq_length: a longer sample in the files is an error.
            max_predictions: so is one with more masked positions,
            vocab_size: or an id that is not below this.
            window_shards: shards shuffled together. MLPerf's 2048 hold 76,500 samples of about
                700 bytes, so 8 are 430 MB; up to three times that while the next are loaded.
            position: continue after the StepBatch that had it.
            pin: put the batches into page-locked memory.
        """
        if not files:
            raise BadInput("no training files were given")
        if window_shards < 1:
            raise BadInput(f"window_shards {window_shards}: must be at least 1")
        self.files = tuple(files)
        self._limits = Limits(
            max_seq_length=max_seq_length, max_predictions=max_predictions, vocab_size=vocab_size
        )
        super().__init__(
            _Files(self.files, self._limits, window_shards, seed),
            seed=seed,
            global_batch=global_batch,
            micro_batch=micro_batch,
            world=world,
            rank=rank,
            position=position,
            pin=pin,
        )

    @functools.cached_property
    def num_samples(self) -> int:
        """Samples of an epoch: opens every file the first time, about 1 ms each."""
        return sum(map(count, self.files))


@dataclass(frozen=True)
class _Files:
    """Shards on disk as a Source."""

    files: tuple[Path, ...]
    limits: Limits
    window_shards: int
    seed: int

    @property
    def identity(self) -> dict[str, int]:
        return {
            "num_shards": len(self.files),
            "window_shards": self.window_shards,
            "data": int(dataset_hash(self.files)[:12], 16),
        }

    def windows(self, epoch: int) -> list[Window]:
        """All shards at once if they fit, else 1, 2, 4, ... up to ``window_shards`` of them.

        The first step of a run waits for the first window only, so that one is small.
        """
        shards = shuffled(len(self.files), self.seed, epoch, 0).tolist()
        size = 1 if len(shards) > self.window_shards else self.window_shards
        windows = []
        while shards:
            windows.append(tuple(sorted(shards[:size])))
            shards = shards[size:]
            size = min(2 * size, self.window_shards)
        return windows

    def load(self, window: Window) -> Iterator[Samples]:
        for shard in window:
            yield read(self.files[shard], self.limits)


def eval_batches(
    files: Sequence[Path],
    *,
    num_examples: int,
    batch_size: int,
    world: int,
    rank: int,
    max_seq_length: int,
    max_predictions: int,
    vocab_size: int,
) -> list[PretrainingBatch]:
    """This rank's share of the first ``num_examples`` samples of ``files``.

    The shares are contiguous and the first ``num_examples % world`` ranks have one sample more
    (NVIDIA's v1.0 run_pretraining.py). Inside a share samples are ordered by length, which no sum
    over samples depends on and which makes batches of like lengths.

    Raises BadInput when the files hold fewer samples.
    """
    limits = Limits(
        max_seq_length=max_seq_length, max_predictions=max_predictions, vocab_size=vocab_size
    )
    parts: list[Samples] = []
    missing = num_examples
    for path in files:
        if missing:
            parts.append(read(path, limits, first=missing))
            missing -= len(parts[-1])
    if missing:
        where = files[0].parent if files else "no files"
        raise BadInput(
            f"{where}: evaluation needs {num_examples} samples and there are only "
            f"{num_examples - missing}; pass --num_eval_examples {num_examples - missing}"
        )
    return batches_of(Samples.concatenate(parts), batch_size=batch_size, world=world, rank=rank)


def batches_of(
    samples: Samples, *, batch_size: int, world: int, rank: int
) -> list[PretrainingBatch]:
    """One rank's contiguous share of ``samples``, longest first, ``batch_size`` at a time."""
    share, extra = divmod(len(samples), world)
    start = rank * share + min(rank, extra)
    rows = np.arange(start, start + share + (rank < extra))
    rows = rows[np.argsort(-samples.lengths[rows], kind="stable")]
    cuts = range(0, len(rows), batch_size)
    return [collate(samples, rows[at : at + batch_size]) for at in cuts]
