# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose products take 8-bit floats (E4M3): forward, and the input's gradient.

Each row of a factor has a scale, which maps its largest magnitude to the format's largest. It
depends on that row alone: no step needs another's, and a resumed run goes on bit for bit. The
weight's gradient sums over the tokens, for which both factors would need scales by column and
transposed copies (this hardware's products take rows only); by the trace of a step these cost about
what the product would save. It is computed in 16 bits, which is also the most exact choice (torchao
calls it ``rowwise_with_gw_hp``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from bertbench.backends.fused import Shadows
from bertbench.backends.triton import kernels
from bertbench.common.errors import Unsupported

E4M3 = torch.float8_e4m3fn
MULTIPLE = 16
"""Of a product's inputs and outputs: what torch._scaled_mm takes."""


class Eight(NamedTuple):
    """A matrix in 8 bits: values [T, N] times scales, float32 [T, 1]."""

    values: Tensor
    scales: Tensor


def blank(rows: int, cols: int, device: torch.device) -> Eight:
    """Return an ``Eight`` [rows, cols] for a kernel to fill."""
    values = torch.empty(rows, cols, dtype=E4M3, device=device)
    return Eight(values, torch.empty(rows, 1, device=device))


def carry(x: Tensor, eight: Eight | None) -> None:
    """Let x [T, N] carry its copy in 8 bits to the layer that reads it."""
    if eight is not None:
        x._bertbench_eight = (x._version, eight)  # type: ignore[attr-defined]


def rounded(x: Tensor) -> Eight:
    """Return x [T, N] in 8 bits: the copy that it carries, if it has not changed, or a new one.

    A copy has one reader: autograd may keep x, and would keep the copy with it.
    """
    version, known = x.__dict__.pop("_bertbench_eight", (None, None))
    if known is not None and version == x._version:
        return known
    x = x.contiguous()
    rows, cols = x.shape
    new = blank(rows, cols, x.device)
    kernels.eight[(rows,)](x, *new, cols, BLOCK=triton.next_power_of_2(cols))
    return new


@dataclass(frozen=True, slots=True)
class Wide:
    """A linear layer's parameters in the compute type."""

    eight: ClassVar[bool] = False
    weight: Tensor
    bias: Tensor

    def output(self, x: Tensor) -> Tensor:
        """Return x @ weight.T + bias: [T, K] -> [T, N]."""
        return F.linear(x, self.weight, self.bias)

    def input_grad(self, dy: Tensor, passed: Tensor | None) -> Tensor:
        """Return dy @ weight + ``passed``, [T, K], in the place of ``passed`` if there is one.

        It is Norm's gradient for its residual, whose other reader, the layers between, has run.
        """
        return dy @ self.weight if passed is None else passed.addmm_(dy, self.weight)


@dataclass(frozen=True, slots=True)
class Narrow:
    """A linear layer's weight in 8 bits, by output and by input, and its bias."""

    eight: ClassVar[bool] = True
    by_output: Eight
    by_input: Eight
    bias: Tensor

    def output(self, x: Tensor) -> Tensor:
        """Return x @ weight.T + bias: [T, K] -> [T, N]."""
        return _product(rounded(x), self.by_output, x.dtype, bias=self.bias, use_fast_accum=True)

    def input_grad(self, dy: Tensor, passed: Tensor | None) -> Tensor:
        """Return as Wide, but sums longer in float32: gradients vary more than activations."""
        dx = _product(rounded(dy), self.by_input, dy.dtype, use_fast_accum=False)
        return dx if passed is None else passed.add_(dx)


def _product(a: Eight, b: Eight, dtype: torch.dtype, **how: Any) -> Tensor:
    """Return a @ b.T, [T, N] in ``dtype`` from [T, K] and [N, K]."""
    return torch._scaled_mm(a.values, b.values.t(), a.scales, b.scales.t(), out_dtype=dtype, **how)


class NarrowWeights(Shadows[tuple[Eight, Eight]]):
    """Weights [N, K] in 8 bits, by output [N, K] and by input [K, N], cast once per update."""

    def cast(self, parameter: Tensor, known: tuple[Eight, Eight] | None) -> tuple[Eight, Eight]:
        return rounded(parameter), rounded(parameter.t())


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T in bfloat16 as the layers compute it: [T, K], [N, K] -> [T, N]."""
    return _product(rounded(x), rounded(weight), torch.bfloat16, use_fast_accum=True)


def check_sizes(weight: Tensor) -> None:
    """Raise Unsupported for a weight [N, K] that the products do not take."""
    if any(size % MULTIPLE for size in weight.shape):
        raise Unsupported(
            f"fp8 needs layers whose inputs and outputs are multiples of {MULTIPLE}, not "
            f"{weight.shape[1]} -> {weight.shape[0]}: choose --precision bf16"
        )
