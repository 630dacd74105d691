# SPDX-License-Identifier: Apache-2.0
"""Sources of a running run's lines: a file that grows, or a pipe."""

from __future__ import annotations

import os
import queue
import stat
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from bertbench.common.files import parse_json, read_json, why
from bertbench.common.results.result import number, verified
from bertbench.common.results.seals import MANIFEST, STEPS, is_sealed

_CHUNK = _LONGEST = 1 << 24


class File:
    """A steps.jsonl that may grow, be replaced, or be missing yet."""

    def __init__(self, path: Path) -> None:
        self._file = path / STEPS if path.is_dir() else path
        self._folder = self._file.parent
        self.name = self._folder.resolve().name if self._file.name == STEPS else path.name
        self._offset, self._inode, self._rest = 0, -1, b""
        self._status: str | None = None
        self._problems: dict[str, str] = {}

    @property
    def problem(self) -> str | None:
        """Why a file that is there cannot be read now."""
        return next(iter(self._problems.values()), None)

    def _read(self, done: str, error: OSError | None = None) -> None:
        """Keep the error of a file that is there, or forget it."""
        self._problems.pop(done, None)
        if error is not None and not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            self._problems[done] = why(error)

    def lines(self) -> list[str]:
        """Return the new complete lines."""
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                about = os.fstat(descriptor)
                inode, size = about.st_ino, about.st_size
                if not stat.S_ISREG(about.st_mode):
                    return []
                if inode != self._inode or size < self._offset:  # replaced or truncated
                    self._offset, self._inode, self._rest = 0, inode, b""
                file.seek(self._offset)
                chunk = file.read(_CHUNK)
        except OSError as error:
            self._read(STEPS, error)
            return []
        self._read(STEPS)
        self._offset += len(chunk)
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _LONGEST:  # no line of a run: it counts as a damaged one
            whole, self._rest = [*whole, b"?"], b""
        return [line.decode("utf-8", errors="replace") for line in whole]

    def facts(self) -> Mapping[str, Any]:
        """Return the known ones of ``max_steps``, ``title``, and a finished run's ``status``."""
        manifest, config = (self._object(name) for name in (MANIFEST, "config.json"))
        facts: dict[str, Any] = {}
        recipe = config.get("recipe")
        if isinstance(recipe, dict) and number(recipe.get("max_steps")):
            facts["max_steps"] = recipe["max_steps"]
        if manifest:
            facts["title"] = f"{manifest.get('preset')} on {manifest.get('system')}"
        if self._status is None and manifest.get("files") is not None:  # written when a run ends
            self._status = str(manifest.get("status")) if self._intact() else "damaged"
        if self._status is not None:
            facts["status"] = self._status
        return facts

    def _object(self, name: str) -> dict[str, Any]:
        """Return a JSON file's object; empty if missing, unreadable or damaged."""
        try:
            value = json_object(self._folder / name)
        except OSError as error:
            self._read(name, error)
            return {}
        self._read(name)
        return value

    def _intact(self) -> bool:
        """Return whether manifest and lines have the checksums of a finished run."""
        try:
            raw = verified(self._folder, MANIFEST)
            manifest = parse_json(raw)
            verified(self._folder, self._file.name, manifest)
            return is_sealed(raw.decode(), manifest)
        except (ValueError, KeyError, TypeError, AttributeError):
            return False

    def quiet_s(self) -> float | None:
        """Return the seconds since the last write; None if unknown."""
        try:
            return max(0.0, time.time() - self._file.stat().st_mtime)
        except OSError:
            return None

    def ended(self) -> bool:
        """Return whether no line can follow."""
        return self._status is not None


class Pipe:
    """Lines from another program, read by a thread; its methods are those of File."""

    name = "standard input"
    problem = None

    def __init__(self, stream: IO[str]) -> None:
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ended, self._last = False, time.monotonic()
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        for line in iter(lambda: stream.readline(_LONGEST), ""):
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


LineSource = File | Pipe


def json_object(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; empty if missing or damaged. Raises OSError if unreadable."""
    try:
        value = read_json(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
