# SPDX-License-Identifier: Apache-2.0
"""Samples on disk between two stages, and the mixing of many such spools into one random order.

A spool is a folder with one ``.npy`` file for each field of ``Samples`` (or of ``Mixture``),
read through the page cache, so that any range of it costs only the bytes of that range.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bertbench.common.data.samples import IntArray, Samples
from bertbench.common.errors import BadInput
from bertbench.common.files import shown

Arrays = TypeVar("Arrays")


def save_spool(folder: Path, arrays: Any) -> None:
    """Write a dataclass of arrays; ``folder`` appears only when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder.parent))
    try:
        for field in dataclasses.fields(arrays):
            _save(work / f"{field.name}.npy", getattr(arrays, field.name))
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _save(path: Path, array: IntArray) -> None:
    """Write as ``numpy.save``, whose error on a full disk does not say so, and to the disk."""
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(array).data)
        file.flush()
        os.fsync(file.fileno())


def open_spool(kind: type[Arrays], folder: Path) -> Arrays:
    """Open what ``save_spool`` wrote of a dataclass, memory-mapped. Raises BadInput if damaged."""
    try:
        # Not glob, which takes a folder that cannot be listed for an empty one.
        paths = {path.stem: path for path in folder.iterdir() if path.suffix == ".npy"}
        opened = {name: np.load(path, mmap_mode="r") for name, path in paths.items()}
        # numpy cannot map an empty array.
        return kind(**{name: a if a.size else np.array(a) for name, a in opened.items()})
    except (ValueError, TypeError, EOFError) as error:
        raise BadInput(
            f"{shown(folder)} is damaged ({shown(error)}): delete {shown(folder.parent.parent)} "
            f"and prepare the data again"
        ) from error


def cut(samples: Samples, start: int, stop: int) -> Samples:
    """Return samples ``start:stop``, without copying tokens."""
    offsets = samples.offsets[start : stop + 1]
    masked = samples.masked_offsets[start : stop + 1]
    return Samples(
        input_ids=samples.input_ids[offsets[0] : offsets[-1]],
        offsets=offsets - offsets[0],
        split=samples.split[start:stop],
        masked_positions=samples.masked_positions[masked[0] : masked[-1]],
        masked_labels=samples.masked_labels[masked[0] : masked[-1]],
        masked_offsets=masked - masked[0],
        next_sentence_labels=samples.next_sentence_labels[start:stop],
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """A uniformly random order of the samples of P spools, cut into shards of equal size (+-1).

    Each spool's own order must already be random. Then drawing which spool comes next, and taking
    that spool's next sample, is a random permutation of all samples, yet every spool is read from
    front to back and no shard needs more than its own samples in memory.
    """

    source: IntArray
    """uint16 [N], which spool each sample of the output comes from."""
    bounds: IntArray
    """int64 [S + 1], where shards begin in ``source``."""
    first: IntArray
    """int64 [S + 1, P], samples of each spool used before a shard."""

    @classmethod
    def draw(cls, sizes: Sequence[int], num_shards: int, seed: int) -> Mixture:
        """Draw the order for spools of ``sizes`` samples; equal arguments give equal orders."""
        source = np.repeat(np.arange(len(sizes), dtype=np.uint16), sizes)
        np.random.Generator(np.random.PCG64(seed)).shuffle(source)
        bounds = len(source) * np.arange(num_shards + 1, dtype=np.int64) // num_shards
        first = np.zeros((num_shards + 1, len(sizes)), np.int64)
        for shard in range(num_shards):
            counts = np.bincount(source[bounds[shard] : bounds[shard + 1]], minlength=len(sizes))
            first[shard + 1] = first[shard] + counts
        return cls(source=source, bounds=bounds, first=first)

    def shard(self, number: int, spools: Sequence[Path]) -> Samples:
        """Return the samples of one shard in their order."""
        source = np.asarray(self.source[self.bounds[number] : self.bounds[number + 1]])
        start, stop = self.first[number], self.first[number + 1]
        pieces = [
            cut(open_spool(Samples, path), start[i], stop[i])
            for i, path in enumerate(spools)
            if stop[i] > start[i]
        ]
        if len(pieces) == 1:
            return pieces[0]
        # The pieces lie end to end by spool: the k-th draw of a spool is its k-th sample there.
        place = np.empty(len(source), np.int64)
        place[np.argsort(source, kind="stable")] = np.arange(len(source))
        return Samples.concatenate(pieces).take(place)
