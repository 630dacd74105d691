# SPDX-License-Identifier: Apache-2.0
"""Files that survive a crash, text that is safe to show, and the host's cores."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


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
    """Replace ``path``: a reader finds the old text or the new one, never a part."""
    work = path.with_name(f".{path.name}.partial")
    work.write_text(text, encoding="utf-8")
    sync(work)
    work.replace(path)
    sync(path.parent)


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
