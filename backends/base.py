# SPDX-License-Identifier: Apache-2.0
"""The contract between the benchmarks and one vendor's PyTorch device.

A backend implements ``probe`` (can it run here?), ``capabilities`` and ``describe``. Every other
method has a default that suits a device module shaped like torch's own; override only what
differs. Most adapters subclass ``Accelerator`` (accelerator.py), which implements the three as
well. docs/adding-a-backend.md lists the hooks.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from bertbench.backends import selfcheck
from bertbench.backends.reduction import reduce_in
from bertbench.backends.timers import EventTimer, HostTimer, Timer
from bertbench.common.errors import Unsupported
from bertbench.common.model.ops import Ops
from bertbench.common.optim.lamb import LambKernel

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp8")
"""``bf16`` and ``fp16`` are mixed precision: 16-bit matrix products, float32 master weights."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a backend can run here. ``reason`` is one line, which ``doctor`` prints."""

    ok: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Facts that the runner branches on. Leave unknown facts out; never write zero."""

    precisions: tuple[str, ...]
    """The PRECISIONS that the device computes in, best first: ``amp`` and ``auto`` take that."""
    collective: str | None = None
    device_timer: bool = False
    """The device's events measure the time between them."""
    memory_stats: bool = False
    """The device module reports allocated bytes and their peak."""
    memory_limit: bool = False
    """Running out of memory raises one of ``oom_errors`` and does not end the process."""
    pinned_memory: bool = False
    """Copies from pinned host memory overlap with the device's work."""
    graphs: bool = False
    """The device module can capture and replay graphs."""
    kernels: tuple[str, ...] = ("plain",)
    """Values of --kernels, fastest first."""
    compilers: tuple[str, ...] = ()
    telemetry: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    """Missing capability, precision or kernel -> reason. ``doctor`` and refusals print them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """One device as the record describes it; None where a fact is unknown."""

    backend: str
    name: str
    index: int
    memory_bytes: int | None = None
    driver: str | None = None
    runtime: str | None = None
    simulated: bool = False
    extras: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakMemory:
    """Peak since ``reset_peak_memory``; ``definition`` states the measured quantity."""

    peak_memory_bytes: int
    definition: str


class Telemetry(Protocol):
    """Samples power and other sensors in the background between ``start`` and ``stop``."""

    source: str

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def samples(self) -> list[dict[str, float]]: ...
    def energy_j(self) -> float | None: ...
    def power_w(self) -> float | None: ...


class Backend(ABC):
    """One vendor's device, built once per process for its local rank."""

    name: ClassVar[str]
    device_type: ClassVar[str]
    package: ClassVar[str | None] = None
    """The vendor's module, which ``probe`` imports; None where torch itself has the device."""
    visible_devices_env: ClassVar[str | None] = None
    """The variable that selects and renumbers a process's devices."""
    collective: ClassVar[str | None] = None
    """The device's library in ``init_process_group``."""
    verified: ClassVar[Literal["hardware", "simulator", "documents"]] = "documents"
    """Where the contract tests passed; ``documents``: nowhere, written from documentation."""
    tf32_switches: ClassVar[tuple[str, ...]] = ()
    """Attributes of ``torch`` that enable TF32-like products, e.g. ``backends.x.allow_tf32``."""

    def __init__(self, local_rank: int = 0) -> None:
        probe = self.probe()
        if not probe.ok:
            raise Unsupported(f"backend {self.name!r} cannot run here: {probe.reason}")
        count = self.device_count()
        if local_rank >= count:
            raise Unsupported(
                f"{self.name}: no device for local rank {local_rank}: {count} visible here. Start "
                f"at most one process per device (NPROC={count})"
            )
        self.device = torch.device(self.device_type, local_rank)
        if hasattr(self.module, "set_device"):
            self.module.set_device(self.device)

    # -- identity -----------------------------------------------------------------------------
    @classmethod
    def absent(cls) -> str | None:
        """Return why it cannot run here, or None, without importing anything."""
        if cls.package is None or importlib.util.find_spec(cls.package) is not None:
            return None
        return f"package {cls.package} is not installed"

    @classmethod
    @abstractmethod
    def probe(cls) -> Probe:
        """Import the vendor's package and count its devices. Never raise."""

    @classmethod
    def device_count(cls) -> int:
        """Return how many devices this process may use, after ``visible_devices_env``."""
        return int(torch.get_device_module(cls.device_type).device_count())

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What the device can do, found by trying it."""

    @abstractmethod
    def describe(self) -> DeviceInfo:
        """Return the record's facts of this device."""

    @property
    def module(self) -> ModuleType:
        """``torch.<device_type>``."""
        return torch.get_device_module(self.device_type)

    # -- time and memory ----------------------------------------------------------------------
    def synchronize(self) -> None:
        """Block until the device is idle."""
        self.module.synchronize()

    def timer(self) -> Timer:
        """Return a timer of the device's work: by its events, else by the host's clock."""
        if self.capabilities.device_timer:
            return EventTimer(lambda: self.module.Event(enable_timing=True), self.synchronize)
        return HostTimer(self.synchronize)

    def reset_peak_memory(self) -> None:
        """Start a new peak-memory window."""
        if self.capabilities.memory_stats:
            self.module.reset_peak_memory_stats()

    def peak_memory(self) -> PeakMemory | None:
        """Return the peak since the reset, or None where it is unknown."""
        if not self.capabilities.memory_stats:
            return None
        return PeakMemory(
            peak_memory_bytes=int(self.module.max_memory_allocated()),
            definition="allocator peak of the device",
        )

    @property
    def oom_errors(self) -> tuple[type[BaseException], ...]:
        """Exceptions that mean that device memory ran out."""
        own = getattr(self.module, "OutOfMemoryError", None)
        return (torch.OutOfMemoryError,) + ((own,) if own else ())

    def ran_out(self, error: BaseException) -> bool:
        """Return whether ``error`` means that device memory ran out."""
        return isinstance(error, self.oom_errors)

    # -- numerics -----------------------------------------------------------------------------
    def resolve_precision(self, name: str) -> str:
        """Return the precision to use: ``amp`` is the best 16-bit one, ``auto`` that or float32.

        Raises Unsupported for a precision that the device lacks.
        """
        have = self.capabilities.precisions
        best = [p for p in have if p in ("bf16", "fp16")]
        if name == "auto":
            return (best or have)[0]
        if name == "amp" and best:
            return best[0]
        if name in have:
            return name
        known = ("auto", "amp", *PRECISIONS)
        what = f"unknown precision {name!r}" if name not in known else f"no {name!r} here"
        why = self.capabilities.notes.get(name)
        raise Unsupported(
            f"{self.name}: {what}{f' ({why})' if why else ''}; it has {', '.join(have)}. "
            f"Choose with --precision."
        )

    def precision(self, name: str) -> AbstractContextManager[None]:
        """Return a context for forward passes in exactly this precision.

        The TF32 switches stay set: backward passes run outside the context.
        Raises Unsupported for a precision that the device lacks.
        """
        name = self.resolve_precision(name)
        for switch in self.tf32_switches:
            owner, _, attribute = switch.rpartition(".")
            setattr(functools.reduce(getattr, owner.split("."), torch), attribute, name == "tf32")
        dtype = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16}.get(name)
        return nullcontext() if dtype is None else self.autocast(dtype)

    @contextmanager
    def autocast(self, dtype: torch.dtype) -> Iterator[None]:
        """Open autocast in ``dtype``; raise any error where the device lacks it."""
        # Where a dtype is unsupported, torch only warns and switches autocast off.
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            context = torch.autocast(self.device_type, dtype=dtype)
        with context:
            yield

    def verify_precision(self, name: str) -> dict[str, str]:
        """Compute in this precision and return facts for the record (selfcheck.examine).

        Raises Unsupported when a matrix product has another precision.
        """
        with self.precision(name):
            found = selfcheck.examine(self.device, self.linear_of(name))
        if wrong := selfcheck.why_not(name, found):
            raise Unsupported(f"{self.name}: {name} was requested, but {wrong}")
        return found

    def linear_of(self, precision: str) -> selfcheck.Linear:
        """Return the x @ weight.T that layers compute in this precision."""
        return nn.functional.linear

    def fallbacks(self) -> AbstractContextManager[dict[str, int] | None]:
        """Count operations that the host computes in the device's place while the context is open.

        Afterwards the dictionary holds operation -> times; None where they cannot be counted.
        """
        return nullcontext(None)

    def grad_scaler(self, precision: str, init_scale: float = 2.0**20) -> torch.amp.GradScaler:
        """Return dynamic loss scaling, enabled for fp16 only."""
        return torch.amp.GradScaler(
            self.device_type, init_scale=init_scale, enabled=precision == "fp16"
        )

    def ops(self, kernels: str, precision: str) -> Ops:
        """Return the model's operations with ``kernels``: ``auto`` (the fastest) or a capability.

        Raises Unsupported for kernels that the device lacks.
        """
        have = self.capabilities.kernels
        chosen = have[0] if kernels == "auto" else kernels
        if chosen not in have:
            why = self.capabilities.notes.get(chosen, "unknown to this backend")
            raise Unsupported(
                f"{self.name}: kernels {chosen!r} unavailable: {why}. It has {', '.join(have)}; "
                f"choose with --kernels."
            )
        return self.build_ops(chosen, precision)

    def build_ops(self, kernels: str, precision: str) -> Ops:
        """Return the operations for one entry of ``capabilities.kernels``."""
        return Ops()

    def masked_ops(self, kernels: str, precision: str) -> Ops:
        """Return the operations of a run with an attention mask; arguments as in ``ops``.

        Raises Unsupported as ``ops``, and where they mask wrongly. torch's on a host do not.
        """
        return self.ops(kernels, precision)

    def lamb_kernel(self, kernels: str) -> LambKernel | None:
        """Return a fused LAMB kernel, or None for ``lamb_update``."""
        return None

    @functools.cached_property
    def fused_adamw(self) -> bool:
        """Whether torch's one-kernel AdamW works on this device, found by trying it."""
        p = nn.Parameter(torch.ones(2, device=self.device))
        p.grad = torch.ones_like(p)
        try:
            torch.optim.AdamW([p], fused=True).step()
        except (RuntimeError, NotImplementedError):
            return False
        return bool(torch.isfinite(p).all() and (p != 1).all())

    # -- randomness ---------------------------------------------------------------------------
    def seed(self, seed: int) -> None:
        """Seed the host and the device."""
        torch.manual_seed(seed)

    def rng_state(self) -> dict[str, Tensor]:
        """Return the random state of host and device: byte tensors on the host, of any shape."""
        state = {"cpu": torch.get_rng_state()}
        if self.device_type != "cpu":
            state[self.device_type] = self.module.get_rng_state()
        return state

    def set_rng_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that ``rng_state`` returned, its byte tensors [...] as they were."""
        torch.set_rng_state(state["cpu"])
        if self.device_type != "cpu":
            self.module.set_rng_state(state[self.device_type])

    # -- the step -----------------------------------------------------------------------------
    def optimizer_step(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Apply one update; a device with lazy graphs cuts its graph here."""
        scaler.step(optimizer)
        scaler.update()

    def compile(self, model: nn.Module, compiler: str | None) -> None:
        """Compile ``model`` in place with one of the device's compilers; None changes nothing.

        Each layer of a list is compiled by itself, and the first one's code serves them all.
        Parameters keep their names, so checkpoints load with or without a compiler.
        Shapes are symbolic, since the number of tokens differs in each batch.
        Raises Unsupported for a compiler that the device lacks.
        """
        if compiler is None:
            return
        if compiler not in self.capabilities.compilers:
            notes = self.capabilities.notes
            why = notes.get(compiler) or notes.get("compile")
            raise Unsupported(
                f"{self.name} has no compiler {compiler!r}{f' ({why})' if why else ''}; it has "
                f"{', '.join(self.capabilities.compilers) or 'none'}"
            )
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
        for part in [layer for layers in lists for layer in layers] or [model]:
            part.compile(backend=compiler, dynamic=True)

    # -- the cluster --------------------------------------------------------------------------
    def resolve_collective(self, name: str | None) -> str | None:
        """Return the device's collective library; raise Unsupported if ``name`` is another."""
        own = self.capabilities.collective
        if name not in (None, own):
            raise Unsupported(
                f"{self.name} has no collective backend {name!r}; it has {own!r}. Leave "
                f"--dist_backend out, or choose another --backend."
            )
        return own

    def init_process_group(self, collective: str | None = None, **kwargs: Any) -> None:
        """Join the process group with the device's collective library.

        Raises Unsupported where it has none, or ``collective`` is another.
        """
        if (chosen := self.resolve_collective(collective)) is None:
            raise Unsupported(f"{self.name} has no collective backend: run it as one process")
        # Host tensors (votes, gathered numbers) go through gloo: they must not wait for the device.
        group = chosen if self.device_type == "cpu" else f"cpu:gloo,{self.device_type}:{chosen}"
        torch.distributed.init_process_group(group, **kwargs)

    def wrap_ddp(self, module: nn.Module, reduce_dtype: str = "fp32") -> nn.Module:
        """Wrap a model for data parallelism: gradients are all-reduced in buckets, overlapped.

        Raises Unsupported where they cannot be reduced in ``reduce_dtype`` (REDUCE_DTYPES).
        """
        model = nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
        reduce_in(model, reduce_dtype)
        return model

    # -- observation --------------------------------------------------------------------------
    def telemetry(self, period_s: float = 0.1) -> Telemetry | None:
        """Return a sampler for this device, or None (``capabilities.notes["power"]`` says why)."""
        return None
