# SPDX-License-Identifier: Apache-2.0
"""Which linear layers of an optimized ONNX graph run in INT8, and which in floating point."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from bertbench.common.model.config import BertConfig

INT8 = frozenset({
    "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "DynamicQuantizeMatMul",
    "QAttention", "QLinearConv", "ConvInteger",
})  # fmt: skip
"""ONNX Runtime's operators whose products are of 8-bit integers."""
FLOAT = frozenset({
    "Gemm", "MatMul", "FusedGemm", "FusedMatMul", "TransposeMatMul", "Conv", "FusedConv",
    "Attention", "GemmFastGelu",
})  # fmt: skip
_PASSED_ON = frozenset({"DequantizeLinear", "QuantizeLinear", "Transpose", "Cast", "Identity"})


def is_linear(shape: tuple[int, ...], config: BertConfig) -> bool:
    """Return whether a weight of this shape is a linear layer's of the encoder.

    The head's has two columns; the products of attention have no weight.
    """
    sides = [size for size in shape if size > 1]
    return len(sides) == 2 and min(sides) >= min(config.hidden_size, config.intermediate_size)


def linear_layers(file: Path, config: BertConfig) -> dict[str, Any]:
    """Return ``linear_int8``, ``linear_float``, ``int8_share`` and ``operators`` of a graph.

    ``file`` is an optimized ONNX model; weights outside it are not read. The share is None for a
    graph without linear layers.
    """
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in _PASSED_ON and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
        elif node.op_type == "Constant" and node.attribute[0].name == "value":
            shapes[node.output[0]] = tuple(node.attribute[0].t.dims)
    counts = {"linear_int8": 0, "linear_float": 0}
    for node in graph.node:
        if any(is_linear(shapes[name], config) for name in node.input if name in shapes):
            if node.op_type in INT8:
                counts["linear_int8"] += 1
            elif node.op_type in FLOAT:
                counts["linear_float"] += 1
    operators = Counter(node.op_type for node in graph.node)
    return counts | shared(**counts) | {"operators": dict(sorted(operators.items()))}


def shared(linear_int8: int, linear_float: int) -> dict[str, float | None]:
    """Return ``int8_share`` of the linear layers; None without any."""
    total = linear_int8 + linear_float
    return {"int8_share": linear_int8 / total if total else None}
