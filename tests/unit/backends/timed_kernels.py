# SPDX-License-Identifier: Apache-2.0
"""An accelerator whose kernels advance a clock by the seconds that a test gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bertbench.backends.accelerator import Accelerator
from bertbench.backends.timers import HostTimer, Timer
from bertbench.benchmarks import resolve
from bertbench.common.config.recipe import Settings
from bertbench.common.data.batch import Tokens
from bertbench.common.model.ops import ComputeTypeOps, Ops
from bertbench.common.optim.lamb import LambKernel, LambStep, lamb_update
from tests.contract.tiny_task import TINY

Spend = Callable[[Tokens], None]


class TimedOps(ComputeTypeOps):
    """Attention that spends time and draws a random number."""

    def __init__(self, name: str, spend: Spend, passed_over: Mapping[str, str] | None) -> None:
        super().__init__(None, passed_over=passed_over)
        self.name, self._spend = name, spend

    def attention(self, qkv: Tensor, tokens: Tokens, *, num_heads: int, dropout: float) -> Tensor:
        self._spend(tokens)
        return qkv[:, : qkv.shape[1] // 3] * torch.rand((), device=qkv.device)


class Timed(Accelerator):
    """Attention kernels, and fused ones, that take the ``seconds`` of their names."""

    name, device_type = "timed", "cpu"
    attention_kernels = ("first", "second")
    fused_kernels = ("fused",)
    attention_problems: dict[str, dict[str, str | None]] = {}  # noqa: RUF012

    def __init__(self, **seconds: float | Callable[[Tokens], float]) -> None:
        super().__init__(0)
        self.seconds = {
            "first": 0.003, "second": 0.002, "fused": 0.001,
            "torch_lamb": 0.004, "fused_lamb": 0.003,
        } | seconds  # fmt: skip
        self.attention_problems = {"fp32": dict.fromkeys(self.attention_kernels)}
        self.now = 0.0
        self.spent: list[tuple[str, tuple[int, ...]]] = []
        """What took time, and the lengths of its batch."""

    def float_precisions(self, notes: dict[str, str]) -> list[str]:
        return ["fp32"]

    def amp_precisions(self, notes: dict[str, str]) -> list[str]:
        return []

    def timer(self) -> Timer:
        return HostTimer(self.synchronize, lambda: self.now)

    def spend(self, name: str, tokens: Tokens | None = None) -> None:
        seconds = self.seconds[name]
        self.now += seconds(tokens) if callable(seconds) else seconds  # type: ignore[arg-type]
        self.spent.append((name, () if tokens is None else tokens.lengths))

    def attention_ops(
        self, kernel: str, precision: str, passed_over: Mapping[str, str] | None = None
    ) -> Ops:
        return TimedOps(kernel, partial(self.spend, kernel), passed_over)

    def fused_ops(self, kernels: str, precision: str, attention: Callable[[], Ops]) -> Ops:
        around = attention()
        return TimedOps(f"{kernels} around {around.name}", partial(self.spend, kernels), None)

    def lamb_kernel(self, kernels: str) -> LambKernel | None:
        kernels = self.auto_lamb if kernels == "auto" else kernels
        return partial(self._update, f"{kernels}_lamb")

    def _update(self, name: str, step: LambStep) -> None:
        self.spend(name)
        lamb_update(step)


def tiny(*flags: str) -> Settings:
    """The settings of a small `mini` with LAMB, on no backend in particular."""
    return resolve("mini", [*TINY, "--precision", "fp32", "--optimizer", "lamb", *flags])


def alone(value: Any) -> list[Any]:
    """Gather for one rank."""
    return [value]
