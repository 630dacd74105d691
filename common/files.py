# SPDX-License-Identifier: Apache-2.0
"""Files that survive a crash, JSON and text of unknown origin, and the host's cores."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import stat
from pathlib import Path
from typing import Any

LARGEST_JSON = 16 << 20
"""Bytes of a document that is read whole, unless its reader allows more."""
_LARGEST_NUMBER = 1e300


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make a file, or a folder's list of names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def read_bytes(path: Path, limit: int = LARGEST_JSON) -> bytes:
    """Return the bytes of a plain file of at most ``limit`` bytes.

    Raises OSError where it cannot be read, ValueError for a device, a pipe, a folder or a file that
    is larger; none of them can stop or fill the process.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ValueError("it is not a plain file")
    # A read takes room for all that it asks for, so it asks for what is there, not for the limit.
    parts: list[bytes] = []
    size, step = 0, min(status.st_size, limit) + (1 << 16)
    with os.fdopen(descriptor, "rb") as stream:
        while size <= limit and (part := stream.read(step)):
            parts.append(part)
            size += len(part)
    if size > limit:
        raise ValueError(f"it is larger than {limit >> 20} MiB")
    return b"".join(parts)


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
        return json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def read_json(path: Path, limit: int = LARGEST_JSON, **hooks: Any) -> Any:
    """Return the content of a JSON file; raises what ``read_bytes`` and ``parse_json`` raise."""
    return parse_json(read_bytes(path, limit), **hooks)


def shown(text: object, limit: int = 200) -> str:
    """Return text from a file as one short line without control characters."""
    return "".join(c if c.isprintable() else "?" for c in str(text))[:limit]


def clock(seconds: float) -> str:
    """Format seconds as h:mm:ss, or m:ss below an hour."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def host_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
