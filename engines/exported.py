# SPDX-License-Identifier: Apache-2.0
"""An exported question-answering model: the folder that training writes and engines read.

=============  ====================================================================================
model.onnx     inputs input_ids, input_mask and segment_ids, int64 [batch, length], both dynamic;
               outputs output_start_logits and output_end_logits, float32 [batch, length]: the
               names of MLPerf Inference's reference model. Weights may lie in model.onnx.data
vocab.txt      the tokens, one a line, in the order of their ids
export.json    the fields of ``Exported``
=============  ====================================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256, read_json, shown, why
from bertbench.common.model.config import BertConfig

FORMAT = 1
MODEL, VOCAB, DESCRIPTION = "model.onnx", "vocab.txt", "export.json"
INPUTS = ("input_ids", "input_mask", "segment_ids")
OUTPUTS = ("output_start_logits", "output_end_logits")
_FIX = "export the model again"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The content of export.json, and its folder."""

    folder: Path
    model: BertConfig
    max_seq_length: int
    doc_stride: int
    max_query_length: int
    lowercase: bool
    quantization: Literal["int8"] | None
    weight_sparsity: Literal["2:4"] | None
    parameters: int
    run: str | None
    """The id of the run that trained it."""
    step: int | None = None
    """The optimizer step of its weights; may be absent."""
    recipe_hash: str | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """``f1`` and ``exact_match`` in percent after training, where they are known."""

    @property
    def onnx(self) -> Path:
        return self.folder / MODEL

    @property
    def vocab(self) -> Path:
        return self.folder / VOCAB

    @property
    def size(self) -> int:
        """Bytes of the model's files, without the vocabulary."""
        return sum(file.stat().st_size for file in self.folder.glob(f"{MODEL}*"))

    def hash(self) -> str:
        """Return the sha256 over names and contents of the model's files.

        Raises BadInput where one of them cannot be read.
        """
        digest = hashlib.sha256()
        for file in sorted(self.folder.glob(f"{MODEL}*")):
            try:
                digest.update(f"{file.name}\0{file_sha256(file)}\n".encode())
            except OSError as error:
                raise BadInput(f"{shown(file)}: {why(error)}: {_FIX}") from error
        return digest.hexdigest()


def read_export(folder: Path) -> Exported:
    """Return the exported model in ``folder``; its files exist, and model.onnx is not opened.

    Raises BadInput where a file is missing or export.json does not describe such a model.
    """
    if not folder.is_dir():
        raise BadInput(f"{shown(folder)}: no such folder: give the folder of an exported model")
    for name in (DESCRIPTION, MODEL, VOCAB):
        if not (folder / name).is_file():
            raise BadInput(f"{shown(folder)} lacks {name}: it is no exported model; {_FIX}")
    where = f"{shown(folder)}/{DESCRIPTION}"
    try:
        content = read_json(folder / DESCRIPTION)
    except (OSError, ValueError) as error:
        raise BadInput(f"{where}: {shown(error)}: {_FIX}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise BadInput(
            f"{where}: its format is {shown(found, 40)}, and this version reads {FORMAT}: {_FIX}"
        )
    return Exported(folder=folder, **_checked(where, content))


def _checked(where: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of ``Exported``; raises BadInput, naming the first wrong one."""
    names = {f.name for f in dataclasses.fields(Exported)} - {"folder"}
    given = content.keys() - {"format"}
    if missing := sorted(names - given - {"step"}):
        raise BadInput(f"{where}: {', '.join(missing)} missing: {_FIX}")
    if unknown := sorted(given - names):
        raise BadInput(f"{where}: unknown field {shown(', '.join(unknown))}: {_FIX}")
    values = {name: content.get(name) for name in names}
    values["model"] = model = _model(where, content["model"])
    for name, value, valid in (
        *((n, values[n], _is_count(values[n], 1)) for n in ("max_seq_length", "doc_stride")),
        *((n, values[n], _is_count(values[n], 0)) for n in ("max_query_length", "parameters")),
        ("step", values["step"], values["step"] is None or _is_count(values["step"], 0)),
        ("lowercase", values["lowercase"], isinstance(values["lowercase"], bool)),
        ("quantization", values["quantization"], values["quantization"] in (None, "int8")),
        ("weight_sparsity", values["weight_sparsity"], values["weight_sparsity"] in (None, "2:4")),
        *((n, values[n], isinstance(values[n], str | None)) for n in ("run", "recipe_hash")),
        ("metrics", values["metrics"], _are_metrics(values["metrics"])),
    ):
        if not valid:
            raise BadInput(f"{where}: {name} is {shown(json.dumps(value), 60)}: {_FIX}")
    most = model.max_position_embeddings
    if content["max_seq_length"] > most:
        raise BadInput(
            f"{where}: max_seq_length {values['max_seq_length']} is above the model's {most} "
            f"positions: {_FIX}"
        )
    return values


def _model(where: str, value: Any) -> BertConfig:
    if not isinstance(value, dict):
        raise BadInput(f"{where}: model is {shown(json.dumps(value), 60)}: {_FIX}")
    known = {f.name for f in dataclasses.fields(BertConfig)}
    if unknown := sorted(value.keys() - known):
        raise BadInput(f"{where}: unknown field model.{shown(', '.join(unknown))}: {_FIX}")
    try:
        return BertConfig(**value)
    except (BadInput, TypeError) as error:
        raise BadInput(f"{where}: {shown(error)}") from error


def _is_count(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < 2**63


def _are_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
        for v in value.values()
    )
