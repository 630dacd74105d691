# SPDX-License-Identifier: Apache-2.0
"""Measure a device's rates in BERT's matrix products and in copies.

The best product is the denominator of ``mfu_calibrated``: unlike a data sheet's peak it includes
clocks under load and the library, and it needs no data sheet.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from bertbench.common.config.recipe import plain
from bertbench.common.errors import Unsupported
from bertbench.common.measure.system import describe_system
from bertbench.common.measure.utilisation import CALIBRATION_VERSION

if TYPE_CHECKING:
    from bertbench.backends.base import Backend
    from bertbench.backends.timers import Timer


MODELS = {"base": (768, 3072), "large": (1024, 4096)}
"""Hidden and intermediate size."""
VOCABULARY = 30528
SPAN_S = 0.02
"""Minimum seconds of a timed span, in which calls are repeated."""
MOST_CALLS = 1000
FEWEST_SPANS = 3
BUDGET_S = 0.5
"""Seconds for one product, after which ``FEWEST_SPANS`` are enough."""
DEFINITION = (
    "matrix products m x k by k x n of normally distributed numbers, 2 m n k FLOPs each; a span is "
    "as many calls in a row as take 20 ms, synchronised at both ends; after warm-up; median over "
    "the spans, with the slowest and the fastest. Copy: bytes read and bytes written on the device."
)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Product(NamedTuple):
    """A matrix product of a training step."""

    model: str
    layer: str
    product: str
    m: int
    n: int
    k: int


class Effort(NamedTuple):
    """The size of the measurement."""

    tokens: int
    spans: int
    copy_bytes: int


def calibrate(backend: Backend, precisions: Sequence[str], effort: Effort) -> dict[str, Any]:
    """Measure and return JSON values; raise Unsupported for an unsupported precision."""
    chosen = [backend.resolve_precision(p) for p in precisions or backend.capabilities.precisions]
    if "fp8" in precisions:
        raise Unsupported("calibrate has no FP8 products: see `parts` of tools/device_check.py")
    measured = {}
    for precision in dict.fromkeys(p for p in chosen if p != "fp8"):
        checks = backend.verify_precision(precision)
        found = [
            product._asdict() | _product(backend, precision, product, effort.spans)
            for product in products(effort.tokens)
        ]
        best = max(found, key=lambda p: p["flops_per_second"])
        measured[precision] = {"best": best, "products": found, "device_checks": checks}
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


def products(tokens: int) -> Iterator[Product]:
    """Yield the products of a step over ``tokens`` tokens in sequences of 512 with 76 masked."""
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

    # The operands' memory layout is that of a linear layer: x [rows, in], weight [out, in].
    a = random(k, m).t() if product.product == "weight gradient" else random(m, k)
    b = random(n, k).t() if product.product == "forward" else random(k, n)
    out = torch.empty(m, n, device=backend.device, dtype=dtype)
    # The context sets the TF32 switches; 16-bit operands need no autocast.
    context = backend.precision(precision) if dtype == torch.float32 else nullcontext()
    with context, torch.no_grad():
        measured = measure_rates(backend, lambda: torch.mm(a, b, out=out), 2 * m * n * k, spans)
    return {"flops_per_second": measured.pop("median"), **measured}


def _copy(backend: Backend, effort: Effort) -> dict[str, Any]:
    source = torch.ones(effort.copy_bytes // 4, device=backend.device)
    target = torch.empty_like(source)
    work = 2 * effort.copy_bytes
    measured = measure_rates(backend, lambda: target.copy_(source), work, effort.spans)
    rate = {"bytes_per_second": measured.pop("median")}
    return {**rate, **measured, "bytes_copied": effort.copy_bytes}


def measure_rates(
    backend: Backend, call: Callable[[], object], work: float, spans: int
) -> dict[str, float]:
    """Return ``work`` of a call / its seconds: median and extremes over ``spans`` spans.

    Raises Unsupported for a timer that reads what no work takes.
    """
    call()
    once = backend.timer()
    once.start()
    call()
    once.stop()
    calls = max(1, min(MOST_CALLS, round(SPAN_S / _read(backend, once)[0])))
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
    rates = [work * calls / seconds for seconds in _read(backend, timer)]
    return {
        "median": statistics.median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "calls": calls,
        "spans": len(rates),
    }


def _read(backend: Backend, timer: Timer) -> list[float]:
    spans = timer.seconds()
    if not all(0 < seconds < math.inf for seconds in spans):
        raise Unsupported(f"{backend.name}: its timer reads {min(spans)} s for a span of work")
    return spans
