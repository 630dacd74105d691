# SPDX-License-Identifier: Apache-2.0
"""Compile a C file of bertbench with the system compiler and load it with ctypes.

A build needs no headers of torch and takes seconds. The object is cached by the hash of source,
compiler and machine; its own hash is part of its name, so that one which a power cut shortened, or
which comes from elsewhere, is built again and never loaded. OpenMP symbols stay undefined on
purpose: they resolve to the runtime that torch has loaded, so both share one thread pool and
``torch.set_num_threads`` sets its size.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch  # noqa: F401  # loads the OpenMP runtime that the object resolves against

from bertbench.common.errors import Unsupported
from bertbench.common.files import file_sha256, shown, sync

FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-fopenmp", "-fPIC")
COMPILER_S = 600.0
"""A compiler that takes longer hangs."""


class NativeUnavailable(Unsupported):
    """Nothing can be built, or kept, on this machine; the message has the reason and the fix."""


def cache_dir() -> Path:
    """Return the folder of builds and downloads: ``$BERTBENCH_CACHE`` or the user's cache.

    Raises NativeUnavailable for a user without a home.
    """
    base = os.environ.get("BERTBENCH_CACHE")
    if base:
        return Path(base)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bertbench"
    except RuntimeError as error:
        raise NativeUnavailable(
            f"there is no cache folder ({error}); set BERTBENCH_CACHE"
        ) from error


@functools.cache
def load(source: Path, *functions: str) -> ctypes.CDLL:
    """Build ``source`` unless an identical build is cached, and load it with its ``functions``.

    Raises NativeUnavailable when the C compiler is missing, fails or hangs, and where the cache
    cannot be written or does not allow programs; callers record the reason.
    """
    compiler = compiler_command("CC", "cc", "gcc")
    headers = sorted(source.parent.glob("*.h"))  # any of which the source may include
    texts = [file.read_text(encoding="utf-8") for file in (source, *headers)]
    version = run_compiler([*compiler, "--version"])

    def build(work: Path) -> Path:
        obj, lib = work / "k.o", work / "k.so"
        run_compiler([*compiler, *FLAGS, "-c", str(source), "-o", str(obj)])
        run_compiler([*compiler, "-shared", str(obj), "-o", str(lib), "-lm"])
        return lib

    what = (*texts, *compiler, version, *FLAGS, _cpu_identity())
    target = cached_build(source.stem, what, build)
    try:
        library = ctypes.CDLL(str(target))
    except OSError as error:
        raise NativeUnavailable(f"{target} does not load: {shown(error)}") from error
    missing = [name for name in functions if not hasattr(library, name)]
    if missing:
        raise NativeUnavailable(f"{shlex.join(compiler)} left {missing[0]} out of {target}: set CC")
    return library


def compiler_command(variable: str, *names: str) -> list[str]:
    """Return the words of an environment variable, or the first program of ``names`` there is.

    Raises NativeUnavailable without any.
    """
    try:
        words = shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise NativeUnavailable(f"{variable} is not a command ({error}): correct it") from error
    found = words or [path for path in map(shutil.which, names) if path][:1]
    if not found:
        raise NativeUnavailable(f"no compiler found; install gcc or clang, or set {variable}")
    return found


def run_compiler(command: list[str], seconds: float | None = None) -> str:
    """Run a compiler and return what it printed.

    Raises NativeUnavailable with its first error when it does not start, fails, or takes more than
    ``seconds`` (default: COMPILER_S); all its processes have then ended.
    """
    name = shlex.join(command[:2])
    limit = COMPILER_S if seconds is None else seconds
    try:
        # Into a file: a pipe would stay open, and be waited for, in a child that was left behind.
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(limit)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
            output.seek(0)
            text = output.read(1 << 20).decode("utf-8", errors="replace")
    except OSError as error:
        raise NativeUnavailable(
            f"the compiler {name} does not start ({error.strerror}); install gcc or g++, or name "
            f"one that does in CC or CXX"
        ) from error
    except subprocess.TimeoutExpired:
        raise NativeUnavailable(f"the compiler {name} takes more than {limit:g} s") from None
    if status:
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line] or lines or [f"status {status}"]
        raise NativeUnavailable(f"{name} failed: {shown(' | '.join(errors[:3]), 500)}")
    return text


def cached_build(stem: str, what: Iterable[str], build: Callable[[Path], Path]) -> Path:
    """Return the intact build of ``what`` in the cache, or make it there.

    ``build`` writes a file below a folder that it is given and returns it. Raises NativeUnavailable
    where the cache cannot be written, and where nothing was made.
    """
    key = hashlib.sha256("\0".join(what).encode()).hexdigest()[:16]
    folder = cache_dir() / "native"
    try:
        for found in sorted(folder.glob(f"{stem}-{key}-*.so")):
            plain = found.is_file() and found.stat().st_size <= _LARGEST
            if plain and _digest(found) == found.stem.rpartition("-")[2]:
                return found
            found.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        # Ranks may build at the same time: each builds its own file, and the last rename wins.
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as work:
            made = build(Path(work))
            if not made.is_file():
                raise NativeUnavailable(
                    "the compiler ends without an error and has made no file; name another in CC "
                    "or CXX"
                )
            target = folder / f"{stem}-{key}-{_digest(made)}.so"
            sync(made)
            made.replace(target)
        sync(folder)
    except OSError as error:
        raise NativeUnavailable(
            f"{folder}: cannot keep a build: {shown(error)}; set BERTBENCH_CACHE to a folder that "
            f"can be written"
        ) from error
    return target


_LARGEST = 64 << 20
"""Bytes of a build; ours have some hundred thousand."""


def _digest(file: Path) -> str:
    return file_sha256(file)[:16]


def _cpu_identity() -> str:
    """Return the CPU's features: machines with a shared home folder may differ in -march=native."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next(line for line in text.splitlines() if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() + platform.machine()
