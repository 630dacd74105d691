# SPDX-License-Identifier: Apache-2.0
"""Shards that are HDF5, but not what they claim."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def change_shard(rng: random.Random, path: Path) -> str:
    """Replace one data set of a shard; return the words of the change."""
    with h5py.File(path, "r+") as file:
        name = rng.choice(sorted(file))
        old = file[name][()]
        made = _replacements(rng, file, name, old, path)
        word = rng.choice(sorted(made))
        if word != "gone twice":
            del file[name]
        made[word]()
    return f"{name}: {word}"


def _replacements(
    rng: random.Random, file: Any, name: str, old: Any, path: Path
) -> dict[str, Callable[[], Any]]:
    def put(value: Any, **options: Any) -> Callable[[], Any]:
        return lambda: file.create_dataset(name, data=value, **options)

    def shape(size: tuple[int, ...], **options: Any) -> Callable[[], Any]:
        return lambda: file.create_dataset(name, size, "i4", **options)

    def numbers(value: int) -> Callable[[], Any]:
        def write() -> None:
            flat = file.create_dataset(name, data=_changed(rng, old, value), dtype=old.dtype)
            flat.attrs["note"] = "changed"

        return write

    secret = path.with_name("secret.bin")
    secret.write_bytes(bytes(range(256)) * 64)
    return {
        "gone": lambda: None,
        "a group": lambda: file.create_group(name),
        "a soft link to itself": lambda: file.__setitem__(name, h5py.SoftLink(f"/{name}")),
        "a link to a device": lambda: file.__setitem__(name, h5py.ExternalLink("/dev/zero", "x")),
        "a link to the file": lambda: file.__setitem__(name, h5py.ExternalLink(str(path), name)),
        "bytes of another file": lambda: file.create_dataset(
            name, (len(old),), "i4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)]),
        "bytes of /dev/zero": lambda: file.create_dataset(
            name, (len(old),), "i4", external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)]),
        "10^12 values": shape((10**12,), chunks=(1024,)),
        "10^9 rows": shape((10**9, 64), chunks=(1024, 64)),
        "no rows": shape((0, 64)),
        "no values": shape((0,)),
        "one row less": put(old[:-1]),
        "one row more": put(np.concatenate([old, old[:1]])) if old.dtype != object else shape((1,)),
        "a scalar": put(7),
        "text": put("text"),
        "strings": put([b"x"] * len(old)),
        "floats": shape((len(old),), fillvalue=0),
        "objects": put(np.zeros(len(old), dtype=[("a", "i4"), ("b", "f8")])),
        "three dimensions": shape((4, 4, 4)),
        "negative": numbers(-1),
        "too large": numbers(2**31 - 1),
        "one beyond": numbers(256),
        "zero": numbers(0),
        "unsorted": numbers(3),
        "compressed": shape((len(old), 64), compression="gzip", chunks=True),
    }  # fmt: skip


def _changed(rng: random.Random, old: Any, value: int) -> Any:
    """Return the values of a data set with one of them replaced, in a row if rows vary."""
    new = old.copy()
    if not len(new):
        return new
    place = rng.randrange(len(new))
    if new.dtype == object or new.ndim > 1:
        row = np.array(new[place]).copy()
        if len(row):
            row[rng.randrange(len(row))] = np.array(value).astype(row.dtype)
        new[place] = row
    else:
        new[place] = np.array(value).astype(new.dtype)
    return new
