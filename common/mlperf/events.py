# SPDX-License-Identifier: Apache-2.0
"""Read the events of an MLPerf log among other output.

A log is terminal output: shell traces, warnings, progress bars, launchers' prefixes, several ranks
writing at once, truncated lines. Event lines have two forms: ``:::MLLOG {...}`` in all rounds with
BERT (mlperf_logging, mllog/mllog.py), and ``:::MLL SECONDS KEY: {...}`` of earlier loggers
(mlperf_logging, mlp_parser/ruleset_060.py), which has no event type.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertbench.common.errors import BadInput
from bertbench.common.files import shown

_TOKEN = re.compile(r":::MLL(?P<new>OG)?(?=[ \t{]|\s*$)[ \t]*")
_OLD = re.compile(r"(?P<seconds>\d+(?:\.\d+)?)[ \t]+(?P<key>[A-Za-z0-9_]+)[ \t]*:[ \t]*")
_KEY = re.compile(r'"key":\s*"([A-Za-z0-9_]+)"')
_TIME = re.compile(r'"time_ms":\s*(\d{1,14})\b(?=\s*[,}])')
_TARGET = re.compile(r"\btarget_mlm_accuracy[= ]+(0?\.\d+)")
_DECODER = json.JSONDecoder(parse_constant=lambda name: None)
_PLACE = frozenset({"file", "lineno"})
_LARGEST = 1 << 30
_LONGEST = 1 << 20
_MOST_EVENTS = 1_000_000
"""Of distinct events, and of damaged lines; published logs have some thousands."""
LARGEST = 1e15
"""A larger number in a log is not a measurement."""
_EXPECTED = {"start": "INTERVAL_START", "stop": "INTERVAL_END"}


@dataclass(frozen=True)
class Event:
    """One event line; ``metadata`` omits the source file and line."""

    key: str
    value: Any
    metadata: dict[str, Any]
    time_ms: float
    """Milliseconds since 1970, by the writer's clock."""
    line: int
    event_type: str | None
    identity: str
    """Content and time as text, equal for the same line of another rank."""

    @property
    def odd_type(self) -> bool:
        """Whether a start or stop has another event type."""
        expected = _EXPECTED.get(self.key.rpartition("_")[2])
        return expected is not None and self.event_type != expected


@dataclass(frozen=True)
class DamagedLine:
    """The readable parts of a damaged event line."""

    line: int
    key: str | None
    time_ms: float | None


@dataclass
class Events:
    """The events of one file."""

    events: list[Event] = field(default_factory=list)
    """By time; equal events of several ranks count once."""
    lines: int = 0
    damaged: list[DamagedLine] = field(default_factory=list)
    targets: set[float] = field(default_factory=set)
    """Values of ``target_mlm_accuracy`` in the commands and settings printed in the log."""
    ordered: bool = True
    """Whether the times in the file never decrease."""

    def of(self, key: str) -> list[Event]:
        return [event for event in self.events if event.key == key]

    def absent(self, key: str, text: str = "") -> str:
        """Return the reason for an unknown value: ``text``, or that ``key`` is missing."""
        return (text or f"{key} is not in the log") + self.damage(key)

    def damage(self, key: str) -> str:
        """Return a note on damaged lines that may contain ``key``."""
        cut = [damaged.line for damaged in self.damaged if damaged.key == key]
        if cut:
            return f" (line {cut[0]} has one that is cut or damaged)"
        unknown = sum(damaged.key is None for damaged in self.damaged)
        return f" ({unknown} damaged lines may hold it)" if unknown else ""


def read_file(path: Path) -> Events:
    """Return the events in a file; raise BadInput if it is unreadable or not an MLPerf log."""
    name = shown(path, 400)
    try:
        if not path.is_file():
            kind = "a folder: name its result_*.txt" if path.is_dir() else "not a file"
            raise BadInput(f"{name} is {kind if path.exists() else 'missing'}")
        if path.stat().st_size > _LARGEST:
            raise BadInput(f"{name} has more than {_LARGEST >> 30} GiB: extract its MLPerf lines")
        with path.open("rb") as stream:
            # A longer line is read in pieces: it may be the whole file.
            pieces = iter(lambda: stream.readline(_LONGEST), b"")
            found = read_lines(piece.decode("utf-8", "replace") for piece in pieces)
    except OSError as error:
        raise BadInput(f"{name} cannot be read: {shown(error)}") from error
    if not found.events:
        if found.damaged:
            raise BadInput(
                f"{name}: none of its {len(found.damaged)} MLPerf lines can be read (the first is "
                f"line {found.damaged[0].line})"
            )
        raise BadInput(
            f"{name} is not an MLPerf log: none of its {found.lines} lines has ':::MLLOG'"
            f"{_compressed(path)}"
        )
    return found


def read_lines(lines: Iterable[str]) -> Events:
    """Return the events among ``lines``; damaged ones are listed, not raised."""
    found = Events()
    seen: dict[str, Event] = {}
    latest = -math.inf
    for number, line in enumerate(lines, 1):
        found.lines = number
        found.targets |= {float(text) for text in _TARGET.findall(line)}
        tokens = list(_TOKEN.finditer(line))
        for token, following in zip(tokens, [*tokens[1:], None], strict=False):
            text = line[token.end() : following.start() if following else None]
            event = _event(text, number, bool(token["new"]))
            if isinstance(event, Event):
                found.ordered = found.ordered and event.time_ms >= latest
                latest = event.time_ms
                seen.setdefault(event.identity, event)
            elif event is not None:
                key, time = _KEY.search(text), _TIME.search(text)
                at = float(time[1]) if time else None
                found.damaged.append(DamagedLine(number, key[1] if key else None, at))
            if max(len(seen), len(found.damaged)) > _MOST_EVENTS:
                raise BadInput(f"it has more than {_MOST_EVENTS:,} MLPerf lines: no log of one run")
    found.events = sorted(seen.values(), key=lambda event: event.time_ms)
    return found


def _event(text: str, line: int, new: bool) -> Event | str | None:
    """Return the event at the beginning of ``text``; a message if it is damaged, None if the
    token is only mentioned, as in a command."""
    seconds = None
    if not new:
        head = _OLD.match(text)
        if head is None:
            return None
        seconds, text = head, text[head.end() :]
    if text.strip() and not text.startswith("{"):
        return None
    try:
        content = _DECODER.raw_decode(text)[0]
        time_ms = float(seconds["seconds"]) * 1e3 if seconds else content["time_ms"]
        key = seconds["key"] if seconds else content["key"]
        value, extra = content.get("value"), content.get("metadata")
        metadata = {k: v for k, v in extra.items() if k not in _PLACE} if extra else {}
        if isinstance(time_ms, bool) or not isinstance(time_ms, (int, float)):
            raise ValueError("no time")
        if not (0 < time_ms < 1e14 and isinstance(key, str) and key):
            raise ValueError("no time or key")
        kind = content.get("event_type")
        return Event(
            key=key,
            value=value,
            metadata=metadata,
            time_ms=time_ms,
            line=line,
            event_type=kind if isinstance(kind, str) else None,
            identity=json.dumps((key, time_ms, value, metadata), sort_keys=True),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"damaged: {error}"


def _compressed(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(6)
    known = start.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"PK\x03\x04", b"\x28\xb5\x2f\xfd"))
    return "; it is compressed: unpack it first" if known else ""


def whole(value: Any) -> int | None:
    """Return ``value`` as a count; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if 0 <= value < LARGEST and value == int(value) else None


def shown_values(events: list[Event]) -> str:
    """Return the distinct values, for a message."""
    texts = dict.fromkeys(shown(event.value, 30) for event in events)
    return ", ".join(list(texts)[:4]) + (", ..." if len(texts) > 4 else "")


def shown_lines(events: list[Event]) -> str:
    """Return the line numbers, for a message."""
    return ", ".join(str(number) for number in sorted(event.line for event in events)[:6])
