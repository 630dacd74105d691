# SPDX-License-Identifier: Apache-2.0
"""Enflame GCU through the eager torch_gcu: torch 2.10 or newer, device ``gcu``, ``eccl``.

Facts: README, manuals and sources of EnflameTechnology/torch-gcu v2.10.0 (TopsRider v3.7.1).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.metadata import entry_points

import torch

from bertbench.backends import fallbacks
from bertbench.backends.accelerator import Accelerator
from bertbench.backends.base import Capabilities, Probe
from bertbench.backends.gcu import fallback_log
from bertbench.backends.gcu.telemetry import VISIBLE, driver_version, find_sensors
from bertbench.backends.sensors import Sensors

TF32 = "ENFLAME_ENABLE_TF32"
GELU = "ENFLAME_PT_GELU_ERF_ENABLE"
INT64 = "TORCH_GCU_ENABLE_INT64_AND_UINT64"
OP_DEBUG = "ENFLAME_PT_OP_DEBUG_CONFIG"
MIGRATION = "ENFLAME_TORCH_GCU_ENABLE_AUTO_MIGRATION"
INDUCTOR = "TORCHGCU_INDUCTOR_ENABLE"

RECORDED = (
    TF32, GELU, INT64, OP_DEBUG, "ENFLAME_PT_ENABLE_LINEAR_OVERRIDE",
    "ENFLAME_PT_EVALUATE_TENSOR_NEEDED", "ENFLAME_PT_ENABLE_HBM_INPLACE", "ENFLAME_DEVICE_MODE",
    "ENFLAME_CLUSTER_PARALLEL", "ENFLAME_UMD_FLAGS", "ENFLAME_MEMUSE_POLICY", "ENFLAME_LOG_LEVEL",
    fallback_log.LEVEL, fallback_log.MODULE, "PYTORCH_GCU_ALLOC_CONF",
    "PYTORCH_NO_GCU_MEMORY_CACHING", "USE_GCU_DEFAULT_STREAM", INDUCTOR,
    "TOPS_EXE_CACHE_DISABLE", "ECCL_MAX_NCHANNELS", "ECCL_RUNTIME_3_0_ENABLE",
    "ECCL_RDMA_DISABLE", "ECCL_DEBUG", "TORCH_GCU_ECCL_SIP_NUM", "TORCH_ECCL_AVOID_RECORD_STREAMS",
    "TORCH_ECCL_ASYNC_ERROR_HANDLING", "TORCH_ECCL_BLOCKING_WAIT",
)  # fmt: skip
"""Variables that change numbers or speed."""


def set_true(variable: str) -> bool:
    """Return whether one of Enflame's switches is on."""
    return os.environ.get(variable, "").strip().lower() in ("true", "1")


def recorded() -> dict[str, str]:
    """Return the variables of ``RECORDED`` that are set, without this machine's paths."""
    found = {name: os.environ[name] for name in RECORDED if name in os.environ}
    if OP_DEBUG in found:
        words = found[OP_DEBUG].split()
        found[OP_DEBUG] = " ".join(word for word in words if not word.startswith("dump_path"))
    if "TOPS_EXE_CACHE_PATH" in os.environ:
        found["TOPS_EXE_CACHE_PATH"] = "set"
    return found


def float_precision(notes: dict[str, str]) -> str:
    """Return this process's one float32 mode; note how to get the other.

    The driver reads the switch only when it starts. Newer stacks do not document the switch, so
    ``verify_precision`` checks the products.
    """
    have, lack = ("tf32", "fp32") if set_true(TF32) else ("fp32", "tf32")
    notes[lack] = (
        f"{TF32} is {os.environ.get(TF32, 'not set')}, and read when the driver starts: start "
        f"with {TF32}={'true' if lack == 'tf32' else 'false'}"
    )
    return have


class Gcu(Accelerator):
    """One GCU, in PyTorch's eager mode."""

    name, device_type, package, collective = "gcu", "gcu", "torch_gcu", "eccl"
    visible_devices_env = VISIBLE
    verified = "simulator"

    @classmethod
    def probe(cls) -> Probe:
        """Probe as usual; refuse a process or variables that would invalidate measurements."""
        why = _obstacle()
        answer = Probe(False, why) if why else super().probe()
        why = _obstacle() if answer.ok else None
        return Probe(False, why) if why else answer

    # -- capabilities -------------------------------------------------------------------------
    @functools.cached_property
    def capabilities(self) -> Capabilities:
        found = super().capabilities
        notes = dict(found.notes)
        compilers = tuple(name for name in ("inductor", "topsgraph") if _registered(name))
        if not compilers:
            notes["compile"] = (
                f"neither inductor ({INDUCTOR}=1, before the start) nor topsgraph is registered"
            )
        return dataclasses.replace(found, notes=notes, compilers=compilers)

    def float_precisions(self, notes: dict[str, str]) -> list[str]:
        return [float_precision(notes)]

    def autocast_problem(self, dtype: torch.dtype) -> str | None:
        supported = getattr(self.module, "is_bf16_supported", None)
        if dtype == torch.bfloat16 and supported is not None and not supported():
            return "the device reports no bfloat16 (is_bf16_supported)"
        return super().autocast_problem(dtype)

    def verify_precision(self, name: str) -> dict[str, str]:
        """Verify as usual, and name the variables that restore GELU's form and int64's width."""
        found = super().verify_precision(name)
        if found["gelu"] != "erf":
            found["gelu_note"] = f"F.gelu should be the erf form; {GELU}=true selects it"
        if found["int64"] != "kept":
            found["int64_note"] = f"{INT64}=true keeps 64 bits"
        return found

    # -- facts --------------------------------------------------------------------------------
    def driver(self) -> str | None:
        return None if self.simulated else driver_version(self.device.index)

    def runtime(self) -> str | None:
        runtime = tops_runtime()
        return f"{super().runtime()}{f', TOPS runtime {runtime}' if runtime else ''}"

    def extras(self) -> dict[str, str]:
        return super().extras() | recorded()

    # -- observation --------------------------------------------------------------------------
    def fallbacks(self) -> AbstractContextManager[dict[str, int] | None]:
        """Count by torch's profiler and, where it is enabled, torch_gcu's own log."""
        return _watch_fallbacks()

    def sensors(self) -> Sensors:
        # Never report a real card's power for a simulated device.
        return find_sensors(self.device.index, tools=not self.simulated)


def _obstacle() -> str | None:
    """Return why this process would measure the device wrongly, or None."""
    if set_true(MIGRATION):
        return f"{MIGRATION} rewrites other devices' calls when torch_gcu loads: unset it"
    names = {"transfer_to_gcu", "torch_gcu.transfer_to_gcu"}
    package = sys.modules.get("torch_gcu")
    if names & set(sys.modules) or getattr(package, "is_transfer_to_gcu", False):
        return (
            "transfer_to_gcu was imported: it renames other devices and switches torch.jit.script "
            "off in the whole process. Run without that import"
        )
    if "all_ops" in os.environ.get(OP_DEBUG, ""):
        return f"{OP_DEBUG} has all_ops: each operation runs, or is checked, on the host. Unset it"
    return None


def _registered(compiler: str) -> bool:
    """Return whether torch.compile has this backend for the device, without loading it."""
    if compiler == "inductor":
        # torch_gcu decides as it loads, and registers its device at the first compilation.
        early = sys.modules.get("torch.gcu.inductor.backend_register")
        return bool(getattr(early, "gcu_inductor_enable", False))
    registry = sys.modules.get("torch._dynamo.backends.registry")
    offered = {entry.name for entry in entry_points(group="torch_dynamo_backends")}
    return compiler in offered | set(getattr(registry, "_BACKENDS", ()))


@contextlib.contextmanager
def _watch_fallbacks() -> Iterator[dict[str, int] | None]:
    with contextlib.ExitStack() as stack:
        profiled = stack.enter_context(fallbacks.watch())
        logged = stack.enter_context(fallback_log.watch()) if fallback_log.enabled() else None
        known = [counts for counts in (profiled, logged) if counts is not None]
        merged: dict[str, int] = {}
        yield merged if known else None
    for counts in known:
        for name, times in counts.items():
            merged[name] = max(times, merged.get(name, 0))


def tops_runtime() -> str | None:
    """Return the version of the TOPS runtime library, e.g. "3.7", or None."""
    value = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libtopsrt.so.1").topsRuntimeGetVersion(ctypes.byref(value))
    except (OSError, AttributeError):
        return None
    return None if failed else f"{value.value // 1000}.{value.value % 1000 // 10}"
