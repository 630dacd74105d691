# SPDX-License-Identifier: Apache-2.0
"""Installed packages that offer backends, and the vendors' packages that these import."""

from __future__ import annotations

from pathlib import Path

THIN = """
from bertbench.backends.base import Probe

class Adapter:
    name, device_type, package = {name!r}, "cpu", {vendor!r}

    @classmethod
    def absent(cls):
        return None

    @classmethod
    def probe(cls):
        import {vendor}
        return Probe(True, "1 device")
"""
"""An adapter that leaves everything to the examination."""

FULL = """
from bertbench.backends.accelerator import Accelerator

class Adapter(Accelerator):
    name, device_type, package = {name!r}, "cpu", {vendor!r}
"""
"""The default adapter, on the one device that is always there."""


def offer(folder: Path, name: str, vendor: str | None, adapter: str = THIN) -> None:
    """Make ``name`` a backend for a process with ``folder`` on its path.

    ``vendor`` is the text of the vendor's package, None where that is not installed.
    """
    folder.mkdir(exist_ok=True)
    if vendor is not None:
        (folder / f"torch_{name}.py").write_text(vendor)
    (folder / f"{name}_adapter.py").write_text(adapter.format(name=name, vendor=f"torch_{name}"))
    entry_point(folder, f"bertbench-{name}", "bertbench.backends", name, f"{name}_adapter:Adapter")


def entry_point(folder: Path, package: str, group: str, name: str, target: str) -> None:
    """The metadata of an installed package with one entry point."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
