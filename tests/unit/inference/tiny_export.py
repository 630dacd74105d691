# SPDX-License-Identifier: Apache-2.0
"""Exported models that tests make: random weights, and a few words as the vocabulary."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertbench.benchmarks.bert_squad.model import BertForQuestionAnswering
from bertbench.common.model.config import BertConfig
from bertbench.common.model.ops import Ops
from bertbench.engines.exported import DESCRIPTION, INPUTS, MODEL, OUTPUTS, VOCAB

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "how", "many", "?", ".", "the", "cat",
         "dog", "bird", "tree", "one", "two", "three", "four", "five", "saw"]  # fmt: skip
CONFIG = BertConfig(
    vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=64, max_position_embeddings=64, initializer_range=0.5,
)  # fmt: skip
LENGTH = 32


class Padded(nn.Module):
    """The same function on padded sequences, as MLPerf's reference model takes them."""

    def __init__(self, model: BertForQuestionAnswering) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, input_ids: Tensor, input_mask: Tensor, segment_ids: Tensor):
        encoder, c = self.model.encoder, self.model.config
        words, positions, types = (
            getattr(encoder.embeddings, n).weight for n in ("word", "position", "token_type")
        )
        x = F.embedding(input_ids, words) + F.embedding(segment_ids, types)
        x = encoder.embeddings.norm(x + positions[: input_ids.shape[1]])
        closed = (1.0 - input_mask[:, None, None, :].to(x.dtype)) * -10_000.0
        for layer in encoder.layers:
            qkv = F.linear(x, layer.qkv.weight, layer.qkv.bias)
            q, k, v = (
                t.unflatten(-1, (c.num_attention_heads, -1)).transpose(1, 2)
                for t in qkv.chunk(3, -1)
            )
            scores = q @ k.transpose(2, 3) / (c.hidden_size // c.num_attention_heads) ** 0.5
            context = (scores + closed).softmax(-1) @ v
            x = layer.attention_norm(x + layer.attention_output(context.transpose(1, 2).flatten(2)))
            inner = F.gelu(layer.intermediate(x), approximate=c.approximate)
            x = layer.output_norm(x + layer.output(inner))
        logits = self.model.qa_outputs(x)
        return logits[..., 0], logits[..., 1]


def tiny_model(seed: int = 0, config: BertConfig = CONFIG) -> BertForQuestionAnswering:
    torch.manual_seed(seed)
    return BertForQuestionAnswering(config, Ops()).eval()


def write_export(
    folder: Path, model: BertForQuestionAnswering, words: list[str] = WORDS, **changed: Any
) -> Path:
    """Write an export of ``model`` into ``folder``; ``changed`` replaces fields of export.json."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in INPUTS)
    axes = {0: "batch", 1: "length"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(  # dynamo takes ten seconds, and makes the same products
            Padded(model), inputs, str(folder / MODEL), input_names=INPUTS, output_names=OUTPUTS,
            dynamic_axes=dict.fromkeys((*INPUTS, *OUTPUTS), axes), dynamo=False,
        )  # fmt: skip
    (folder / VOCAB).write_text("\n".join(words) + "\n")
    description = {
        "format": 1, "model": dataclasses.asdict(model.config), "max_seq_length": LENGTH,
        "doc_stride": 8, "max_query_length": 8, "lowercase": True, "quantization": None,
        "weight_sparsity": None, "parameters": sum(p.numel() for p in model.parameters()),
        "run": None, "recipe_hash": None, "metrics": {},
    }  # fmt: skip
    (folder / DESCRIPTION).write_text(json.dumps(description | changed))
    return folder


def quantize(source: Path, folder: Path, *, floating: int = 0) -> Path:
    """Write ``source`` with INT8 weights and inputs of its linear layers, all but ``floating``."""
    import onnx
    from onnx import helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    model = onnx.load(str(source / MODEL))
    graph, nodes, left = model.graph, [], floating
    weights = {t.name: t for t in graph.initializer if len(t.dims) == 2 and min(t.dims) > 2}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            if left:
                left -= 1
            else:
                x, w = node.input
                values = numpy_helper.to_array(weights[w])
                scale = np.abs(values).max() / 127
                for name, value in (
                    (f"{w}_q", np.round(values / scale).astype(np.int8)),
                    (f"{w}_s", np.float32(scale)), (f"{w}_z", np.int8(0)),
                    (f"{w}_xs", np.float32(8 / 127)),
                ):  # fmt: skip
                    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
                ends = [f"{w}_xs", f"{w}_z"]
                nodes += [
                    helper.make_node("QuantizeLinear", [x, *ends], [f"{w}_x8"]),
                    helper.make_node("DequantizeLinear", [f"{w}_x8", *ends], [f"{w}_xf"]),
                    helper.make_node(
                        "DequantizeLinear", [f"{w}_q", f"{w}_s", f"{w}_z"], [f"{w}_f"]
                    ),
                ]
                node.input[:] = [f"{w}_xf", f"{w}_f"]
        nodes.append(node)
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copied)
    onnx.save(model, str(folder / MODEL))
    (folder / VOCAB).write_text((source / VOCAB).read_text())
    description = json.loads((source / DESCRIPTION).read_text()) | {"quantization": "int8"}
    (folder / DESCRIPTION).write_text(json.dumps(description))
    return folder


def write_questions(file: Path) -> Path:
    """Write five questions; some of the paragraphs need several windows."""
    text = "the cat saw one bird . the dog saw two tree . " * 3
    asked = [("bird", "one"), ("tree", "two"), ("cat", "one bird"), ("dog", "two tree"),
             ("tree", "dog")]  # fmt: skip
    qas = [
        {"id": f"q{i}", "question": f"how many {noun} ?",
         "answers": [{"text": answer, "answer_start": text.index(answer)}]}
        for i, (noun, answer) in enumerate(asked)
    ]  # fmt: skip
    paragraphs = [{"context": text, "qas": qas[:3]}, {"context": text[:46], "qas": qas[3:]}]
    file.write_text(
        json.dumps({"version": "1.1", "data": [{"title": "T", "paragraphs": paragraphs}]})
    )
    return file


def batch_of(rng: np.random.Generator, sizes: list[int], length: int):
    """Return int64 [B, L] inputs of sequences of ``sizes`` tokens."""
    from bertbench.engines.base import Batch

    mask = (np.arange(length) < np.array(sizes)[:, None]).astype(np.int64)
    ids = rng.integers(5, len(WORDS), mask.shape) * mask
    return Batch(ids, mask, (np.arange(length) >= 4).astype(np.int64) * mask)
