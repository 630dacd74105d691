# SPDX-License-Identifier: Apache-2.0
"""Registers the simulated accelerator and its device module with torch under any name.

    from bertbench.backends.simulated.device import install
    demo = install("demo")                      # torch.demo, device "demo:0", "demo:1"

README.md describes the model and lists the knobs.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

from bertbench.backends.simulated import build
from bertbench.common.errors import BadInput, Unsupported

Device = torch.device | str | int | None
COUNTED = (
    "launches", "synchronize", "events", "allocations",
    "host_to_device", "device_to_host", "device_to_device",
)  # fmt: skip
KNOBS: dict[str, Callable[[str], Any]] = {
    "device_count": int,
    "memory_bytes": int,
    "oom_after": int,
    "latency_us": float,
    "lacks": lambda text: tuple(filter(None, text.split(","))),
    "fallback": lambda text: tuple(filter(None, text.split(","))),
    "int64": str,
    "gelu": str,
    "tf32": lambda text: text == "true",
}
"""Options of ``install``; ``BERTBENCH_SIMULATED_<KNOB>`` in the environment overrides them."""
CHOICES = {"int64": ("keep", "narrow"), "gelu": ("erf", "tanh")}
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
_installed: list[_Module] = []


class _Library:
    """The numbers of the C++ part, by name."""

    def __init__(self) -> None:
        path = str(build.library())
        torch.ops.load_library(path)
        self._c = ctypes.CDLL(path)
        self._c.simulated_get.restype = ctypes.c_int64

    def get(self, name: str, device: int = 0) -> int:
        return int(self._c.simulated_get(name.encode(), device))

    def set(self, name: str, value: int) -> None:
        assert self._c.simulated_set(name.encode(), ctypes.c_int64(value)) == 0, name

    def fall_back(self, op: str) -> None:
        self._c.simulated_fall_back(op.encode())

    def fallbacks(self) -> dict[str, int]:
        text = ctypes.create_string_buffer(1 << 16)
        self._c.simulated_fallbacks(text, ctypes.c_size_t(len(text)))
        pairs = (line.split() for line in text.value.decode().splitlines())
        return {op: int(count) for op, count in pairs}


@dataclass(frozen=True)
class Properties:
    """The result of ``get_device_properties``."""

    name: str
    total_memory: int


class _Module(ModuleType):
    """``torch.<name>``: the functions that torch's own device modules have."""

    OutOfMemoryError = torch.OutOfMemoryError
    SIMULATED = True

    def __init__(self, name: str, library: _Library, lacks: tuple[str, ...]) -> None:
        super().__init__(f"torch.{name}", __doc__)
        self._device_type, self._library, self._lacks = name, library, lacks
        self.physical_count, self.visible = 0, list[int]()
        """Devices of the simulated machine, and its number of each that the process sees."""

    # -- devices ------------------------------------------------------------------------------
    def is_available(self) -> bool:
        return self.device_count() > 0

    def is_initialized(self) -> bool:
        return True

    def init(self) -> None: ...

    def _lazy_init(self) -> None: ...

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return self._library.get("device_count")

    def current_device(self) -> int:
        return torch.accelerator.current_device_index()

    def set_device(self, device: Device) -> None:
        torch.accelerator.set_device_index(self._index(device))

    def get_device_name(self, device: Device = None) -> str:
        return f"Simulated accelerator ({self._device_type})"

    def get_device_properties(self, device: Device = None) -> Properties:
        return Properties(self.get_device_name(device), self._library.get("memory_bytes"))

    @contextmanager
    def device(self, device: Device) -> Iterator[None]:
        before = self.current_device()
        self.set_device(device)
        try:
            yield
        finally:
            self.set_device(before)

    # -- the queue ----------------------------------------------------------------------------
    def synchronize(self, device: Device = None) -> None:
        torch.accelerator.synchronize(self._index(device))

    def Event(self, enable_timing: bool = False, **options: Any) -> torch.Event:
        return torch.Event(self._device_type, enable_timing=enable_timing, **options)

    def Stream(self, device: Device = None, **options: Any) -> torch.Stream:
        return torch.Stream(torch.device(self._device_type, self._index(device)), **options)

    def current_stream(self, device: Device = None) -> torch.Stream:
        return torch.accelerator.current_stream(self._index(device))

    def set_stream(self, stream: torch.Stream) -> None:
        torch.accelerator.set_stream(stream)

    @contextmanager
    def stream(self, stream: torch.Stream | None) -> Iterator[None]:
        if stream is None:
            yield
            return
        before = self.current_stream(stream.device)
        self.set_stream(stream)
        try:
            yield
        finally:
            self.set_stream(before)

    # -- memory -------------------------------------------------------------------------------
    def memory_allocated(self, device: Device = None) -> int:
        return self._library.get("used", self._index(device))

    def max_memory_allocated(self, device: Device = None) -> int:
        return self._library.get("peak", self._index(device))

    memory_reserved, max_memory_reserved = memory_allocated, max_memory_allocated

    def reset_peak_memory_stats(self, device: Device = None) -> None:
        torch.accelerator.reset_peak_memory_stats(self._index(device))

    def memory_stats(self, device: Device = None) -> dict[str, int]:
        index = self._index(device)
        return {
            "allocated_bytes.all.current": self.memory_allocated(index),
            "allocated_bytes.all.peak": self.max_memory_allocated(index),
            "reserved_bytes.all.current": self.memory_allocated(index),
            "reserved_bytes.all.peak": self.max_memory_allocated(index),
        }

    def mem_get_info(self, device: Device = None) -> tuple[int, int]:
        total = self._library.get("memory_bytes")
        return total - self.memory_allocated(device), total

    def empty_cache(self) -> None: ...

    # -- randomness ---------------------------------------------------------------------------
    def manual_seed(self, seed: int) -> None:
        torch.ops.bertbench_simulated.seed(_signed(seed), self.current_device())

    def manual_seed_all(self, seed: int) -> None:
        for index in range(self.device_count()):
            torch.ops.bertbench_simulated.seed(_signed(seed), index)

    def get_rng_state(self, device: Device = None) -> Tensor:
        state: Tensor = torch.ops.bertbench_simulated.rng_state(self._index(device))
        return state

    def set_rng_state(self, state: Tensor, device: Device = None) -> None:
        torch.ops.bertbench_simulated.set_rng_state(state, self._index(device))

    def get_rng_state_all(self) -> list[Tensor]:
        return [self.get_rng_state(index) for index in range(self.device_count())]

    def set_rng_state_all(self, states: list[Tensor]) -> None:
        for index, state in enumerate(states):
            self.set_rng_state(state, index)

    # -- precision ----------------------------------------------------------------------------
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [dtype for name, dtype in PRECISIONS.items() if name not in self._lacks]

    def is_bf16_supported(self) -> bool:
        return "bf16" not in self._lacks

    @property
    def allow_tf32(self) -> bool:
        """Round the factors of float32 products to TF32; readable and writable at any time."""
        return bool(self._library.get("tf32"))

    @allow_tf32.setter
    def allow_tf32(self, on: bool) -> None:
        self._library.set("tf32", int(on))

    # -- facts that only a simulation has -----------------------------------------------------
    def counters(self) -> dict[str, Any]:
        """Return calls since the process began: COUNTED, and ``fallbacks``: operator -> times."""
        counts: dict[str, Any] = {name: self._library.get(name) for name in COUNTED}
        return counts | {"fallbacks": self._library.fallbacks()}

    def busy_seconds(self, device: Device = None) -> float:
        """Return the modelled device time since the process began."""
        return self._library.get("busy_ns", self._index(device)) / 1e9

    def _index(self, device: Device) -> int:
        if isinstance(device, int):
            return device
        index = None if device is None else torch.device(device).index
        return self.current_device() if index is None else index


def install(name: str, *, visible_devices_env: str | None = None, **options: Any) -> ModuleType:
    """Register the device as ``name``, once per process, and return ``torch.<name>``.

    ``options`` are KNOBS; the environment's ``BERTBENCH_SIMULATED_<KNOB>`` overrides them. The
    variable ``visible_devices_env`` hides devices from the process and renumbers the rest.
    Raises Unsupported where it cannot be built or another device has PrivateUse1 already.
    """
    settings = _settings(options)
    if _installed:
        raise Unsupported(f"the simulated accelerator is {_installed[0].__name__!r} already")
    if hasattr(torch, name):
        raise Unsupported(f"torch.{name} exists: the simulated accelerator needs another name")
    library = _Library()
    _apply(library, settings)
    backend_registration.rename_privateuse1_backend(name)
    module = _Module(name, library, settings.get("lacks", ()))
    physical = library.get("device_count")
    visible = _visible(visible_devices_env, physical)
    library.set("device_count", len(visible))
    module.visible, module.physical_count = visible, physical
    torch._register_device_module(name, module)
    backend_registration.generate_methods_for_privateuse1_backend(for_storage=True)
    _installed.append(module)
    return module


def installed() -> _Module | None:
    """Return this process's device module, or None."""
    return _installed[0] if _installed else None


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    unknown = set(options) - set(KNOBS)
    if unknown:
        raise BadInput(f"no knob {', '.join(sorted(unknown))}; there are {', '.join(KNOBS)}")
    settings = dict(options)
    for knob, parse in KNOBS.items():
        variable = f"BERTBENCH_SIMULATED_{knob.upper()}"
        text = os.environ.get(variable)
        if text is not None:
            try:
                settings[knob] = parse(text)
            except ValueError as error:
                raise BadInput(f"{variable}={text!r}: {error}") from error
        if knob in settings and settings[knob] not in CHOICES.get(knob, (settings[knob],)):
            raise BadInput(f"{variable}: {settings[knob]!r} is none of {CHOICES[knob]}")
    wrong = set(settings.get("lacks", ())) - set(PRECISIONS)
    if wrong:
        raise BadInput(f"lacks: {', '.join(sorted(wrong))} is none of {', '.join(PRECISIONS)}")
    return settings


def _apply(library: _Library, settings: dict[str, Any]) -> None:
    for knob in ("device_count", "memory_bytes", "oom_after"):
        if knob in settings:
            library.set(knob, settings[knob])
    if "latency_us" in settings:
        library.set("latency_ns", int(settings["latency_us"] * 1000))
    library.set("int64_narrow", settings.get("int64") == "narrow")
    library.set("gelu_tanh", settings.get("gelu") == "tanh")
    library.set("tf32", bool(settings.get("tf32")))
    for op in settings.get("fallback", ()):
        library.fall_back(op)


def _visible(variable: str | None, count: int) -> list[int]:
    """Return the devices in the variable, up to the first that does not exist."""
    text = os.environ.get(variable) if variable else None
    if text is None:
        return list(range(count))
    have = {str(index): index for index in range(count)}
    entries = [have.get(entry.strip()) for entry in text.split(",")]
    end = entries.index(None) if None in entries else len(entries)
    return [entry for entry in entries[:end] if entry is not None]


def _signed(seed: int) -> int:
    """Return the seed's 64 bits as a signed number, which operators require."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
