# SPDX-License-Identifier: Apache-2.0
"""Peak rates of devices, MFU's denominator, from ``peaks.toml`` and the user's own file."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertbench.backends.base import PRECISIONS
from bertbench.common.errors import BadInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUILT_IN = Path(__file__).with_name("peaks.toml")
_TEXTS = ("device", "definition", "source", "date")


@dataclass(frozen=True, slots=True)
class Peak:
    """The peak of one kind of device in one precision, according to one source."""

    device: str
    """Regular expression for the whole name, ignoring case."""
    precision: str
    flops_per_second: float
    definition: str
    """Begins with "dense"."""
    source: str
    date: str


def peaks_of(device: str, precision: str, own: Path | None = None) -> list[Peak]:
    """Return the device's known peaks, one for each differing value; may be empty.

    Entries of the file ``own`` replace the built-in ones. Raises BadInput when it is malformed.
    """
    files = [BUILT_IN] if own is None else [own, BUILT_IN]
    for file in files:
        found = [
            peak
            for peak in load(file)
            if peak.precision == precision and re.fullmatch(peak.device, device, re.IGNORECASE)
        ]
        if found:
            return list({peak.flops_per_second: peak for peak in reversed(found)}.values())[::-1]
    return []


def load(file: Path) -> list[Peak]:
    """Return a file's entries; raise BadInput when it is malformed."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"--peaks {file}: cannot be read: {error}") from error
    entries = content.pop("peak", None)
    if content or not isinstance(entries, list):
        raise BadInput(f"--peaks {file}: only [[peak]] tables are allowed; see {BUILT_IN}")
    return [peak for entry in entries for peak in _peaks(entry, file)]


def _peaks(entry: dict[str, Any], file: Path) -> Iterator[Peak]:
    where = f"--peaks {file}: the entry of {entry.get('device')!r}"
    if set(entry) != {*_TEXTS, "flops_per_second"}:
        raise BadInput(f"{where} must have exactly {', '.join(_TEXTS)} and flops_per_second")
    texts = {name: entry[name] for name in _TEXTS}
    if not all(isinstance(text, str) and text for text in texts.values()):
        raise BadInput(f"{where}: {', '.join(_TEXTS)} must be non-empty strings")
    if not texts["definition"].startswith("dense"):
        raise BadInput(f"{where}: only dense rates count; the definition must begin with 'dense'")
    try:
        re.compile(texts["device"])
    except re.error as error:
        raise BadInput(f"{where}: device is not a regular expression: {error}") from error
    values = entry["flops_per_second"]
    if not isinstance(values, dict) or not values or not set(values) <= set(PRECISIONS):
        raise BadInput(f"{where}: flops_per_second must be a table of {', '.join(PRECISIONS)}")
    for precision, value in values.items():
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise BadInput(f"{where}: {precision} is {value!r}; give FLOP/s, e.g. 312e12")
        yield Peak(precision=precision, flops_per_second=float(value), **texts)
