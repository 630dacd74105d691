# SPDX-License-Identifier: Apache-2.0
"""Adapters override public hooks only, and docs/adding-a-backend.md lists each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertbench import backends
from bertbench.backends.accelerator import Accelerator
from bertbench.backends.base import Backend
from bertbench.backends.gcu.lazy import Dtu, LazyGcu

PAGE = Path(__file__).parents[3] / "docs" / "adding-a-backend.md"
ADAPTERS = [*map(backends.load, backends.BUILT_IN), LazyGcu, Dtu]


def overridden(adapter: type) -> set[str]:
    """Names of a base class that an adapter, or the adapter it subclasses, defines again."""
    names: set[str] = set()
    for n, cls in enumerate(adapter.__mro__):
        if issubclass(cls, Backend) and cls is not Accelerator:
            bases = [b for b in adapter.__mro__[n + 1 :] if issubclass(b, Backend)]
            names |= {name for name in vars(cls) if any(name in vars(b) for b in bases)}
    return {name for name in names if not name.startswith(("__", "_abc_"))}


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.__name__)
def test_hooks_are_public_and_documented(adapter: type[Backend]) -> None:
    names = overridden(adapter)
    assert names
    assert not [name for name in names if name.startswith("_")]
    page = PAGE.read_text()
    hooks = [name for name in names if hasattr(Backend, name) or hasattr(Accelerator, name)]
    assert not [name for name in hooks if f"`{name}" not in page]
