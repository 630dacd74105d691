# SPDX-License-Identifier: Apache-2.0
"""Compiles the device's C++ against torch's headers, once per torch, compiler and source."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch

from bertbench.common import native
from bertbench.common.errors import Unsupported

HERE = Path(__file__).parent
SOURCES = ("device.cpp", "kernels.cpp", "precision.cpp", "library.cpp")
FLAGS = ("-std=c++20", "-O1", "-g0", "-w", "-fPIC")
LIBRARIES = ("torch_cpu", "c10")


@functools.cache
def library() -> Path:
    """Return the shared object, built into the cache at first use (about 20 seconds).

    Raises Unsupported without a C++ compiler that accepts torch's headers.
    """
    try:
        compiler = native.compiler_command("CXX", "c++", "g++")
    except native.NativeUnavailable as error:
        raise Unsupported(f"the simulated accelerator needs a C++ compiler: {error}") from error
    root = Path(torch.__file__).resolve().parent  # the same build through every link to torch
    if not (root / "include" / "ATen").is_dir():
        raise Unsupported(
            f"torch {torch.__version__} came without its C++ headers; the simulated accelerator "
            "needs them: install torch from its wheel"
        )
    texts = [(HERE / name).read_text() for name in ("device.h", "lend.h", *SOURCES)]
    version = _run([*compiler, "--version"])
    what = (*texts, *compiler, version, *FLAGS, torch.__version__, str(root), platform.machine())
    return native.cached_build("simulated", what, lambda work: _build(compiler, root, work))


def _build(compiler: list[str], root: Path, work: Path) -> Path:
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    headers = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    objects = [str(work / f"{name}.o") for name in SOURCES]
    built, lib = work / "simulated.so", root / "lib"
    for name, obj in zip(SOURCES, objects, strict=True):
        _run([*compiler, *FLAGS, abi, *headers, "-c", str(HERE / name), "-o", obj])
    _run(
        [*compiler, "-shared", *objects, "-o", str(built), f"-L{lib}", f"-Wl,-rpath,{lib}"]
        + [f"-l{name}" for name in LIBRARIES]
    )
    return built


def _run(command: list[str]) -> str:
    try:
        return native.run_compiler(command)
    except native.NativeUnavailable as error:
        raise Unsupported(
            f"the simulated accelerator with torch {torch.__version__} cannot be compiled: "
            f"{error}\nIt needs C++20 (g++ 11 or clang 14, or newer): set CXX to such a compiler."
        ) from error
