# SPDX-License-Identifier: Apache-2.0
"""Enflame GCU. Two generations of its PyTorch share a name: which one is installed is seen here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bertbench.backends.base import Backend


def select() -> type[Backend]:
    """The adapter of the installed generation, found without importing Enflame's packages.

    The eager torch_gcu where there is none: its ``probe`` says what is missing.
    """
    found = _generation()
    if found == "eager":
        from bertbench.backends.gcu.backend import Gcu

        return Gcu
    from bertbench.backends.gcu.lazy import Dtu, LazyGcu

    return LazyGcu if found == "lazy" else Dtu


def _generation() -> str:
    loaded = sys.modules.get("torch_gcu")
    if loaded is not None:
        return "lazy" if hasattr(loaded, "gcu_device") else "eager"
    folder = _folder("torch_gcu")
    if folder is None:
        return "eager" if _folder("torch_dtu") is None else "dtu"
    # The lazy one keeps its devices in torch_gcu.core, the eager one in torch_gcu.gcu.
    lazy = (folder / "core" / "device.py").exists() and not (folder / "gcu").exists()
    return "lazy" if lazy else "eager"


def _folder(package: str) -> Path | None:
    """Where a package is installed, or None; a broken one is still found."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
