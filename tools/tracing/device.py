# SPDX-License-Identifier: Apache-2.0
"""The product's CUDA backend on a fake device, and its step with marked phases."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from bertbench.backends.accelerator import AMP_DTYPES, EIGHT_BITS, WRONG_TYPE, of_activations
from bertbench.backends.base import Capabilities, Probe
from bertbench.backends.cuda.backend import Cuda
from bertbench.backends.cuda.ops import KERNELS
from bertbench.backends.sensors import Sensors
from bertbench.common.errors import Unsupported
from bertbench.common.model.ops import Ops
from bertbench.common.optim.lamb import LambKernel
from bertbench.common.training.stops import Faults
from tracing.tally import Tally

FORWARD, BACKWARD, CLIP, OPTIMIZER = "forward", "backward", "clip", "optimizer"
NEXT = ", next"
"""Behind ``forward`` and ``backward``: of the micro-batches after a step's first."""
PHASES = (FORWARD, BACKWARD, FORWARD + NEXT, BACKWARD + NEXT, CLIP, OPTIMIZER)


class Phases:
    """Sets the tally's phase when the product's step enters another one."""

    def __init__(self, tally: Tally) -> None:
        self._tally, self._micro, self._counted = tally, 0, False

    def step(self, counted: bool) -> None:
        """Begin a step."""
        self._counted, self._micro = counted, 0
        self._tally.phase = None

    def enter(self, name: str) -> None:
        """Enter the phase ``name``, one of the four constants above."""
        self._micro += name == FORWARD
        later = NEXT if name in (FORWARD, BACKWARD) and self._micro > 1 else ""
        self._tally.phase = name + later if self._counted else None


class FakeCuda(Cuda):
    """CUDA with compute capability 9.0, assuming that every kernel works.

    Fake tensors have no numbers for the product's trials (attention kernels, LayerNorm, AdamW).
    """

    compute_capability = (9, 0)
    norm_problems = {"bf16": None, "fp16": None}  # noqa: RUF012
    fused_adamw = True
    measures = False  # fake tensors take no time

    def __init__(self, phases: Phases, tally: Tally) -> None:
        self._phases, self._tally = phases, tally
        super().__init__(0)

    @classmethod
    def probe(cls) -> Probe:
        return Probe(True, "fake tensors")

    @classmethod
    def device_count(cls) -> int:
        return 1

    @property
    def module(self) -> ModuleType:
        return cast("ModuleType", SimpleNamespace())

    @property
    def simulated(self) -> bool:
        return True

    @functools.cached_property
    def capabilities(self) -> Capabilities:
        """CUDA's, without pinned memory, which needs a driver; copies count as if from it."""
        return dataclasses.replace(super().capabilities, pinned_memory=False, compilers=())

    def sensors(self) -> Sensors:
        raise Unsupported("fake tensors take no power")

    def kernel_problem(self, kernel: str, precision: str) -> str | None:
        own, dtype = KERNELS.get(kernel), AMP_DTYPES.get(precision, torch.float32)
        return None if own is None or dtype in own.dtypes else WRONG_TYPE

    def fused_ops(self, kernels: str, precision: str, attention: Callable[[], Ops]) -> Ops:
        from bertbench.backends.triton.ops import TritonOps

        dtype = AMP_DTYPES.get(of_activations(precision), torch.float32)
        return TritonOps(attention(), dtype, fp8=precision == EIGHT_BITS)

    def _fp8_problem(self, notes: Mapping[str, str]) -> str | None:
        return notes.get("triton")

    def lamb_kernel(self, kernels: str) -> LambKernel | None:
        if kernels != "triton":
            return super().lamb_kernel(kernels)
        from bertbench.backends.triton.lamb import triton_lamb

        return triton_lamb

    def rng_state(self) -> dict[str, Tensor]:
        return {}

    def set_rng_state(self, state: Mapping[str, Tensor]) -> None:
        pass

    def synchronize(self) -> None:
        self._tally.wait("synchronize")

    # -- the phases of train_step -------------------------------------------------------------
    def precision(self, name: str) -> AbstractContextManager[None]:
        self._phases.enter(FORWARD)
        return super().precision(name)

    def optimizer_step(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self._phases.enter(OPTIMIZER)
        super().optimizer_step(optimizer, scaler)


class MarkedFaults(Faults):
    """Enters clipping at the step's check of its losses, right after the last backward pass."""

    def __init__(self, phases: Phases, device: torch.device) -> None:
        super().__init__(device)
        self._phases = phases

    def loss(self, sums: Tensor) -> None:
        self._phases.enter(CLIP)
        super().loss(sums)


def marked_backward(phases: Phases) -> Any:
    """Return a Tensor.backward that enters its phase."""
    original = torch.Tensor.backward

    @functools.wraps(original)
    def backward(self: Tensor, *args: Any, **kwargs: Any) -> None:
        phases.enter(BACKWARD)
        original(self, *args, **kwargs)

    return backward
