# SPDX-License-Identifier: Apache-2.0
"""Identifies the vendor of a ``torch.cuda`` device: at least six vendors use that name.

Evidence, most reliable first: the version of the torch build, the device's name, and tools and
libraries that only one vendor installs.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """How one vendor is recognised; texts are lower-case and match anywhere in the value."""

    key: str
    label: str
    backend: str | None
    """The adapter's name, or None: not written yet."""
    builds: tuple[str, ...] = ()
    """In ``torch.__version__``, as in 2.7.1+corex.4.4.0."""
    names: tuple[str, ...] = ()
    """In the device's name."""
    traces: tuple[str, ...] = ()
    """Tools on the PATH, folders, and Python modules."""

    @property
    def advice(self) -> str:
        """Why the wrong backend refuses this device, and what to do instead."""
        if self.backend is None:
            return f"found a device of {self.label}: bertbench has no adapter for it yet"
        return f"found a device of {self.label}: use --backend {self.backend}"


NVIDIA = Vendor(
    key="nvidia",
    label="NVIDIA",
    backend="cuda",
    names=("nvidia", "tesla", "geforce", "quadro", "titan"),
)
AMD = Vendor(
    key="amd",
    label="AMD ROCm",
    backend="rocm",
)
HYGON = Vendor(
    key="hygon",
    label="Hygon DCU",
    backend=None,
    builds=("+das", "dtk"),
    names=("hygon", "dcu"),
    traces=("hy-smi", "/opt/hyhal"),
)
OTHERS = (
    Vendor(
        key="iluvatar",
        label="Iluvatar CoreX",
        backend="corex",
        builds=("+corex",),
        names=("iluvatar", "bi-v1", "mr-v1"),
        traces=("ixsmi", "/usr/local/corex"),
    ),
    Vendor(
        key="metax",
        label="MetaX",
        backend=None,
        builds=("+metax", "+maca"),
        names=("metax",),
        traces=("mx-smi", "/opt/maca"),
    ),
    Vendor(
        key="kunlunxin",
        label="Kunlunxin",
        backend=None,
        names=("kunlun", "p800"),
        traces=("torch_xmlir",),
    ),
    Vendor(key="thead", label="T-Head PPU", backend=None, names=("ppu-",)),
)
"""Builds with a CUDA version; AMD's and Hygon's have ``torch.version.hip`` instead."""


def build_vendor() -> Vendor | None:
    """Return the vendor that this torch was built by, or None; import nothing."""
    version = torch.__version__.lower()
    if torch.version.hip is not None:
        return HYGON if _any(HYGON.builds, version) or _traced(HYGON) else AMD
    return next((v for v in OTHERS if _any(v.builds, version)), None)


def vendor(device_name: str) -> Vendor:
    """Return the vendor of the device that ``torch.cuda`` calls ``device_name``."""
    built, name = build_vendor(), device_name.lower()
    if built is AMD and _any(HYGON.names, name):
        return HYGON
    if built is not None:
        return built
    # Names come before traces: a machine may hold cards, and tools, of two vendors.
    for candidate in (NVIDIA, *OTHERS):
        if _any(candidate.names, name):
            return candidate
    return next((v for v in OTHERS if _traced(v)), NVIDIA)


def _any(texts: tuple[str, ...], value: str) -> bool:
    return any(text in value for text in texts)


def _traced(candidate: Vendor) -> bool:
    for trace in candidate.traces:
        if trace.startswith("/"):
            found = Path(trace).is_dir()
        elif "_" in trace:
            found = importlib.util.find_spec(trace) is not None
        else:
            found = shutil.which(trace) is not None
        if found:
            return True
    return False


def has_code_for(capability: tuple[int, int], builds: list[str]) -> bool:
    """Return whether a torch built for ``builds`` (sm_80, sm_90a, compute_90) runs on this device.

    Binary code runs on its own major version from its minor version on; intermediate code (PTX,
    ``compute_``) is compiled for any later one (CUDA C++ Programming Guide, binary and PTX
    compatibility). True where no entry has this form, as for other vendors.
    """
    parsed = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", build) for build in builds]
    known = [(m[1], (int(m[2]), int(m[3]))) for m in parsed if m is not None]
    return not known or any(
        version <= capability and (kind == "compute" or version[0] == capability[0])
        for kind, version in known
    )
