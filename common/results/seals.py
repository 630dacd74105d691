# SPDX-License-Identifier: Apache-2.0
"""The checksums of a record, and the lock of the process that writes it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertbench.common.files import file_sha256, is_plain, sync

MANIFEST, CHECKPOINTS, STEPS = "manifest.json", "checkpoints", "steps.jsonl"
VOCABULARY = "vocab.txt"
"""In CHECKPOINTS, for ``export-weights``; like them no part of the record."""
_CHECKSUM = re.compile(r'("checksum": ")[0-9a-f]{64}(?=")')


def record_files(path: Path) -> list[Path]:
    """Return what lies in a record's folder beside its manifest and checkpoints."""
    return sorted(p for p in path.iterdir() if p.name not in (MANIFEST, CHECKPOINTS))


def is_written(path: Path) -> bool:
    """Return whether a process of this host still writes the record: it holds a lock until it ends.

    False where the file system has no locks.
    """
    try:
        descriptor = os.open(path / STEPS, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return False


def is_intact(file: Path, entry: Mapping[str, Any], *, provisional: bool = False) -> bool:
    """Return whether a file has the size and the sha256 of its ``entry`` in a manifest.

    Of a provisional record it may have grown. Raises OSError where it cannot be read.
    """
    size = file.stat().st_size
    if size != entry["bytes"] and not (provisional and size > entry["bytes"]):
        return False
    return file_sha256(file, entry["bytes"]) == entry["sha256"]


def checksum(file: Path) -> dict[str, Any] | None:
    """Return a file's entry in the manifest; None where there is none, or none that is plain."""
    if not is_plain(file):
        return None
    sync(file)
    size = file.stat().st_size
    return {"bytes": size, "sha256": file_sha256(file, size)}


def incomplete(name: str) -> str:
    """Return how the note begins that says why a file of the record is not complete."""
    return f"{name} is not complete: "


def cut_short(manifest: Mapping[str, Any], name: str) -> str | None:
    """Return the note that a file of the record could not be written whole, if there is one."""
    notes = (note for note in manifest["notes"] if note.startswith(incomplete(name)))
    return next(notes, None)


def sealed(text: str) -> str:
    """Return a manifest's text with its ``checksum``: the sha256 of the text with zeros there.

    Text without a checksum is returned unchanged.
    """
    blank = _CHECKSUM.sub(rf"\g<1>{'0' * 64}", text, count=1)
    digest = hashlib.sha256(blank.encode()).hexdigest()
    return _CHECKSUM.sub(rf"\g<1>{digest}", text, count=1)


def is_sealed(text: str, manifest: Mapping[str, Any]) -> bool:
    """Return whether a manifest has the checksum of its ``text``; ``manifest`` is its content."""
    found = _CHECKSUM.search(text)
    return found is not None and sealed(text) == text and manifest["checksum"] == found[0][-64:]
