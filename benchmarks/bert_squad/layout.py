# SPDX-License-Identifier: Apache-2.0
"""The files of a data folder, those missing from it, and their sources.

The folder (DATA_PATH, --data) has the layout of Enflame's scripts or of NVIDIA's
squad_download.sh. This module opens no data file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bertbench.common.errors import BadInput

SQUAD_HOST = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
MD5 = {
    "train-v1.1.json": "981b29407e0affa3b1b156f72073b945",
    "dev-v1.1.json": "3e85deb501d4e538b6bc56f786231552",
    "train-v2.0.json": "62108c273c268d70893182d5cf8df740",
    "dev-v2.0.json": "246adae8b7002f8679c027697b0b7cf8",
}
"""Of the published files (DeepLearningExamples, data/squad/squad_download.sh)."""
PUBLISHED_WEIGHTS = {
    24: "bert_pyt_ckpt_large_pretraining_amp_lamb",
    12: "bert_pyt_ckpt_base_pretraining_amp_lamb",
}
"""Layers -> NVIDIA's model of that size in the NGC catalogue, organisation nvidia."""

_FOLDERS = ("squad", "squad/v1.1", "squad/v2.0", "download/squad/v1.1", "download/squad/v2.0", ".")
_WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")
CONFIGS = ("bert_config.json", "config.json")
_ENFLAMES = "DLE_BERT_FP16_PyT_LAMB_92_hard_scaling_node.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Files of one run; None: not given and not found."""

    train: Path | None = None
    predict: Path | None = None
    checkpoint: Path | None = None
    vocab: Path | None = None
    config: Path | None = None


def names(v2: bool) -> tuple[str, str]:
    """Return the names of SQuAD's files to train on and to answer."""
    version = "v2.0" if v2 else "v1.1"
    return f"train-{version}.json", f"dev-{version}.json"


def locate(
    root: Path | None,
    *,
    v2: bool = False,
    weights: bool = True,
    train: Path | None = None,
    predict: Path | None = None,
    checkpoint: Path | None = None,
    vocab: Path | None = None,
    config: Path | None = None,
) -> Files:
    """Return the given files, which need not exist, completed from ``root``.

    Without ``weights``, ``root`` is not searched for weights or their configuration. Raises
    BadInput when ``root`` is not a folder, or holds several checkpoints and none is given.
    """
    near: list[Path] = []
    if root is not None:
        if not root.is_dir():
            raise BadInput(f"{root} is not a folder; it must hold {names(v2)[0]} and the weights")
        train = train or _first(root / f / names(v2)[0] for f in _FOLDERS)
        predict = predict or _first(root / f / names(v2)[1] for f in _FOLDERS)
        near = [root, root / "vocab"]
        if weights:
            checkpoint = checkpoint or _checkpoint(root / "checkpoint") or _checkpoint(root)
            near.append(root / "checkpoint")
    if checkpoint is not None:
        near.append(checkpoint.parent)
    return Files(
        train=train,
        predict=predict,
        checkpoint=checkpoint,
        vocab=vocab or _first(f / name for f in near for name in ("vocab.txt", "vocab")),
        config=config or _first(f / n for f in near for n in CONFIGS if weights),
    )


def missing(
    files: Files, *, train: bool, predict: bool, checkpoint: bool, v2: bool = False
) -> list[str]:
    """Return a line for each needed file that is missing, with its flag."""
    wanted = [
        (train, files.train, f"{names(v2)[0]} (--train_file)"),
        (predict, files.predict, f"{names(v2)[1]} (--predict_file)"),
        (checkpoint, files.checkpoint, "the weights to start from (--init_checkpoint)"),
        (files.vocab is not None, files.vocab, "the vocabulary (--vocab_file)"),
        (files.config is not None, files.config, "the model's shape (--config_file)"),
    ]
    return [
        what
        if path is None
        else f"{what}: {path} {_why(path, checkpoint=path == files.checkpoint)}"
        for needed, path, what in wanted
        if needed and (path is None or not path.is_file())
    ]


def _why(path: Path, *, checkpoint: bool) -> str:
    if checkpoint:
        from bertbench.common.model.weight_files import why_no_file  # only here: it loads torch

        return why_no_file(path) or "does not exist"
    return "does not exist"


def sources(lacking: Iterable[str], *, layers: int, v2: bool = False) -> list[str]:
    """Return where the files of ``missing`` are published, a line each."""
    text = "\n".join(lacking)
    found = [
        f"{SQUAD_HOST}{name}  md5 {MD5[name]}  -> squad/" for name in names(v2) if name in text
    ]
    if "--init_checkpoint" in text:
        found.append(
            f"NGC catalogue, nvidia/{PUBLISHED_WEIGHTS[layers]} (.pt)  -> checkpoint/"
            if layers in PUBLISHED_WEIGHTS
            else "any BERT of the recipe's size in NVIDIA's or Hugging Face's naming -> checkpoint/"
        )
    return found


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _checkpoint(folder: Path) -> Path | None:
    """Return the only file of weights in ``folder``, or the one Enflame's scripts name."""
    if not folder.is_dir():
        return None
    found = sorted(p for p in folder.iterdir() if p.suffix in _WEIGHTS and p.is_file())
    named = [p for p in found if p.name == _ENFLAMES]
    if len(found) > 1 and not named:
        raise BadInput(
            f"{folder} holds {len(found)} checkpoints ({', '.join(p.name for p in found[:4])}): "
            f"name one with --init_checkpoint"
        )
    return next(iter(named or found), None)


def opened(path: Path, mode: str) -> IO[str]:
    """Open the file of --json_summary in ``mode``; raise BadInput when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open(mode, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--json_summary {path} cannot be written: {error.strerror}") from error
