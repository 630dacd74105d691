# SPDX-License-Identifier: Apache-2.0
"""Format numbers for the report, and escape text for Markdown."""

from __future__ import annotations

import math
import re

_MARKDOWN = re.compile(r"([\\`*_\[\]{}|~#!]|^[-+=])")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})


def number(value: float, digits: int = 4) -> str:
    """Return four significant digits, or all before the point, with thousands separators."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size >= 12 or size < -4:
        return f"{value:.{digits - 1}e}"
    text = f"{value:,.{max(0, digits - 1 - size)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity(value: float, unit: str) -> str:
    """Return a value with its unit; bytes in GiB, FLOP/s in TFLOP/s."""
    if unit == "bytes":
        return f"{number(value / 2**30, 3)} GiB"
    if unit == "FLOP/s":
        return f"{number(value / 1e12, 3)} TFLOP/s"
    return number(value) if unit in ("", "1") else f"{number(value)} {unit}"


def duration(seconds: float, beside: float | None = None) -> str:
    """Return a time as ``42.1 s``, ``12 min 03 s`` or ``3 h 46 min``.

    ``beside`` is the time whose units it has: the ends of an interval have their median's.
    """
    scale = seconds if beside is None else beside
    if scale < 120:
        return f"{number(seconds, 3)} s"
    whole = round(seconds)
    if round(scale) < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def human(value: float, unit: str) -> str:
    """Return a short value for a terminal: a time as ``duration``, a rate as ``98.4/s``."""
    if unit == "s" and abs(value) < 1e9:
        return duration(value)
    rate = re.fullmatch(r"[a-z ]+/s", unit)  # the metric's name says of what
    return f"{number(value)}/s" if rate else quantity(value, unit)


def markdown(text: str) -> str:
    """Return ``text`` on one line, with Markdown and HTML escaped."""
    line = _MARKDOWN.sub(r"\\\1", " ".join(text.split()).translate(_ENTITIES))
    return line.replace("://", ":&#47;&#47;")
