# SPDX-License-Identifier: Apache-2.0
"""Every layout is read exactly, and nothing that is wrong with a file gets through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_files import (
    Plain,
    plain_samples,
    to_plain,
    to_samples,
    write_fixed_slowly,
    write_packed_slowly,
    write_varlen_slowly,
)

from bertbench.common.data import hdf5
from bertbench.common.data.hdf5 import Limits, count, read
from bertbench.common.data.schema import layout_of, write_fixed, write_varlen
from bertbench.common.errors import BadInput

LIMITS = Limits(max_seq_length=48, max_predictions=8, vocab_size=30522)


def read_slowly(path: Path) -> list[Plain]:
    """A literal reading of facts 1.2 for fixed and varlen files, one row at a time."""
    result = []
    with h5py.File(path) as file:
        for row in range(len(file["input_ids"])):
            ids = file["input_ids"][row].tolist()
            positions = file["masked_lm_positions"][row].tolist()
            length, masked = len(ids), len(positions)
            if "input_mask" in file:
                length = int(file["input_mask"][row].sum())
                masked = int(np.count_nonzero(positions))
            result.append(
                Plain(
                    ids[:length],
                    file["segment_ids"][row].tolist()[:length],
                    positions[:masked],
                    file["masked_lm_ids"][row].tolist()[:masked],
                    int(file["next_sentence_labels"][row]),
                )
            )
    return result


def in_rows(plain: list[Plain], sizes: list[int]) -> list[list[Plain]]:
    rows, at = [], 0
    for size in sizes:
        rows.append(plain[at : at + size])
        at += size
    return [row for row in rows if row]


@pytest.mark.parametrize("chunk", [1, 7, 4096])
@pytest.mark.parametrize("layout", ["fixed", "varlen", "packed"])
def test_reads_each_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, chunk: int
) -> None:
    monkeypatch.setattr(hdf5, "CHUNK_ROWS", chunk)
    plain, path = plain_samples(29), tmp_path / "part_0"
    if layout == "fixed":
        write_fixed_slowly(path, plain)
    elif layout == "varlen":
        write_varlen_slowly(path, plain)
    else:
        write_packed_slowly(path, in_rows(plain, [3, 1, 2] * 10))
    assert to_plain(read(path, LIMITS)) == plain
    assert to_plain(read(path, LIMITS, first=11)) == plain[:11]
    assert to_plain(read(path, LIMITS, first=100)) == plain
    assert count(path) == len(plain)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(n=st.integers(1, 20), seed=st.integers(0, 1000), wide=st.booleans())
def test_writers_agree_with_a_literal_reader(tmp_path: Path, n: int, seed: int, wide: bool) -> None:
    vocab = 60000 if wide else 30522
    limits = Limits(max_seq_length=48, max_predictions=8, vocab_size=vocab)
    plain = plain_samples(n, seed, vocab=vocab)
    write_fixed(tmp_path / "fixed", to_samples(plain, vocab), 48, 8)
    write_varlen(tmp_path / "varlen", to_samples(plain, vocab))
    for name in ("fixed", "varlen"):
        assert read_slowly(tmp_path / name) == plain
        assert to_plain(read(tmp_path / name, limits)) == plain
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fixed", "varlen"]


def test_files_are_as_mlperf_lays_them_out(tmp_path: Path) -> None:
    samples = to_samples(plain_samples(5))
    write_fixed(tmp_path / "fixed", samples, 512, 76)
    write_varlen(tmp_path / "varlen", samples)
    with h5py.File(tmp_path / "fixed") as file:
        described = {name: (d.shape, d.dtype.str, d.chunks) for name, d in file.items()}
    assert described == {
        "input_ids": ((5, 512), "<i4", None),
        "input_mask": ((5, 512), "|i1", None),
        "segment_ids": ((5, 512), "|i1", None),
        "masked_lm_positions": ((5, 76), "<i4", None),
        "masked_lm_ids": ((5, 76), "<i4", None),
        "next_sentence_labels": ((5,), "|i1", None),
    }
    with h5py.File(tmp_path / "varlen") as file:
        assert {n: d.shape for n, d in file.items()} == {
            n: (5,) for n in described if n != "input_mask"
        }
        base = {n: h5py.check_vlen_dtype(d.dtype) for n, d in file.items()}
        assert base.pop("next_sentence_labels") is None
        assert base == {
            "input_ids": "int16",
            "segment_ids": "int8",
            "masked_lm_positions": "int16",
            "masked_lm_ids": "int16",
        }
    assert layout_of({"a", "b"}) is None


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    samples = to_samples(plain_samples(5, max_length=40))
    with pytest.raises(BadInput, match="values for input_ids, more than a row of 4"):
        write_fixed(tmp_path / "part", samples, 4, 8)
    broken = samples.take(np.arange(5))
    object.__setattr__(broken, "next_sentence_labels", np.array(["x"] * 5))
    with pytest.raises(ValueError):
        write_varlen(tmp_path / "part", broken)
    assert list(tmp_path.iterdir()) == []


def change(name: str, row: int, at: int, value: int) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "a") as file:
            values = file[name][row]
            if np.ndim(values):
                values[at] = value
            else:
                values = value
            file[name][row] = values

    return apply


def replace(name: str, row: int, values: list[int]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "a") as file:
            file[name][row] = np.array(values, file[name][row].dtype)

    return apply


def lengthen(name: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "a") as file:
            values = file[name][:-1]
            dtype = file[name].dtype
            del file[name]
            file.create_dataset(name, data=values, dtype=dtype)

    return apply


def rename(name: str, to: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "a") as file:
            file.move(name, to)

    return apply


def as_floats(name: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "a") as file:
            shape = file[name].shape
            del file[name]
            file[name] = np.zeros(shape)

    return apply


def cut(keep: float) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])

    return apply


def overwrite(text: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(text) and None


def break_heap(path: Path) -> None:
    """The places where variable-length rows are stored begin with GCOL."""
    path.write_bytes(path.read_bytes().replace(b"GCOL", b"XXXX"))


# What bad_file writes, one change, and how the message must name it.
FIXED = [
    (cut(0.9), r"cannot be opened .*truncated"),
    (overwrite(b"just text"), r"not an HDF5 file"),
    (overwrite(b""), r"empty"),
    (Path.unlink, r"no such file"),
    (rename("input_ids", "tokens"), r"not BERT pretraining data: its datasets are .*tokens"),
    (lengthen("segment_ids"), r"dataset segment_ids has 11 rows, input_ids has 12"),
    (as_floats("masked_lm_ids"), r"dataset masked_lm_ids holds float64, not integers"),
    (change("input_ids", 7, 2, 30522), r"dataset input_ids, row 7: value 30522 .* 0 to 30521"),
    (change("input_ids", 7, 2, -5), r"dataset input_ids, row 7: value -5 "),
    (change("input_ids", 7, 0, 55), r"dataset input_ids, row 7: the first token is not 101"),
    (change("input_mask", 7, 1, 0), r"dataset input_mask, row 7: is not ones followed by zeros"),
    (change("input_mask", 7, 0, 2), r"dataset input_mask, row 7: is not ones"),
    (change("segment_ids", 7, 0, 1), r"dataset segment_ids, row 7: is not zeros followed by ones"),
    (change("segment_ids", 7, 3, 3), r"dataset segment_ids, row 7: value 3 is not within 0 to 1"),
    (change("masked_lm_positions", 7, 0, 47), r"dataset masked_lm_positions, row 7: value 47 "),
    (change("masked_lm_positions", 7, 0, 0), r"dataset masked_lm_positions, row 7: has a 0 betw"),
    (change("masked_lm_positions", 7, 6, 30), r"dataset masked_lm_positions, row 7: has a 0 betw"),
    (change("masked_lm_ids", 7, 0, 0), r"dataset masked_lm_ids, row 7: .*one id per masked pos"),
    (change("masked_lm_ids", 7, 0, 99999), r"dataset masked_lm_ids, row 7: value 99999 "),
    (change("next_sentence_labels", 7, 0, 2), r"dataset next_sentence_labels, row 7: value 2 "),
]

VARLEN = [
    (break_heap, r"dataset input_ids, rows 0 to \d+: cannot be read"),
    (cut(0.5), r"cannot be opened .*truncated"),
    (rename("masked_lm_ids", "labels"), r"not BERT pretraining data"),
    (change("input_ids", 7, 2, -30000), r"dataset input_ids, row 7: value -30000 "),
    (replace("input_ids", 7, []), r"dataset segment_ids, row 7: has 2\d values, input_ids has 0"),
    (replace("masked_lm_ids", 7, [5]), r"dataset masked_lm_ids, row 7: has 1 values, masked_lm_p"),
    (
        replace("masked_lm_positions", 7, [9, 4, 4]),
        r"masked_lm_positions, row 7: is not strictly",
    ),
    (as_floats("segment_ids"), r"dataset segment_ids holds float64, not variable-length rows"),
    (lengthen("masked_lm_positions"), r"masked_lm_positions has 11 rows, input_ids has 12"),
]

PACKED = [
    (replace("packed_input_len", 3, [5, 6]), r"dataset packed_input_len, row 3: has 11 values, "),
    (replace("packed_input_len", 3, [40]), r"packed_masked_lm_len, row 3: has 2 values, packed_in"),
    (change("packed_masked_lm_len", 3, 0, 0), r"packed_masked_lm_len, row 3: has \d+ values, the "),
    (change("packed_masked_lm_len", 3, 0, -1), r"packed_masked_lm_len, row 3: has a negative"),
    (change("masked_lm_positions", 3, 0, 300), r"dataset masked_lm_positions, row 3: value 300"),
    (replace("next_sentence_labels", 3, [1]), r"next_sentence_labels, row 3: has 1 values, packed"),
]


def bad_file(path: Path, layout: str) -> None:
    plain = plain_samples(12, min_length=20, max_length=30)
    if layout == "fixed":
        write_fixed_slowly(path, plain)
    elif layout == "varlen":
        write_varlen_slowly(path, plain)
    else:
        write_packed_slowly(path, in_rows(plain, [2] * 6))
    read(path, LIMITS)  # sound before the damage


@pytest.mark.parametrize(
    ("layout", "damage", "message"),
    [
        (layout, damage, message)
        for layout, cases in (("fixed", FIXED), ("varlen", VARLEN), ("packed", PACKED))
        for damage, message in cases
    ],
)
@pytest.mark.parametrize("chunk", [2, 4096])
def test_damage_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    damage: Callable[[Path], None],
    message: str,
    chunk: int,
) -> None:
    monkeypatch.setattr(hdf5, "CHUNK_ROWS", chunk)
    path = tmp_path / "part_3_of_9.hdf5"
    bad_file(path, layout)
    damage(path)
    with pytest.raises(BadInput, match=message) as raised:
        read(path, LIMITS)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_seq_length=20), r"input_ids, row \d+: has \d+ tokens, max_seq_length is 20"),
        (Limits(max_predictions=2), r"row \d+: has \d positions, max_predictions_per_seq is 2"),
        (Limits(vocab_size=9000), r"dataset input_ids, row 0: value \d+ is not within 0 to 8999"),
    ],
)
def test_other_models_data(tmp_path: Path, limits: Limits, message: str) -> None:
    bad_file(tmp_path / "part", "varlen")
    with pytest.raises(BadInput, match=message):
        read(tmp_path / "part", limits)


def test_the_edges_of_a_row(tmp_path: Path) -> None:
    plain = plain_samples(4, min_length=20)
    length = len(plain[2].ids)
    for name, at, value, message in (
        ("input_ids", length - 1, 55, "row 2: the last token is not 102"),
        (
            "masked_lm_positions",
            len(plain[2].positions) - 1,
            length,
            f"not within 1 to {length - 1}",
        ),
    ):
        write_fixed_slowly(tmp_path / "part", plain)
        change(name, 2, at, value)(tmp_path / "part")
        with pytest.raises(BadInput, match=message):
            read(tmp_path / "part", LIMITS)


def test_no_rows(tmp_path: Path) -> None:
    write_fixed(tmp_path / "part", to_samples([]), 48, 8)
    with pytest.raises(BadInput, match="holds no samples"):
        read(tmp_path / "part", LIMITS)


def test_take_and_concatenate() -> None:
    plain = plain_samples(20)
    samples = to_samples(plain)
    rows = np.array([3, 3, 19, 0])
    taken = to_plain(samples.take(rows))
    assert [astuple(p) for p in taken] == [astuple(plain[r]) for r in rows]
    halves = [samples.take(np.arange(7)), samples.take(np.arange(7, 20))]
    assert to_plain(type(samples).concatenate(halves)) == plain


def retype(name: str, dtype: str, row: int, at: int, value: int) -> Callable[[Path], None]:
    """Another integer type, with a value that only it can hold."""

    def apply(path: Path) -> None:
        with h5py.File(path, "a") as file:
            rows = [np.array(values, dtype) for values in file[name][:]]
            rows[row][at] = value
            ragged = h5py.check_vlen_dtype(file[name].dtype) is not None
            del file[name]
            kind = h5py.vlen_dtype(np.dtype(dtype)) if ragged else np.dtype(dtype)
            made = file.create_dataset(name, (len(rows), *([] if ragged else rows[0].shape)), kind)
            for number, values in enumerate(rows):
                made[number] = values

    return apply


HUGE = 1 << 64


@pytest.mark.parametrize(
    ("layout", "damage"),
    [
        ("fixed", retype("input_ids", "u8", 7, 2, HUGE - 1)),
        ("fixed", retype("input_ids", "i8", 7, 2, 1 << 40)),
        ("fixed", retype("masked_lm_positions", "u8", 7, 0, HUGE - 5)),
        ("fixed", retype("masked_lm_ids", "u4", 7, 0, (1 << 32) - 1)),
        ("fixed", retype("segment_ids", "u8", 7, 4, HUGE - 1)),
        ("fixed", retype("input_mask", "u8", 7, 3, HUGE - 1)),
        ("varlen", retype("segment_ids", "i8", 7, 4, 1 << 32)),
        ("packed", retype("masked_lm_positions", "u8", 3, 0, HUGE - 1)),
        ("packed", retype("packed_input_len", "u8", 3, 0, HUGE - 1)),
        ("packed", retype("packed_input_len", "i8", 3, 0, (1 << 63) - 1)),
        ("packed", retype("packed_masked_lm_len", "i8", 3, 1, (1 << 62))),
        ("packed", retype("next_sentence_labels", "i8", 3, 1, 1 << 32)),
    ],
)
def test_values_that_wrap_in_a_narrower_type(
    tmp_path: Path, layout: str, damage: Callable[[Path], None]
) -> None:
    bad_file(tmp_path / "part", layout)
    damage(tmp_path / "part")
    with pytest.raises(BadInput, match=r"dataset \w+, row [37]: "):
        read(tmp_path / "part", LIMITS)


def test_lengths_whose_sum_wraps(tmp_path: Path) -> None:
    """Three lengths of 2**62 and more whose sum modulo 2**64 is the row's."""
    bad_file(tmp_path / "part", "packed")
    with h5py.File(tmp_path / "part", "a") as file:
        total = len(file["input_ids"][3])
    rows = [np.int64(1 << 62)] * 3 + [np.int64((1 << 62) + total)]
    with h5py.File(tmp_path / "part", "a") as file:
        for name in ("packed_input_len", "packed_masked_lm_len", "next_sentence_labels"):
            old = file[name][:]
            del file[name]
            made = file.create_dataset(name, (len(old),), h5py.vlen_dtype(np.dtype("i8")))
            for number, values in enumerate(old):
                made[number] = values
            made[3] = rows if name == "packed_input_len" else [0, 0, 0, 1]
    with pytest.raises(BadInput, match=r"dataset packed_\w+, row 3: has a length beyond the row"):
        read(tmp_path / "part", LIMITS)
