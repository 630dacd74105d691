# SPDX-License-Identifier: Apache-2.0
"""Where the lines of a run that is under way come from: a file that grows, or a pipe."""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from bertbench.common.results.record import MANIFEST

STEPS = "steps.jsonl"
_CHUNK = 1 << 24


class Source(Protocol):
    """Where lines come from."""

    name: str

    def lines(self) -> list[str]:
        """Those that are new and whole."""

    def facts(self) -> Mapping[str, Any]:
        """``max_steps``, ``title``, and ``status`` once the run has finished; what is known."""

    def quiet_s(self) -> float | None:
        """Seconds since something was written; None if that cannot be told."""

    def ended(self) -> bool:
        """Whether nothing more can come."""


class File:
    """A steps.jsonl that may grow, be replaced, or not be there yet."""

    def __init__(self, path: Path) -> None:
        self._file = path / STEPS if path.is_dir() else path
        self._folder = self._file.parent
        self.name = self._folder.resolve().name if self._file.name == STEPS else path.name
        self._offset, self._inode, self._rest = 0, -1, b""
        self._status: str | None = None

    def lines(self) -> list[str]:
        try:
            with self._file.open("rb") as file:
                inode, size = (s := self._file.stat()).st_ino, s.st_size
                if inode != self._inode or size < self._offset:  # another file, or cut
                    self._offset, self._inode, self._rest = 0, inode, b""
                file.seek(self._offset)
                fresh = file.read(_CHUNK)
        except OSError:
            return []
        self._offset += len(fresh)
        *whole, self._rest = (self._rest + fresh).split(b"\n")
        return [line.decode("utf-8", errors="replace") for line in whole]

    def facts(self) -> Mapping[str, Any]:
        manifest, config = (
            json_object(self._folder / MANIFEST),
            json_object(self._folder / "config.json"),
        )
        facts: dict[str, Any] = {}
        recipe = config.get("recipe")
        if isinstance(recipe, dict) and number(recipe.get("max_steps")):
            facts["max_steps"] = recipe["max_steps"]
        if manifest:
            facts["title"] = f"{manifest.get('preset')} on {manifest.get('system')}"
        if manifest.get("files") is not None:  # written when a run ends, and not before
            facts["status"] = self._status = str(manifest.get("status"))
        return facts

    def quiet_s(self) -> float | None:
        try:
            return max(0.0, time.time() - self._file.stat().st_mtime)
        except OSError:
            return None

    def ended(self) -> bool:
        return self._status is not None


class Pipe:
    """Lines that another program sends, read as they come."""

    name = "standard input"

    def __init__(self, stream: IO[str]) -> None:
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ended, self._last = False, time.monotonic()
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._queue.put(line)
        self._queue.put(None)

    def lines(self) -> list[str]:
        found: list[str] = []
        while not self._queue.empty():
            line = self._queue.get()
            if line is None:
                self._ended = True
            else:
                found.append(line)
        if found:
            self._last = time.monotonic()
        return found

    def facts(self) -> Mapping[str, Any]:
        return {}

    def quiet_s(self) -> float | None:
        return time.monotonic() - self._last

    def ended(self) -> bool:
        return self._ended


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty if there is none, or not yet."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None
