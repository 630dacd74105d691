# SPDX-License-Identifier: Apache-2.0
"""Read, check and write the files of published figures.

``results/reference/*.json`` has one file per source, in schema/published-1.json; a file of many
rows has them as a table. A row states where its figures were printed, their definitions if the
source has any, and the doubts about them. common/results/store.py loads rows as a separate kind of
result, which never enters the statistics of runs.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema

from bertbench.common.errors import BadInput
from bertbench.common.files import read_bytes, shown, write_atomic
from bertbench.common.measure.metric import SHARED
from bertbench.common.results.result import parse

SCHEMA = Path(__file__).parent / "schema" / "published-1.json"
NOT_STATED = "not stated"
"""The definition of a figure without one in its source."""


def written_out(document: Any) -> Any:
    """Return a document with ``rows``, made from its ``table``, if any; raise ValueError.

    A table has ``columns`` and ``rows`` of their values, for many rows that have much in
    ``common``. An empty (null) cell is the common value. A column of a metric has its values;
    ``metrics`` defines them, and the column ``runs`` is their number of runs.
    """
    if not isinstance(document, Mapping) or "table" not in document:
        return document
    table = document["table"]
    try:
        common, metrics, columns = (table[key] for key in ("common", "metrics", "columns"))
        cells = [dict(zip(columns, row, strict=True)) for row in table["rows"]]
        rows = []
        for row in cells:
            runs = {} if (n := row.pop("runs", None)) is None else {"n": n}
            found = {k: {**metrics[k], **runs, "value": v} for k, v in row.items()
                     if k in metrics and v is not None}  # fmt: skip
            own = {k: v for k, v in row.items() if v is not None or k not in common}
            own = {k: v for k, v in own.items() if k not in metrics}
            rows.append({**common, **own, "metrics": found})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its table is malformed: {error!r}") from error
    return {**{k: v for k, v in document.items() if k != "table"}, "rows": rows}


def load_published(path: Path) -> dict[str, Any]:
    """Return the document in ``path``; raise BadInput with its first problems."""
    try:
        document = written_out(parse(read_bytes(path)))
    except (OSError, ValueError) as error:
        raise BadInput(f"{shown(path)} cannot be read: {shown(error)}") from error
    found = problems(document)
    if found:
        raise BadInput(f"{shown(path)} is not a file of published figures: {'; '.join(found[:5])}")
    return dict(document)


def write_published(path: Path, document: Mapping[str, Any]) -> None:
    """Check and write atomically to ``path``; raise BadInput as ``load_published`` does."""
    found = problems(document)
    if found:
        raise BadInput(f"not written to {shown(path)}: {'; '.join(found[:5])}")
    write_atomic(path, json.dumps(document, indent=1, ensure_ascii=True) + "\n")


def problems(document: Any) -> list[str]:
    """Return the problems of a document, one line each."""
    found = list(_schema_errors(document))
    if not found:
        for number, row in enumerate(document["rows"], 1):
            found += [f"row {number}: {text}" for text in _row_errors(row)]
            if row in document["rows"][: number - 1]:
                found.append(f"row {number}: occurs twice")
    return found


@functools.cache
def _validator() -> Any:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def _schema_errors(document: Any) -> Iterator[str]:
    for error in _validator().iter_errors(document):
        best = jsonschema.exceptions.best_match([error])
        place = best.json_path.removeprefix("$").lstrip(".") or "the whole"
        yield shown(f"{place}: {best.message}", 300)


def _row_errors(row: Mapping[str, Any]) -> Iterator[str]:
    for name, metric in row["metrics"].items():
        if not math.isfinite(metric["value"]):
            yield f"{name} is not finite"
        if "sd" in metric and "n" not in metric:
            yield f"{name} has a spread without its number of runs"
        shared = SHARED.get(name)
        if shared and (metric["unit"], metric["direction"]) != (shared.unit, shared.direction):
            yield f"{name} must be in {shared.unit}, and {shared.direction} is better"
    yield from _quality_errors(row["quality"])
    per_device, devices, batch = row["batch_per_device"], row["devices"], row["batch"]
    if None not in (per_device, devices, batch) and per_device * devices != batch:
        yield f"batch is {batch}, not {per_device} on each of {devices} devices"
    for name in ("system", "benchmark"):
        if row[name] == "unknown" and name not in row.get("missing", {}):
            yield f"{name} is unknown without a reason"


def _quality_errors(quality: Mapping[str, Any] | None) -> Iterator[str]:
    if quality is None:
        return
    value, target, reached = quality["value"], quality["target"], quality["reached"]
    if None not in (value, target) and reached is not (value >= target):
        yield f"quality.reached is {reached}, but the value is {value} and the target {target}"
    if target is None and reached is not None:
        yield "quality.reached is set without a target"
    if "sd" in quality and "n" not in quality:
        yield "quality has a spread without its number of runs"
