# SPDX-License-Identifier: Apache-2.0
"""Training steps and evaluation batches from MLPerf's files.

An epoch takes the shards in shuffled order, up to ``window_shards`` at a time; the samples of such
a window are in memory together and are shuffled among themselves.
"""

from __future__ import annotations

import functools
import threading
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertbench.common.data.batch import PretrainingBatch
from bertbench.common.data.collate import collate
from bertbench.common.data.hdf5 import Limits
from bertbench.common.data.reader import count, read
from bertbench.common.data.samples import IntArray, Samples
from bertbench.common.data.shards import quick_hash
from bertbench.common.data.steps import Division, Ordered, StepStream, shuffled
from bertbench.common.errors import BadInput

if TYPE_CHECKING:
    from typing_extensions import Unpack

Fetch = Callable[[Path, "int | None"], Samples]
"""Reads a file, or at most that many samples of it."""

Window = tuple[int, ...]
"""Numbers of the shards that are in memory together, ascending."""


class WindowStream(StepStream[Samples, PretrainingBatch]):
    """Endless steps over samples in windows; the same ones every time."""

    places = ("epoch", "window")

    @abstractmethod
    def windows(self, epoch: int) -> list[Window]:
        """Return the windows of an epoch in order, none of them empty."""

    @abstractmethod
    def load(self, window: Window) -> Iterator[Samples]:
        """Yield the samples of a window in pieces."""

    def ordered(self, stopping: threading.Event) -> Generator[Ordered[Samples], None, None]:
        """Yield windows with their orders; one that stays the same is not loaded again.

        Raises BadInput when ``start`` is beyond an epoch's windows.
        """
        epoch, window = self.start["epoch"], self.start["window"]
        loaded: Window | None = None
        while True:
            windows = self.windows(epoch)
            if window >= len(windows):
                raise BadInput(self._beyond(f"{len(windows)} windows of an epoch"))
            for number in range(window, len(windows)):
                if loaded != windows[number]:
                    parts = []
                    for part in self.load(windows[number]):
                        if stopping.is_set():
                            return
                        parts.append(part)
                    samples = Samples.concatenate(parts)
                    loaded = windows[number]
                    del part, parts
                order = shuffled(len(samples), self.seed, epoch, 1 + number)
                yield Ordered({"epoch": epoch, "window": number}, samples, order)
            epoch, window = epoch + 1, 0

    def join(self, pieces: list[tuple[Samples, IntArray]]) -> tuple[Samples, IntArray]:
        """Return all pieces, each rows [m] of a window, as rows [n] of one; copies for several."""
        if len(pieces) == 1:
            return pieces[0]
        samples = Samples.concatenate([part.take(chosen) for part, chosen in pieces])
        return samples, np.arange(len(samples))

    def collate(self, pool: Samples, rows: IntArray) -> PretrainingBatch:
        """Lay the samples ``rows`` [B] end to end, in that order."""
        return collate(pool, rows)

    def num_masked(self, pool: Samples, rows: IntArray) -> int:
        """Return the masked positions of ``rows`` [B]."""
        return int((pool.masked_offsets[rows + 1] - pool.masked_offsets[rows]).sum())


class TrainStream(WindowStream):
    """Endless steps over MLPerf files."""

    def __init__(
        self,
        files: Sequence[Path],
        *,
        limits: Limits,
        window_shards: int = 8,
        fetch: Fetch | None = None,
        **division: Unpack[Division],
    ) -> None:
        """Prepare; the first file is read on iteration.

        Args:
            files: the shards; their order is part of the sample order (``find_shards`` sorts).
            limits: a sample in the files beyond them is an error.
            window_shards: shards shuffled together. MLPerf's 2048 hold 76,500 samples of about
                700 bytes, so 8 are 430 MB; up to three times that while the next are loaded.
            fetch: reads one shard; by default as it is.
            division: see StepStream.

        Raises:
            BadInput: no files, no shard in a window, or StepStream's reasons.
        """
        if not files:
            raise BadInput("no training files were given")
        if window_shards < 1:
            raise BadInput(f"window_shards {window_shards}: must be at least 1")
        self.files, self.window_shards = tuple(files), window_shards
        self.fetch = fetch or (lambda path, first: read(path, limits, first))
        identity = {
            "num_shards": len(self.files),
            "window_shards": window_shards,
            "data": int(quick_hash(self.files)[:12], 16),
        }
        super().__init__(identity, **division)

    @functools.cached_property
    def num_samples(self) -> int:
        """Samples of an epoch: opens every file the first time, about 1 ms each."""
        return sum(map(count, self.files))

    def windows(self, epoch: int) -> list[Window]:
        """Return all shards at once if they fit, else 1, 2, 4, ... up to ``window_shards`` each.

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
        """Yield the samples of each shard."""
        for shard in window:
            yield self.fetch(self.files[shard], None)


def eval_batches(
    files: Sequence[Path],
    *,
    num_examples: int,
    batch_size: int,
    world: int,
    rank: int,
    limits: Limits,
    fetch: Fetch | None = None,
) -> list[PretrainingBatch]:
    """Return this rank's share of the first ``num_examples`` samples of ``files``.

    The shares are contiguous and the first ``num_examples % world`` ranks have one sample more
    (NVIDIA's v1.0 run_pretraining.py). Inside a share samples are ordered by length, which no sum
    over samples depends on and which makes batches of like lengths.

    Raises BadInput when the files hold fewer samples.
    """
    fetch = fetch or (lambda path, first: read(path, limits, first))
    samples = first_samples(files, num_examples, fetch)
    if len(samples) < num_examples:
        raise BadInput(
            f"{files[0].parent}: evaluation needs {num_examples} samples and there are only "
            f"{len(samples)}; pass --num_eval_examples {len(samples)}"
        )
    return batches_of(samples, batch_size=batch_size, world=world, rank=rank)


def first_samples(files: Sequence[Path], n: int, fetch: Fetch) -> Samples:
    """Return the first ``n`` samples of ``files``, at least one file, or all where fewer."""
    parts: list[Samples] = []
    for path in files:
        if n > 0:
            parts.append(fetch(path, n))
            n -= len(parts[-1])
    return Samples.concatenate(parts)


def batches_of(
    samples: Samples, *, batch_size: int, world: int, rank: int
) -> list[PretrainingBatch]:
    """Return a rank's contiguous share of ``samples``, longest first, ``batch_size`` at a time."""
    share, extra = divmod(len(samples), world)
    start = rank * share + min(rank, extra)
    rows = np.arange(start, start + share + (rank < extra))
    rows = rows[np.argsort(-samples.lengths[rows], kind="stable")]
    cuts = range(0, len(rows), batch_size)
    return [collate(samples, rows[at : at + batch_size]) for at in cuts]
