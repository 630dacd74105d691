# SPDX-License-Identifier: Apache-2.0
"""Validate a record: schema, checksums, protocol, MLPerf compliance.

Every finding names the problem, the file and the remedy. An ``error`` makes the record invalid as a
result; a ``note`` informs its reader.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jsonschema

from bertbench.common.errors import BadInput
from bertbench.common.files import parse_json, read_bytes, read_json, shown
from bertbench.common.results import protocol
from bertbench.common.results.result import LARGEST_LOG
from bertbench.common.results.seals import MANIFEST, is_intact, is_sealed, is_written, record_files

SCHEMAS = Path(__file__).parent / "schema"
_MOST_PER_FILE = 5
_ALTERED = "differs from its checksum: damaged, or changed afterwards"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding."""

    severity: Literal["error", "note"]
    file: str
    text: str


def validate(path: Path, rulesets: Sequence[str] = ()) -> list[Problem]:
    """Return the findings on the record in the folder ``path``; without errors it is valid.

    ``rulesets`` replaces the MLPerf round that the record names. Raises BadInput if ``path`` is not
    a record.
    """
    try:
        text = read_bytes(path / MANIFEST).decode("utf-8")
        manifest = parse_json(text)
    except FileNotFoundError as error:
        raise BadInput(f"{shown(path)} is not a run folder: it has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        return [Problem("error", MANIFEST, shown(f"cannot be read: {error}; run it again"))]
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if not (SCHEMAS / f"manifest-{version}.json").exists() or not isinstance(version, int):
        said = f"unknown schema_version {shown(version)}"
        return [Problem("error", MANIFEST, f"{said}: validate it with the version that made it")]
    problems = list(_schema_errors(version, "manifest", manifest, MANIFEST))
    unfinished = manifest.get("files") is None
    if unfinished and manifest.get("status") != "interrupted":
        text = f"says {shown(manifest.get('status'))}, but has no checksums: run it again"
        problems.append(Problem("error", MANIFEST, text))
    elif not (unfinished or is_sealed(text, manifest)):
        problems.append(Problem("error", MANIFEST, _ALTERED))
    if any(p.text != _ALTERED for p in problems):
        return problems  # nothing below can be relied on
    problems += _file_errors(path, manifest)
    content: dict[str, Any] = {"manifest": manifest}
    for kind, name in (("config", "config.json"), ("system", "system.json")):
        content[kind], found = _document(path / name, kind, version)
        problems += found
    for kind, name in (("steps", "steps.jsonl"), ("telemetry", "telemetry.jsonl")):
        content[kind], found = _lines(path / name, kind, version, unfinished)
        problems += found
    if not any(p.severity == "error" for p in problems):
        checks = protocol.check(path, content, rulesets)
        problems += [Problem(severity, name, text) for severity, name, text in checks]
    return problems


@functools.cache
def _validator(version: int, kind: str) -> Any:
    schema = json.loads((SCHEMAS / f"{kind}-{version}.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def _schema_errors(
    version: int, kind: str, value: Any, name: str, line: int | None = None
) -> Iterator[Problem]:
    where = "" if line is None else f"line {line}: "
    for error in _validator(version, kind).iter_errors(value):
        best = jsonschema.exceptions.best_match([error])
        place = best.json_path.removeprefix("$").lstrip(".") or "the whole"
        yield Problem("error", name, shown(f"{where}{place}: {best.message}", 300))


def _file_errors(path: Path, manifest: dict[str, Any]) -> Iterator[Problem]:
    present = {file.name: file for file in record_files(path)}
    for name, file in present.items():
        if file.is_symlink() or not file.is_file():
            yield Problem("error", shown(name), "not a plain file: remove it")
    listed = manifest["files"]
    if listed is None:
        text = "the process was killed before it could finish the record; no checksums"
        if is_written(path):
            text = "the run goes on; it has no checksums yet"
        yield Problem("note", MANIFEST, text)
        return
    provisional = manifest.get("provisional", False)
    if provisional:
        text = "the process was killed between its training and the end of its record"
        yield Problem("note", MANIFEST, text)
    for name, expected in listed.items():
        file = path / name
        if name not in present:
            yield Problem("error", shown(name), "missing")
        elif file.is_symlink() or not file.is_file():
            continue
        elif not is_intact(file, expected, provisional=provisional):
            yield Problem("error", shown(name), _ALTERED)
    for name in () if provisional else sorted(set(present) - set(listed)):
        yield Problem("error", shown(name), "not part of the record: remove it")


def _document(file: Path, kind: str, version: int) -> tuple[Any, list[Problem]]:
    try:
        value = read_json(file)
    except (OSError, ValueError) as error:
        return None, [Problem("error", file.name, shown(f"cannot be read: {error}"))]
    return value, list(_schema_errors(version, kind, value, file.name))


def _lines(
    file: Path, kind: str, version: int, unfinished: bool
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the valid lines and the first problems; an unfinished run may have cut its last."""
    values: list[dict[str, Any]] = []
    problems: list[Problem] = []
    try:
        text = read_bytes(file, LARGEST_LOG).decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError) as error:
        return [], [Problem("error", file.name, shown(f"cannot be read: {error}"))]
    if not text[-1]:
        text.pop()
    for number, line in enumerate(text, 1):
        try:
            value = parse_json(line)
        except ValueError as error:
            if unfinished and number == len(text):
                break
            found = [Problem("error", file.name, shown(f"line {number}: {error}"))]
        else:
            found = list(_schema_errors(version, kind, value, file.name, number))
            values.append(value)
        problems += found
        if len(problems) >= _MOST_PER_FILE:
            break
    return values, problems
