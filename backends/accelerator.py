# SPDX-License-Identifier: Apache-2.0
"""The default adapter, for any device whose torch module is shaped like torch's own.

It finds the device's capabilities by trying them. A vendor's adapter names its device, package and
collective library, and overrides the hooks below only where the device differs.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import ClassVar

import torch
import torch.nn.functional as F

from bertbench.backends import selfcheck
from bertbench.backends.base import Backend, Capabilities, DeviceInfo, Probe, Telemetry
from bertbench.backends.fallbacks import watch
from bertbench.backends.sensors import Sensors
from bertbench.common.errors import Unsupported
from bertbench.common.measure.telemetry import Sampler
from bertbench.common.model.ops import ComputeTypeOps, Ops

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
WRONG_TYPE = "computes in 16-bit floats only"
EIGHT_BITS = "fp8"
"""The precision whose linear layers take 8-bit floats; everything else is as in bf16."""
TORCH = "torch"
"""Among the choices of ``auto``: torch's own operations around attention, and ``lamb_update``."""
TF32_TOLERANCE = 5e-3
"""Of attention with TF32 products, whose mantissa is as long as float16's."""


class Accelerator(Backend):
    """A device with torch's usual module: ``device_count``, ``synchronize``, events, memory."""

    compilers: tuple[str, ...] = ()
    attention_kernels: ClassVar[tuple[str, ...]] = (ComputeTypeOps.name,)
    """Each is offered only if its trial on the device succeeds. Where a run cannot time them
    (backends/choosing.py), ``auto`` takes the first."""
    fused_kernels: tuple[str, ...] = ()
    """Values of --kernels with fused operations around any attention: those of ``fused_ops`` and
    ``lamb_kernel``, which ``auto`` takes where they are faster."""
    no_power_reason = "no reader of this device's power works here"
    """The note ``power``, until ``sensors`` raises a better one."""

    def __init__(self, local_rank: int = 0) -> None:
        super().__init__(local_rank)
        # Setting a switch that this version lacks would raise no error and have no effect.
        there = tuple(switch for switch in self.tf32_switches if _exists(switch))
        self.tf32_switches = there  # type: ignore[misc]
        self.auto_ops: dict[str, Callable[[], Ops]] = {}
        """Precision -> what makes the operations of ``auto``, once a run has measured them."""
        self.auto_lamb = TORCH
        """Whose LAMB ``auto`` takes: TORCH, or one of ``fused_kernels``."""

    @classmethod
    def probe(cls) -> Probe:
        """Import the package (never through torch's autoload) and count devices."""
        why = cls.absent()
        if why:
            return Probe(False, why)
        if cls.package is not None:
            try:
                importlib.import_module(cls.package)
            except Exception as error:  # whatever a vendor's package may raise, it is a reason
                return Probe(False, f"package {cls.package} failed to load: {one_line(error)}")
        try:
            count = cls.device_count()
        except Exception as error:
            return Probe(False, f"no working device: {one_line(error)}")
        if count:
            return Probe(True, f"{count} device{'s' if count > 1 else ''}")
        hidden = os.environ.get(cls.visible_devices_env or "")
        because = "" if hidden is None else f" ({cls.visible_devices_env}={hidden})"
        return Probe(False, f"no device{because}")

    @functools.cached_property
    def capabilities(self) -> Capabilities:
        notes: dict[str, str] = {}
        precisions = [*self.amp_precisions(notes), *self.float_precisions(notes)]
        if any(self.norm_problems.values()):
            notes["norm"] = _reasons(self.norm_problems)
        kernels = []
        for name in self.attention_kernels:
            whys = {precision: works[name] for precision, works in self.attention_problems.items()}
            if None in whys.values():
                kernels.append(name)
            if any(whys.values()):
                notes[name] = _reasons(whys)
        module = self.module
        telemetry = self.telemetry()
        if telemetry is None:
            notes.setdefault("power", self.no_power_reason)
        return Capabilities(
            precisions=tuple(precisions),
            collective=self.find_collective(notes),
            device_timer=self.has_device_timer(notes),
            memory_stats=hasattr(module, "max_memory_allocated"),
            memory_limit=True,
            pinned_memory=False,
            kernels=(*kernels, "plain"),
            graphs=any(name.endswith("Graph") for name in dir(module)),
            compilers=self.compilers,
            telemetry=() if telemetry is None else (telemetry.source,),
            notes=notes,
        )

    def describe(self) -> DeviceInfo:
        module, index = self.module, self.device.index
        name = module.get_device_name(index) if hasattr(module, "get_device_name") else self.name
        return DeviceInfo(
            backend=self.name,
            name=str(name),
            index=index,
            memory_bytes=self.memory_bytes(),
            driver=self.driver(),
            runtime=self.runtime(),
            simulated=self.simulated,
            extras=self.extras(),
        )

    def telemetry(self, period_s: float = 0.1) -> Telemetry | None:
        """Return a sampler over ``sensors``; slower than ``period_s`` where readings are slow."""
        try:
            sensors = self._opened_sensors
        except Unsupported as error:
            self.no_power_reason = str(error)
            return None
        period_s = max(period_s, sensors.period_s)
        return Sampler(sensors.read, source=sensors.source, period_s=period_s)

    @functools.cached_property
    def _opened_sensors(self) -> Sensors:
        return self.sensors()

    # -- kernels ------------------------------------------------------------------------------
    def ops(self, kernels: str, precision: str) -> Ops:
        """Return the operations; ``auto`` takes those that a run has measured to be the fastest.

        Where none has, it takes the first attention that works in ``precision``.
        Raises Unsupported, as in Backend, and for a kernel that failed its trial.
        """
        precision = self.resolve_precision(precision)
        if kernels != "auto" or not self._auto_is_attention:
            return super().ops(kernels, precision)
        return self.auto_ops.get(precision, functools.partial(self.first_ops, precision))()

    @property
    def _auto_is_attention(self) -> bool:
        """Whether no adapter's own operations come before ``attention_kernels``."""
        return self.capabilities.kernels[0] in (*self.attention_kernels, "plain")

    @property
    def measures(self) -> bool:
        """Whether ``auto`` has attention kernels to choose from, so that a run times them."""
        return len(self.attention_kernels) > 1 and self._auto_is_attention

    def first_ops(self, precision: str, before: Mapping[str, str] | None = None) -> Ops:
        """Return the operations with the first attention kernel that works in ``precision``.

        ``before`` holds the reasons why other kernels were passed over, for the record.
        """
        passed_over = dict(before or {})
        for name, why in self.attention_trials(precision).items():
            if why is None:
                return self.attention_ops(name, precision, passed_over)
            if why != WRONG_TYPE:
                passed_over[name] = why
        dtype = self.stream_dtype(precision)
        return ComputeTypeOps(dtype, fused=False, passed_over=passed_over)

    def build_ops(self, kernels: str, precision: str) -> Ops:
        """Return ``kernels``' operations; raise Unsupported where its trial failed."""
        if kernels == "plain":
            return Ops()
        why = self.attention_trials(precision)[kernels]
        if why is not None:
            raise Unsupported(
                f"{self.name}: kernel {kernels!r} in {precision}: {why}. Choose --kernels auto, "
                f"or another --precision."
            )
        return self.attention_ops(kernels, precision)

    def attention_ops(
        self, kernel: str, precision: str, passed_over: Mapping[str, str] | None = None
    ) -> Ops:
        """Return the operations with one of ``attention_kernels``, without trying it."""
        return ComputeTypeOps(self.stream_dtype(precision), passed_over=passed_over)

    def fused_ops(self, kernels: str, precision: str, attention: Callable[[], Ops]) -> Ops:
        """Return one of ``fused_kernels`` around the operations that ``attention`` makes.

        Raises Unsupported where their trial failed.
        """
        raise NotImplementedError(f"{self.name} names {kernels!r} and does not make it")

    def free_memory(self) -> None:
        """Return unused memory from torch's cache to the device, where the module can."""
        getattr(self.module, "empty_cache", lambda: None)()

    def attention_trials(self, precision: str) -> dict[str, str | None]:
        """Return attention kernel -> why it fails in ``precision`` (None: it works)."""
        return self.attention_problems[self._compute(precision)]

    @functools.cached_property
    def attention_problems(self) -> dict[str, dict[str, str | None]]:
        """Precision -> attention kernel -> why it fails there (None: it works), by trying each."""
        state = self.rng_state()
        try:
            return {
                precision: {k: self.kernel_problem(k, precision) for k in self.attention_kernels}
                for precision in (*self.amp_precisions({}), self._compute("fp32"))
            }
        finally:
            self.set_rng_state(state)

    def kernel_problem(self, kernel: str, precision: str) -> str | None:
        """Try an attention kernel; return why it fails, or None."""
        dtype = AMP_DTYPES.get(precision, torch.float32)
        # A process that starts with TF32 on cannot compute exact float32 products.
        tolerance = TF32_TOLERANCE if precision == "tf32" else None
        ops = self.attention_ops(kernel, "fp32")
        return selfcheck.attention_why_not(ops, self.device, dtype, tolerance)

    def masked_ops(self, kernels: str, precision: str) -> Ops:
        """Return the operations of ``ops``; raise Unsupported where they mask wrongly."""
        return self.verified_masks(self.ops(kernels, precision), precision)

    def verified_masks(self, ops: Ops, precision: str) -> Ops:
        """Return ``ops``; raise Unsupported where their masked attention is not the host's."""
        why = self.masked_problem(ops, precision)
        if why is not None:
            raise Unsupported(
                f"{self.name}: masked attention by {ops.masked_kernel} in {precision}: {why}. "
                f"Choose --kernels plain, or another --precision"
            )
        return ops

    def masked_problem(self, ops: Ops, precision: str) -> str | None:
        """Try masked attention on the device; return why it fails, or None."""
        precision = of_activations(self.resolve_precision(precision))
        dtype = AMP_DTYPES.get(precision, torch.float32)
        tolerance = TF32_TOLERANCE if precision == "tf32" else None
        state = self.rng_state()
        try:
            return selfcheck.attention_why_not(ops, self.device, dtype, tolerance, masked=True)
        finally:
            self.set_rng_state(state)

    def _compute(self, precision: str) -> str:
        """Return the precision in which attention is tried: one trial serves fp32 and tf32."""
        floats = self.float_precisions({})
        return precision if precision in AMP_DTYPES else "fp32" if "fp32" in floats else floats[0]

    def stream_dtype(self, precision: str) -> torch.dtype | None:
        """Return the residual stream's dtype for ``ComputeTypeOps``; None: float32."""
        works = precision in AMP_DTYPES and self.norm_problems[precision] is None
        return AMP_DTYPES[precision] if works else None

    @functools.cached_property
    def norm_problems(self) -> dict[str, str | None]:
        """16-bit precision -> why LayerNorm fails in it (None: it works), by trying each."""
        return {
            p: selfcheck.norm_why_not(self.device, AMP_DTYPES[p], self.autocast)
            for p in self.amp_precisions({})
        }

    def fallbacks(self) -> AbstractContextManager[dict[str, int] | None]:
        """Count from the profile, for devices outside torch: torch's own never fall back."""
        if torch._C._get_privateuse1_backend_name() == self.device_type:
            return watch()
        return super().fallbacks()

    # -- hooks: facts of the device -----------------------------------------------------------
    @property
    def simulated(self) -> bool:
        """Whether the vendor's package declares itself a stand-in (``SIMULATED``)."""
        package = importlib.import_module(self.package) if self.package else self.module
        return bool(getattr(package, "SIMULATED", False))

    def driver(self) -> str | None:
        """Return the driver's version, or None."""
        return None

    def runtime(self) -> str | None:
        """Return the versions of the software between torch and the driver, or None."""
        if self.package is None:
            return f"torch {torch.__version__}"
        version = getattr(importlib.import_module(self.package), "__version__", None)
        return f"{self.package} {version}" if version else self.package

    def extras(self) -> dict[str, str]:
        """Return more facts for the record: here the visible-devices variable, if it is set."""
        names = [self.visible_devices_env] if self.visible_devices_env else []
        return {name: os.environ[name] for name in names if name in os.environ}

    def sensors(self) -> Sensors:
        """Return how power and other sensors are read; raise Unsupported where they cannot be."""
        raise Unsupported(self.no_power_reason)

    def find_collective(self, notes: dict[str, str]) -> str | None:
        """Return the collective library if this installation has it, else None and a note."""
        if self.collective is None:
            notes["collective"] = "no collective library is known for this device"
        return self.collective

    def float_precisions(self, notes: dict[str, str]) -> list[str]:
        """Return fp32, and first tf32 where a switch for it exists, else a note."""
        if self.tf32_switches:
            return ["tf32", "fp32"]
        notes["tf32"] = "no switch for TF32 is known for this device"
        return ["fp32"]

    def amp_precisions(self, notes: dict[str, str]) -> list[str]:
        """Return the 16-bit precisions in which autocast computes, best first; note the others."""
        found = []
        for name, dtype in AMP_DTYPES.items():
            why = self.autocast_problem(dtype)
            if why is None:
                found.append(name)
            else:
                notes[name] = why
        return found

    def autocast_problem(self, dtype: torch.dtype) -> str | None:
        """Try autocast in ``dtype``; return why it fails, or None."""
        x = torch.ones(16, 16, device=self.device)
        try:
            with self.autocast(dtype):
                got = F.linear(x, x).dtype
        except Exception as error:
            return f"autocast: {one_line(error)}"
        return None if got == dtype else f"autocast to {dtype} computes in {got}"

    def has_device_timer(self, notes: dict[str, str]) -> bool:
        """Return whether the device's events measure time; note why not."""
        try:
            begin, end = (self.module.Event(enable_timing=True) for _ in range(2))
            begin.record()
            end.record()
            self.synchronize()
            return bool(begin.elapsed_time(end) >= 0)
        except Exception as error:
            notes["device_timer"] = f"events do not measure time: {one_line(error)}"
            return False

    def memory_bytes(self) -> int | None:
        """Return the device's total memory, or None."""
        module, index = self.module, self.device.index
        if hasattr(module, "mem_get_info"):
            return int(module.mem_get_info(index)[1])
        if hasattr(module, "get_device_properties"):
            total = getattr(module.get_device_properties(index), "total_memory", None)
            return None if total is None else int(total)
        return None


def of_activations(precision: str) -> str:
    """Return the precision of all but the linear layers' products."""
    return "bf16" if precision == EIGHT_BITS else precision


def _reasons(whys: Mapping[str, str | None]) -> str:
    """Join the reasons by precision into one line."""
    return "; ".join(f"in {precision}: {why}" for precision, why in whys.items() if why)


def _exists(attribute: str) -> bool:
    try:
        functools.reduce(getattr, attribute.split("."), torch)
    except AttributeError:
        return False
    return True


def one_line(error: BaseException) -> str:
    """Return an error's type and first line, which fit a line of ``doctor``."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
