# SPDX-License-Identifier: Apache-2.0
"""Enflame GCU: selects the adapter, since two generations of its PyTorch share a name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bertbench.backends.base import Backend


def select() -> type[Backend]:
    """Return the adapter of the installed generation, without importing Enflame's packages.

    Without either, it is the eager torch_gcu's, whose ``probe`` names the missing package.
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
    """Return a package's folder, or None; a broken package has one, too."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
