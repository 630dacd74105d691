# SPDX-License-Identifier: Apache-2.0
"""ONNX operators and linear layers, as PyTorch computes them on any device.

The operators are those of the graphs that torch's exporters write of BERT (onnx.ai's operator list
defines them). int64 tensors of shapes and positions stay on the host; all else is on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_ROWS = 17
"""Of the left operand of torch._int_mm on CUDA (torch's native/cuda/Blas.cpp)."""
SPARSE_ROWS = 16
"""The rows of a sparse product's dense operand are a multiple of it (cuSPARSELt, INT8)."""
Attributes = Mapping[str, Any]


class FloatLinear:
    """x @ weight.T + bias in the weight's dtype, dense or by torch's semi-structured kernels."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, sparse: bool) -> None:
        """Take weight [out, in] and bias [out], both on the device."""
        kept = torch.sparse.to_sparse_semi_structured(weight) if sparse else weight
        self.weight: Tensor = kept
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def product(self, x: Tensor) -> Tensor:
        """Return x @ weight.T [rows, out] of x [rows, in]."""
        return F.linear(x, self.weight)


class Int8Linear:
    """(x @ weight.T + bias) * step with int8 operands, int32 sums and bias, and a float result."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, step: float, dtype: torch.dtype, *, sparse: bool
    ) -> None:
        """Take weight int8 [out, in] and bias int32 [out], both on the device.

        ``step`` is the scale of the input x that of the weight.
        """
        self.bias, self.step, self.dtype, self.sparse = bias, step, dtype, sparse
        self.weight = torch._cslt_compress(weight) if sparse else weight

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``dtype`` [..., out] of int8 [..., in]."""
        sums = self.product(x.reshape(-1, x.shape[-1]))
        if self.bias is not None:
            sums = sums.add_(self.bias)
        # In passes of one type each: torch's mixed ones are several times as slow on a processor.
        out = sums.to(torch.float32).mul_(self.step).to(self.dtype)
        return out.reshape(*x.shape[:-1], out.shape[-1])

    def product(self, x: Tensor) -> Tensor:
        """Return the sums x @ weight.T, int32 [rows, out], of int8 [rows, in]."""
        rows, x = len(x), x.contiguous()
        if self.sparse:
            # The kernel takes the dense operand by columns, and gives the transpose.
            x = _filled(x, -rows % SPARSE_ROWS)
            sums = torch._cslt_sparse_mm(self.weight, x.T, out_dtype=torch.int32)
            return sums.T[:rows].contiguous()
        return torch._int_mm(_filled(x, max(0, LEAST_ROWS - rows)), self.weight.T)[:rows]


def _filled(x: Tensor, rows: int) -> Tensor:
    """Return ``x`` with so many rows of zeros more."""
    return F.pad(x, (0, 0, 0, rows)) if rows else x


def attention(scale: float, q: Tensor, k: Tensor, mask: Tensor, v: Tensor) -> Tensor:
    """Return the context [B, N, L, D] in one kernel; ``k`` is [B, N, D, L], the mask is added."""
    return F.scaled_dot_product_attention(q, k.transpose(-1, -2), v, attn_mask=mask, scale=scale)


def quantized(scale: float, x: Tensor) -> Tensor:
    """Return round(x / scale) as int8, ties to even, as QuantizeLinear."""
    return x.div(scale).round_().clamp_(-128, 127).to(torch.int8)


def dequantized(scale: float, dtype: torch.dtype, x: Tensor) -> Tensor:
    """Return x * scale, as DequantizeLinear."""
    return x.to(dtype).mul_(scale)


def rounded(scale: float, step: float, x: Tensor) -> Tensor:
    """Return what ``quantized`` and then ``dequantized`` by ``step`` do, without the integers."""
    return x.div(scale).round_().clamp_(-128, 127).mul_(step)


def _cast(a: Attributes, x: Tensor) -> Tensor:
    known = {1: a["dtype"], 7: torch.int64}  # TensorProto.FLOAT and INT64
    return x.to(known[a["to"]])


def _div(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _gather(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = a.get("axis", 0)
    if index.dim() == 0:
        return x.select(axis, int(index))
    assert axis == 0 or index.dim() == 1
    index = index.to(x.device)
    return x[index] if axis == 0 else x.index_select(axis, index)


def _gemm(a: Attributes, x: Tensor, y: Tensor, c: Tensor | None = None) -> Tensor:
    x, y = x.T if a.get("transA") else x, y.T if a.get("transB") else y
    found = x @ y * a.get("alpha", 1.0)
    return found if c is None else found + c * a.get("beta", 1.0)


def _layer_norm(a: Attributes, x: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, gain.shape, gain, bias, a.get("epsilon", 1e-5))


def _range(a: Attributes, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(int(start), int(limit), int(delta))


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    if not a.get("allowzero"):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[a.get("start", 0) : a.get("end")])


def _slice(
    a: Attributes, x: Tensor, starts: Tensor, ends: Tensor,
    axes: Tensor | None = None, steps: Tensor | None = None,
) -> Tensor:  # fmt: skip
    where = [slice(None)] * x.dim()
    on = range(len(starts)) if axes is None else axes.tolist()
    by = [1] * len(starts) if steps is None else steps.tolist()
    for axis, *limits in zip(on, starts.tolist(), ends.tolist(), by, strict=True):
        where[axis] = slice(*limits)
    return x[tuple(where)]


def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    return x.chunk(a["num_outputs"], axis) if sizes is None else x.split(sizes.tolist(), axis)


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(axes.tolist())


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(axes.tolist()):
        x = x.unsqueeze(axis)
    return x


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, x, y: x + y,
    "Cast": _cast,
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "Div": _div,
    "Gather": _gather,
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", "none")),
    "Gemm": _gemm,
    "Identity": lambda a, x: x,
    "LayerNormalization": _layer_norm,
    "MatMul": lambda a, x, y: x @ y,
    "Mod": lambda a, x, y: torch.remainder(x, y),
    "Mul": lambda a, x, y: x * y,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Softmax": lambda a, x: x.softmax(a.get("axis", -1)),
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Unsqueeze": _unsqueeze,
}
"""Name -> a function of the node's attributes (and the model's ``dtype``) and inputs."""
