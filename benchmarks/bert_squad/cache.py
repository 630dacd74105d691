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
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bertbench.benchmarks.bert_squad.examples import read_squad
from bertbench.benchmarks.bert_squad.features import FeatureOptions, Features, make_features
from bertbench.common.data.samples import IntArray
from bertbench.common.data.tokenization import read_vocab
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256, shown, sync

_CODE = (
    *("benchmarks/bert_squad/examples.py", "benchmarks/bert_squad/wordpieces.py"),
    *("benchmarks/bert_squad/features.py", "common/data/samples.py"),
    "common/data/tokenization.py",
)
"""The code that makes features, from the root of the sources."""
_META = "bertbench"


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
    """The cache file; None where it could not be written."""
    reused: bool
    """Whether the features came from the cache."""


def ingredients(
    dataset: Path, vocab: Path, options: FeatureOptions, *, training: bool, v2: bool
) -> dict[str, Any]:
    """Return all that features depend on: two files' bytes, the options, and the code.

    The code is our source, Python's Unicode tables and the tokenizers library. Raises BadInput for
    a missing file.
    """
    for path, what in ((dataset, "SQuAD file"), (vocab, "vocabulary")):
        if not path.is_file():
            raise BadInput(f"{what} {path}: no such file: name an existing one")
    code = hashlib.sha256()
    for name in _CODE:
        code.update((Path(__file__).resolve().parents[2] / name).read_bytes())
    return {
        "dataset_sha256": file_sha256(dataset),
        "vocab_sha256": file_sha256(vocab),
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
    folder: Path,
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
        folder: of the caches; made when missing. An unwritable folder is not an error.
        processes: how many share the work.
        say: receives one line when a cache is made, made again or not written.

    Raises:
        BadInput: a file is missing or damaged.
    """
    parts = ingredients(dataset, vocab, options, training=training, v2=v2)
    path = cache_file(folder, dataset, parts)
    loaded: tuple[dict[str, Any], Features] | None = None
    try:
        loaded = _load(path, parts)
    except FileNotFoundError:
        say(f"{dataset.name}: no feature cache for this file, vocabulary and options: making it")
    except _Damaged as reason:
        say(f"{dataset.name}: feature cache {path} is not used ({reason}): making it again")
    written: Path | None = path
    if loaded is not None:
        meta, features = loaded
    else:
        squad = read_squad(dataset, training=training, v2=v2)
        features = make_features(squad, read_vocab(vocab), options, processes=processes)
        meta = {"num_examples": len(squad.examples), "dropped": squad.dropped}
        try:
            _save(path, {"ingredients": parts, **meta}, features)
        except OSError as error:
            say(f"{dataset.name}: feature cache {path} could not be written: {error.strerror}")
            written = None
    return StoredFeatures(
        features=features,
        num_examples=meta["num_examples"],
        dropped=meta["dropped"],
        ingredients=parts,
        path=written,
        reused=loaded is not None,
    )


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


def _load(path: Path, parts: dict[str, Any]) -> tuple[dict[str, Any], Features]:
    """Read ``path``. Raises FileNotFoundError, or _Damaged with the reason."""
    try:
        with safe_open(path, framework="numpy") as file:
            meta = json.loads(file.metadata()[_META])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if meta["ingredients"] != parts:
            other = [k for k in parts if meta["ingredients"].get(k) != parts[k]]
            raise _Damaged(f"it was made from another {shown(', '.join(other))}")
        if meta.pop("digest") != _digest(meta, arrays):
            raise _Damaged("its content does not match its digest")
        return meta, Features(**arrays)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _Damaged(f"it cannot be read: {shown(error.strerror)}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged(f"it is not a feature cache: {shown(error)}") from error
