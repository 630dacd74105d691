# SPDX-License-Identifier: Apache-2.0
"""Find MLPerf's files in the folder names that the published instructions use, and identify them.

Layouts: NVIDIA v0.7 to v5.0 and DeepSparkHub (see their READMEs); ``train`` and ``eval`` are ours.
"""

from __future__ import annotations

import filecmp
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from bertbench.common.config.recipe import CHOSEN, Settings, plain
from bertbench.common.errors import BadInput
from bertbench.common.files import read_json, shown

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

OTHER_NAMES: dict[Kind, tuple[str, ...]] = {"train": ("training",), "eval": ("test", "eval")}
"""In the names of NVIDIA DeepLearningExamples, such as books_wiki_en_corpus_training_0.hdf5."""
SUFFIXES = (".hdf5", ".h5")

CONFIG_NAMES = ("bert_config.json", "phase1/bert_config.json")

CHECKPOINT_NAMES = (
    "model.ckpt-28252.apex.pt",
    "model.ckpt-28252.pt",
    "phase1/model.ckpt-28252.apex.pt",
    "phase1/model.ckpt-28252.pt",
)

MANIFEST = "manifest.json"
FORMAT = "bertbench.dataset/1"
"""Of the manifest that ``bertbench data prepare`` and ``pack`` write last."""

HASH_BLOCK = 4096

COPY_OF = "a second copy of"
_COPY = re.compile(
    r"(.+?)(?:[ _-]*\(\d+\)|[ _-]+copy(?:[ _]?\d+)?(?:[ _]?\(\d+\))?)?(\.(?:hdf5|h5|hdf))?"
    r"(?:\.\d+|~|\.(?:bak|orig|old|copy))?",
    re.IGNORECASE,
)
"""A file name with what marks it as a copy, at its end or before its suffix."""


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
    dot; without any, an HDF5 file whose name contains OTHER_NAMES. ``folder`` may also be a single
    file. Raises BadInput when there is none.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; it should hold the {kind} data")
    files = _parts(folder, kind) or _search(folder, kind)
    if files:
        return files
    other = next((p for p in sorted(folder.glob("*")) if p.suffix in SUFFIXES), None)
    also = f" (as {shown(other.name)} has not)" if other else ""
    raise BadInput(
        f"{folder}: no {kind} data: neither it nor {', '.join(FOLDERS[kind])} in it holds files "
        f"with `part` in their name{also}; make them with `bertbench data prepare`"
    )


def quick_hash(files: Sequence[Path]) -> str:
    """Return a sha256 in hexadecimal that names a data set, cheap even for 537 GiB.

    It covers each file in natural order of the names: name, size, and three blocks of 4 KiB at the
    beginning, middle and end, but not the folder. It detects another data set and a missing,
    truncated or exchanged file, and no single value: identity.py does.
    """
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda p: natural(p.name)):
        size, blocks = _blocks(path)
        digest.update(f"{path.name}\0{size}\0".encode(errors="surrogateescape") + blocks)
    return digest.hexdigest()


def _blocks(path: Path) -> tuple[int, bytes]:
    """Return the size of a file, and what lies at its beginning, middle and end.

    Raises BadInput where it cannot be read.
    """
    try:
        size, found = path.stat().st_size, b""
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - HASH_BLOCK)):
                file.seek(start)
                found += file.read(HASH_BLOCK)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    return size, found


def copies(files: Sequence[Path], *, by_name: bool = False) -> dict[Path, Path]:
    """Return second copies of other ``files``, with the first.

    Known by the names that browsers, wget and file managers give and, unless ``by_name``, by their
    bytes, which are read whole only where size and three blocks are equal. Raises BadInput for
    a file that cannot be read.
    """
    known, found = set(files), {}
    alike: dict[tuple[int, bytes], list[Path]] = {}
    for path in sorted(files, key=lambda p: (len(p.name), natural(p.name))):
        plain = _COPY.fullmatch(path.name)
        first = path.with_name(f"{plain[1]}{plain[2] or ''}") if plain else path
        if first != path and first in known:
            found[path] = first
        elif not by_name:
            group = alike.setdefault(_blocks(path), [])
            first = next((p for p in group if _equal(p, path)), path)
            if first != path:
                found[path] = first
            else:
                group.append(path)
    return found


def _equal(one: Path, two: Path) -> bool:
    try:
        return filecmp.cmp(one, two, shallow=False)
    except OSError as error:
        raise BadInput(f"{two}: cannot be read ({error.strerror})") from error


def refuse_copies(files: Sequence[Path], *, by_name: bool = False) -> None:
    """Raise BadInput for the first of ``copies``."""
    for path, first in copies(files, by_name=by_name).items():
        raise BadInput(f"{path}: {COPY_OF} {first.name}: remove it, or copy the right file again")


def _search(root: Path, kind: Kind) -> list[Path]:
    """Return the data files of the first known subfolder for ``kind`` that has any."""
    folders = (folder for name in FOLDERS[kind] for folder in sorted(root.glob(name)))
    return next(filter(None, (_parts(folder, kind) for folder in folders)), [])


def _parts(folder: Path, kind: Kind) -> list[Path]:
    try:
        files = [p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file()]
    except (NotADirectoryError, FileNotFoundError):
        return []
    except OSError as error:
        raise BadInput(f"{folder}: cannot be listed ({error.strerror})") from error
    found = [p for p in files if "part" in p.name] or [
        p for p in files if p.suffix in SUFFIXES and any(n in p.name for n in OTHER_NAMES[kind])
    ]
    return sorted(found, key=lambda p: natural(p.name))


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key under which part_2 comes before part_10."""
    return [(int(t), "") if t.isdecimal() else (-1, t) for t in re.split(r"(\d+)", name)]


def _first_file(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)


def fitting(settings: Settings, held_out: Sequence[Path]) -> tuple[int, tuple[str, ...]]:
    """Return the recipe's ``num_eval_examples``, or a smaller set's size with a note.

    The manifest above the files says how many samples they hold. Without it the run counts them
    within its clock. Raises BadInput where a flag or a --config file asks for more than there are.
    """
    recipe = plain(settings.recipe)
    wanted: int = recipe["num_eval_examples"]
    try:
        listed = read_json(held_out[0].parents[1] / MANIFEST)["files"]
        there = sum(int(listed[f"{p.parent.name}/{p.name}"]["samples"]) for p in held_out)
    except (OSError, ValueError, LookupError, TypeError):
        return wanted, ()
    if not 0 < there < wanted or not recipe["eval_iter_samples"]:
        return wanted, ()
    if settings.origins.get("num_eval_examples") in CHOSEN:
        raise BadInput(
            f"{shown(held_out[0].parent)}: evaluation needs {wanted} samples and there are only "
            f"{there}; pass --num_eval_examples {there}, or none"
        )
    note = f"evaluates on all {there:,} held-out samples, the recipe's {wanted:,} being more"
    return there, (note,)
