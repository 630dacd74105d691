# SPDX-License-Identifier: Apache-2.0
"""The contract between the benchmarks and one vendor's PyTorch device.

A subclass must say three things: whether it can run here (``probe``), what it can do
(``capabilities``) and what it is (``describe``). Everything else has a default that is right for
a device module shaped like torch's own; override only what differs.
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
from bertbench.backends.timers import EventTimer, HostTimer, Timer
from bertbench.common.errors import Unsupported
from bertbench.common.model.ops import Ops
from bertbench.common.optim.lamb import LambKernel

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
"""``bf16`` and ``fp16`` are mixed precision: that dtype in matrix products, float32 masters."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a backend can run here and, if not, why: ``doctor`` prints the reason."""

    ok: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Facts the runner may branch on. What is unknown is absent, never zero."""

    precisions: tuple[str, ...]
    """The subset of PRECISIONS that this device really computes in, best first for ``amp``."""
    collective: str | None = None
    device_timer: bool = False
    """The device's events tell the time between them."""
    memory_stats: bool = False
    """The device module counts allocated bytes and their peak."""
    memory_limit: bool = False
    """Too large an allocation is an error (``oom_errors``), not the end of the process."""
    pinned_memory: bool = False
    """Copies from page-locked host memory overlap with the device's work."""
    graphs: bool = False
    """The device module can capture and replay graphs."""
    kernels: tuple[str, ...] = ("plain",)
    """Values accepted by ``Backend.ops``, fastest first."""
    compilers: tuple[str, ...] = ()
    telemetry: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    """Why something one would expect is missing: capability -> reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """What the record says of one device."""

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
    """Peak of one device (or process) since ``reset_peak_memory``, and what was measured."""

    peak_memory_bytes: int
    definition: str


class Telemetry(Protocol):
    """Samples power and the like in the background between ``start`` and ``stop``."""

    source: str

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def samples(self) -> list[dict[str, float]]: ...
    def energy_j(self) -> float | None: ...
    def power_w(self) -> float | None: ...


class Backend(ABC):
    """One vendor's device. Built once per process, for one local rank."""

    name: ClassVar[str]
    device_type: ClassVar[str]
    package: ClassVar[str | None] = None
    """The vendor's module, imported by ``probe``; None where torch itself has the device."""
    visible_devices_env: ClassVar[str | None] = None
    """The variable that chooses and renumbers devices for a process."""
    collective: ClassVar[str | None] = None
    verified: ClassVar[Literal["hardware", "simulator", "documents"]] = "documents"
    """What this adapter has run on; ``documents``: written from them, and untested."""
    tf32_switches: ClassVar[tuple[str, ...]] = ()
    """Attributes of ``torch`` that allow TF32-like products, e.g. ``backends.x.allow_tf32``."""

    def __init__(self, local_rank: int = 0) -> None:
        probe = self.probe()
        if not probe.ok:
            raise Unsupported(f"backend {self.name!r} cannot run here: {probe.reason}")
        count = self.device_count()
        if local_rank >= count:
            raise Unsupported(
                f"{self.name}: local rank {local_rank} needs one more device than the {count} "
                f"visible here: start no more processes than devices (NPROC={count})"
            )
        self.device = torch.device(self.device_type, local_rank)
        if hasattr(self.module, "set_device"):
            self.module.set_device(self.device)

    # -- what it is ---------------------------------------------------------------------------
    @classmethod
    def absent(cls) -> str | None:
        """A reason why it cannot run here that is found without importing anything, or None."""
        if cls.package is None or importlib.util.find_spec(cls.package) is not None:
            return None
        return f"package {cls.package} is not installed"

    @classmethod
    @abstractmethod
    def probe(cls) -> Probe:
        """Import the vendor's package and look for a device. Never raises."""

    @classmethod
    def device_count(cls) -> int:
        """Devices this process may use (visible-device variables respected)."""
        return int(torch.get_device_module(cls.device_type).device_count())

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What the device can do, found by asking it."""

    @abstractmethod
    def describe(self) -> DeviceInfo:
        """What goes into the record for this device."""

    @property
    def module(self) -> ModuleType:
        """torch's module for the device."""
        return torch.get_device_module(self.device_type)

    # -- time and memory ----------------------------------------------------------------------
    def synchronize(self) -> None:
        """Block until the device is idle."""
        self.module.synchronize()

    def timer(self) -> Timer:
        """A timer that is right for this device."""
        if self.capabilities.device_timer:
            return EventTimer(lambda: self.module.Event(enable_timing=True), self.synchronize)
        return HostTimer(self.synchronize)

    def reset_peak_memory(self) -> None:
        """Start a new peak-memory window."""
        if self.capabilities.memory_stats:
            self.module.reset_peak_memory_stats()

    def peak_memory(self) -> PeakMemory | None:
        """Peak since the reset, or None where the device does not tell."""
        if not self.capabilities.memory_stats:
            return None
        return PeakMemory(
            peak_memory_bytes=int(self.module.max_memory_allocated()),
            definition="allocator peak of the device",
        )

    @property
    def oom_errors(self) -> tuple[type[BaseException], ...]:
        """Exceptions that mean: out of device memory."""
        own = getattr(self.module, "OutOfMemoryError", None)
        return (torch.OutOfMemoryError,) + ((own,) if own else ())

    # -- numerics -----------------------------------------------------------------------------
    def resolve_precision(self, asked: str) -> str:
        """``amp`` becomes the device's best 16-bit mode, ``auto`` that or, with none, float32's.

        Raises Unsupported for anything that is not offered.
        """
        have = self.capabilities.precisions
        best = [p for p in have if p in ("bf16", "fp16")]
        if asked == "auto":
            return (best or have)[0]
        if asked == "amp":
            if best:
                return best[0]
        elif asked in have:
            return asked
        known = ("auto", "amp", *PRECISIONS)
        what = f"unknown precision {asked!r}" if asked not in known else f"no {asked!r} here"
        why = self.capabilities.notes.get(asked)
        raise Unsupported(
            f"{self.name}: {what}{f' ({why})' if why else ''}; it has {', '.join(have)}. "
            f"Choose with --precision."
        )

    def precision(self, name: str) -> AbstractContextManager[None]:
        """Context for forward passes in exactly this precision.

        The TF32 switches stay as this sets them, since backward passes run outside the context.
        """
        name = self.resolve_precision(name)
        for switch in self.tf32_switches:
            owner, _, attribute = switch.rpartition(".")
            setattr(functools.reduce(getattr, owner.split("."), torch), attribute, name == "tf32")
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        return nullcontext() if dtype is None else self.autocast(dtype)

    @contextmanager
    def autocast(self, dtype: torch.dtype) -> Iterator[None]:
        # torch only warns and switches autocast off when a dtype is unsupported.
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            context = torch.autocast(self.device_type, dtype=dtype)
        with context:
            yield

    def verify_precision(self, name: str) -> dict[str, str]:
        """Compute in this precision and look at what came out; Unsupported if it is another.

        Returns facts for the record: what the product kept, the form of GELU, int64's width.
        """
        with self.precision(name):
            found = selfcheck.examine(self.device)
        wrong = selfcheck.why_not(name, found)
        if wrong:
            raise Unsupported(f"{self.name}: {name} was asked for, but {wrong}")
        return found

    def fallbacks(self) -> AbstractContextManager[dict[str, int] | None]:
        """While open, counts operations that the host computes in the device's place.

        Gives a dictionary that holds operation -> times afterwards, or None: cannot be told.
        """
        return nullcontext(None)

    def grad_scaler(self, precision: str, init_scale: float = 2.0**20) -> torch.amp.GradScaler:
        """Dynamic loss scaling, enabled for fp16 only."""
        return torch.amp.GradScaler(
            self.device_type, init_scale=init_scale, enabled=precision == "fp16"
        )

    def ops(self, kernels: str, precision: str) -> Ops:
        """The operations of the model. ``kernels``: ``auto`` (the fastest) or a capability."""
        have = self.capabilities.kernels
        chosen = have[0] if kernels == "auto" else kernels
        if chosen not in have:
            why = self.capabilities.notes.get(chosen, "this backend has none of that name")
            raise Unsupported(
                f"{self.name}: kernels {chosen!r} unavailable: {why}. It has {', '.join(have)}; "
                f"choose with --kernels."
            )
        return self.build_ops(chosen, precision)

    def build_ops(self, kernels: str, precision: str) -> Ops:
        return Ops()

    def lamb_kernel(self, kernels: str) -> LambKernel | None:
        """A fused LAMB update, or None for the plain one."""
        return None

    @functools.cached_property
    def fused_adamw(self) -> bool:
        """Whether torch's one-kernel AdamW runs on this device: it only tells when it is tried."""
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
        """Random state of host and device, as byte tensors."""
        state = {"cpu": torch.get_rng_state()}
        if self.device_type != "cpu":
            state[self.device_type] = self.module.get_rng_state()
        return state

    def set_rng_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``rng_state`` gave."""
        torch.set_rng_state(state["cpu"])
        if self.device_type != "cpu":
            self.module.set_rng_state(state[self.device_type])

    # -- the step -----------------------------------------------------------------------------
    def optimizer_step(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Apply one update. Lazy-graph devices cut the graph here."""
        scaler.step(optimizer)
        scaler.update()

    def compile(self, model: nn.Module, compiler: str | None) -> None:
        """Compile ``model`` in place with one of the device's compilers; None leaves it as it is.

        Where the model has a list of layers, each is compiled by itself: the first one's code
        serves them all. Names of parameters stay as they are, so checkpoints fit either way.
        Shapes are symbols from the start, since every batch has another number of tokens.
        Raises Unsupported for a compiler that the device does not have.
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
    def resolve_collective(self, asked: str | None) -> str | None:
        """The device's own library; any other that is asked for is refused."""
        own = self.capabilities.collective
        if asked not in (None, own):
            raise Unsupported(
                f"{self.name} has no collective backend {asked!r}; it has {own!r}. Leave "
                f"--dist_backend out, or choose another --backend."
            )
        return own

    def init_process_group(self, collective: str | None = None, **kwargs: Any) -> None:
        """Join the process group with the device's collective library."""
        chosen = self.resolve_collective(collective)
        if chosen is None:
            raise Unsupported(f"{self.name} has no collective backend: run it as one process")
        # Host tensors travel too (votes, gathered numbers): they must not wait for the device.
        group = chosen if self.device_type == "cpu" else f"cpu:gloo,{self.device_type}:{chosen}"
        torch.distributed.init_process_group(group, **kwargs)

    def wrap_ddp(self, module: nn.Module) -> nn.Module:
        """Overlapped, bucketed gradient all-reduce."""
        return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)

    # -- observation --------------------------------------------------------------------------
    def telemetry(self, period_s: float = 0.1) -> Telemetry | None:
        """A sampler for this device, or None (``capabilities.notes`` says why)."""
        return None
