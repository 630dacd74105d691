# SPDX-License-Identifier: Apache-2.0
"""Whether an engine's INT8 products sum exactly.

x86 processors without VNNI multiply with an instruction (vpmaddubsw) that adds two products in 16
bits and clips them; sums of large values are then wrong by any amount. The trial: one product of
values and INT8 weights, and one of two values, as attention has, all at the ends of their range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bertbench.engines.base import FloatArray

ROWS, DEPTH = 40, 64
LEAST, MOST = -128, 127
NAMES = ("weights", "values")
"""The outputs of the trial's graph."""


def graph() -> bytes:
    """Return the trial as an ONNX model: a, b [ROWS, DEPTH], c [DEPTH, ROWS] -> NAMES."""
    from onnx import TensorProto, helper, numpy_helper

    def stored(name: str, value: Any) -> Any:
        return numpy_helper.from_array(np.asarray(value), name)

    def rounded(name: str) -> list[Any]:
        return [
            helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_int8"]),
            helper.make_node("DequantizeLinear", [f"{name}_int8", "scale", "zero"], [f"{name}_x"]),
        ]

    # Each product has its own input: two uses of one ONNX Runtime computes in float32.
    nodes = [
        *rounded("a"),
        *rounded("b"),
        *rounded("c"),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["w_x"]),
        helper.make_node("MatMul", ["a_x", "w_x"], [NAMES[0]]),
        helper.make_node("MatMul", ["b_x", "c_x"], [NAMES[1]]),
    ]
    real = TensorProto.FLOAT
    given = [
        helper.make_tensor_value_info("a", real, [ROWS, DEPTH]),
        helper.make_tensor_value_info("b", real, [ROWS, DEPTH]),
        helper.make_tensor_value_info("c", real, [DEPTH, ROWS]),
    ]
    made = [helper.make_tensor_value_info(name, real, [ROWS, ROWS]) for name in NAMES]
    constants = [
        stored("w", operands()[1].astype(np.int8)),
        stored("scale", np.float32(1)),
        stored("zero", np.int8(0)),
    ]
    content = helper.make_graph(nodes, "exact", given, made, constants)
    opset = [helper.make_opsetid("", 21)]
    saved: bytes = helper.make_model(
        content, opset_imports=opset, ir_version=10
    ).SerializeToString()
    return saved


def operands() -> tuple[FloatArray, FloatArray]:
    """Return a [ROWS, DEPTH] and b [DEPTH, ROWS], each entry at an end of INT8's range."""
    a = np.where(np.arange(ROWS)[:, None] % 2, LEAST, MOST) * np.ones((1, DEPTH))
    b = np.where(np.arange(ROWS)[None] % 3, -MOST, MOST) * np.ones((DEPTH, 1))
    return a.astype(np.float32), b.astype(np.float32)


def given() -> dict[str, FloatArray]:
    """Return the inputs of ``graph``, by name."""
    a, b = operands()
    return {"a": a, "b": a, "c": b}


def is_exact(products: Sequence[FloatArray]) -> bool:
    """Return whether all ``products``, float32 [ROWS, ROWS], are those of ``operands``."""
    a, b = operands()
    wanted = a.astype(np.int64) @ b.astype(np.int64)
    return all(np.array_equal(found, wanted) for found in products)
