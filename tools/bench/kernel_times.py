# SPDX-License-Identifier: Apache-2.0
"""Where the seconds of one training step go on cpu_ref, by kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from bench.steps import Step
from bertbench.backends.cpu_ref.library import library

PRODUCTS = "matrix products"
_OF_TORCH = {
    PRODUCTS: ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "adamw": ("aten::_fused_adamw_",),
    "clip": ("aten::_foreach_norm", "aten::_foreach_mul_", "aten::linalg_vector_norm"),
}
_NATIVE = "native::"


def kernel_times(step: Step, rounds: int) -> dict[str, float]:
    """Return the milliseconds of ``step`` by kernel, the mean of ``rounds`` after two untimed.

    Time within torch's operators and the native kernels, as the calling thread sees it. ``torch's
    other operators`` are those without a name here, ``between kernels`` is the wall time in none:
    Python, autograd and the profiler itself; ``step`` is the wall time without the profiler.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it writes to the console
    for _ in range(2):
        step()
    begin = time.perf_counter()
    for _ in range(rounds):
        step()
    plain = time.perf_counter() - begin
    with _named_kernels(), torch.profiler.profile(activities=[ProfilerActivity.CPU]) as trace:
        begin = time.perf_counter()
        for _ in range(rounds):
            step()
        wall = time.perf_counter() - begin
    found: dict[str, float] = {}
    for event in trace.key_averages():
        name = _group(event.key)
        found[name] = found.get(name, 0.0) + event.self_cpu_time_total / 1e3
    ranked = dict(sorted(found.items(), key=lambda item: -item[1]))
    ranked["between kernels"] = 1e3 * wall - sum(found.values())
    ranked["step"] = 1e3 * plain
    return {name: value / rounds for name, value in ranked.items()}


def _group(key: str) -> str:
    if key.startswith(_NATIVE):
        return key.removeprefix(_NATIVE)
    groups = (group for group, names in _OF_TORCH.items() if key in names)
    return next(groups, "torch's other operators")


@contextmanager
def _named_kernels() -> Iterator[None]:
    """Let the profiler see the native kernels by name."""
    functions = library()
    plain = dict(functions)

    def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with record_function(_NATIVE + name):
                return function(*args)

        return run

    try:
        functions.update({name: named(name, f) for name, f in plain.items()})
        yield
    finally:
        functions.update(plain)
