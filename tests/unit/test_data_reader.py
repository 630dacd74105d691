# SPDX-License-Identifier: Apache-2.0
"""Files that hang, fill or crash the HDF5 library, or lead it elsewhere, cost one line."""

from __future__ import annotations

import os
import random
import signal
import time
import zlib
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import h5py
import numpy as np
import pytest
from sample_files import (
    Plain,
    plain_samples,
    to_plain,
    write_fixed_slowly,
    write_packed_slowly,
    write_varlen_slowly,
)

from bertbench.common.data import reader
from bertbench.common.data.hdf5 import Limits
from bertbench.common.data.reader import count, read, small_datasets
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256

LIMITS = Limits(max_seq_length=48, max_predictions=8)


def write_compressed(path: Path, plain: list[Plain]) -> None:
    write_fixed_slowly(path.with_name("plain"), plain)
    with h5py.File(path.with_name("plain")) as old, h5py.File(path, "w") as new:
        for name in old:
            kind = "lzf" if name == "input_ids" else "gzip"
            new.create_dataset(name, data=old[name][:], compression=kind, chunks=True)


WRITERS: dict[str, Callable[[Path, list[Plain]], None]] = {
    "fixed": write_fixed_slowly,
    "varlen": write_varlen_slowly,
    "packed": lambda path, plain: write_packed_slowly(
        path, [plain[at : at + 2] for at in range(0, len(plain), 2)]
    ),
    "compressed": write_compressed,
}


@pytest.mark.parametrize("layout", WRITERS)
def test_the_child_reads_what_is_there(tmp_path: Path, layout: str) -> None:
    reader.stop()  # tests before this one may have left several
    plain = plain_samples(20)
    path = tmp_path / "part"
    WRITERS[layout](path, plain)
    found = read(path, LIMITS, sha256=file_sha256(path))
    assert [astuple(p) for p in to_plain(found)] == [astuple(p) for p in plain]
    assert len(read(path, LIMITS, first=7)) == 7
    assert count(path) == 20
    assert len(small_datasets(path)) == 64
    assert len(reader._idle) == 1  # one process served all


def test_relative_names_are_of_the_folder_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fixed_slowly(tmp_path / "a.hdf5", plain_samples(3))
    assert count(tmp_path / "a.hdf5") == 3  # the child runs now, in another folder
    monkeypatch.chdir(tmp_path)
    assert count(Path("a.hdf5")) == 3


def test_bytes_are_compared_first(tmp_path: Path) -> None:
    path = tmp_path / "part_0"
    path.write_bytes(b"whatever")
    with pytest.raises(BadInput, match=r"part_0: its sha256 is [0-9a-f]{64}, its manifest says 0"):
        read(path, LIMITS, sha256="0" * 64)


def elsewhere(path: Path, name: str, dtype: str = "i4") -> None:
    """Another local file that looks like the values of a dataset."""
    with h5py.File(path, "a") as file:
        values = file[name][:]
        del file[name]
    (path.parent / "private").write_bytes(values.astype(dtype).tobytes())


def external_storage(path: Path) -> None:
    with h5py.File(path) as file:
        shape = file["input_ids"].shape
    elsewhere(path, "input_ids")
    with h5py.File(path, "a") as file:
        outside = [(str(path.parent / "private"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("input_ids", shape, "i4", external=outside)


def external_link(path: Path) -> None:
    path.rename(path.parent / "real")
    with h5py.File(path.parent / "real") as real, h5py.File(path, "w") as file:
        for name in real:
            real.copy(name, file)
        del file["masked_lm_ids"]
        file["masked_lm_ids"] = h5py.ExternalLink("real", "masked_lm_ids")


def soft_link(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.move("segment_ids", "else")
        file["segment_ids"] = h5py.SoftLink("/else")


def virtual(path: Path) -> None:
    path.rename(path.parent / "real")
    with h5py.File(path.parent / "real") as real, h5py.File(path, "w") as file:
        for name in real:
            real.copy(name, file)
        del file["input_mask"]
        layout = h5py.VirtualLayout(real["input_mask"].shape, "i1")
        layout[:] = h5py.VirtualSource("real", "input_mask", real["input_mask"].shape)
        file.create_virtual_dataset("input_mask", layout)


def as_type(name: str, dtype: object, fill: object = 0) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "a") as file:
            shape = file[name].shape
            del file[name]
            dataset = file.create_dataset(name, shape, dtype)
            dataset[(0,) * len(shape)] = file.ref if fill is None else fill

    return apply


def plugin(path: Path) -> None:
    with h5py.File(path, "a") as file:
        values = file["input_ids"][:]
        del file["input_ids"]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk(values.shape)
        plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)  # Zstandard, not part of HDF5
        space = h5py.h5s.create_simple(values.shape)
        made = h5py.h5d.create(file.id, b"input_ids", h5py.h5t.STD_I32LE, space, plan)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(values, "i4"))


def group(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["input_ids"]
        file.create_group("input_ids")


def unwritten(chunks: tuple[int, int] | None) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "a") as file:
            shape = file["input_ids"].shape
            del file["input_ids"]
            file.create_dataset("input_ids", shape, "i4", chunks=chunks)

    return apply


def endless(path: Path) -> None:
    """A few bytes that claim 2**40 rows."""
    with h5py.File(path, "a") as file:
        for name in list(file):
            width = file[name].shape[1:]
            del file[name]
            file.create_dataset(name, (1 << 40, *width), "i1", chunks=(1 << 10, *width))


COMPOUND = np.dtype([("a", "i4"), ("\x1b[2J", "i4")])

REFUSED = [
    (external_storage, r"dataset input_ids has external storage: its values lie in .*private"),
    (external_link, r"masked_lm_ids is a link to real, not a dataset"),
    (soft_link, r"segment_ids is a link, not a dataset"),
    (virtual, r"dataset input_mask is virtual: its values lie in other files"),
    (plugin, r"dataset input_ids needs HDF5's filter 32015, a plugin"),
    (group, r"input_ids is not a dataset"),
    (unwritten(None), r"dataset input_ids has shape \(12, 48\), but only 0 bytes"),
    (unwritten((4, 48)), r"dataset input_ids has chunks that were never written"),
    (endless, r"has chunks that were never written"),
    (
        as_type("input_ids", COMPOUND, (0, 0)),
        r"input_ids holds \[\(",
    ),
    (as_type("masked_lm_ids", h5py.ref_dtype, None), r"masked_lm_ids holds object, not integers"),
    (as_type("input_ids", h5py.string_dtype(), b"x"), r"input_ids holds object, not integers"),
    (as_type("segment_ids", "S4", b"x"), r"segment_ids holds \|S4, not integers"),
    (
        as_type("next_sentence_labels", h5py.vlen_dtype("i4"), [1]),
        r"next_sentence_labels holds obj",
    ),
    (as_type("next_sentence_labels", "f8"), r"next_sentence_labels holds float64"),
    (as_type("next_sentence_labels", bool), r"next_sentence_labels holds bool"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_values_elsewhere_are_refused_by_name(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "part_0.hdf5"
    write_fixed_slowly(path, plain_samples(12))
    change(path)
    for act in (lambda: read(path, LIMITS), lambda: count(path)):
        with pytest.raises(BadInput, match=message) as raised:
            act()
        assert "part_0.hdf5" in str(raised.value)
        assert str(raised.value).isprintable()


KINDS = [
    (b"", "is empty"),
    (bytes(5000), "begins with zeros only"),
    (b"One sentence.\nAnother.\n\n", "is text; .*data prepare --text"),
    ("Ein Satz \u00fcber B\u00fccher.\n".encode() * 400, "is text"),
    (b"\x1f\x8b\x08rest", "is compressed by gzip; unpack it"),
    (b"PK\x03\x04rest", "is a zip archive"),
    (b"<!doctype html><p>404", "is a web page; the download failed"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer .*git lfs pull"),
    (b"\x93NUMPY\x01", "is a NumPy array"),
    ((20).to_bytes(8, "little") + b"crc.\n\x12" + bytes(40), "is TFRecord.*data prepare --text"),
    (b"\xff\x00\x12unknown", "begins with unknown data"),
]


@pytest.mark.parametrize(("content", "message"), KINDS)
def test_other_files_are_called_what_they_are(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "part-00000-of-00500"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"part-00000-of-00500: not an HDF5 file: it {message}"):
        read(path, LIMITS)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "part")
    for sha256 in (None, "0" * 64):
        with pytest.raises(BadInput, match="not a plain file"):
            read(tmp_path / "part", LIMITS, sha256=sha256)


def spoiled_heap(path: Path) -> None:
    """64 zero bytes in a heap of variable-length rows: the library looks for an end for ever."""
    write_varlen_slowly(path, plain_samples(300))
    content = bytearray(path.read_bytes())
    at = content.index(b"GCOL", len(content) // 3) + 16
    content[at : at + 64] = bytes(64)
    path.write_bytes(content)


def test_a_file_on_which_the_library_never_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "COMPUTE_S", 0.5)
    path = tmp_path / "part_3.hdf5"
    spoiled_heap(path)
    start = time.monotonic()
    with pytest.raises(BadInput, match=r"part_3.hdf5: the HDF5 library did not return within"):
        read(path, LIMITS)
    assert time.monotonic() - start < 50
    write_varlen_slowly(path, plain_samples(3))
    assert len(read(path, LIMITS)) == 3  # the next file has a new process


def test_memory_is_limited(tmp_path: Path) -> None:
    """One row that unpacks to 4 GiB from 4 MB."""
    path = tmp_path / "part"
    write_fixed_slowly(path, plain_samples(1))
    with h5py.File(path, "a") as file:
        del file["input_ids"], file["input_mask"], file["segment_ids"]
        for name in ("input_ids", "input_mask", "segment_ids"):
            made = file.create_dataset(
                name, (1, 1 << 32), "i1", chunks=(1, 1 << 24), compression="gzip"
            )
            packed = zlib.compress(bytes(1 << 24), 9)
            for column in range(0, 1 << 32, 1 << 24):
                made.id.write_direct_chunk((0, column), packed)
    with pytest.raises(BadInput, match=r"part: .*(cannot be read|more than 1024 MiB)"):
        read(path, LIMITS)


def test_a_stopped_or_killed_reader_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "part"
    write_fixed_slowly(path, plain_samples(3))
    count(path)
    reader._idle[0].process.send_signal(signal.SIGINT)  # Ctrl-C reaches every process
    reader._idle[0].process.send_signal(signal.SIGTERM)
    assert count(path) == 3
    reader._idle[0].process.kill()
    with pytest.raises(BadInput, match="ended with signal 9"):
        count(path)
    assert count(path) == 3
    monkeypatch.setattr(reader, "DEADLINE_S", 0.1)
    reader._idle[0].process.send_signal(signal.SIGSTOP)
    with pytest.raises(BadInput, match="was stopped, or waits for the disk"):
        count(path)


def mutants(content: bytes, rng: random.Random) -> bytes:
    """Damage as disks, transfers and attackers do it."""
    data = bytearray(content)
    at = rng.randrange(len(data) - 256)
    how = rng.choice(["zeros", "bits", "heap", "head", "swap", "size", "cut"])
    if how == "zeros":
        data[at : at + 64] = bytes(64)
    elif how == "bits":
        for _ in range(rng.choice([1, 3, 20])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "heap":
        marks = [i for mark in (b"GCOL", b"HEAP", b"SNOD", b"TREE") if (i := data.find(mark)) >= 0]
        at = rng.choice(marks) + rng.randrange(4, 40)
        data[at : at + 4] = rng.randbytes(4)
    elif how == "head":
        at = rng.randrange(2048)
        data[at : at + 8] = rng.randbytes(8)
    elif how == "swap":
        other = rng.randrange(len(data) - 256)
        data[at : at + 256], data[other : other + 256] = (
            data[other : other + 256],
            data[at : at + 256],
        )
    elif how == "size":
        at = rng.randrange(0, 4096, 8)
        data[at : at + 8] = rng.choice([b"\xff" * 8, b"\xff" * 7 + b"\x7f", bytes(5) + b"\1\0\0"])
    else:
        del data[at:]
    return bytes(data)


def test_mutants_end_in_samples_or_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "COMPUTE_S", 0.3)
    rng = random.Random(19)
    whole = {}
    for layout, write in WRITERS.items():
        write(tmp_path / "part", plain_samples(60))
        whole[layout] = (tmp_path / "part").read_bytes()
    refused = 0
    for number in range(120):
        path = tmp_path / "part_mutant"
        path.write_bytes(mutants(rng.choice(list(whole.values())), rng))
        try:
            read(path, LIMITS)
        except BadInput as error:
            refused += 1
            assert "part_mutant" in str(error), number
            assert str(error).isprintable(), number
    assert refused > 60


def test_a_shard_that_became_zeros_is_not_hashed(tmp_path: Path) -> None:
    """20 GB of holes take the time of one."""
    path = tmp_path / "part_0.hdf5"
    path.touch()
    os.truncate(path, 20 << 30)
    begin = time.monotonic()
    with pytest.raises(BadInput, match="it begins with zero bytes: it was damaged"):
        read(path, LIMITS, sha256="0" * 64)
    assert time.monotonic() - begin < 15
