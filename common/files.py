# SPDX-License-Identifier: Apache-2.0
"""Files that survive a crash, JSON and text of unknown origin, and the host's cores."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from bertbench.common.errors import BadInput, BertbenchError

LARGEST_JSON = 16 << 20
"""Bytes of a document that is read whole, unless its reader allows more."""
_LARGEST_NUMBER = 1e300
_DEEPEST = 100
"""Brackets in brackets: Python's own functions for nested values end at some hundreds."""


def file_sha256(path: Path, length: int | None = None) -> str:
    """Return the sha256 of a plain file's bytes, or of its first ``length``, in hexadecimal.

    Raises OSError where it cannot be read, and for a device, a pipe or a folder.
    """
    digest, left = hashlib.sha256(), math.inf if length is None else length
    if (stream := _open_plain(path)) is None:
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    with stream:
        while chunk := stream.read(int(min(1 << 20, left))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make a file, or a folder's list of names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path, flag: str) -> None:
    """Raise BadInput, which names ``flag``, where a folder cannot be made or written."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()  # leaves nothing
    except OSError as error:
        raise BadInput(
            f"{flag} {folder}: {there} is not a folder that can be written to ({error.strerror})"
        ) from error


def write_atomic(path: Path, text: str) -> None:
    """Replace ``path``: a reader finds the old text or the new one, never a part.

    Several writers do not disturb each other, and one that fails (OSError) leaves nothing behind.
    """
    work = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with work.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        work.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            work.unlink()
        raise
    sync(path.parent)


class Lines:
    """A file of lines that are appended whole or, where the disk refuses (OSError), not at all.

    It is locked while it is open: its reader sees whether it is still written.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, text: str) -> None:
        rest, end = memoryview(f"{text}\n".encode()), self._file.seek(0, io.SEEK_END)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise

    def close(self) -> None:
        self._file.close()


def is_plain(file: Path) -> bool:
    """Return whether a path is a file, and no link, pipe, device or folder."""
    try:
        return stat.S_ISREG(file.lstat().st_mode)
    except (OSError, ValueError):
        return False


class OutputLost(BaseException):
    """A standard stream can no longer be written; no Exception, so that it ends any verb."""


class Stream:
    """A standard stream whose reader may leave and whose disk may fill.

    The first failure is kept in ``problem``; it is raised as OutputLost, now and at every later
    write, where ``strict`` is set, and otherwise the text is dropped. All else is the stream's own.
    """

    def __init__(self, stream: Any, *, strict: bool = False) -> None:
        self._stream, self.strict = stream, strict
        self.problem = "it is closed" if stream is None else None
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # what its encoding lacks

    def write(self, text: str) -> int:
        self._do(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._do(lambda: self._stream.flush())

    def _do(self, action: Callable[[], object]) -> None:
        if self.problem is None:
            try:
                action()
                if isinstance(self._stream, Stream):
                    self.problem = self._stream.problem
            except (OSError, ValueError, OutputLost) as error:
                self.problem = shown(getattr(error, "strerror", None) or error)
        if self.strict and self.problem is not None:
            raise OutputLost(self.problem)

    def __getattr__(self, name: str) -> Any:
        if self._stream is None and name == "isatty":
            return lambda: False
        return getattr(self._stream, name)


def read_bytes(path: Path, limit: int = LARGEST_JSON) -> bytes:
    """Return the bytes of a plain file of at most ``limit`` bytes.

    Raises OSError where it cannot be read, ValueError for a device, a pipe, a folder or a file that
    is larger; none of them can stop or fill the process.
    """
    if (stream := _open_plain(path)) is None:
        raise ValueError("it is not a plain file")
    # A read takes room for all that it asks for, so it asks for what is there, not for the limit.
    parts: list[bytes] = []
    with stream:
        size, step = 0, min(os.fstat(stream.fileno()).st_size, limit) + (1 << 16)
        while size <= limit and (part := stream.read(step)):
            parts.append(part)
            size += len(part)
    if size > limit:
        raise ValueError(f"it is larger than {limit >> 20} MiB")
    return b"".join(parts)


def _open_plain(path: Path) -> BinaryIO | None:
    """Open a file; None for a device, pipe or folder: opening or reading may never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    return None


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """Parse JSON, or raise ValueError with one line.

    Also refused: NaN and infinities, numbers beyond a double's range, text nested too deeply.
    ``hooks`` are those of ``json.loads``.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON: unknown is null")

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError(f"the number {shown(digits, 20)} is too large")
        return value

    def integer(digits: str) -> int:
        if len(digits) > 20 and abs(float(digits)) > _LARGEST_NUMBER:
            raise ValueError(f"the number {digits[:20]}... is too large")
        return int(digits)

    hooks = {"parse_constant": refuse, "parse_float": number, "parse_int": integer} | hooks
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, **hooks)
        if not _deeper(value, _DEEPEST):
            return value
    except RecursionError:
        pass
    raise ValueError("its brackets are nested too deeply")


def _deeper(value: Any, levels: int) -> bool:
    """Return whether lists and mappings are nested in more than ``levels``."""
    inside = [value]
    while inside and levels >= 0:
        inside = [
            item
            for each in inside
            if isinstance(each, (dict, list))
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, (dict, list))
        ]
        levels -= 1
    return bool(inside)


def read_json(path: Path, limit: int = LARGEST_JSON, **hooks: Any) -> Any:
    """Return the content of a JSON file; raises what ``read_bytes`` and ``parse_json`` raise."""
    return parse_json(read_bytes(path, limit), **hooks)


def shown(text: object, limit: int = 200) -> str:
    """Return text from a file as one short line without control characters."""
    return "".join(c if c.isprintable() else "?" for c in str(text))[:limit]


def why(error: BaseException) -> str:
    """Return the cause of an error in one short line; that of a bug begins with its type."""
    lines = [str(error).strip(), *str(error).strip().splitlines()][1:2]
    if isinstance(error, OSError) and error.strerror:
        lines = [": ".join(map(str, filter(None, (error.filename, error.strerror))))]
    elif not (isinstance(error, BertbenchError) and lines):
        lines = [type(error).__name__, *lines]
    return shown(": ".join(lines), 400)


def clock(seconds: float) -> str:
    """Format seconds as h:mm:ss, or m:ss below an hour."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def host_cores() -> int:
    """Return the number of cores that this process may use: by its affinity and its cgroup.

    Of a fraction none: threads that spin for each other are throttled together.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    limit = cgroup_cores()
    return cores if limit is None else max(1, min(cores, int(limit)))


def cgroup_cores(root: Path = Path("/")) -> float | None:
    """Return how many cores' time the process's cgroups allow; None without a limit."""
    limits = []
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            base = root / "sys/fs/cgroup" / controllers
            here = base / path.strip("/")
            # Above the process's own group, too; in a container its mount may begin at that group.
            for folder in {here, *(p for p in here.parents if p.is_relative_to(base)), base}:
                limits += [cores for cores in (_quota(folder),) if cores is not None]
    return min(limits, default=None)


def _quota(folder: Path) -> float | None:
    """Return the cores that a cgroup of version 2 or 1 allows, if it limits them."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        if (both := folder / "cpu.max").is_file():
            quota, period = both.read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")
                for name in ("quota", "period")
            )
        cores = int(quota) / int(period)  # "max" and -1: no limit
        return cores if cores > 0 else None
    return None
