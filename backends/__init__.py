# SPDX-License-Identifier: Apache-2.0
"""The registry of backends: names to classes, imported only when asked for."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from backends.base import Backend, Probe
from common.errors import Unsupported

BUILT_IN = {
    "cpu_ref": "backends.cpu_ref.backend:CpuRef",
}
"""In the order in which ``auto`` tries them; cpu_ref is never chosen by ``auto``."""

ENTRY_POINTS = "bertbench.backends"
"""The group in which other packages offer their own backends."""


def names() -> list[str]:
    """Every known backend, built in or from an installed package."""
    return [*BUILT_IN, *(e.name for e in entry_points(group=ENTRY_POINTS))]


def load(name: str) -> type[Backend]:
    """The class for ``name``; Unsupported lists what exists."""
    targets = {e.name: e.value for e in entry_points(group=ENTRY_POINTS)} | BUILT_IN
    if name not in targets:
        raise Unsupported(f"unknown backend {name!r}; known: {', '.join(targets)}")
    module, _, attribute = targets[name].partition(":")
    backend: type[Backend] = getattr(importlib.import_module(module), attribute)
    return backend


def probe(name: str) -> Probe:
    """Whether ``name`` can run here; a package that breaks on import is a reason, not a crash."""
    try:
        return load(name).probe()
    except Exception as error:
        return Probe(False, f"failed to load: {type(error).__name__}: {error}")


def resolve(name: str) -> type[Backend]:
    """``auto`` is the first accelerator that works, never the CPU by itself."""
    if name != "auto":
        return load(name)
    reasons = []
    for candidate in names():
        if candidate == "cpu_ref":
            continue
        answer = probe(candidate)
        if answer.ok:
            return load(candidate)
        reasons.append(f"{candidate}: {answer.reason}")
    detail = "; ".join(reasons) or "no accelerator backend is installed"
    raise Unsupported(f"no accelerator found ({detail}). To run on the CPU: --backend cpu_ref")
