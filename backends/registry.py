# SPDX-License-Identifier: Apache-2.0
"""The registry of backends: names to classes, which ``load`` imports.

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

from bertbench.common.config.parser import did_you_mean
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
"""A name for several backends -> those, in the order in which they are tried. The reference
scripts call any device gpu that PyTorch addresses as cuda."""

ALIASES = {"cpu": "cpu_ref"}
"""Other name of a backend -> its own, which records have."""

ENTRY_POINTS = "bertbench.backends"
"""The entry-point group in which other packages provide backends."""

SIMULATED = {"gcu": "torch_gcu"}
"""Value of BERTBENCH_SIMULATE -> the vendor's package that a stand-in replaces."""


def names() -> list[str]:
    """Return every known backend: those built in, then those of installed packages."""
    return [*BUILT_IN, *_third_parties()[0]]


def refused() -> list[str]:
    """Return one line for each installed backend that is refused because its name is taken."""
    return _third_parties()[1]


def own_name(name: str) -> str:
    """Return the name that the backend called ``name`` has itself, or ``name``."""
    return ALIASES.get(name, name)


def load(name: str) -> type[Backend]:
    """Import and return the class for ``name``; raise Unsupported for an unknown name."""
    name, others = own_name(name), _third_parties()[0]
    targets = BUILT_IN | {n: entry.value for n, entry in others.items()}
    if name not in targets:
        hint = did_you_mean(name, [*targets, *FAMILIES, *ALIASES]) or ";"
        raise Unsupported(f"unknown backend {name!r}{hint} known: {', '.join(targets)}")
    module, _, attribute = targets[name].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    backend: type[Backend] = found if isinstance(found, type) else found()
    if name in others and backend.name != name:
        raise Unsupported(
            f"the entry point {name!r} of {package(others[name])} leads to a backend named "
            f"{backend.name!r}: give both the same name"
        )
    return backend


def _third_parties() -> tuple[dict[str, EntryPoint], list[str]]:
    """Return usable entry points by name, and one line for each of the others."""
    return third_parties(ENTRY_POINTS, "backend", {*BUILT_IN, *FAMILIES, *ALIASES, "auto"})


def _simulate(name: str) -> None:
    """Put a stand-in for a vendor's package on the import path, unless that is installed."""
    if name not in SIMULATED:
        raise Unsupported(f"BERTBENCH_SIMULATE={name}: choose from {', '.join(SIMULATED)}")
    folder = str(Path(__file__).resolve().parent / "simulated" / "standins")
    if folder in sys.path:
        return
    if importlib.util.find_spec(SIMULATED[name]) is not None:
        raise Unsupported(
            f"BERTBENCH_SIMULATE={name}: the real {SIMULATED[name]} is installed here; unset it"
        )
    # In front: a simulated device must not report a real one's power.
    sys.path.insert(0, folder)


if os.environ.get("BERTBENCH_SIMULATE"):
    _simulate(os.environ["BERTBENCH_SIMULATE"])
