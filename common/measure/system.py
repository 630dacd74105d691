# SPDX-License-Identifier: Apache-2.0
"""Describe the machine and the software of a result.

No hostname, user, path or remote URL, since results are published. Unknown values are None.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from bertbench.common.files import host_cores, shown
from bertbench.common.measure.code import git_state
from bertbench.common.native import NativeUnavailable, compiler_command, run_compiler

PACKAGES = ("torch", "numpy", "h5py", "safetensors", "tokenizers", "mlperf-logging")
ENVIRONMENT = (
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY", "GOMP_CPU_AFFINITY"),
    *("MKL_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "MALLOC_CONF", "TORCH_DEVICE_BACKEND_AUTOLOAD"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"),
    "BERTBENCH_STARTED_BY",
)
"""The recorded variables: they affect speed and contain no private data."""


def describe_system() -> dict[str, Any]:
    """Return processor, memory, operating system, software and code as JSON values."""
    return {
        "processor": _processor(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average_1m": _or_none(lambda: os.getloadavg()[0]),
        "os": {
            "name": _os_name(),
            "kernel": f"{platform.system()} {platform.release()}",
            "machine": platform.machine(),
            "libc": " ".join(part for part in platform.libc_ver() if part) or None,
        },
        "software": {
            "python": platform.python_version(),
            "packages": {name: package_version(name) for name in PACKAGES},
            "torch_threads": torch.get_num_threads(),
            "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "torch_git": torch.version.git_version,
            "blas": {
                "mkl": torch.backends.mkl.is_available(),
                "onednn": torch.backends.mkldnn.is_available(),
                "openmp": torch.backends.openmp.is_available(),
            },
            "compiler": compiler_version(),
        },
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "code": git_state(),
    }


def system_name(device: str, count: int) -> str:
    """Return a system's folder name from its device and their number."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return f"{count}x-{name or 'device'}"


def compiler_version() -> str | None:
    """Return the first line of the C compiler's version, or None without a compiler."""
    try:
        text = run_compiler([*compiler_command("CC", "cc", "gcc"), "--version"], 10)
    except NativeUnavailable:
        return None
    return shown(text.splitlines()[0]) if text.strip() else None


def _processor() -> dict[str, Any]:
    info = _cpuinfo()
    if (frequency := _or_none(psutil.cpu_freq)) is not None:
        frequency = {"now": frequency.current or None, "max": frequency.max or None}
    return {
        "model": processor_name(),
        "sockets": _sockets(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(logical=True),
        "usable_threads": host_cores(),
        "caches": _caches(),
        "frequency_mhz": frequency,
        "virtual_machine": "hypervisor" in info["flags"].split() if "flags" in info else None,
    }


def processor_name() -> str:
    """Return its name, with family and model where a virtual machine hides the number."""
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    if re.search(r"\d", name.split("@")[0]) or not {"cpu family", "model"} <= info.keys():
        return name
    return f"{name} (family {info['cpu family']}, model {info['model']})"


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries of /proc/cpuinfo."""
    text = _read(Path("/proc/cpuinfo")) or ""
    first = text.split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _sockets() -> int | None:
    folders = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/physical_package_id")
    return len({_read(file) for file in folders}) or None


def _caches(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, str] | None:
    """Return the sizes of the first processor's caches, e.g. ``{"L1d": "32K"}``."""
    caches = {}
    for index in sorted(root.glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        if level and kind and size:
            suffix = {"Data": "d", "Instruction": "i"}.get(kind, "")
            caches[f"L{level}{suffix}"] = size
    return caches or None


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def package_version(package: str) -> str | None:
    """Return a package's version, with torch's build; None if it is not installed."""
    loaded = {"torch": str(torch.__version__), "numpy": np.__version__}
    return loaded.get(package) or _or_none(lambda: importlib.metadata.version(package))


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None


def _or_none(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except (OSError, NotImplementedError, AttributeError, importlib.metadata.PackageNotFoundError):
        return None


if __name__ == "__main__":
    import json

    json.dump(describe_system(), sys.stdout, indent=1)
