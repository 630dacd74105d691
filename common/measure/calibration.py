# SPDX-License-Identifier: Apache-2.0
"""The rates that a device reaches in BERT's matrix products and in copies.

The best of these products is the honest denominator of a run's utilisation: it includes what no
data sheet does (clocks under load, the library), and exists where no sheet does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from bertbench.common.config.recipe import plain
from bertbench.common.measure.system import describe_system
from bertbench.common.measure.utilisation import CALIBRATION_VERSION

if TYPE_CHECKING:
    from bertbench.backends.base import Backend


MODELS = {"base": (768, 3072), "large": (1024, 4096)}
"""Hidden and intermediate size."""


VOCABULARY = 30528


SPAN_S = 0.02
"""Seconds that a timed span should last at least: calls are repeated within it."""


MOST_CALLS = 1000


FEWEST_SPANS = 3


BUDGET_S = 0.5
"""Seconds for one product, after which fewer spans than intended will do."""


DEFINITION = (
    "matrix products m x k by k x n of normally distributed numbers, 2 m n k FLOPs each; a span is "
    "as many calls in a row as take 20 ms, synchronised at both ends; after warm-up; median over "
    "the spans, with the slowest and the fastest. Copy: bytes read and bytes written on the device."
)


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Product(NamedTuple):
    """One kind of matrix product of a training step."""

    model: str
    layer: str
    product: str
    m: int
    n: int
    k: int


class Effort(NamedTuple):
    """How much is measured."""

    tokens: int
    spans: int
    copy_bytes: int


def calibrate(backend: Backend, precisions: Sequence[str], effort: Effort) -> dict[str, Any]:
    """Measure; JSON values. Raises Unsupported for a precision that the device does not have."""
    chosen = [backend.resolve_precision(p) for p in precisions or backend.capabilities.precisions]
    measured = {}
    for precision in dict.fromkeys(chosen):
        checks = backend.verify_precision(precision)
        products = [
            product._asdict() | _product(backend, precision, product, effort.spans)
            for product in shapes(effort.tokens)
        ]
        best = max(products, key=lambda p: p["flops_per_second"])
        measured[precision] = {"best": best, "products": products, "device_checks": checks}
    return {
        "schema_version": CALIBRATION_VERSION,
        "created_utc": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": plain(backend.describe()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "definition": DEFINITION,
        "clock": backend.timer().clock,
        "effort": effort._asdict(),
        "precisions": measured,
        "copy": _copy(backend, effort),
        "system": describe_system(),
    }


def shapes(tokens: int) -> Iterator[Product]:
    """The products of a step over ``tokens`` tokens in sequences of 512 with 76 masked."""
    for model, (hidden, inner) in MODELS.items():
        for layer, rows, outputs, inputs in (
            ("qkv", tokens, 3 * hidden, hidden),
            ("attention_output", tokens, hidden, hidden),
            ("intermediate", tokens, inner, hidden),
            ("output", tokens, hidden, inner),
            ("decoder", tokens * 76 // 512, VOCABULARY, hidden),
        ):
            yield Product(model, layer, "forward", rows, outputs, inputs)
            yield Product(model, layer, "input gradient", rows, inputs, outputs)
            yield Product(model, layer, "weight gradient", outputs, inputs, rows)


def _product(backend: Backend, precision: str, product: Product, spans: int) -> dict[str, Any]:
    dtype = _DTYPES.get(precision, torch.float32)
    m, n, k = product.m, product.n, product.k

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, device=backend.device).to(dtype)

    # Operands lie in memory as a linear layer has them: x [rows, in], weight [out, in].
    a = random(k, m).t() if product.product == "weight gradient" else random(m, k)
    b = random(n, k).t() if product.product == "forward" else random(k, n)
    out = torch.empty(m, n, device=backend.device, dtype=dtype)
    # Only the TF32 switches are wanted of the context; 16-bit operands need no autocast.
    context = backend.precision(precision) if dtype == torch.float32 else nullcontext()
    with context, torch.no_grad():
        measured = measure_rates(backend, lambda: torch.mm(a, b, out=out), 2 * m * n * k, spans)
    return {"flops_per_second": measured.pop("median"), **measured}


def _copy(backend: Backend, effort: Effort) -> dict[str, Any]:
    source = torch.ones(effort.copy_bytes // 4, device=backend.device)
    target = torch.empty_like(source)
    work = 2 * effort.copy_bytes
    measured = measure_rates(backend, lambda: target.copy_(source), work, effort.spans)
    return {
        "bytes_per_second": measured.pop("median"),
        **measured,
        "bytes_copied": effort.copy_bytes,
    }


def measure_rates(
    backend: Backend, call: Callable[[], object], work: float, spans: int
) -> dict[str, float]:
    """``work`` of one call over its seconds: median and extremes over ``spans`` spans."""
    call()
    once = backend.timer()
    once.start()
    call()
    once.stop()
    calls = max(1, min(MOST_CALLS, round(SPAN_S / max(once.seconds()[0], 1e-9))))
    timer = backend.timer()
    end = time.monotonic() + BUDGET_S
    for done in range(spans):
        if done >= FEWEST_SPANS and time.monotonic() > end:
            break
        backend.synchronize()
        timer.start()
        for _ in range(calls):
            call()
        timer.stop()
    rates = [work * calls / seconds for seconds in timer.seconds()]
    return {
        "median": statistics.median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "calls": calls,
        "spans": len(rates),
    }
