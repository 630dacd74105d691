# SPDX-License-Identifier: Apache-2.0
"""cpu_ref: the reference, which needs no accelerator.

fp32 with plain kernels is deterministic, and other backends are compared with it. bf16 with native
kernels is the fast mode of a CPU.
"""

from __future__ import annotations

import functools
import resource
import sys
from pathlib import Path
from typing import ClassVar

import psutil
import torch

from bertbench.backends.base import (
    Backend,
    Capabilities,
    DeviceInfo,
    PeakMemory,
    Probe,
    Telemetry,
)
from bertbench.backends.cpu_ref.allocator import keep_freed_memory
from bertbench.backends.cpu_ref.telemetry import open_rapl, rapl_problem
from bertbench.common.errors import Unsupported, host_memory_ran_out
from bertbench.common.measure.system import processor_name
from bertbench.common.model.ops import Ops
from bertbench.common.optim.lamb import LambKernel


class CpuRef(Backend):
    """The host's processor."""

    onnx_providers: ClassVar[tuple[str, ...]] = ("CPU",)
    """ONNX Runtime's execution providers on these devices: `infer` reads the sensors here."""

    name, device_type, collective = "cpu_ref", "cpu", "gloo"
    verified = "hardware"

    def __init__(self, local_rank: int = 0) -> None:
        self.device = torch.device("cpu")  # one device, whatever the rank
        self._local_rank = local_rank
        torch.use_deterministic_algorithms(True)
        # Filling new memory costs a pass over every tensor; no operation here reads it unwritten.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self._allocator = keep_freed_memory()

    @classmethod
    def probe(cls) -> Probe:
        return Probe(True, "always available")

    @classmethod
    def device_count(cls) -> int:
        return 1

    @functools.cached_property
    def _native_reason(self) -> str | None:
        """Why the native kernels cannot be built here, or None."""
        from bertbench.backends.cpu_ref.library import library

        try:
            library()
        except Unsupported as error:
            return str(error)
        return None

    @functools.cached_property
    def capabilities(self) -> Capabilities:
        notes = {"tf32": "a format of GPUs", "fp16": "no fast fp16 matrix products on CPUs"}
        notes["compile"] = "no run of torch.compile has been checked on this backend"
        precisions = ["fp32"]
        if _computes_bf16():
            precisions.insert(0, "bf16")
        else:
            notes["bf16"] = "this processor has no bf16 instructions (avx512_bf16, amx, sve bf16)"
        if self._native_reason:
            notes["native"] = self._native_reason
        no_power = rapl_problem()
        if no_power:
            notes["power"] = no_power
        return Capabilities(
            precisions=tuple(precisions),
            collective=self.collective,
            kernels=("plain",) if self._native_reason else ("native", "plain"),
            telemetry=() if no_power else ("energy_j", "power_w"),
            notes=notes,
        )

    def describe(self) -> DeviceInfo:
        return DeviceInfo(
            backend=self.name,
            name=processor_name(),
            index=0,
            memory_bytes=psutil.virtual_memory().total,
            runtime=f"torch {torch.__version__}",
            extras={"threads": str(torch.get_num_threads()), "allocator": self._allocator},
        )

    def synchronize(self) -> None:
        """Return at once: operations of the CPU are complete when they return."""

    def reset_peak_memory(self) -> None:
        """Do nothing: only root can reset a process's peak."""

    def peak_memory(self) -> PeakMemory | None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return PeakMemory(
            peak_memory_bytes=peak if sys.platform == "darwin" else peak * 1024,
            definition="peak resident set of the process (ru_maxrss), since its start",
        )

    def ran_out(self, error: BaseException) -> bool:
        return super().ran_out(error) or host_memory_ran_out(error)

    def build_ops(self, kernels: str, precision: str) -> Ops:
        if kernels == "plain":
            return Ops()
        from bertbench.backends.cpu_ref.kernels import NativeOps

        return NativeOps(torch.bfloat16 if precision == "bf16" else torch.float32)

    def lamb_kernel(self, kernels: str) -> LambKernel | None:
        if kernels == "plain" or (kernels == "auto" and self._native_reason):
            return None
        from bertbench.backends.cpu_ref.lamb import native_lamb

        return native_lamb

    def telemetry(self, period_s: float = 0.1) -> Telemetry | None:
        # The counters are the machine's: one process of each machine reads them.
        return open_rapl(period_s) if self._local_rank == 0 else None


def _computes_bf16() -> bool:
    """Return whether the processor has instructions for bf16 matrix products."""
    flags = _cpu_flags()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()
