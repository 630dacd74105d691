# SPDX-License-Identifier: Apache-2.0
"""Adapters that each get one thing wrong: the contract test must find it, and nothing else.

``fails`` are the names of the contract tests that must fail.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import Tensor

from bertbench.backends.base import Capabilities, DeviceInfo, PeakMemory
from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.backends.timers import HostTimer, Timer
from bertbench.common.measure.telemetry import Sampler


class Broken(CpuRef):
    """A processor whose adapter has something wrong."""

    fails: ClassVar[tuple[str, ...]]

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return super().capabilities

    def _also(self, precision: str) -> Capabilities:
        have = super().capabilities
        return dataclasses.replace(have, precisions=(*have.precisions, precision))


class ForgetsToSynchronize(Broken):
    name = "forgets_to_synchronize"
    fails = ("test_timer_blocks_only_where_its_clock_demands_it",)

    def timer(self) -> Timer:
        return HostTimer(lambda: None)


class ReadsProcessorTime(Broken):
    """Right while the processor works, wrong while it waits."""

    name = "reads_processor_time"
    fails = ("test_timer_agrees_with_the_arrival_of_the_result[the adapter's]",)

    def timer(self) -> Timer:
        return HostTimer(self.synchronize, clock=time.process_time)


class WaitsInEveryStep(Broken):
    name = "waits_in_every_step"
    fails = ("test_training_waits_for_the_device_only_at_reports",)

    def optimizer_step(self, optimizer: Any, scaler: Any) -> None:
        super().optimizer_step(optimizer, scaler)
        self.synchronize()


class ClaimsFp16(Broken):
    """Takes the name, and computes in float32."""

    name = "claims_fp16"
    fails = ("test_a_claimed_precision_is_really_used[fp16]",)

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self._also("fp16")

    def precision(self, name: str) -> AbstractContextManager[None]:
        return nullcontext() if name == "fp16" else super().precision(name)


class ClaimsTf32(Broken):
    """Full float32 products under TF32's name."""

    name = "claims_tf32"
    fails = ("test_a_claimed_precision_is_really_used[tf32]", "test_fp32_comes_back_after_tf32")

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self._also("tf32")


class DowngradesSilently(Broken):
    """Answers fp16 with the best that it has."""

    name = "downgrades_silently"
    fails = ("test_an_unclaimed_precision_is_refused[fp16]",)

    def resolve_precision(self, name: str) -> str:
        return super().resolve_precision("auto" if name == "fp16" else name)


class ZeroForUnknown(Broken):
    name = "zero_for_unknown"
    fails = (
        "test_describe_is_typed_and_unknown_is_none",
        "test_peak_memory_grows_by_a_known_allocation",
    )

    def describe(self) -> DeviceInfo:
        return dataclasses.replace(super().describe(), memory_bytes=0)

    def peak_memory(self) -> PeakMemory:
        return PeakMemory(peak_memory_bytes=0, definition="unknown")


class ForgetsTheGenerator(Broken):
    name = "forgets_the_generator"
    fails = ("test_random_state_makes_the_round_trip",)

    def set_rng_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes it and does nothing."""


class LosesTheUpdate(Broken):
    """As a lazy device whose step is never cut."""

    name = "loses_the_update"
    fails = (
        "test_ten_steps_equal_the_reference[fp32]",
        "test_ten_steps_equal_the_reference[bf16]",
        "test_optimizers_equal_plain_ones[lamb]",
        "test_optimizers_equal_plain_ones[adamw]",
    )

    def optimizer_step(self, optimizer: Any, scaler: Any) -> None:
        """Not today."""


class ReadsMilliwatts(Broken):
    name = "reads_milliwatts"
    fails = ("test_telemetry_has_plausible_units_or_a_reason",)

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return dataclasses.replace(super().capabilities, telemetry=("power_w",))

    def telemetry(self, period_s: float = 0.1) -> Sampler:
        return Sampler(lambda: {"power_w": 102_000.0}, source="made up", period_s=period_s)


class WrongKernel(Broken):
    """A GELU of something else, in the fused kernel only."""

    name = "wrong_kernel"
    fails = (
        *(f"test_kernels_equal_plain_forward_and_backward[{norm}-{gelu}]"
          for norm in ("post", "pre") for gelu in ("erf", "tanh")),
        "test_ten_steps_equal_the_reference[fp32]",
        "test_ten_steps_equal_the_reference[bf16]",
    )  # fmt: skip

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return dataclasses.replace(super().capabilities, kernels=("fused", "plain"))

    def lamb_kernel(self, kernels: str) -> None:
        return None

    def build_ops(self, kernels: str, precision: str) -> Any:
        ops = super().build_ops("plain", precision)
        if kernels == "fused":
            exact = ops.linear_gelu
            ops.linear_gelu = lambda x, w, b, **options: exact(  # type: ignore[method-assign]
                x, w, b + 0.3, **options
            )
        return ops


BROKEN = tuple(Broken.__subclasses__())


def hasty() -> type:
    """The simulated GCU with a timer that does not wait for the queue."""
    from bertbench import backends

    class Hasty(backends.load("gcu")):  # type: ignore[misc]
        name = "hasty"

        def timer(self) -> Timer:
            return HostTimer(lambda: None)

    return Hasty


def never_waits() -> type:
    """The simulated GCU with a ``synchronize`` that returns at once."""
    from bertbench import backends

    class NeverWaits(backends.load("gcu")):  # type: ignore[misc]
        name = "never_waits"

        def synchronize(self) -> None:
            """Takes it for a processor."""

    return NeverWaits


def peeks() -> type:
    """The simulated GCU with a number read from the device after every update."""
    from bertbench import backends

    class Peeks(backends.load("gcu")):  # type: ignore[misc]
        name = "peeks"

        def optimizer_step(self, optimizer: Any, scaler: Any) -> None:
            super().optimizer_step(optimizer, scaler)
            float(optimizer.param_groups[0]["params"][0].sum())

    return Peeks
