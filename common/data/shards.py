# SPDX-License-Identifier: Apache-2.0
"""Find MLPerf's files in the folder names that the published instructions use, and identify them.

Layouts: NVIDIA v0.7 to v5.0 and DeepSparkHub (see their READMEs); ``train`` and ``eval`` are ours.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from bertbench.common.errors import BadInput

Kind = Literal["train", "eval"]

FOLDERS: dict[Kind, tuple[str, ...]] = {
    "train": (
        "2048_shards_uncompressed",
        "4096_shards_uncompressed",
        "2048_shards_uncompressed_mini",
        "*_shards_uncompressed",
        "hdf5/training-4320/hdf5_4320_shards_varlength_shuffled",
        "hdf5/training-4320/hdf5_4320_shards_varlength",
        "hdf5/training-4320/hdf5_4320_shards_uncompressed",
        "packed_data",
        "train",
    ),
    "eval": ("eval_set_uncompressed", "hdf5/eval_varlength", "hdf5/eval", "eval"),
}
"""Looked for under the data root, in this order; the first that holds shards is taken. ``*`` is a
number of shards, as `bertbench data prepare` and `pack` name their folders."""

CONFIG_NAMES = ("bert_config.json", "phase1/bert_config.json")

CHECKPOINT_NAMES = (
    "model.ckpt-28252.apex.pt",
    "model.ckpt-28252.pt",
    "phase1/model.ckpt-28252.apex.pt",
    "phase1/model.ckpt-28252.pt",
)

HASH_BLOCK = 4096


class DataRoot(NamedTuple):
    """The files under one folder."""

    train_files: list[Path]
    eval_files: list[Path]
    bert_config: Path | None
    checkpoint: Path | None


def locate(data_root: Path) -> DataRoot:
    """Find training shards, and evaluation files, config and start checkpoint where present.

    Raises BadInput when there are no training files.
    """
    return DataRoot(
        train_files=find_shards(data_root, "train"),
        eval_files=_search(data_root, "eval"),
        bert_config=_first_file(data_root, CONFIG_NAMES),
        checkpoint=_first_file(data_root, CHECKPOINT_NAMES),
    )


def find_shards(folder: Path, kind: Kind) -> list[Path]:
    """Return the data files of ``folder`` or of its subfolder for ``kind``, in natural order.

    A data file is one whose name contains ``part`` (MLPerf's own rule) and does not begin with a
    dot. ``folder`` may also be a single file. Raises BadInput when there is none.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; it should hold the {kind} data")
    files = _parts(folder) or _search(folder, kind)
    if files:
        return files
    raise BadInput(
        f"{folder}: no {kind} data: neither it nor {', '.join(FOLDERS[kind])} in it holds files "
        f"with `part` in their name; make them with `bertbench data prepare`"
    )


def dataset_hash(files: Sequence[Path]) -> str:
    """Return the identity of a data set: a sha256 in hexadecimal, cheap even for 537 GiB.

    It covers each file in natural order of the names: name, size, and three blocks of 4 KiB at the
    beginning, middle and end, but not the folder. It detects another data set and a missing,
    truncated or exchanged file. A single changed value needs `bertbench data check`, which reads
    every row.
    """
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda p: _natural(p.name)):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - HASH_BLOCK)):
                file.seek(start)
                digest.update(file.read(HASH_BLOCK))
    return digest.hexdigest()


def _search(root: Path, kind: Kind) -> list[Path]:
    """Return the data files of the first known subfolder for ``kind`` that has any."""
    folders = (folder for name in FOLDERS[kind] for folder in sorted(root.glob(name)))
    return next(filter(None, map(_parts, folders)), [])


def _parts(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (p for p in folder.iterdir() if "part" in p.name and not p.name.startswith("."))
    return sorted((p for p in files if p.is_file()), key=lambda p: _natural(p.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key under which part_2 comes before part_10."""
    return [(int(t), "") if t.isdecimal() else (-1, t) for t in re.split(r"(\d+)", name)]


def _first_file(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)
