# SPDX-License-Identifier: Apache-2.0
"""Read HDF5 files in a process of its own, whose memory and time are limited.

On a damaged or hostile file the HDF5 library may loop for ever, take all memory or crash. Here it
does so in a child, which the kernel ends, and the caller gets BadInput with the file's name. The
child also keeps the cost of decoding rows off the interpreter lock of the training process.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import resource
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bertbench.common.data import hdf5
from bertbench.common.data.hdf5 import Limits
from bertbench.common.data.samples import IntArray, Samples
from bertbench.common.errors import BadInput
from bertbench.common.files import shown

COMPUTE_S, DEADLINE_S = 10, 60
"""Seconds of computing, and of any kind, within which the library must return the next rows."""
MEMORY = 1 << 30
"""Bytes that the child may use beyond those of its start."""
LARGEST_ANSWER = (1 << 30, 32)
"""Bytes that one file may become in memory: so many, and so many times its own."""

_PIPE_BYTES = 1 << 20
_CODE = (
    "import sys; sys.path[:] = {path!r}; from bertbench.common.data.reader import serve; serve()"
)
_ENVIRONMENT = {
    "HDF5_PLUGIN_PRELOAD": "::",  # no code from plugins
    "OPENBLAS_NUM_THREADS": "1",  # whose stacks would count as memory
    "OMP_NUM_THREADS": "1",
}


def read(
    path: Path, limits: Limits, first: int | None = None, *, sha256: str | None = None
) -> Samples:
    """Read and validate all samples of one file, or at most the ``first``.

    With ``sha256`` the file's bytes are compared with it before anything else. Raises BadInput,
    with file, dataset and row, for invalid data and for a file that the library cannot bear.
    """
    job = {"limits": asdict(limits), "first": first, "sha256": sha256}
    return Samples.concatenate(list(_ask("read", path, **job)))


def count(path: Path) -> int:
    """Count the samples of one file, without reading the text. Raises BadInput like ``read``."""
    (value,) = _ask("count", path)
    return int(value)


def small_datasets(path: Path) -> str:
    """Return a sha256 over the datasets of few bytes. Raises BadInput like ``read``."""
    (value,) = _ask("small", path)
    return str(value)


# -- this process --------------------------------------------------------------------------------
_idle: list[_Child] = []


class _Child:
    """A reading process; it ends when its standard input closes."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CODE.format(path=sys.path)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | _ENVIRONMENT,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.send, self.answers = self.process.stdin, self.process.stdout
        with contextlib.suppress(OSError, AttributeError):
            import fcntl

            fcntl.fcntl(self.answers, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.ready = select.poll()
        self.ready.register(self.answers, select.POLLIN)

    def fill(self, view: memoryview) -> None:
        """Fill ``view`` with what the child writes; raises EOFError or TimeoutError."""
        while len(view):
            # The child ends itself at its deadline, unless it is stopped or waits for a disk.
            if not self.ready.poll(2000 * DEADLINE_S):
                raise TimeoutError
            done = os.readv(self.answers.fileno(), [view])
            if not done:
                raise EOFError
            view = view[done:]

    def receive(self) -> dict[str, Any]:
        """Return the next answer."""
        size = bytearray(8)
        self.fill(memoryview(size))
        text = bytearray(int.from_bytes(size, sys.byteorder))
        self.fill(memoryview(text))
        return dict(json.loads(text))

    def close(self) -> str:
        """End the child and return how it ended."""
        for pipe in (self.send, self.answers):
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            code = self.process.wait(0.2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code in (-signal.SIGALRM, -signal.SIGPROF):
            return f"did not return within {COMPUTE_S} s of computing, or {DEADLINE_S} s in all,"
        return f"ended with signal {-code}" if code < 0 else f"ended with code {code}"


def start() -> None:
    """Start a reading process ahead of its use; touches no data."""
    with contextlib.suppress(OSError):
        if not _idle:
            _idle.append(_Child())


@atexit.register
def stop() -> None:
    """End the processes that wait."""
    while _idle:
        _idle.pop().close()


os.register_at_fork(after_in_child=_idle.clear)  # a pipe has one reader


def _take(path: Path) -> _Child:
    """Return a process for one file; raises BadInput where none starts."""
    with contextlib.suppress(IndexError):
        return _idle.pop()
    try:
        return _Child()
    except OSError as error:
        raise BadInput(f"{path}: no process to read it starts ({error.strerror})") from error


def _ask(verb: str, path: Path, **job: Any) -> Iterator[Any]:
    """Yield the child's answers about a file."""
    child, whole = _take(path), False
    try:
        request = {"verb": verb, "path": str(path), "folder": _folder(), **job}
        request["seconds"] = COMPUTE_S, DEADLINE_S
        os.write(child.send.fileno(), json.dumps(request).encode() + b"\n")
        left = LARGEST_ANSWER[0]
        while "end" not in (answer := child.receive()):
            if "error" in answer:
                whole = True
                raise BadInput(answer["error"])
            if "value" in answer:
                yield answer["value"]
                continue
            left -= sum(length * np.dtype(kind).itemsize for kind, length in answer.values())
            if left < -LARGEST_ANSWER[1] * path.stat().st_size:
                raise BadInput(f"{path}: holds far more than its size allows; make it again")
            yield _samples(child, answer)
        whole = True
    except (EOFError, TimeoutError, BrokenPipeError) as error:
        how = child.close()
        if isinstance(error, TimeoutError):
            how = f"was stopped, or waits for the disk longer than {2 * DEADLINE_S} s,"
        raise BadInput(
            f"{path}: the HDF5 library {how} on it; the file is damaged, make or copy it again"
        ) from error
    finally:
        if whole:
            _idle.append(child)
        else:
            child.close()


def _folder() -> str | None:
    """Return this process's folder; None where it is gone."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def _samples(child: _Child, described: dict[str, Any]) -> Samples:
    arrays: dict[str, IntArray] = {}
    for name, (kind, length) in described.items():
        arrays[name] = np.empty(length, kind)
        child.fill(_bytes(arrays[name]))
    return Samples(**arrays)


def _bytes(array: IntArray) -> memoryview:
    """Return the memory of an array, which may be empty."""
    return array.view(np.uint8).data


# -- the child -----------------------------------------------------------------------------------
def serve() -> None:
    """Answer requests, one a line, until standard input closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when to end
    for number in (signal.SIGALRM, signal.SIGPROF):  # the kernel ends what does not return
        signal.signal(number, signal.SIG_DFL)
    _limit_memory()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        path = Path(request["path"])
        try:
            if request["folder"] is not None:  # the parent's now, to which the path is relative
                os.chdir(request["folder"])
            with contextlib.suppress(BrokenPipeError):
                _answer(path, request, answers)
        except BadInput as error:
            _write(answers, {"error": str(error)})
        except MemoryError:
            why = f"reading it takes more than {MEMORY >> 20} MiB"
            _write(answers, {"error": f"{path}: {why}; the file is damaged, make or copy it again"})
        except Exception as error:
            why = f"cannot be read ({type(error).__name__}: {shown(error)})"
            _write(answers, {"error": f"{path}: {why}; the file is damaged, make or copy it again"})
        _allow((0, 0))


def _allow(seconds: Sequence[float]) -> None:
    """End this process unless it calls again within seconds of computing and of any kind."""
    signal.setitimer(signal.ITIMER_PROF, seconds[0])
    signal.setitimer(signal.ITIMER_REAL, seconds[1])


def _limit_memory() -> None:
    """Limit the address space to MEMORY more than now, where the kernel says how much that is."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _answer(path: Path, request: dict[str, Any], answers: BinaryIO) -> None:
    allow = partial(_allow, request["seconds"])
    wanted = request.get("sha256")
    if wanted is not None and (found := _file_sha256(path, allow)) != wanted:
        raise BadInput(
            f"{path}: its sha256 is {found}, its manifest says {wanted}: it was changed or "
            f"damaged, make or copy the data set again"
        )
    allow()
    if request["verb"] == "count":
        _write(answers, {"value": hdf5.count(path, allow)})
    elif request["verb"] == "small":
        _write(answers, {"value": hdf5.small_datasets(path)})
    else:
        for part in hdf5.parts(path, Limits(**request["limits"]), request["first"]):
            _allow((0, 0))  # the parent may take its time
            arrays = {f.name: np.ascontiguousarray(getattr(part, f.name)) for f in fields(part)}
            described = {name: (a.dtype.str, len(a)) for name, a in arrays.items()}
            _write(answers, described, *arrays.values())
            allow()
    _allow((0, 0))
    _write(answers, {"end": True})


def _file_sha256(path: Path, allow: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadInput(f"{path}: it is not a plain file")
        if os.pread(descriptor, 8, 0) == bytes(8):  # to hash gigabytes of holes takes long
            raise BadInput(
                f"{path}: it begins with zero bytes: it was damaged, make or copy the data set "
                f"again"
            )
        while block := file.read(1 << 20):
            digest.update(block)
            allow()
    return digest.hexdigest()


def _write(answers: BinaryIO, head: dict[str, Any], *arrays: IntArray) -> None:
    text = json.dumps(head).encode()
    answers.write(np.uint64(len(text)).tobytes() + text)
    for array in arrays:
        answers.write(_bytes(array))
    answers.flush()
