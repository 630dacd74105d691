# SPDX-License-Identifier: Apache-2.0
"""Read MLPerf's fixed, varlen and packed HDF5 into ``Samples``, checking every value on the way.

The layout is recognised by the dataset names (schema.py). A truncated, foreign or corrupt file
raises BadInput, which names file, dataset and row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np

from bertbench.common.data.container import open_file, plain_datasets
from bertbench.common.data.samples import IntArray, Samples, from_lengths, places, token_dtype
from bertbench.common.data.schema import (
    DATASETS,
    INPUT_IDS,
    INPUT_MASK,
    MASKED_IDS,
    MASKED_POSITIONS,
    NEXT_SENTENCE,
    PACKED_LENGTHS,
    PACKED_MASKED_LENGTHS,
    SEGMENT_IDS,
    Layout,
    layout_of,
)
from bertbench.common.errors import BadInput
from bertbench.common.files import shown

CHUNK_ROWS = 4096
"""Rows read and checked at a time: bounds memory and how long a prefetch thread holds the GIL."""

SMALL_BYTES = 1 << 20

VLEN_DESCRIPTOR = np.dtype([("length", "<u4"), ("collection", "<u8"), ("index", "<u4")])
"""How HDF5 stores a variable-length row (file format specification, "Global Heap ID")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the model; a sample beyond them is an error, never cut. Defaults: MLPerf's."""

    max_seq_length: int = 512
    max_predictions: int = 76
    vocab_size: int = 30522


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Some rows laid flat, in the file's integer types, unchecked."""

    rows: IntArray
    """int64 [n], the file row of each sample (packed rows hold several)."""
    lengths: IntArray
    ids: IntArray
    segments: IntArray
    masked_counts: IntArray
    positions: IntArray
    labels: IntArray
    next_sentence: IntArray


class _File:
    """An open file whose datasets have the right names, shapes and types."""

    def __init__(self, path: Path, handle: h5py.File) -> None:
        self.path = path
        layout = layout_of(handle.keys())
        if layout is None:
            have = shown(", ".join(sorted(handle.keys()))) or "none"
            raise BadInput(
                f"{path}: not BERT pretraining data: its datasets are {have}; "
                f"fixed-length files have {', '.join(DATASETS['fixed'])}, variable-length "
                f"ones {', '.join(DATASETS['varlen'])}; make such files with "
                f"`bertbench data prepare`"
            )
        self.layout: Layout = layout
        self.datasets = plain_datasets(path, handle, DATASETS[layout])
        self._check_types()
        self.num_rows = len(self.datasets[INPUT_IDS])

    def _check_types(self) -> None:
        """Refuse datasets without integers, their layout's rank and equally many rows."""
        for name, dataset in self.datasets.items():
            ragged = self.layout == "packed" or (self.layout == "varlen" and name != NEXT_SENTENCE)
            base = h5py.check_vlen_dtype(dataset.dtype)
            if (base is not None) != ragged or np.dtype(base or dataset.dtype).kind not in "iu":
                want = "variable-length rows of integers" if ragged else "integers"
                raise BadInput(
                    f"{self.path}: dataset {name} holds {shown(dataset.dtype)}, not {want}, as "
                    f"the {self.layout} layout has"
                )
            rank = 2 if self.layout == "fixed" and name != NEXT_SENTENCE else 1
            if dataset.ndim != rank:
                raise BadInput(
                    f"{self.path}: dataset {name} has shape {dataset.shape}, not {rank} dimensions"
                )
            first = self.datasets[INPUT_IDS]
            if len(dataset) != len(first):
                raise BadInput(
                    f"{self.path}: dataset {name} has {len(dataset)} rows, {INPUT_IDS} has "
                    f"{len(first)}; the file is damaged, make or copy it again"
                )
        pairs = ((INPUT_MASK, INPUT_IDS), (SEGMENT_IDS, INPUT_IDS), (MASKED_IDS, MASKED_POSITIONS))
        for name, other in pairs if self.layout == "fixed" else ():
            if self.datasets[name].shape != self.datasets[other].shape:
                raise BadInput(
                    f"{self.path}: dataset {name} has shape {self.datasets[name].shape}, "
                    f"{other} has {self.datasets[other].shape}"
                )
        if not len(self.datasets[INPUT_IDS]):
            raise BadInput(f"{self.path}: holds no samples; remove it or make it again")

    def chunks(self) -> Iterator[_Chunk]:
        """Yield all rows in order, CHUNK_ROWS at a time."""
        read = {"fixed": self._fixed, "varlen": self._varlen, "packed": self._packed}[self.layout]
        for start in range(0, self.num_rows, CHUNK_ROWS):
            yield read(start, min(start + CHUNK_ROWS, self.num_rows))

    def values(self, name: str, start: int, stop: int) -> IntArray:
        """Read rows of a dataset; raises BadInput where the library cannot."""
        try:
            return self.datasets[name][start:stop]
        except (OSError, RuntimeError, MemoryError) as error:
            raise BadInput(
                f"{self.path}: dataset {name}, rows {start} to {stop - 1}: cannot be read "
                f"({shown(error)}); the file is damaged, make or copy it again"
            ) from error

    def _ragged(self, name: str, start: int, stop: int) -> tuple[IntArray, IntArray]:
        """Return the flat values of vlen rows and their lengths, int64."""
        rows = self.values(name, start, stop)
        return np.concatenate(rows), np.fromiter(map(len, rows), np.int64, len(rows))

    def fail(self, name: str, row: int, what: str) -> NoReturn:
        """Raise BadInput for a row of a dataset."""
        raise BadInput(
            f"{self.path}: dataset {name}, row {row}: {what}; the file is damaged or was made "
            f"for another model, make or copy it again"
        )

    def fail_first(self, name: str, bad: IntArray, rows: IntArray, what: str) -> None:
        """Raise BadInput for the first true entry of ``bad`` [n], which belongs to ``rows`` [n]."""
        if bad.any():
            self.fail(name, int(rows[bad.argmax()]), what)

    def _fixed(self, start: int, stop: int) -> _Chunk:
        read = {name: self.values(name, start, stop) for name in self.datasets}
        rows = np.arange(start, stop)
        mask, positions, labels = read[INPUT_MASK], read[MASKED_POSITIONS], read[MASKED_IDS]
        lengths = np.count_nonzero(mask, axis=1)
        valid = np.arange(mask.shape[1]) < lengths[:, None]
        bad = (mask != valid).any(axis=1)
        self.fail_first(INPUT_MASK, bad, rows, "is not ones followed by zeros")
        # MLPerf's loaders count the positions that are not 0; 0 is [CLS], which is never masked.
        counts = np.count_nonzero(positions, axis=1)
        masked = np.arange(positions.shape[1]) < counts[:, None]
        bad = ((positions != 0) != masked).any(axis=1)
        self.fail_first(MASKED_POSITIONS, bad, rows, "has a 0 between positions")
        bad = ((labels != 0) != masked).any(axis=1)
        self.fail_first(MASKED_IDS, bad, rows, "does not have one id per masked position")
        return _Chunk(
            rows=rows,
            lengths=lengths,
            ids=read[INPUT_IDS][valid],
            segments=read[SEGMENT_IDS][valid],
            masked_counts=counts,
            positions=positions[masked],
            labels=labels[masked],
            next_sentence=read[NEXT_SENTENCE],
        )

    def _varlen(self, start: int, stop: int) -> _Chunk:
        return self._rows(start, stop, self.values(NEXT_SENTENCE, start, stop))

    def _rows(self, start: int, stop: int, next_sentence: IntArray) -> _Chunk:
        """Read variable-length rows; ``next_sentence`` holds their labels, in any number."""
        rows = np.arange(start, stop)
        ids, lengths = self._ragged(INPUT_IDS, start, stop)
        segments, segment_lengths = self._ragged(SEGMENT_IDS, start, stop)
        positions, counts = self._ragged(MASKED_POSITIONS, start, stop)
        labels, label_counts = self._ragged(MASKED_IDS, start, stop)
        self._same_sizes(SEGMENT_IDS, segment_lengths, INPUT_IDS, lengths, rows)
        self._same_sizes(MASKED_IDS, label_counts, MASKED_POSITIONS, counts, rows)
        return _Chunk(
            rows=rows,
            lengths=lengths,
            ids=ids,
            segments=segments,
            masked_counts=counts,
            positions=positions,
            labels=labels,
            next_sentence=next_sentence,
        )

    def _packed(self, start: int, stop: int) -> _Chunk:
        """Read rows, then take each apart into its sequences."""
        next_sentence, labels_per_row = self._ragged(NEXT_SENTENCE, start, stop)
        whole = self._rows(start, stop, next_sentence)
        rows, row_lengths, row_counts = whole.rows, whole.lengths, whole.masked_counts
        lengths, per_row = self._ragged(PACKED_LENGTHS, start, stop)
        counts, counts_per_row = self._ragged(PACKED_MASKED_LENGTHS, start, stop)
        lengths, counts = lengths.astype(np.int64), counts.astype(np.int64)
        self._same_sizes(PACKED_MASKED_LENGTHS, counts_per_row, PACKED_LENGTHS, per_row, rows)
        self._same_sizes(NEXT_SENTENCE, labels_per_row, PACKED_LENGTHS, per_row, rows)
        self.fail_first(PACKED_LENGTHS, per_row == 0, rows, "has no sequences")
        sample_rows = np.repeat(rows, per_row)
        bounds = from_lengths(per_row)
        for name, sizes, row_sizes in (
            (PACKED_LENGTHS, lengths, row_lengths),
            (PACKED_MASKED_LENGTHS, counts, row_counts),
        ):
            self.fail_first(name, sizes < 0, sample_rows, "has a negative length")
            beyond = sizes > np.repeat(row_sizes, per_row)
            self.fail_first(name, beyond, sample_rows, "has a length beyond the row")
            total = from_lengths(sizes)
            self._same_sizes(name, np.diff(total[bounds]), "the row", row_sizes, rows)
        # A masked position counts from the row's start; subtract where its sequence starts.
        starts = from_lengths(lengths)[:-1] - np.repeat(from_lengths(row_lengths)[:-1], per_row)
        return replace(
            whole,
            rows=sample_rows,
            lengths=lengths,
            masked_counts=counts,
            positions=whole.positions.astype(np.int64) - np.repeat(starts, counts),
        )

    def _same_sizes(
        self, name: str, sizes: IntArray, other: str, want: IntArray, rows: IntArray
    ) -> None:
        bad = sizes != want
        if bad.any():
            at = int(bad.argmax())
            self.fail(name, int(rows[at]), f"has {sizes[at]} values, {other} has {want[at]}")


def read(path: Path, limits: Limits, first: int | None = None) -> Samples:
    """Read and validate all samples of one file, or at most the ``first``.

    Only files that are known to be sound: the library may hang on others (reader.py reads any).
    Raises BadInput, with file, dataset and row, for invalid pretraining data.
    """
    return Samples.concatenate(list(parts(path, limits, first)))


def parts(path: Path, limits: Limits, first: int | None = None) -> Iterator[Samples]:
    """Yield what ``read`` returns in parts of at most CHUNK_ROWS rows."""
    left = first
    with open_file(path) as handle:
        file = _File(path, handle)
        edge: tuple[int, int] | None = None
        for chunk in file.chunks():
            part = _checked(file, chunk, limits, edge)
            edge = edge or (int(part.input_ids[0]), int(part.input_ids[part.offsets[1] - 1]))
            if left is not None:
                part = part if len(part) <= left else part.take(np.arange(left))
                left -= len(part)
            yield part
            if left == 0:
                break


def count(path: Path, alive: Callable[[], None] = lambda: None) -> int:
    """Count the samples of one file, without reading the text; calls ``alive`` now and then.

    Raises BadInput like ``read``.
    """
    with open_file(path) as handle:
        file = _File(path, handle)
        if file.layout != "packed":
            return file.num_rows
        dataset = file.datasets[PACKED_LENGTHS]
        offset = dataset.id.get_offset()
        size = VLEN_DESCRIPTOR.itemsize * file.num_rows
        if offset is not None and dataset.id.get_storage_size() == size:
            # Contiguous: the row lengths lie side by side, a hundred times faster than the rows.
            rows = np.fromfile(path, VLEN_DESCRIPTOR, file.num_rows, offset=offset)
            total = int(rows["length"].sum(dtype=np.int64))
            if total > path.stat().st_size:
                raise BadInput(
                    f"{path}: dataset {PACKED_LENGTHS} is damaged, make or copy it again"
                )
            return total
        total = 0
        for start in range(0, file.num_rows, CHUNK_ROWS):
            alive()
            rows = file.values(PACKED_LENGTHS, start, min(start + CHUNK_ROWS, file.num_rows))
            total += sum(map(len, rows))
        return total


def small_datasets(path: Path) -> str:
    """Return a sha256 over the datasets of at most SMALL_BYTES, such as next-sentence labels."""
    digest = hashlib.sha256()
    with open_file(path) as handle:
        for name, dataset in _File(path, handle).datasets.items():
            if dataset.dtype.kind in "iu" and dataset.nbytes <= SMALL_BYTES:
                digest.update(f"{name}\0{dataset.dtype.str}\0".encode() + dataset[:].tobytes())
    return digest.hexdigest()


def _checked(file: _File, chunk: _Chunk, limits: Limits, edge: tuple[int, int] | None) -> Samples:
    """Return ``chunk`` as Samples, once every value is in range.

    ``edge`` holds the [CLS] and [SEP] that the file's first sample begins and ends with: they
    differ between vocabularies, but all samples of a file must agree.
    """
    rows, lengths, counts = chunk.rows, chunk.lengths, chunk.masked_counts
    limit = limits.max_seq_length
    file.fail_first(INPUT_IDS, lengths == 0, rows, "has no tokens")
    if (lengths > limit).any():
        at = int((lengths > limit).argmax())
        file.fail(INPUT_IDS, int(rows[at]), f"has {lengths[at]} tokens, max_seq_length is {limit}")
    limit = limits.max_predictions
    if (counts > limit).any():
        at = int((counts > limit).argmax())
        what = f"has {counts[at]} positions, max_predictions_per_seq is {limit}"
        file.fail(MASKED_POSITIONS, int(rows[at]), what)
    token_rows, masked_rows = np.repeat(rows, lengths), np.repeat(rows, counts)
    for name, values, where, low, high in (
        (INPUT_IDS, chunk.ids, token_rows, 0, limits.vocab_size - 1),
        (SEGMENT_IDS, chunk.segments, token_rows, 0, 1),
        (MASKED_POSITIONS, chunk.positions, masked_rows, 1, np.repeat(lengths, counts) - 1),
        (MASKED_IDS, chunk.labels, masked_rows, 1, limits.vocab_size - 1),
        (NEXT_SENTENCE, chunk.next_sentence, rows, 0, 1),
    ):
        bad = (values < low) | (values > high)
        if bad.any():
            at = int(bad.argmax())
            top = high if isinstance(high, int) else high[at]
            file.fail(name, int(where[at]), f"value {values[at]} is not within {low} to {top}")
    offsets, masked_offsets = from_lengths(lengths), from_lengths(counts)
    ascending = np.ones(len(chunk.positions), bool)
    ascending[1:] = np.diff(chunk.positions.astype(np.int64)) > 0
    ascending[masked_offsets[:-1][counts > 0]] = True
    file.fail_first(MASKED_POSITIONS, ~ascending, masked_rows, "is not strictly ascending")
    split = lengths - np.add.reduceat(chunk.segments, offsets[:-1], dtype=np.int64)
    bad = chunk.segments != (places(offsets) >= np.repeat(split, lengths))
    file.fail_first(SEGMENT_IDS, bad, token_rows, "is not zeros followed by ones")
    first, last = chunk.ids[offsets[:-1]], chunk.ids[offsets[1:] - 1]
    cls, sep = edge or (int(first[0]), int(last[0]))
    for values, want, name in ((first, cls, "first"), (last, sep, "last")):
        what = f"the {name} token is not {want} as in the rows before"
        file.fail_first(INPUT_IDS, values != want, rows, what)
    dtype = token_dtype(limits.vocab_size)
    return Samples(
        input_ids=chunk.ids.astype(dtype),
        offsets=offsets,
        split=split.astype(np.uint16),
        masked_positions=chunk.positions.astype(np.uint16),
        masked_labels=chunk.labels.astype(dtype),
        masked_offsets=masked_offsets,
        next_sentence_labels=chunk.next_sentence.astype(np.int8),
    )
