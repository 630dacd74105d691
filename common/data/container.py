# SPDX-License-Identifier: Apache-2.0
"""Open an HDF5 file and its datasets, or say what it is instead.

A dataset's values must lie in the file itself, in a form that the library decodes without foreign
code: links, external storage, virtual datasets, plugins and storage that cannot hold the rows are
refused by name before a value is read.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import h5py

from bertbench.common.errors import BadInput
from bertbench.common.files import shown

FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset",
           32000: "lzf"}  # fmt: skip
"""Those built into HDF5 and h5py."""
MAX_COMPRESSION = 1100
"""No filter of these makes data smaller than that (deflate: 1,032 times)."""

_DAMAGED = "the file is damaged, make or copy it again"
_KINDS = (
    (b"\x1f\x8b", "is compressed by gzip; unpack it"),
    (b"BZh", "is compressed by bzip2; unpack it"),
    (b"\xfd7zXZ", "is compressed by xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it"),
    (b"PK\x03\x04", "is a zip archive; unpack it"),
    (b"\x93NUMPY", "is a NumPy array; convert its samples to HDF5 as MLPerf has it"),
    (b"PAR1", "is a Parquet table; convert its samples to HDF5 as MLPerf has it"),
    (b"version https://git-lfs", "is a pointer of Git LFS; fetch the file with `git lfs pull`"),
    (b"<!DOCTYPE", "is a web page; the download failed, copy the file again"),
    (b"<html", "is a web page; the download failed, copy the file again"),
)


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file for reading; raises BadInput with what it is instead."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadInput(f"{path}: it is not a plain file; remove it from the folder")
            beginning = file.read(4096)
        if h5py.is_hdf5(path):
            return h5py.File(path, "r", locking=False)  # locks fail on read-only network mounts
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file") from error
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be opened ({shown(error)}); make or copy it again"
        ) from error
    raise BadInput(f"{path}: not an HDF5 file: it {_kind(beginning, path.stat().st_size)}")


def _kind(beginning: bytes, size: int) -> str:
    """Return what a file is by its first bytes, and what helps."""
    if not beginning:
        return "is empty; remove it from the folder or copy it again"
    for magic, text in _KINDS:
        if beginning[: len(magic)].lower() == magic.lower():
            return text
    # TFRecord: length (8 bytes), its checksum (4), the record, a protocol buffer, its checksum (4).
    length = int.from_bytes(beginning[:8], "little")
    if 0 < length <= size - 16 and beginning[12:13] == b"\n":
        return (
            "is TFRecord, the format of TensorFlow's reference; make HDF5 files of the text it was "
            "made from with `bertbench data prepare --text`"
        )
    if not beginning.strip(b"\0"):
        return "begins with zeros only, as a broken download does; copy it again"
    try:
        text = beginning[:-3].decode() if len(beginning) == 4096 else beginning.decode()
    except UnicodeDecodeError:
        return "begins with unknown data; remove it from the folder or copy it again"
    if all(c.isprintable() or c.isspace() for c in text):
        return "is text; make samples of it with `bertbench data prepare --text`"
    return "begins with unknown data; remove it from the folder or copy it again"


def plain_datasets(path: Path, handle: h5py.File, names: Iterable[str]) -> dict[str, h5py.Dataset]:
    """Return the named datasets; raises BadInput for one whose values do not lie in the file."""
    found = {}
    for name in names:
        link = handle.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            where = f" to {shown(link.filename)}" if isinstance(link, h5py.ExternalLink) else ""
            raise BadInput(
                f"{path}: {name} is a link{where}, not a dataset of this file: put the values there"
            )
        if handle.get(name, getclass=True) is not h5py.Dataset:
            raise BadInput(f"{path}: {name} is not a dataset")
        found[name] = handle[name]
        _check_storage(f"{path}: dataset {name}", found[name])
    return found


def _check_storage(where: str, dataset: h5py.Dataset) -> None:
    """Refuse a dataset whose values lie elsewhere, need a plugin, or cannot be there."""
    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL:
        raise BadInput(f"{where} is virtual: its values lie in other files; copy them into this")
    if plan.get_external_count():
        other = shown(os.fsdecode(plan.get_external(0)[0]))
        raise BadInput(f"{where} has external storage: its values lie in {other}; copy them here")
    for index in range(plan.get_nfilters()):
        number = plan.get_filter(index)[0]
        if number not in FILTERS:
            raise BadInput(
                f"{where} needs HDF5's filter {number}, a plugin: write it with gzip, or without "
                f"compression"
            )
    if dataset.shape is None or not dataset.size:
        return
    size = math.prod(dataset.shape) * dataset.id.get_type().get_size()
    stored = dataset.id.get_storage_size()
    if plan.get_layout() == h5py.h5d.CHUNKED:
        parts = [-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True)]
        if dataset.id.get_num_chunks() < math.prod(parts):
            raise BadInput(f"{where} has chunks that were never written; {_DAMAGED}")
        size //= MAX_COMPRESSION if plan.get_nfilters() else 1
    if stored < size:
        raise BadInput(f"{where} has shape {dataset.shape}, but only {stored:,} bytes; {_DAMAGED}")
