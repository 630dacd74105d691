# SPDX-License-Identifier: Apache-2.0
"""Prices of devices, from the user's file (``--price FILE``, TOML or CSV).

    [[price]]
    device = 'Name of the Card.*'   # regular expression for the whole name, as in peaks.toml
    per_device_hour = 2.5           # or: buy = 30000 and years = 4, in use day and night
    currency = "EUR"
    source = "where the price is from"

A CSV file has these names as its first line. An exact name goes before an expression.
"""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bertbench.common.errors import BadInput
from bertbench.common.files import read_bytes, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HOURS_OF_A_YEAR = 365.25 * 24
_TEXTS, _NUMBERS = ("device", "currency", "source"), ("per_device_hour", "buy", "years")
_LONGEST = 300
"""Characters of a text."""


class Price(NamedTuple):
    """The price of an hour of one device."""

    device: str
    """Regular expression for the whole name, ignoring case."""
    per_device_hour: float
    currency: str
    source: str
    where: str
    """File and line."""

    @property
    def text(self) -> str:
        return f"{self.per_device_hour:.4g} {self.currency} per device-hour ({self.source})"


def load(file: Path) -> list[Price]:
    """Return a file's prices; raise BadInput, with file and line, where it is malformed."""
    try:
        text = read_bytes(file).decode("utf-8-sig")
        rows = list(_csv(text, file) if file.suffix.lower() == ".csv" else _toml(text, file))
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise BadInput(f"--price {shown(file)}: cannot be read: {shown(error)}") from error
    if not rows:
        raise BadInput(
            f"--price {shown(file)}: has no price: add [[price]] tables, or lines of CSV"
        )
    return [_price(row, where) for where, row in rows]


def _toml(text: str, file: Path) -> Iterator[tuple[str, Any]]:
    content = tomllib.loads(text)
    entries = content.pop("price", None)
    if content or not isinstance(entries, list):
        raise BadInput(f"--price {shown(file)}: only [[price]] tables are allowed")
    heads = [i for i, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[", line)]
    for i, entry in enumerate(entries):
        place = f"line {heads[i]}" if len(heads) == len(entries) else f"entry {i + 1}"
        yield f"--price {shown(file)}, {place}", entry


def _csv(text: str, file: Path) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    for row in reader:
        where = f"--price {shown(file)}, line {reader.line_num}"
        if None in row or None in row.values():
            raise BadInput(f"{where}: has not as many values as the first line has names")
        yield where, {k.strip(): v.strip() for k, v in row.items() if v.strip()}


def _price(row: Any, where: str) -> Price:
    names = set(row) if isinstance(row, Mapping) else set()
    hourly, bought = {*_TEXTS, "per_device_hour"}, {*_TEXTS, "buy", "years"}
    if names not in (hourly, bought):
        raise BadInput(
            f"{where}: must have exactly {', '.join(_TEXTS)} and per_device_hour, or buy and years"
        )
    for name in _TEXTS:
        if not isinstance(row[name], str) or not 0 < len(row[name]) <= _LONGEST:
            raise BadInput(f"{where}: {name} must be a text of at most {_LONGEST} characters")
    try:
        re.compile(row["device"])
    except re.error as error:
        raise BadInput(f"{where}: device is no regular expression: {shown(error)}") from error
    amounts = {k: _amount(row[k], f"{where}: {k}") for k in _NUMBERS if k in names}
    hour = amounts.get("per_device_hour")
    if hour is None:
        hour = amounts["buy"] / (amounts["years"] * HOURS_OF_A_YEAR)
    return Price(row["device"], hour, row["currency"], row["source"], where)


def _amount(value: Any, what: str) -> float:
    try:
        amount = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        amount = math.nan
    if not 0 < amount < 1e12:
        raise BadInput(f"{what} must be a number above 0, not {shown(value, 40)!r}")
    return amount


def by_device(prices: Sequence[Price], names: Sequence[str]) -> dict[str, Price]:
    """Return the price of each of the devices ``names`` that has one.

    Raises BadInput if two fit one name, or none fits any: the file is not for this report.
    """
    if not prices:
        return {}
    from bertbench.backends.peaks import matching  # loads torch

    found = {}
    for name in names:
        exact = [p for p in prices if p.device.lower() == name.lower()]
        fits = [] if exact else matching([p.device for p in prices], name, "--price")
        fitting = exact or [p for p, fit in zip(prices, fits, strict=True) if fit]
        if len(fitting) > 1:
            where = " and ".join(p.where for p in fitting[:2])
            raise BadInput(f"{where}: both are prices of {shown(name)}: keep one")
        if fitting:
            found[name] = fitting[0]
    if not found:
        known = ", ".join(shown(name, 60) for name in names[:6]) or "none"
        raise BadInput(f"{prices[0].where}: no price is for a device of this report ({known})")
    return found
