# SPDX-License-Identifier: Apache-2.0
"""``bertbench export-onnx``: a run's question-answering model as a folder that any engine reads.

model.onnx (common/exchange/onnx_model.py), vocab.txt, and export.json, which says how text becomes
its inputs and what the run scored.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bertbench.common.compress.layers import compress, named_quantizers
from bertbench.common.data.minilm import minilm_file
from bertbench.common.data.tokenization import is_padded, read_vocab
from bertbench.common.errors import BadInput, Unsupported, install
from bertbench.common.exchange.export_weights import (
    checkpoint_of,
    new_folder,
    recipe_of,
    vocabulary_of,
    write_json,
)
from bertbench.common.exchange.onnx_model import INPUTS, OUTPUTS, PaddedBert, keep_apart
from bertbench.common.files import read_json, shown
from bertbench.common.model.bert import BertEncoder, linear
from bertbench.common.model.config import BertConfig
from bertbench.common.model.ops import Ops
from bertbench.common.results.seals import MANIFEST
from bertbench.common.training.checkpoint import load

FORMAT = 1
OPSET = 20
TEXT = ("max_seq_length", "doc_stride", "max_query_length", "lowercase")
SCORES = ("exact_match", "f1")


class Restored(nn.Module):
    """The model of a checkpoint, compressed as its ``recipe`` says; for inference only."""

    def __init__(
        self, config: BertConfig, recipe: Mapping[str, Any], state: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.encoder = BertEncoder(config, Ops())
        self.qa_outputs = linear(config.hidden_size, 2)
        prune, quantize = (recipe.get(n) is not None for n in ("weight_sparsity", "quantization"))
        if prune or quantize:
            compress(self, prune=prune, quantize=quantize)
        self.load_state_dict(dict(state))
        for name, quantizer in named_quantizers(self).items():
            if not float(quantizer.amax) > 0:
                raise BadInput(f"the checkpoint's quantizer {name} has no scale")
            quantizer.finish()
        self.eval()


def export_onnx(run: Path, output: Path, *, vocab_file: Path | None = None) -> dict[str, Any]:
    """Write the newest checkpoint of ``run`` to the new folder ``output``; return export.json.

    Raises BadInput for a damaged checkpoint or another model's vocabulary, and Unsupported for a
    model of another task, a sparse attention mask, or without the package onnxscript.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"{shown(output)} exists: name a new folder with --output")
    checkpoint = checkpoint_of(run)
    folder = checkpoint.parent.parent
    recipe, config = recipe_of(folder / "config.json")
    groups, _ = load(checkpoint)
    if "qa_outputs.weight" not in groups["model"]:
        raise Unsupported(f"{checkpoint}: its model answers no questions: export a run of SQuAD")
    if groups.get("attention_mask"):
        raise Unsupported(
            f"{checkpoint}: its attention is sparse, which no exported model computes"
        )
    vocab = vocab_file or vocabulary_of(folder) or minilm_file("vocab.txt")
    tokens = read_vocab(vocab, pads=False)
    if not is_padded(len(tokens), config.vocab_size):
        raise BadInput(
            f"{vocab} has {len(tokens)} tokens, the model {config.vocab_size} rows for them: give "
            f"the run's vocabulary with --vocab_file"
        )
    model = Restored(config, recipe, groups["model"])
    described = {
        "format": FORMAT,
        "model": recipe["model"],
        **{name: recipe[name] for name in TEXT},
        **{name: recipe.get(name) for name in ("quantization", "weight_sparsity")},
        "parameters": sum(p.numel() for p in model.parameters()),
        "run": folder.name,
        "step": int(checkpoint.stem[5:]),
        **_result(folder / MANIFEST),
    }
    with new_folder(output) as work:
        write_onnx(model, work / "model.onnx")
        (work / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
        write_json(work / "export.json", described)
    return described


def write_onnx(model: nn.Module, path: Path) -> None:
    """Write ``model``, which has ``encoder`` and ``qa_outputs``, as one file of opset 20.

    Weights beyond 2 GB, which ONNX's own format cannot hold, go to a file beside it. Raises
    Unsupported without the package onnxscript.
    """
    encoder, head = model.encoder, model.qa_outputs
    assert isinstance(encoder, BertEncoder) and isinstance(head, nn.Linear)
    padded = PaddedBert(encoder, head).eval()
    length = min(32, padded.config.max_position_embeddings)
    batch, most = torch.export.Dim("batch"), padded.config.max_position_embeddings
    axes = {0: batch, 1: torch.export.Dim("length", max=most)}
    # Three tensors: the exporter would take one that is given three times for one input.
    sample = tuple(torch.ones(2, length, dtype=torch.int64) for _ in INPUTS)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    try:
        quiet.setLevel(logging.ERROR)  # of the operators of packages that are not there
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                padded, sample, dynamo=True, opset_version=OPSET,
                input_names=INPUTS, output_names=OUTPUTS, dynamic_shapes=(axes,) * len(INPUTS),
                verbose=False,
            )  # fmt: skip
    except ImportError as error:
        raise Unsupported(f"ONNX export: {error}; {install('onnx')}") from error
    finally:
        quiet.setLevel(level)
    assert program is not None
    keep_apart(program.model.graph)
    program.save(path)


def _result(manifest: Path) -> dict[str, Any]:
    """Return the recipe's hash and the scores in a run's record, as far as it has them."""
    try:
        known = read_json(manifest)
        values = {m["name"]: m["value"] for m in known["metrics"]}
        return {
            "recipe_hash": known.get("recipe_hash"),
            "metrics": {name: values[name] for name in SCORES if name in values},
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {"recipe_hash": None, "metrics": {}}
