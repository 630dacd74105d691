# SPDX-License-Identifier: Apache-2.0
"""The report of one section of the device check: figures with units, and facts in words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PASSED, FAILED, NOT_AVAILABLE, SKIPPED = "passed", "failed", "not available", "skipped"


class NotAvailable(Exception):
    """The device or the installation does not support a section; the message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number."""

    section: str
    name: str
    value: float | None
    """None where it was not measured (never 0); ``note`` gives the reason."""
    unit: str
    definition: str
    note: str = ""
    """The reason for a missing value, or a caveat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One statement in words: a device's name, the kernels of a run."""

    section: str
    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a section, with everything that it reported until then."""

    name: str
    status: str
    """passed, failed, not available or skipped."""
    reason: str
    """One line; empty where it passed."""
    seconds: float | None
    """Of wall-clock time; None where it did not run."""
    expected_s: float
    figures: tuple[Figure, ...] = ()
    facts: tuple[Fact, ...] = ()


class SectionReport:
    """Collect figures and facts of one section, line by line in a file.

    A failure, a crash or a time-out therefore loses none of the earlier ones.
    """

    def __init__(self, section: str, path: Path) -> None:
        self.section = section
        self._names: set[str] = set()
        self._file = path.open("a", encoding="utf-8")

    def figure(
        self, name: str, value: float | None, unit: str, definition: str, note: str = ""
    ) -> None:
        """Add a number, or None with the reason as ``note``.

        Raises ValueError for a figure without unit or definition, one that was reported before, and
        a missing value without a reason. A value that is not finite counts as missing.
        """
        if not (name and unit and definition):
            raise ValueError(f"figure {name!r} needs a name, a unit and a definition")
        if name in self._names:
            raise ValueError(f"figure {name!r} was reported before")
        if value is None and not note:
            raise ValueError(f"figure {name!r} has no value: give the reason as its note")
        self._names.add(name)
        if value is not None and not math.isfinite(value):
            value, note = None, f"the measurement gave {value}"
        figure = Figure(
            section=self.section,
            name=name,
            value=None if value is None else float(value),
            unit=unit,
            definition=definition,
            note=note,
        )
        self._write({"figure": asdict(figure)})

    def fact(self, name: str, text: object) -> None:
        """Add a statement; a boolean becomes yes or no."""
        if isinstance(text, bool):
            text = "yes" if text else "no"
        self._write({"fact": asdict(Fact(section=self.section, name=name, text=str(text)))})

    def end(self, status: str, reason: str = "") -> None:
        """Record the section's end; the last call."""
        self._write({"end": [status, reason]})
        self._file.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


def read_report(path: Path) -> tuple[list[Figure], list[Fact], tuple[str, str] | None]:
    """Read figures, facts, and status with reason; the last is None if the process died.

    Ignore a last line that is cut short.
    """
    figures: list[Figure] = []
    facts: list[Fact] = []
    end = None
    if not path.exists():
        return figures, facts, end
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if "figure" in entry:
            figures.append(Figure(**entry["figure"]))
        elif "fact" in entry:
            facts.append(Fact(**entry["fact"]))
        else:
            end = (entry["end"][0], entry["end"][1])
    return figures, facts, end


def one_line(error: BaseException | str, limit: int = 240) -> str:
    """Return an error's type and first line, or a text, as one short line."""
    if isinstance(error, str):
        return " ".join(error.split())[:limit]
    text = str(error).strip().splitlines()
    kind = type(error).__name__
    return f"{kind}: {' '.join(text[0].split())}"[:limit] if text else kind
