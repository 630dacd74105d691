# SPDX-License-Identifier: Apache-2.0
"""The registry of backends: names to classes, imported only when asked for.

Importing this module imports neither torch nor any vendor's package.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

from bertbench.common.config.plugins import package, third_parties
from bertbench.common.errors import Unsupported

if TYPE_CHECKING:
    from bertbench.backends.base import Backend

BUILT_IN = {
    "cuda": "bertbench.backends.cuda.backend:Cuda",
    "rocm": "bertbench.backends.rocm.backend:Rocm",
    "corex": "bertbench.backends.corex.backend:Corex",
    "gcu": "bertbench.backends.gcu:select",
    "npu": "bertbench.backends.npu.backend:Npu",
    "musa": "bertbench.backends.musa.backend:Musa",
    "mlu": "bertbench.backends.mlu.backend:Mlu",
    "hpu": "bertbench.backends.hpu.backend:Hpu",
    "xpu": "bertbench.backends.xpu.backend:Xpu",
    "mps": "bertbench.backends.mps.backend:Mps",
    "cpu_ref": "bertbench.backends.cpu_ref.backend:CpuRef",
}
"""Name -> module:attribute, in the order in which ``auto`` tries them (never cpu_ref).

The attribute is a Backend class, or a function without parameters that returns one.
"""

FAMILIES = {"gpu": ("cuda", "rocm", "corex")}
"""Names that may stand for several backends, tried in this order. gpu is what the references'
scripts call any device that PyTorch addresses as cuda."""

ENTRY_POINTS = "bertbench.backends"
"""The group in which other packages offer their own backends."""

SIMULATED = {"gcu": "torch_gcu"}
"""Values of BERTBENCH_SIMULATE, and the vendor's package whose place a stand-in takes."""


def names() -> list[str]:
    """Every known backend: those built in, then those of installed packages."""
    return [*BUILT_IN, *_third_parties()[0]]


def refused() -> list[str]:
    """One line for each installed backend that cannot be had, because its name is taken."""
    return _third_parties()[1]


def load(name: str) -> type[Backend]:
    """The class for ``name``; Unsupported lists what exists. Imports the backend's module."""
    others = _third_parties()[0]
    targets = BUILT_IN | {n: entry.value for n, entry in others.items()}
    if name not in targets:
        raise Unsupported(f"unknown backend {name!r}; known: {', '.join(targets)}")
    module, _, attribute = targets[name].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    backend: type[Backend] = found if isinstance(found, type) else found()
    if name in others and backend.name != name:
        raise Unsupported(
            f"the entry point {name!r} of {package(others[name])} leads to a backend that calls "
            f"itself {backend.name!r}: both must be the same"
        )
    return backend


def _third_parties() -> tuple[dict[str, EntryPoint], list[str]]:
    """Usable entry points by name, and what is wrong with the others."""
    return third_parties(ENTRY_POINTS, "backend", {*BUILT_IN, *FAMILIES, "auto"})


def _simulate(asked: str) -> None:
    """Let the stand-in of a vendor's package be imported in its place, if that is not installed."""
    if asked not in SIMULATED:
        raise Unsupported(
            f"BERTBENCH_SIMULATE={asked}: there are stand-ins for {', '.join(SIMULATED)}"
        )
    folder = str(Path(__file__).resolve().parent / "simulated" / "standins")
    if folder in sys.path:
        return
    if importlib.util.find_spec(SIMULATED[asked]) is not None:
        raise Unsupported(
            f"BERTBENCH_SIMULATE={asked}: the real {SIMULATED[asked]} is installed here; unset it"
        )
    # In front: a simulated device must not report a real one's power.
    sys.path.insert(0, folder)


if os.environ.get("BERTBENCH_SIMULATE"):
    _simulate(os.environ["BERTBENCH_SIMULATE"])
