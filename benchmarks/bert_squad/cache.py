# SPDX-License-Identifier: Apache-2.0
"""Features kept on disk, named by the hash of all that they depend on.

The reference's cache is a pickle, used unchecked, whose name leaves out the vocabulary, lower case
and the v2 flag. This one is arrays only (safetensors), and its content is compared with its name's
ingredients and with its digest before use.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bertbench.benchmarks.bert_squad.examples import Squad, read_squad
from bertbench.benchmarks.bert_squad.features import FeatureOptions, Features, make_features
from bertbench.benchmarks.bert_squad.formats import LARGEST_FILE
from bertbench.common.data.samples import IntArray
from bertbench.common.data.tokenization import LARGEST_VOCAB, read_vocab
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256, parse_json, read_bytes, shown, sync

_CODE = (
    *("benchmarks/bert_squad/formats.py", "benchmarks/bert_squad/examples.py"),
    *("benchmarks/bert_squad/wordpieces.py", "benchmarks/bert_squad/features.py"),
    *("common/data/samples.py", "common/data/tokenization.py", "common/data/foreign.py"),
)
"""The code that makes features, from the root of the sources."""
_META = "bertbench"
_QUESTIONS_A_PROCESS = 4096
"""A process makes so many in less time than it takes to start."""
_LARGEST_CACHE = 16 << 30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredFeatures:
    """A file's features, and facts about them for the record of a run."""

    features: Features
    num_examples: int
    dropped: list[str]
    """Ids of the questions left out (Squad.dropped)."""
    ingredients: dict[str, Any]
    """Everything the features depend on."""
    path: Path | None
    """The cache file; None where none is kept or it could not be written."""
    reused: bool
    """Whether the features came from the cache."""


def ingredients(
    dataset: Path, vocab: Path, options: FeatureOptions, *, training: bool, v2: bool
) -> dict[str, Any]:
    """Return all that features depend on: two files' bytes, the options, and the code.

    The code is our source, Python's Unicode tables and the tokenizers library. Raises BadInput for
    a missing file, and for one that is larger than such files are.
    """
    hashes = {}
    for path, what, most in (
        (dataset, "SQuAD file", LARGEST_FILE), (vocab, "vocabulary", LARGEST_VOCAB)
    ):  # fmt: skip
        if not path.is_file():
            raise BadInput(f"{what} {path}: no such file: name an existing one")
        try:
            if path.stat().st_size > most:
                raise BadInput(f"{what} {path}: it is larger than {most >> 20} MiB: name a {what}")
            hashes[path] = file_sha256(path)
        except OSError as error:
            raise BadInput(f"{what} {path}: {error.strerror}: name a readable file") from error
    code = hashlib.sha256()
    for name in _CODE:
        code.update((Path(__file__).resolve().parents[2] / name).read_bytes())
    return {
        "dataset_sha256": hashes[dataset],
        "vocab_sha256": hashes[vocab],
        **asdict(options),
        "training": training,
        "v2": v2,
        "code_sha256": code.hexdigest(),
        "unicode": unicodedata.unidata_version,
        "tokenizers": version("tokenizers"),
    }


def cache_file(folder: Path, dataset: Path, parts: dict[str, Any]) -> Path:
    """Return the path of the cache of ``parts`` (see ``ingredients``) in ``folder``."""
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return folder / f"{dataset.stem}-features-{key[:24]}.safetensors"


def stored_features(
    dataset: Path,
    vocab: Path,
    options: FeatureOptions,
    *,
    training: bool,
    v2: bool,
    folder: Path | None,
    processes: int = 1,
    say: Callable[[str], None],
) -> StoredFeatures:
    """Return the features of ``dataset``, from a valid cache in ``folder``, else made again.

    Args:
        dataset: a SQuAD file.
        vocab: a vocab.txt.
        options: lengths and lower case.
        training: whether answers are read.
        v2: whether impossible questions are kept (training only).
        folder: of the caches; made when missing, and an unwritable one is not an error. None: the
            features are made and not kept.
        processes: the most that share the work.
        say: receives one line when a cache is made, made again or not written.

    Raises:
        BadInput: a file is missing or damaged, or changes meanwhile.
    """
    parts = ingredients(dataset, vocab, options, training=training, v2=v2)
    tokens = read_vocab(vocab, pads=False)
    path = None if folder is None else cache_file(folder, dataset, parts)
    loaded: tuple[dict[str, Any], Features] | None = None
    try:
        loaded = None if path is None else _load(path, parts, len(tokens))
    except FileNotFoundError:
        say(f"{dataset.name}: no feature cache for this file, vocabulary and options: making it")
    except _Damaged as reason:
        say(f"{dataset.name}: feature cache {path} is not used ({reason}): making it again")
    if loaded is not None:
        meta, features = loaded
    else:
        squad = read_squad(dataset, training=training, v2=v2)
        features = _made(squad, tokens, options, processes, say)
        if parts != ingredients(dataset, vocab, options, training=training, v2=v2):
            raise BadInput(f"{dataset} or {vocab} changed while it was read: start again")
        meta = {"num_examples": len(squad.examples), "dropped": squad.dropped}
        try:
            if path is not None:
                _save(path, {"ingredients": parts, **meta}, features)
        except OSError as error:
            say(f"{dataset.name}: feature cache {path} could not be written: {error.strerror}")
            path = None
    return StoredFeatures(
        features=features,
        num_examples=meta["num_examples"],
        dropped=meta["dropped"],
        ingredients=parts,
        path=path,
        reused=loaded is not None,
    )


def _made(
    squad: Squad,
    vocab: Sequence[str],
    options: FeatureOptions,
    processes: int,
    say: Callable[[str], None],
) -> Features:
    """Return new features, from this process alone where it is as fast or others were killed."""
    workers = min(processes, 1 + len(squad.examples) // _QUESTIONS_A_PROCESS)
    try:
        return make_features(squad, vocab, options, processes=workers)
    except BrokenProcessPool:
        say(f"{squad.path.name}: a process that made features was killed: this one makes all")
        return make_features(squad, vocab, options)


class _Damaged(Exception):
    """Why a cache is not used."""


def _digest(meta: dict[str, Any], arrays: dict[str, IntArray]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _save(path: Path, meta: dict[str, Any], features: Features) -> None:
    named = {field.name: getattr(features, field.name) for field in fields(Features)}
    arrays = {name: array for name, array in named.items() if array is not None}
    text = json.dumps({**meta, "digest": _digest(meta, arrays)})
    path.parent.mkdir(parents=True, exist_ok=True)
    # First under a unique name: ranks may write the same cache at the same time.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as work:
        made = Path(work) / path.name
        # Not save_file, whose file only its owner may read.
        made.write_bytes(save(arrays, metadata={_META: text}))
        sync(made)
        made.replace(path)
        sync(path.parent)


def _load(path: Path, parts: dict[str, Any], tokens: int) -> tuple[dict[str, Any], Features]:
    """Read ``path``. Raises FileNotFoundError, or _Damaged with the reason."""
    try:
        # Read whole, not mapped: a file cut meanwhile would end the process by a bus error.
        raw = _content(path)
        header = parse_json(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        meta, arrays = parse_json(header["__metadata__"][_META]), load(raw)
        del raw
        if meta["ingredients"] != parts:
            other = [k for k in parts if meta["ingredients"].get(k) != parts[k]]
            raise _Damaged(f"it was made from another {shown(', '.join(other))}")
        if meta.pop("digest") != _digest(meta, arrays):
            raise _Damaged("its content does not match its digest")
        features = Features(**arrays)
        if not _is_whole(features, meta, tokens):
            raise _Damaged("its arrays do not fit each other")
        return meta, features
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged(f"it is not a feature cache: {shown(error)}") from error


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path, _LARGEST_CACHE)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise _Damaged(f"it cannot be read: {shown(error)}") from error


def _is_whole(features: Features, meta: dict[str, Any], tokens: int) -> bool:
    """Return whether the arrays can be features: an index beyond another array's end reads it."""
    f, number, ids = features, len(features.offsets) - 1, features.input_ids
    training = meta["ingredients"]["training"]
    if type(meta["num_examples"]) is not int or not isinstance(meta["dropped"], list):
        return False
    per_token = {"input_ids": np.int32, "words": np.int32, "max_context": np.bool_}
    per_feature = {"split": np.int32, "example": np.int32, "window": np.int32}
    if training:
        per_feature |= {"start": np.int32, "end": np.int32}
    shapes = {
        "offsets": ((number + 1,), np.int64),
        **{name: ((len(ids),), kind) for name, kind in per_token.items()},
        **{name: ((number,), kind) for name, kind in per_feature.items()},
    }
    present = {n for n in (field.name for field in fields(Features)) if getattr(f, n) is not None}
    if present != shapes.keys() or any(
        (getattr(f, name).shape, getattr(f, name).dtype) != expected
        for name, expected in shapes.items()
    ):
        return False
    lengths = np.diff(f.offsets)
    ranges: list[tuple[Any, Any]] = [
        (ids, tokens),
        (f.example, meta["num_examples"]),
        (f.split, lengths),
    ]
    ranges += [(f.start, lengths), (f.end, lengths)] if training else []
    inside = all(bool(((low >= 0) & (low < high)).all()) for low, high in ranges)
    ends = number >= 0 and f.offsets[0] == 0 and f.offsets[-1] == len(ids)
    order = (lengths > 0).all() and (np.diff(f.example) >= 0).all()
    return bool(inside and ends and order and (f.words >= -1).all())
