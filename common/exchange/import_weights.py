# SPDX-License-Identifier: Apache-2.0
"""``bertbench import-weights``: the ``megatron.pkl`` of NVIDIA's sparse INT8 BERT as safetensors.

Source of the names: the loader in MLPerf Inference v0.7, open/NVIDIA, code/bert/tensorrt_sparse
(int8_builder_vs_il.py). The model is pre-LN, and its LayerNorms are named after the place that they
follow: the embeddings' is the first layer's input norm, a layer's last one is the next layer's
input norm, or the final norm. Activation ranges become those of our quantizers; the weights' own
scales follow from the weights.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bertbench.common.errors import BadInput
from bertbench.common.exchange.export_weights import new_folder
from bertbench.common.exchange.numpy_pickle import Array, read_arrays
from bertbench.common.files import shown

FILE = "model.safetensors"
_TABLES = {"word": "word_embeddings", "position": "position_embeddings",
           "token_type": "tokentype_embeddings"}  # fmt: skip
_PARTS = {"qkv": "attention.query_key_value", "attention_output": "attention.output.dense",
          "output_norm": "attention.output.LayerNorm", "intermediate": "intermediate.dense_act",
          "output": "output.dense"}  # fmt: skip
_RANGES = {
    "qkv_input": "attention.query_key_value._input_quantizer",
    **{name: f"attention.matmul_{name}_quantizer" for name in ("q", "k", "v")},
    "probabilities": "attention.matmul_a_quantizer",
    "attention_output_input": "attention.output.dense._input_quantizer",
    "attention_added": "attention.output.add_local_input_quantizer",
    "attention_residual": "attention.output.add_residual_input_quantizer",
    "intermediate_input": "intermediate.dense_act._input_quantizer",
    "output_input": "output.dense._input_quantizer",
    "output_added": "output.add_local_input_quantizer",
    "output_residual": "output.add_residual_input_quantizer",
}
"""Our quantizer -> the name whose ``_amax`` is its range."""


def import_weights(file: Path, output: Path) -> dict[str, Any]:
    """Write the weights in ``file`` to the new folder ``output``; return a summary.

    Raises BadInput for a file that ``read_arrays`` refuses, that lacks a weight, or has a range
    that is not above 0; and where ``output`` exists.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"{shown(output)} exists: name a new folder with --output")
    given = _normalised(file, read_arrays(file))
    numbers = [
        int(m[1]) for n in given if (m := re.match(r"bert\.encoder\.layers\.(\d{1,4})\.", n))
    ]
    layers = max(numbers, default=-1) + 1
    weights, ranges = _weights(layers), _ranges(layers)
    head = {name: name for name in ("qa_outputs.weight", "qa_outputs.bias") if name in given}
    lacking = [source for source in weights.values() if source not in given]
    if lacking or not layers:
        raise BadInput(
            f"{shown(file)}: lacks {len(lacking)} weights of a Megatron BERT of {layers} layers, "
            f"among them {', '.join(lacking[:3])}: it is another model's, or in another layout"
        )
    known = {own: source for own, source in ranges.items() if source in given}
    if known and len(known) < len(ranges):
        missing = next(source for source in ranges.values() if source not in given)
        raise BadInput(
            f"{shown(file)}: has {len(known)} of {len(ranges)} activation ranges, and not {missing}"
        )
    tensors = {own: _native(given[source]) for own, source in (weights | head).items()}
    tensors |= {own: _range(file, source, given[source]) for own, source in known.items()}
    left = sorted(set(given) - {*weights.values(), *head, *known.values()})
    with new_folder(output) as work:
        save_file(tensors, work / FILE, metadata={"format": "pt"})
    return {
        "file": str(output / FILE),
        "num_hidden_layers": layers,
        "hidden_size": given["bert.embeddings.word_embeddings.weight"].shape[-1],
        "vocab_size": len(given["bert.embeddings.word_embeddings.weight"]),
        "parameters": sum(given[source].size for source in (weights | head).values()),
        "head": bool(head),
        "activation_ranges": len(known),
        "left_out": [shown(name) for name in left],
    }


def _normalised(file: Path, arrays: dict[str, Array]) -> dict[str, Array]:
    """Return the arrays by one spelling each, of the two that the loader accepts."""
    found: dict[str, Array] = {}
    for name, array in arrays.items():
        plain = name.replace("bert.embedding.", "bert.embeddings.", 1)
        plain = plain.replace("bert.encoder.encoder.", "bert.encoder.", 1)
        if plain in found and not np.array_equal(found[plain], array):
            raise BadInput(f"{shown(file)}: two weights {shown(plain)}, which differ")
        found[plain] = array
    return found


def _weights(layers: int) -> dict[str, str]:
    """Return our name of each parameter of the encoder -> the file's."""
    names = {f"encoder.embeddings.{own}": f"bert.embeddings.{n}" for own, n in _TABLES.items()}
    found = {f"{own}.weight": f"{source}.weight" for own, source in names.items()}
    before = "bert.embeddings.LayerNorm"
    parts = {}
    for i in range(layers):
        own, source = f"encoder.layers.{i}", f"bert.encoder.layers.{i}"
        parts[f"{own}.attention_norm"] = before
        before = f"{source}.output.LayerNorm"
        parts |= {f"{own}.{name}": f"{source}.{theirs}" for name, theirs in _PARTS.items()}
    parts["encoder.final_norm"] = before
    for own, source in parts.items():
        found |= {f"{own}.{kind}": f"{source}.{kind}" for kind in ("weight", "bias")}
    return found


def _ranges(layers: int) -> dict[str, str]:
    """Return our name of each activation's range -> the file's."""
    found = {
        f"encoder.layers.{i}.quantizers.{own}.amax": f"bert.encoder.layers.{i}.{source}._amax"
        for i in range(layers)
        for own, source in _RANGES.items()
    }
    last = f"bert.encoder.layers.{layers - 1}.output.LayerNorm_output_quantizer._amax"
    return found | {"encoder.quantizers.encoder_output.amax": last}


def _native(array: Array) -> Array:
    """Return an array [...] in C order and the machine's byte order."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _range(file: Path, name: str, value: Array) -> Array:
    """Return a range, one number [...], as float32 []."""
    if value.size != 1 or not 0 < float(value.reshape(())) < 1e30:
        raise BadInput(f"{shown(file)}: {name} must be a number above 0, as an activation's range")
    return value.astype(np.float32).reshape(())
