# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs, and the base of other vendors whose device torch also calls cuda.

Such a vendor subclasses ``Cuda``, names itself (``name``, ``vendor``, ``toolkit``) and overrides
``is_built``, ``minimum_capability``, ``sensors`` and ``driver`` where it differs.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import ModuleType
from typing import ClassVar

import torch

from bertbench.backends import selfcheck
from bertbench.backends.accelerator import (
    AMP_DTYPES,
    EIGHT_BITS,
    TF32_TOLERANCE,
    WRONG_TYPE,
    Accelerator,
    of_activations,
    one_line,
)
from bertbench.backends.base import Capabilities, Probe
from bertbench.backends.cuda import identify, nvml, packages
from bertbench.backends.cuda.flex import FlexOps
from bertbench.backends.cuda.ops import KERNELS, CudaOps
from bertbench.backends.sensors import Sensors
from bertbench.backends.triton import trial
from bertbench.common.errors import Unsupported
from bertbench.common.model.ops import ComputeTypeOps, Ops
from bertbench.common.optim.lamb import LambKernel

Version = tuple[int, int]
NO_DEVICE = "no device"


class Cuda(Accelerator):
    """One NVIDIA GPU."""

    onnx_providers: ClassVar[tuple[str, ...]] = ("CUDA", "Tensorrt", "NvTensorRTRTX")
    """ONNX Runtime's execution providers on these devices: `infer` reads the sensors here."""

    name, device_type, collective = "cuda", "cuda", "nccl"
    visible_devices_env = "CUDA_VISIBLE_DEVICES"
    # The older of torch's two ways. It sets the newer one (fp32_precision) too, whereas reading
    # the older after setting the newer raises (torch 2.13, Context.cpp).
    tf32_switches = ("backends.cuda.matmul.allow_tf32", "backends.cudnn.allow_tf32")

    vendor: ClassVar[str] = "nvidia"
    """Key of backends/cuda/identify.py."""
    toolkit: ClassVar[str] = "CUDA"
    minimum_capability: ClassVar[Mapping[str, Version]] = {
        "tf32": (8, 0),
        "bf16": (8, 0),
        "fp16": (7, 0),
        "fp8": (8, 9),
        "inductor": (7, 0),
    }
    """The first compute capability whose matrix units have a precision, which torch emulates below
    (CUDA C++ Programming Guide, compute capabilities); and the first that Triton supports."""
    recorded_env: ClassVar[tuple[str, ...]] = (
        "NVIDIA_TF32_OVERRIDE",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
        "CUBLAS_WORKSPACE_CONFIG",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
    )
    """Variables that change numbers, speed or memory: recorded when they are set."""

    attention_kernels: ClassVar[tuple[str, ...]] = (*KERNELS, ComputeTypeOps.name)
    _power_missing: str | None = None

    def __init__(self, local_rank: int = 0) -> None:
        super().__init__(local_rank)
        # From compute capability 9.0 on SDPA prefers cuDNN's kernel (torch's sdp_utils.cpp), which
        # makes a plan for each new length (its MHA.cpp), and each batch has new lengths.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.fused_kernels = () if trial.absent() else ("triton",)

    # -- whether it can run here --------------------------------------------------------------
    @classmethod
    def absent(cls) -> str | None:
        built = identify.build_vendor()
        if built is not None and built.key != cls.vendor:
            return built.advice
        return None if cls.is_built() else f"this torch was built without {cls.toolkit}"

    @classmethod
    def is_built(cls) -> bool:
        return torch.version.cuda is not None

    @classmethod
    def probe(cls) -> Probe:
        why = cls.absent()
        if why:
            return Probe(False, why)
        module = torch.get_device_module(cls.device_type)
        try:
            with warnings.catch_warnings():  # the reason has the warning's content
                warnings.simplefilter("ignore")
                module.init()  # raises the cause, where device_count() only returns 0
                count = cls.device_count()
                name, capability = module.get_device_name(0), module.get_device_capability(0)
                builds = module.get_arch_list()
        except Exception as error:
            why = _driver_problem(error)
            hidden = os.environ.get(cls.visible_devices_env or "")
            if why == NO_DEVICE and hidden is not None:
                why += f" ({cls.visible_devices_env}={nvml.without_ids(hidden)!r})"
            return Probe(False, why)
        found = identify.vendor(name)
        if found.key != cls.vendor:
            return Probe(False, found.advice)
        # Other vendors number their devices and builds in their own ways.
        if found is identify.NVIDIA and not identify.has_code_for(capability, builds):
            return Probe(
                False,
                f"this torch has no code for {name} (compute capability {_dotted(capability)}); "
                f"it was built for {', '.join(builds)}",
            )
        return Probe(True, f"{count} device{'s' if count > 1 else ''}")

    # -- capabilities -------------------------------------------------------------------------
    @functools.cached_property
    def capabilities(self) -> Capabilities:
        found = super().capabilities
        notes = dict(found.notes)
        if self._power_missing is not None:  # though other sensors may be there
            notes["power"] = self._power_missing
        kernels, compilers = list(found.kernels), self._compilers(notes)
        # ``auto`` takes triton where it is measured to be faster, flex with a mask, no package.
        if "inductor" in compilers:
            kernels.append(FlexOps.name)
        else:
            notes[FlexOps.name] = f"inductor, which compiles it: {notes['inductor']}"
        why = trial.absent()
        if why is None:
            kernels.append("triton")
        else:
            notes["triton"] = why
        why = self._fp8_problem(notes)
        if why is None:
            found = dataclasses.replace(found, precisions=(*found.precisions, EIGHT_BITS))
        else:
            notes[EIGHT_BITS] = why
        for package in packages.HOW_TO_GET:
            why = packages.why_no_package(package)
            if why is None:
                kernels.append(package)
            else:
                notes[package] = why
        return dataclasses.replace(
            found,
            pinned_memory=True,
            kernels=tuple(kernels),
            compilers=compilers,
            notes=notes,
        )

    def _fp8_problem(self, notes: Mapping[str, str]) -> str | None:
        """Return why the linear layers cannot compute in 8 bits, or None."""
        if EIGHT_BITS not in self.minimum_capability:
            return f"not known of {self.vendor}'s devices"
        for needed in ("bf16", "triton"):
            if needed in notes:
                return f"it needs {needed}: {notes[needed]}"
        return self._too_old_for(EIGHT_BITS) or selfcheck.scaled_product_why_not(self.device)

    def kernel_problem(self, kernel: str, precision: str) -> str | None:
        own = KERNELS.get(kernel)
        if own is not None and AMP_DTYPES.get(precision, torch.float32) not in own.dtypes:
            return WRONG_TYPE
        return super().kernel_problem(kernel, precision)

    def _compilers(self, notes: dict[str, str]) -> tuple[str, ...]:
        notes["cudagraphs"] = "each batch has another number of tokens and needs its own recording"
        if importlib.util.find_spec("triton") is None:
            notes["inductor"] = "package triton, for which it generates code, is not installed"
        elif not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))):
            notes["inductor"] = "triton needs a C compiler, and the PATH has none"
        elif (why := self._too_old_for("inductor")) is not None:
            notes["inductor"] = why
        else:
            return ("inductor",)
        return ()

    @functools.cached_property
    def compute_capability(self) -> Version:
        major, minor = self.module.get_device_capability(self.device.index)
        return int(major), int(minor)

    # -- numerics -----------------------------------------------------------------------------
    def _too_old_for(self, name: str) -> str | None:
        needed = self.minimum_capability.get(name)
        if needed is None or self.compute_capability >= needed:
            return None
        have = _dotted(self.compute_capability)
        return f"needs compute capability {_dotted(needed)}, this is {have}"

    def float_precisions(self, notes: dict[str, str]) -> list[str]:
        return self._possible(super().float_precisions(notes), notes)

    def amp_precisions(self, notes: dict[str, str]) -> list[str]:
        return self._possible(super().amp_precisions(notes), notes)

    def _possible(self, names: list[str], notes: dict[str, str]) -> list[str]:
        whys = {name: self._too_old_for(name) for name in names}
        notes |= {name: why for name, why in whys.items() if why is not None}
        return [name for name, why in whys.items() if why is None]

    def precision(self, name: str) -> AbstractContextManager[None]:
        """Return Backend's context; raise Unsupported where a TF32 switch cannot be set."""
        context = super().precision(name)
        wanted = self.resolve_precision(name) == "tf32"
        for switch in self.tf32_switches:
            owner, _, attribute = switch.rpartition(".")
            got = getattr(functools.reduce(getattr, owner.split("."), torch), attribute)
            if got != wanted:
                raise Unsupported(f"{self.name}: torch.{switch} stays {got} although set {wanted}")
        return context

    def linear_of(self, precision: str) -> selfcheck.Linear:
        if self.resolve_precision(precision) != EIGHT_BITS:
            return super().linear_of(precision)
        from bertbench.backends.triton.fp8 import linear

        return linear

    # -- kernels ------------------------------------------------------------------------------
    def ops(self, kernels: str, precision: str) -> Ops:
        """Return Accelerator's operations; FP8 is computed by Triton's kernels alone."""
        if kernels != "auto" or self.resolve_precision(precision) != EIGHT_BITS:
            return super().ops(kernels, precision)
        rest = of_activations(EIGHT_BITS)
        measured = self.auto_ops.get(rest, functools.partial(self.first_ops, rest))
        return self.fused_ops("triton", EIGHT_BITS, measured)

    def attention_ops(
        self, kernel: str, precision: str, passed_over: Mapping[str, str] | None = None
    ) -> Ops:
        return CudaOps(kernel, self.stream_dtype(precision), passed_over=passed_over)

    def masked_ops(self, kernels: str, precision: str) -> Ops:
        """Return operations with a verified masked attention; ``auto`` tries FlexAttention first.

        Raises Unsupported as ``Accelerator.masked_ops``.
        """
        precision, found = self.resolve_precision(precision), self.capabilities
        if kernels not in ("auto", FlexOps.name) or precision == EIGHT_BITS:
            return super().masked_ops(kernels, precision)
        why = found.notes.get(FlexOps.name)
        if why is None:
            ops = FlexOps(self.stream_dtype(precision))
            if kernels == FlexOps.name:
                return self.verified_masks(ops, precision)
            why = self.masked_problem(ops, precision)
            if why is None:
                return ops
        elif kernels == FlexOps.name:
            raise Unsupported(f"{self.name}: kernels {kernels!r} unavailable: {why}")
        return self.verified_masks(self.first_ops(precision, {FlexOps.name: why}), precision)

    def build_ops(self, kernels: str, precision: str) -> Ops:
        """Return ``kernels``' operations; raise Unsupported where its trial failed."""
        if kernels == FlexOps.name:
            raise Unsupported(
                f"--kernels {kernels} computes attention with a mask only: give --attention_mask "
                f"(in {EIGHT_BITS} other kernels compute it), or choose other kernels"
            )
        if kernels == "transformer_engine":
            ops: Ops = packages.TransformerEngineOps(self.stream_dtype(precision))
            dtype = AMP_DTYPES.get(precision, torch.float32)
            why = selfcheck.attention_why_not(ops, self.device, dtype)
            if why is not None:
                raise Unsupported(f"--kernels transformer_engine in {precision}: {why}")
            return ops
        if kernels == "triton":
            rest = of_activations(precision)
            return self.fused_ops(kernels, precision, lambda: self.first_ops(rest))
        if precision == EIGHT_BITS:
            raise Unsupported(f"--kernels {kernels} has no {precision} products: choose triton")
        if kernels == "apex":  # its LAMB is used; it has no attention for unpadded batches
            return self.first_ops(precision)
        return super().build_ops(kernels, precision)

    def fused_ops(self, kernels: str, precision: str, attention: Callable[[], Ops]) -> Ops:
        """Return Triton's kernels around ``attention``; raise Unsupported if one fails."""
        from bertbench.backends.triton.ops import TritonOps  # only here: it imports triton

        dtype = AMP_DTYPES.get(of_activations(precision), torch.float32)
        ops = TritonOps(attention(), dtype, fp8=precision == EIGHT_BITS)
        tolerance = TF32_TOLERANCE if precision == "tf32" else None
        why = trial.why_not(ops, self.device, dtype, tolerance)
        if why is not None:
            raise Unsupported(f"--kernels triton in {precision}: {why}")
        return ops

    def lamb_kernel(self, kernels: str) -> LambKernel | None:
        """Return the requested kernel, if it has a LAMB; raise Unsupported if its trial failed."""
        kernels = self.auto_lamb if kernels == "auto" else kernels
        if kernels == "apex":
            kernel: LambKernel = packages.ApexLamb()
        elif kernels == "triton":
            from bertbench.backends.triton.lamb import triton_lamb as kernel
        else:
            return None
        why = packages.lamb_why_not(kernel, self.device)
        if why is not None:
            raise Unsupported(f"--kernels {kernels}: {why}")
        return kernel

    # -- observation --------------------------------------------------------------------------
    def sensors(self) -> Sensors:
        sensors, self._power_missing = nvml.open_nvml(*self._in_nvml())
        return sensors

    def _in_nvml(self) -> tuple[int, str | None, str | None]:
        """Return what identifies the device to NVML: index, visible devices and torch's UUID."""
        visible = os.environ.get(self.visible_devices_env or "")
        uuid = getattr(self.module.get_device_properties(self.device.index), "uuid", None)
        return self.device.index, visible, None if uuid is None else str(uuid)

    def driver(self) -> str | None:
        return nvml.driver_version()

    def runtime(self) -> str | None:
        return (
            f"torch {torch.__version__}, {self.toolkit} {torch.version.hip or torch.version.cuda}"
        )

    def extras(self) -> dict[str, str]:
        facts = {"compute_capability": _dotted(self.compute_capability)}
        properties = self.module.get_device_properties(self.device.index)
        processors = getattr(properties, "multi_processor_count", None)
        if processors is not None:
            facts["multiprocessors"] = str(processors)
        cudnn = torch.backends.cudnn.version()
        if cudnn is not None:
            facts["cudnn"] = str(cudnn)
        collective = _collective_version(self.module)
        if collective is not None:
            facts[str(self.collective)] = collective
        if self.vendor == identify.NVIDIA.key:
            interconnect = nvml.interconnect(*self._in_nvml())
            facts |= {} if interconnect is None else {"interconnect": interconnect}
        facts |= {name: os.environ[name] for name in self.recorded_env if name in os.environ}
        return facts | {name: nvml.without_ids(v) for name, v in super().extras().items()}


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _driver_problem(error: Exception) -> str:
    """Return one line: no driver, a driver that is too old, no device, or another failure."""
    text = one_line(error)
    if "Found no NVIDIA driver" in text:
        return "no NVIDIA driver is loaded on this machine"
    if "GPUs are available" in text:  # "No CUDA GPUs are available"
        return NO_DEVICE
    if "driver on your system is too old" in text:
        found = re.search(r"found version (\d+)", text)  # 12080 is CUDA 12.8
        serves = f"CUDA {int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}" if found else text
        return (
            f"driver too old: it serves {serves}, this torch needs CUDA {torch.version.cuda}; "
            f"update the driver, or install a torch built for an older CUDA"
        )
    return f"no working device: {text}"


def _collective_version(module: ModuleType) -> str | None:
    """Return the version of the collective library inside torch, e.g. 2.27.5, or None."""
    try:
        version = module.nccl.version()
    except Exception:  # a build without it has no such symbols
        return None
    return ".".join(map(str, version)) if isinstance(version, tuple) else str(version)
