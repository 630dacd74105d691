# SPDX-License-Identifier: Apache-2.0
"""Peak rates of devices, MFU's denominator, from ``peaks.toml`` and the user's own file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertbench.backends.base import PRECISIONS
from bertbench.common.errors import BadInput
from bertbench.common.files import read_bytes, shown
from bertbench.common.measure.utilisation import HIGHEST, LOWEST

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUILT_IN = Path(__file__).with_name("peaks.toml")
_TEXTS = ("device", "definition", "source", "date")
_LONGEST = 300
"""Characters of a text."""
_PATIENCE_S = 5.0
_MATCH = """
import json, re, sys
name, *patterns = json.load(sys.stdin)
print(json.dumps([bool(re.fullmatch(p, name, re.IGNORECASE)) for p in patterns]))
"""


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
    file: Path


def peaks_of(device: str, precision: str, own: Path | None = None) -> list[Peak]:
    """Return the device's known peaks, one for each differing value; may be empty.

    Entries of the file ``own`` replace the built-in ones. Raises BadInput when it is malformed.
    """
    return in_precision(of_device(device, own), precision)


def of_device(device: str, own: Path | None = None) -> list[Peak]:
    """Return the device's peaks in all precisions, those of the file ``own`` first.

    Raises BadInput when that is malformed, or has an expression that takes too long.
    """
    found = [p for p in load(BUILT_IN) if re.fullmatch(p.device, device, re.IGNORECASE)]
    if own is None:
        return found
    peaks = load(own)
    fits = matching([peak.device for peak in peaks], device, f"--peaks {shown(own)}")
    return [*(peak for peak, fit in zip(peaks, fits, strict=True) if fit), *found]


def in_precision(peaks: list[Peak], precision: str) -> list[Peak]:
    """Return one peak for each differing value, of the first file that has one."""
    found = [peak for peak in peaks if peak.precision == precision]
    found = [peak for peak in found if peak.file == found[0].file]
    return list({peak.flops_per_second: peak for peak in reversed(found)}.values())[::-1]


def matching(patterns: list[str], device: str, where: str) -> list[bool]:
    """Return which of a user's regular expressions fit: tried in a process that can be ended.

    Raises BadInput, with ``where`` they are, for those that take too long.
    """
    question = json.dumps([device[:_LONGEST], *patterns])
    try:
        command = [sys.executable, "-I", "-c", _MATCH]
        answer = subprocess.run(
            command, input=question, capture_output=True, text=True, timeout=_PATIENCE_S
        )
        return list(json.loads(answer.stdout))
    except subprocess.TimeoutExpired as error:
        raise BadInput(
            f"{where}: its regular expressions do not end within {_PATIENCE_S:g} s "
            f"on the name {shown(device)!r}: write the names with fewer * and +"
        ) from error
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{where}: its regular expressions cannot be matched: write the devices' names "
            f"without them"
        ) from error


def load(file: Path) -> list[Peak]:
    """Return a file's entries; raise BadInput when it is malformed."""
    try:
        content = tomllib.loads(read_bytes(file).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"--peaks {shown(file)}: cannot be read: {shown(error)}") from error
    except RecursionError as error:
        raise BadInput(f"--peaks {shown(file)}: its brackets are nested too deeply") from error
    entries = content.pop("peak", None)
    if content or not isinstance(entries, list):
        raise BadInput(f"--peaks {shown(file)}: only [[peak]] tables are allowed; see {BUILT_IN}")
    return [peak for entry in entries for peak in _peaks(entry, file)]


def _peaks(entry: Any, file: Path) -> Iterator[Peak]:
    if not isinstance(entry, dict):
        raise BadInput(f"--peaks {shown(file)}: only [[peak]] tables are allowed; see {BUILT_IN}")
    where = f"--peaks {shown(file)}: the entry of {shown(entry.get('device'))!r}"
    if set(entry) != {*_TEXTS, "flops_per_second"}:
        raise BadInput(f"{where} must have exactly {', '.join(_TEXTS)} and flops_per_second")
    texts = {name: entry[name] for name in _TEXTS}
    if not all(isinstance(text, str) and 0 < len(text) <= _LONGEST for text in texts.values()):
        raise BadInput(
            f"{where}: {', '.join(_TEXTS)} must be strings of 1 to {_LONGEST} characters"
        )
    if not texts["definition"].startswith("dense"):
        raise BadInput(f"{where}: only dense rates count; the definition must begin with 'dense'")
    try:
        re.compile(texts["device"])
    except (re.error, RecursionError, OverflowError) as error:
        raise BadInput(f"{where}: device is not a regular expression: {error}") from error
    values = entry["flops_per_second"]
    if not isinstance(values, dict) or not values or not set(values) <= set(PRECISIONS):
        raise BadInput(f"{where}: flops_per_second must be a table of {', '.join(PRECISIONS)}")
    for precision, value in values.items():
        if type(value) not in (int, float) or not LOWEST <= value <= HIGHEST:
            shape = f"{precision} is {shown(value, 40)}; give FLOP/s, e.g. 312e12"
            raise BadInput(f"{where}: {shape}")
        texts = {name: shown(text, _LONGEST) for name, text in texts.items()}
        yield Peak(precision=precision, flops_per_second=float(value), file=file, **texts)
