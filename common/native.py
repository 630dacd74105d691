# SPDX-License-Identifier: Apache-2.0
"""Compile a C file of bertbench with the system compiler and load it with ctypes.

A build needs no headers of torch and takes a second or two. The object is cached by the hash of
source, compiler and machine. OpenMP symbols stay undefined on purpose: they resolve to the runtime
that torch has loaded, so both share one thread pool and ``torch.set_num_threads`` sets its size.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # noqa: F401  # loads the OpenMP runtime that the object resolves against

from bertbench.common.errors import Unsupported

FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-fopenmp", "-fPIC")


class NativeUnavailable(Unsupported):
    """There is no working compiler; the message has the reason and the fix."""


def cache_dir() -> Path:
    """Return the folder of builds and downloads: ``$BERTBENCH_CACHE`` or the user's cache."""
    base = os.environ.get("BERTBENCH_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bertbench"


@functools.cache
def load(source: Path) -> ctypes.CDLL:
    """Build ``source`` unless an identical build is cached, and load it.

    Raises NativeUnavailable when the C compiler is missing or fails; callers record the reason.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise NativeUnavailable("no C compiler found; install gcc or clang, or set CC")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    key = hashlib.sha256(
        b"\0".join(
            part.encode() for part in (_text(source), version, " ".join(FLAGS), _cpu_identity())
        )
    ).hexdigest()[:16]
    target = cache_dir() / "native" / f"{source.stem}-{key}.so"
    if not target.exists():
        _build(compiler, source, target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise NativeUnavailable(f"{target} does not load: {error}") from error


def _text(source: Path) -> str:
    """Return the source and the headers beside it, any of which it may include."""
    return "".join(f.read_text() for f in (source, *sorted(source.parent.glob("*.h"))))


def _build(compiler: str, source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Ranks may build at the same time: each builds its own file, and the last rename wins.
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        obj, lib = Path(work) / "k.o", Path(work) / "k.so"
        for command in (
            [compiler, *FLAGS, "-c", str(source), "-o", str(obj)],
            [compiler, "-shared", str(obj), "-o", str(lib), "-lm"],
        ):
            process = subprocess.run(command, capture_output=True, text=True)
            if process.returncode:
                raise NativeUnavailable(
                    f"{' '.join(command)} failed:\n{process.stderr.strip()[-2000:]}"
                )
        lib.replace(target)


def _cpu_identity() -> str:
    """Return the CPU's features: machines with a shared home folder may differ in -march=native."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next(line for line in text.splitlines() if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() + platform.machine()
