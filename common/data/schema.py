# SPDX-License-Identifier: Apache-2.0
"""MLPerf's three HDF5 layouts for BERT pretraining: names, types, recognition, writing.

The layouts are those of mlcommons/training_results (NVIDIA's input_preprocessing): *fixed* since
v0.7 (padded rows, with ``input_mask``), *varlen* since v2.1 (1-D ``vlen`` rows, the length is the
length of ``input_ids``), *packed* since v2.1 (several samples end to end in one ``vlen`` row, with
``packed_input_len`` and ``packed_masked_lm_len`` giving their lengths).
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from bertbench.common.data.samples import IntArray, Samples
from bertbench.common.errors import BadInput

INPUT_IDS = "input_ids"
INPUT_MASK = "input_mask"
SEGMENT_IDS = "segment_ids"
MASKED_POSITIONS = "masked_lm_positions"
MASKED_IDS = "masked_lm_ids"
NEXT_SENTENCE = "next_sentence_labels"
PACKED_LENGTHS = "packed_input_len"
PACKED_MASKED_LENGTHS = "packed_masked_lm_len"

Layout = Literal["fixed", "varlen", "packed"]

FIXED: dict[str, np.dtype[Any]] = {
    INPUT_IDS: np.dtype(np.int32),
    INPUT_MASK: np.dtype(np.int8),
    SEGMENT_IDS: np.dtype(np.int8),
    MASKED_POSITIONS: np.dtype(np.int32),
    MASKED_IDS: np.dtype(np.int32),
    NEXT_SENTENCE: np.dtype(np.int8),
}
"""Fixed: [N, max_seq_length] or [N, max_predictions], padded with 0; next_sentence_labels [N]."""

VARLEN: dict[str, np.dtype[Any]] = {
    INPUT_IDS: np.dtype(np.int16),
    SEGMENT_IDS: np.dtype(np.int8),
    MASKED_POSITIONS: np.dtype(np.int16),
    MASKED_IDS: np.dtype(np.int16),
    NEXT_SENTENCE: np.dtype(np.int8),
}
"""Varlen: [N] rows of that base type; next_sentence_labels is a plain [N]."""

PACKED: dict[str, np.dtype[Any]] = {
    **VARLEN,
    PACKED_LENGTHS: np.dtype(np.int16),
    PACKED_MASKED_LENGTHS: np.dtype(np.int16),
}
"""Packed: as varlen, next_sentence_labels ``vlen`` too; masked positions count from the row."""

DATASETS: dict[Layout, dict[str, np.dtype[Any]]] = {
    "packed": PACKED,
    "fixed": FIXED,
    "varlen": VARLEN,
}
"""Most specific first: varlen's names are part of both others."""

WRITE_ROWS = 8192
"""Rows padded at a time when writing fixed files: bounds the memory, not the result."""


def layout_of(names: Collection[str]) -> Layout | None:
    """Return the layout with these dataset names, or None; extra datasets are ignored."""
    return next((layout for layout, own in DATASETS.items() if own.keys() <= set(names)), None)


def write_varlen(path: Path, samples: Samples) -> None:
    """Write the varlen layout; ``path`` appears only when it is complete.

    Ids above 32,767 do not fit MLPerf's int16, so such a file gets int32 rows instead.
    """
    wide = max(samples.input_ids.max(initial=0), samples.masked_labels.max(initial=0)) >= 1 << 15
    ones = samples.lengths - samples.split
    runs = np.stack([samples.split, ones], axis=1).ravel()
    segments = np.repeat(np.tile(np.array([0, 1], np.int8), len(samples)), runs)
    ragged = {
        INPUT_IDS: (samples.input_ids, samples.offsets),
        SEGMENT_IDS: (segments, samples.offsets),
        MASKED_POSITIONS: (samples.masked_positions, samples.masked_offsets),
        MASKED_IDS: (samples.masked_labels, samples.masked_offsets),
    }
    with _new_file(path) as file:
        for name, (flat, offsets) in ragged.items():
            base = VARLEN[name]
            if wide and name in (INPUT_IDS, MASKED_IDS):
                base = np.dtype(np.int32)
            _write_ragged(file, name, np.ascontiguousarray(flat, base), offsets)
        labels = samples.next_sentence_labels.astype(VARLEN[NEXT_SENTENCE])
        file.create_dataset(NEXT_SENTENCE, data=labels)


def _write_ragged(file: h5py.File, name: str, flat: IntArray, offsets: IntArray) -> None:
    """Write a vlen dataset whose row i is ``flat[offsets[i]:offsets[i + 1]]``.

    HDF5 takes ``hvl_t`` records (length, address) directly. From one array object per row h5py
    would make the same records at three times the cost.
    """
    dataset = file.create_dataset(name, (len(offsets) - 1,), h5py.vlen_dtype(flat.dtype))
    records = np.zeros(len(dataset), [("length", np.uintp), ("address", np.uintp)])
    records["length"] = np.diff(offsets)
    records["address"] = flat.ctypes.data + offsets[:-1] * flat.itemsize
    if len(records):
        kind = h5py.h5t.vlen_create(h5py.h5t.py_create(flat.dtype))
        dataset.id.write(h5py.h5s.ALL, h5py.h5s.ALL, records, kind)


def write_fixed(path: Path, samples: Samples, max_seq_length: int, max_predictions: int) -> None:
    """Write the fixed layout, contiguous and uncompressed; ``path`` appears only when complete.

    Raises BadInput when a sample is longer than a row.
    """
    for name, sizes, limit in (
        (INPUT_IDS, samples.lengths, max_seq_length),
        (MASKED_POSITIONS, samples.masked_counts, max_predictions),
    ):
        if len(sizes) and sizes.max() > limit:
            row = int(sizes.argmax())
            raise BadInput(
                f"{path}: sample {row} has {sizes[row]} values for {name}, "
                f"more than a row of {limit}; raise the limit"
            )
    widths = {MASKED_POSITIONS: max_predictions, MASKED_IDS: max_predictions}
    with _new_file(path) as file:
        out = {}
        for name, dtype in FIXED.items():
            width = () if name == NEXT_SENTENCE else (widths.get(name, max_seq_length),)
            out[name] = file.create_dataset(name, (len(samples), *width), dtype)
        for start in range(0, len(samples), WRITE_ROWS):
            part = samples.take(np.arange(start, min(start + WRITE_ROWS, len(samples))))
            columns = np.arange(max_seq_length)
            mask = columns < part.lengths[:, None]
            masked = np.arange(max_predictions) < part.masked_counts[:, None]
            content = {
                INPUT_IDS: _padded(part.input_ids, mask),
                INPUT_MASK: mask.astype(np.int8),
                SEGMENT_IDS: (mask & (columns >= part.split[:, None])).astype(np.int8),
                MASKED_POSITIONS: _padded(part.masked_positions, masked),
                MASKED_IDS: _padded(part.masked_labels, masked),
                NEXT_SENTENCE: part.next_sentence_labels,
            }
            for name, rows in content.items():
                out[name][start : start + len(part)] = rows


def _padded(flat: IntArray, mask: IntArray) -> IntArray:
    """Spread ``flat`` over the true cells of ``mask`` [n, width], row by row; 0 elsewhere."""
    result = np.zeros(mask.shape, np.int32)
    result[mask] = flat
    return result


class _File(io.FileIO):
    """A file whose errors HDF5 does not see: after a failed write the library crashes at times."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        left = view
        while left and not self.failure:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self.failure = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[h5py.File]:
    """Open a new HDF5 file under a temporary name; rename it to ``path`` at the end.

    Raises OSError with the file's name where the disk does not take it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    stream = _File(handle, "r+")
    try:
        with stream, h5py.File(stream, "w") as file:
            yield file
        if stream.failure is None:
            Path(name).chmod(0o644)
            Path(name).replace(path)
    except Exception:
        if stream.failure is None:  # else HDF5's own error follows from it
            raise
    finally:
        with contextlib.suppress(OSError):
            Path(name).unlink(missing_ok=True)
    if (failure := stream.failure) is not None:
        raise OSError(failure.errno, failure.strerror, str(path)) from failure
