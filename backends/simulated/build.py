# SPDX-License-Identifier: Apache-2.0
"""Compiles the device's C++ against torch's headers, once per torch, compiler and source."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from bertbench.common.errors import Unsupported
from bertbench.common.native import cache_dir

HERE = Path(__file__).parent
SOURCES = ("device.cpp", "kernels.cpp", "precision.cpp", "library.cpp")
FLAGS = ("-std=c++20", "-O1", "-g0", "-w", "-fPIC")
LIBRARIES = ("torch_cpu", "c10")


@functools.cache
def library() -> Path:
    """Return the shared object, built into the cache at first use (about 20 seconds).

    Raises Unsupported without a C++ compiler that accepts torch's headers.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        raise Unsupported(
            "the simulated accelerator needs a C++ compiler: install g++ or clang, or set CXX"
        )
    root = Path(torch.__file__).resolve().parent  # the same build through every link to torch
    if not (root / "include" / "ATen").is_dir():
        raise Unsupported(
            f"torch {torch.__version__} came without its C++ headers; the simulated accelerator "
            "needs them: install torch from its wheel"
        )
    version = _version(compiler)
    texts = [(HERE / name).read_text() for name in ("device.h", "lend.h", *SOURCES)]
    what = (*texts, version, *FLAGS, torch.__version__, str(root), platform.machine())
    key = hashlib.sha256("\0".join(what).encode()).hexdigest()[:16]
    target = cache_dir() / "native" / f"simulated-{key}.so"
    if not target.exists():
        _build(compiler, root, target)
    return target


def _version(compiler: str) -> str:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    except OSError as error:
        raise Unsupported(
            f"the C++ compiler {compiler!r} does not start ({error}); install g++, or set CXX"
        ) from error


def _build(compiler: str, root: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    headers = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    # Ranks may build at the same time: each builds its own file and the rename decides.
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        objects = [str(Path(work) / f"{name}.o") for name in SOURCES]
        built = Path(work) / "simulated.so"
        for name, obj in zip(SOURCES, objects, strict=True):
            _run([compiler, *FLAGS, abi, *headers, "-c", str(HERE / name), "-o", obj])
        lib = root / "lib"
        _run(
            [compiler, "-shared", *objects, "-o", str(built), f"-L{lib}", f"-Wl,-rpath,{lib}"]
            + [f"-l{name}" for name in LIBRARIES]
        )
        built.replace(target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        raise Unsupported(
            f"the C++ compiler refuses the simulated accelerator with torch {torch.__version__}: "
            f"{' | '.join(errors[:5]) or done.stderr.strip()[-500:]}\nIt needs C++20 "
            "(g++ 11 or clang 14, or newer): set CXX to such a compiler."
        )
