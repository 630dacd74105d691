# SPDX-License-Identifier: Apache-2.0
"""Identify the code of a result: commit, uncommitted changes, and a hash of the sources."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2]
"""The imported folder bertbench."""
ROOT = Path(__file__).resolve().parents[2]
"""The folder of the sources: the checkout, or the installed package."""
FOLDERS = ("backends", "benchmarks", "common", "engines")
SUFFIXES = frozenset({".py", ".c", ".h", ".toml"})


def git_state(root: Path = ROOT) -> dict[str, Any]:
    """Return ``commit`` (None outside a checkout) and ``dirty``: tracked files were changed."""
    if not (root / ".git").exists():  # an installed copy inside somebody else's checkout
        return {"commit": None, "dirty": None}
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def code_hash(root: Path = ROOT) -> str:
    """Return the first 16 hex digits of a sha256 over names and contents of the sources.

    Unlike the commit it ignores tests and documents, and includes uncommitted changes.
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
    # A checkout of another user is no danger to ask about: its code is what runs.
    trust = ["-c", f"safe.directory={root.resolve()}", "-c", "core.fsmonitor=false"]
    command = ["git", *trust, "-C", str(root), *arguments]
    # Git's hooks, and tools that call this, set GIT_DIR and others, to another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment["XDG_CONFIG_HOME"] = str(Path(__file__).parent / "trust")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=20, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
