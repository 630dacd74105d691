# SPDX-License-Identifier: Apache-2.0
"""Which code made a result: the commit, whether files differ from it, and a hash of the sources."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2]
"""The folder bertbench that is imported."""
ROOT = Path(__file__).resolve().parents[2]
"""Where the sources really are: the checkout, or the installed package."""
FOLDERS = ("backends", "benchmarks", "common")
SUFFIXES = frozenset({".py", ".c", ".h", ".toml"})


def git_state(root: Path = ROOT) -> dict[str, Any]:
    """``commit`` (None outside a checkout) and ``dirty``: whether tracked files were changed."""
    if not (root / ".git").exists():  # an installed copy inside somebody else's checkout
        return {"commit": None, "dirty": None}
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": commit,
        "dirty": None if status is None else bool(status),
    }


def code_hash(root: Path = ROOT) -> str:
    """sha256 (first 16 hex digits) over the names and contents of the product's sources.

    Unlike the commit it does not change with tests or documents, and does change with edits that
    were never committed.
    """
    digest = hashlib.sha256()
    files = sorted(
        file.relative_to(root).as_posix()
        for folder in FOLDERS
        for file in (root / folder).rglob("*")
        if file.suffix in SUFFIXES and file.is_file()
    )
    for name in files:
        content = hashlib.sha256((root / name).read_bytes()).hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()[:16]


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
