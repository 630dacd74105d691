# SPDX-License-Identifier: Apache-2.0
"""Pretraining samples as plain Python lists, and the three file layouts written the slow way."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from bertbench.common.data.samples import Samples, from_lengths, token_dtype

CLS, SEP, MASK = 101, 102, 103
VOCAB = 30522


@dataclass
class Plain:
    """One sample, spelled out."""

    ids: list[int]
    segments: list[int]
    positions: list[int]
    labels: list[int]
    next_sentence: int


def plain_samples(
    n: int, seed: int = 0, max_length: int = 40, vocab: int = VOCAB, min_length: int = 5
) -> list[Plain]:
    """``n`` samples; word ids are all different, so that any two samples can be told apart."""
    rng = random.Random(seed)
    result = []
    for _ in range(n):
        length = rng.randint(min_length, max_length)
        split = rng.randint(3, length - 2)
        ids = [CLS, *(rng.randint(200, vocab - 1) for _ in range(length - 2)), SEP]
        ids[split - 1] = SEP
        count = max(1, round(0.15 * length))
        inner = [p for p in range(1, length - 1) if p != split - 1]
        positions = sorted(rng.sample(inner, min(count, len(inner))))
        labels = [ids[p] for p in positions]
        for p in positions:
            ids[p] = MASK
        segments = [int(p >= split) for p in range(length)]
        result.append(Plain(ids, segments, positions, labels, rng.randint(0, 1)))
    return result


def to_samples(plain: list[Plain], vocab: int = VOCAB) -> Samples:
    """The compact form, one loop."""
    token = token_dtype(vocab)
    return Samples(
        input_ids=np.array([i for p in plain for i in p.ids], token),
        offsets=from_lengths(np.array([len(p.ids) for p in plain])),
        split=np.array([p.segments.count(0) for p in plain], np.uint16),
        masked_positions=np.array([i for p in plain for i in p.positions], np.uint16),
        masked_labels=np.array([i for p in plain for i in p.labels], token),
        masked_offsets=from_lengths(np.array([len(p.positions) for p in plain])),
        next_sentence_labels=np.array([p.next_sentence for p in plain], np.int8),
    )


def to_plain(samples: Samples) -> list[Plain]:
    """And back."""
    result = []
    for i in range(len(samples)):
        a, b = samples.offsets[i : i + 2].tolist()
        c, d = samples.masked_offsets[i : i + 2].tolist()
        result.append(
            Plain(
                samples.input_ids[a:b].tolist(),
                [int(p >= samples.split[i]) for p in range(b - a)],
                samples.masked_positions[c:d].tolist(),
                samples.masked_labels[c:d].tolist(),
                int(samples.next_sentence_labels[i]),
            )
        )
    return result


def write_fixed_slowly(path: Path, plain: list[Plain], width: int = 48, masks: int = 8) -> None:
    """facts: six padded datasets, uncompressed."""

    def padded(rows: list[list[int]], to: int, dtype: str) -> np.ndarray:
        return np.array([row + [0] * (to - len(row)) for row in rows], dtype)

    with h5py.File(path, "w") as file:
        file["input_ids"] = padded([p.ids for p in plain], width, "i4")
        file["input_mask"] = padded([[1] * len(p.ids) for p in plain], width, "i1")
        file["segment_ids"] = padded([p.segments for p in plain], width, "i1")
        file["masked_lm_positions"] = padded([p.positions for p in plain], masks, "i4")
        file["masked_lm_ids"] = padded([p.labels for p in plain], masks, "i4")
        file["next_sentence_labels"] = np.array([p.next_sentence for p in plain], "i1")


def vlen(file: h5py.File, name: str, rows: list[list[int]], dtype: str) -> None:
    """One dataset of rows of any length."""
    dataset = file.create_dataset(name, (len(rows),), h5py.vlen_dtype(np.dtype(dtype)))
    for at, row in enumerate(rows):
        dataset[at] = np.array(row, dtype)


def write_varlen_slowly(path: Path, plain: list[Plain], ids: str = "i2") -> None:
    """facts: four vlen datasets and plain labels, no mask."""
    with h5py.File(path, "w") as file:
        vlen(file, "input_ids", [p.ids for p in plain], ids)
        vlen(file, "segment_ids", [p.segments for p in plain], "i1")
        vlen(file, "masked_lm_positions", [p.positions for p in plain], "i2")
        vlen(file, "masked_lm_ids", [p.labels for p in plain], ids)
        file["next_sentence_labels"] = np.array([p.next_sentence for p in plain], "i1")


def write_packed_slowly(path: Path, rows: list[list[Plain]]) -> None:
    """facts: several samples in a row; masked positions count from the start of the row."""
    with h5py.File(path, "w") as file:
        vlen(file, "input_ids", [[i for p in row for i in p.ids] for row in rows], "i2")
        vlen(file, "segment_ids", [[i for p in row for i in p.segments] for row in rows], "i1")
        positions = []
        for row in rows:
            start, moved = 0, []
            for p in row:
                moved += [start + i for i in p.positions]
                start += len(p.ids)
            positions.append(moved)
        vlen(file, "masked_lm_positions", positions, "i2")
        vlen(file, "masked_lm_ids", [[i for p in row for i in p.labels] for row in rows], "i2")
        vlen(file, "next_sentence_labels", [[p.next_sentence for p in row] for row in rows], "i1")
        vlen(file, "packed_input_len", [[len(p.ids) for p in row] for row in rows], "i2")
        vlen(file, "packed_masked_lm_len", [[len(p.positions) for p in row] for row in rows], "i2")
