# SPDX-License-Identifier: Apache-2.0
"""Tolerances, and steps that several contract tests share."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor

from bertbench.backends.base import Backend
from bertbench.common.errors import Unsupported

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}

TRIES = 10
"""Of a comparison of two clock readings: a busy host disturbs some of them, a wrong clock is wrong
in each."""

GRADIENT_TOLERANCE = {"fp32": 1e-5, "tf32": 4e-3, "fp16": 4e-3, "bf16": 3e-2, "fp8": 0.15}
"""Norm of the difference over the norm of a parameter's gradient (at least a hundredth of the
whole gradient's): a few roundings of 2^-11, 2^-8 or, in fp8, 2^-4 in a row; plain PyTorch with the
same rounding is off by 0.1 there."""


def claimed(backend: Backend, precision: str) -> None:
    """Skip the test of a precision that the adapter does not claim."""
    have = backend.capabilities.precisions
    if precision not in have:
        why = backend.capabilities.notes.get(precision, "no reason in its notes")
        pytest.skip(f"{backend.name} does not claim {precision}: {why}")


def kernels_for(backend: Backend, precision: str) -> list[str]:
    """The claimed kernels that compute in ``precision``: plain ones in all claimed ones but fp8."""
    found = []
    for kernels in backend.capabilities.kernels:
        try:
            backend.ops(kernels, precision)
        except Unsupported:
            assert kernels != "plain" or precision == "fp8", (
                f"plain kernels refuse {precision}, which is claimed"
            )
        else:
            found.append(kernels)
    return found


class Work:
    """Matrix products in a row, so large that the device and not its launching takes the time."""

    def __init__(self, backend: Backend, unit_s: float = 0.004) -> None:
        self.device, self.repeats = backend.device, 1
        size, took = 64, 0.0
        while took < 0.0005 and size < 4096:
            size *= 2
            self.matrix = torch.eye(size, device=self.device)
            self(1)
            took = min(self.wall(1) for _ in range(3))
        self.repeats = max(1, math.ceil(unit_s / took))

    def __call__(self, units: int) -> Tensor:
        x = self.matrix
        for _ in range(units * self.repeats):
            x = x @ self.matrix
        return x

    def wall(self, units: int) -> float:
        """Seconds until the result's number has arrived at the host: no clock of the adapter."""
        self.settle()
        begin = time.perf_counter()
        float(self(units)[0, 0])
        return time.perf_counter() - begin

    def settle(self) -> None:
        float(self.matrix[0, 0])
