# SPDX-License-Identifier: Apache-2.0
"""Measure the parts of a step: matrix products, attention, and memory-bound operations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bertbench.backends.base import Backend
from bertbench.common.data.batch import Tokens
from bertbench.common.data.synthetic import random_lengths
from check.device import Check, choose_precision, free_memory
from check.figure import SectionReport, one_line
from check.timing import KERNEL_CLOCK, kernel_rate

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SPANS = 5
HEAD = 64


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure one call after the other; one that cannot run here gets a figure without value."""

    report: SectionReport
    backend: Backend
    precision: str
    dtype: torch.dtype

    def random(self, *shape: int) -> Tensor:
        """Return normally distributed numbers on the device."""
        return torch.randn(*shape, device=self.backend.device).to(self.dtype)

    def rate(
        self,
        name: str,
        work: float,
        unit: str,
        definition: str,
        make: Callable[[], Callable[[], object]],
    ) -> float | None:
        """Report, and return, ``work`` of a call / its seconds. ``make`` returns the call.

        Unit TFLOP/s or GB/s, with ``work`` in FLOPs or bytes; or ms, the time of ``work`` calls.
        """
        scale = {"TFLOP/s": 1e-12, "GB/s": 1e-9, "ms": 1e-3}[unit]
        definition = f"{definition}; {KERNEL_CLOCK}"
        try:
            with self._switches():
                value, note = kernel_rate(self.backend, make(), work * scale, SPANS)
        except Exception as error:  # an operator that this device or this torch lacks
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            value, note = None, one_line(error, 160).split(". ")[0]
        if value is not None and unit == "ms":
            value = 1 / value
        self.report.figure(name, value, unit, definition, note)
        return value

    def _switches(self) -> AbstractContextManager[None]:
        """Set TF32's switches; without autocast, which would convert 16-bit operands."""
        if self.dtype == torch.float32:
            return self.backend.precision(self.precision)
        return nullcontext()


def parts(check: Check, report: SectionReport) -> None:
    """Report rates at BERT-large's shapes, for the tokens of a micro-batch of 96."""
    backend = check.open()
    precision = choose_precision(check, backend, "bf16")
    bench = Bench(
        report=report,
        backend=backend,
        precision=precision,
        dtype=DTYPES.get(precision, torch.float32),
    )
    hidden, tokens = check.size(1024, 128), check.size(24576, 256)
    with torch.no_grad():
        products(bench, tokens, hidden)
        memory_bound(bench, tokens, hidden)
    free_memory(backend)
    attention(bench, check.size(96, 6), check.size(512, 64), hidden)
    free_memory(backend)


# -- matrix products ------------------------------------------------------------------------------
def products(bench: Bench, tokens: int, hidden: int) -> None:
    """Measure the four linear layers: forward, both gradients, float32 accumulation, FP8."""
    kind, inner = bench.precision, 4 * hidden
    x = {k: bench.random(tokens, k) for k in (hidden, 3 * hidden, inner)}
    for n, k in ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner)):
        weight, bias = bench.random(n, k) * 0.02, bench.random(n) * 0
        dy, flops, layer = x[n], 2.0 * tokens * n * k, f"{k} -> {n}"

        def product(
            name: str, what: str, make: Callable[[], Callable[[], object]], flops: float = flops,
            layer: str = layer,
        ) -> None:  # fmt: skip
            definition = f"2 x {tokens} tokens x inputs x outputs FLOPs; {what}"
            bench.rate(f"{name} {layer}", flops, "TFLOP/s", definition, make)

        product(
            f"{kind} linear",
            "x @ weight.T + bias",
            lambda a=x[k], w=weight, b=bias: lambda: F.linear(a, w, b),
        )
        product(
            f"{kind} input gradient", "dy @ weight", lambda dy=dy, w=weight: lambda: torch.mm(dy, w)
        )
        product(
            f"{kind} weight gradient",
            "dy.T @ x",
            lambda dy=dy, a=x[k]: lambda: torch.mm(dy.t(), a),
        )
        if bench.dtype != torch.float32:
            product(
                f"{kind} weight gradient, added in float32",
                "float32 sum + dy.T @ x in one product (addmm with out_dtype)",
                lambda dy=dy, a=x[k], n=n, k=k: _added(bench, dy, a, n, k),
            )
        product(
            "fp8 linear",
            "x @ weight.T + bias, both e4m3, a scale for each row, fast accumulation",
            lambda a=x[k], w=weight, b=bias: _fp8_linear(bench, a, w, b),
        )
        product(
            "fp8 input gradient",
            "dy @ weight, as before, but summed longer in float32",
            lambda dy=dy, w=weight: _fp8_linear(bench, dy, w.t(), None),
        )
        product(
            "fp8 weight gradient",
            "dy.T (e5m2) @ x (e4m3) in float32, operands already transposed",
            lambda dy=dy, a=x[k]: _fp8_weight_gradient(bench, dy, a),
        )


def _added(bench: Bench, dy: Tensor, x: Tensor, n: int, k: int) -> Callable[[], object]:
    total = torch.zeros(n, k, device=bench.backend.device)
    add: Any = torch.ops.aten.addmm.dtype_out
    return lambda: add(total, dy.t(), x, torch.float32, out=total)


def _fp8_linear(
    bench: Bench, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Callable[[], object]:
    """Return the products of backends/triton/fp8.py; only the forward one has a bias."""
    rows, cols = (torch.ones(len(t), 1, device=bench.backend.device) for t in (x, weight))
    a, w = x.to(torch.float8_e4m3fn), weight.contiguous().to(torch.float8_e4m3fn).t()
    return lambda: torch._scaled_mm(
        a, w, rows, cols.t(), bias=bias, out_dtype=bench.dtype, use_fast_accum=bias is not None
    )


def _fp8_weight_gradient(bench: Bench, dy: Tensor, x: Tensor) -> Callable[[], object]:
    one = torch.ones((), device=bench.backend.device)
    a = dy.t().contiguous().to(torch.float8_e5m2)
    b = x.t().contiguous().to(torch.float8_e4m3fn).t()
    return lambda: torch._scaled_mm(a, b, one, one, out_dtype=torch.float32)


# -- memory-bound operations ----------------------------------------------------------------------
def memory_bound(bench: Bench, tokens: int, hidden: int) -> None:
    """Measure operations that only move bytes; each byte counts once in and once out.

    The types are those of a step: the residual stream is in the compute type.
    """
    kind, size = bench.precision, torch.empty(0, dtype=bench.dtype).element_size()
    aten, narrow, broad = torch.ops.aten, tokens * hidden, 4 * tokens * hidden
    x, wide = bench.random(tokens, hidden), bench.random(tokens, 4 * hidden)
    y, gain, shape = bench.random(tokens, hidden), bench.random(hidden), (hidden,)
    gradient = "output gradient and input in, input gradient out"

    def norm_backward() -> Callable[[], object]:
        _, mean, rstd = torch.native_layer_norm(x, shape, gain, gain, 1e-12)
        wanted = [True] * 3
        return lambda: aten.native_layer_norm_backward(y, x, shape, mean, rstd, gain, gain, wanted)

    def dropout_backward() -> Callable[[], object]:
        mask = aten.native_dropout(x, 0.1, True)[1]
        return lambda: aten.native_dropout_backward(y, mask, 1 / 0.9)

    def gelu_backward() -> Callable[[], object]:
        dy = bench.random(*wide.shape)
        return lambda: aten.gelu_backward(dy, wide, approximate="tanh")

    def stack() -> Callable[[], object]:
        each = [bench.random(tokens, hidden) for _ in range(3)]
        return lambda: torch.stack(each, 1)

    def cast() -> Callable[[], object]:
        x32 = x.float()
        return lambda: x32.to(bench.dtype)

    for name, each, what, make, of in (
        ("layer norm", 2 * size, "in and out",
         lambda: lambda: F.layer_norm(x, shape, gain, gain), narrow),
        ("layer norm backward", 3 * size,
         f"{gradient}; statistics and the gradients of gain and bias not counted",
         norm_backward, narrow),
        ("dropout", 2 * size + 1, "in, out and a mask of one byte",
         lambda: lambda: aten.native_dropout(x, 0.1, True), narrow),
        ("dropout backward", 2 * size + 1,
         "output gradient and a mask of one byte in, input gradient out", dropout_backward, narrow),
        ("add", 3 * size, "both in, sum out", lambda: lambda: x + y, narrow),
        ("gelu (tanh)", 2 * size, "in and out, 4 x hidden wide",
         lambda: lambda: F.gelu(wide, approximate="tanh"), broad),
        ("gelu (tanh) backward", 3 * size, f"{gradient}, 4 x hidden wide", gelu_backward, broad),
        ("bias gradient", size, "in, 4 x hidden wide", lambda: lambda: wide.sum(0), broad),
        ("stack of q, k and v gradients", 2 * size, "in and out, 3 x hidden wide",
         stack, 3 * narrow),
    ):  # fmt: skip
        bench.rate(
            f"{name} in {kind}", each * of, "GB/s", f"{each:g} bytes an element: {what}", make
        )
    if bench.dtype != torch.float32:
        definition = f"{4 + size:g} bytes an element: float32 in, {kind} out, as of the weights"
        bench.rate(f"cast from float32 to {kind}", (4 + size) * narrow, "GB/s", definition, cast)


# -- attention ------------------------------------------------------------------------------------
def real_tokens(bench: Bench, sequences: int, longest: int) -> Tokens:
    """Return empty tokens of ``sequences`` sequences of real lengths up to ``longest``."""
    lengths = random_lengths(4 * sequences, longest, np.random.default_rng(3))[:sequences]
    device = bench.backend.device
    empty = torch.zeros(int(lengths.sum()), dtype=torch.int64, device=device)
    return Tokens(
        input_ids=empty,
        segment_ids=empty,
        position_ids=empty,
        cu_seqlens=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device),
        lengths=tuple(map(int, lengths)),
    )


def attention(bench: Bench, sequences: int, longest: int, hidden: int) -> None:
    """Measure every attention kernel of the backend on one micro-batch of real lengths."""
    tokens, heads = real_tokens(bench, sequences, longest), hidden // HEAD
    total = tokens.num_tokens
    forward_flops = 4.0 * hidden * sum(n * n for n in tokens.lengths)
    qkv = bench.random(total, 3 * hidden)
    out_gradient = bench.random(total, hidden)
    what = f"{sequences} sequences of real lengths up to {longest}, {heads} heads of {HEAD}"
    seen = set()
    for name in bench.backend.capabilities.kernels:
        try:
            ops = bench.backend.ops(name, bench.precision)
        except Exception as error:
            bench.report.fact(f"attention {name} in {bench.precision}", f"not available: {error}")
            continue
        if ops.name in seen:
            continue
        seen.add(ops.name)
        for dropout in (0.0, 0.1):

            def forward(x: Tensor, ops: Any = ops, dropout: float = dropout) -> Tensor:
                with bench.backend.precision(bench.precision):  # as the model calls it
                    return ops.attention(x, tokens, num_heads=heads, dropout=dropout)

            def make_forward(forward: Any = forward) -> Callable[[], object]:
                def call() -> None:
                    with torch.no_grad():
                        forward(qkv)

                return call

            def make_backward(forward: Any = forward) -> Callable[[], object]:
                leaf = qkv.detach().clone().requires_grad_()
                out = forward(leaf)
                return lambda: torch.autograd.grad(out, leaf, out_gradient, retain_graph=True)

            label = f"{bench.precision} attention {ops.name}, dropout {dropout:g}"
            for part, factor, make in (
                ("forward", 1.0, make_forward),
                ("backward", 2.5, make_backward),
            ):
                definition = f"{factor:g} x 4 x hidden x sum of squared lengths FLOPs; {what}"
                bench.rate(f"{label}: {part}", factor * forward_flops, "TFLOP/s", definition, make)

    starts = tokens.cu_seqlens

    def make_cudnn() -> Callable[[], object]:
        q, k, v = (t.contiguous() for t in qkv.view(total, 3, heads, HEAD).unbind(1))
        call: Any = torch.ops.aten._cudnn_attention_forward
        return lambda: call(
            q, k, v, None, starts, starts, longest, longest, True, 0.1, False, False
        )

    bench.rate(
        f"{bench.precision} attention of cuDNN, dropout 0.1: a forward call",
        1.0,
        "ms",
        f"one call, the host's time for it included; {what}",
        make_cudnn,
    )
