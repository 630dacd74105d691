# SPDX-License-Identifier: Apache-2.0
"""Whether a record can be believed: schema, checksums, protocol, MLPerf compliance.

Every finding says what is wrong, in which file, and what to do. An ``error`` makes the record
worthless as a result; a ``note`` is something its reader should know.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jsonschema

from common.errors import BadInput
from common.files import file_sha256, shown
from common.results import protocol
from common.results.record import MANIFEST, record_files, sealed
from common.results.store import find_runs

SCHEMAS = Path(__file__).parent / "schema"
ENOUGH = 6
"""Repeats for an interval of a median; with fewer none exists."""
_MOST_PER_FILE = 5
_ALTERED = "differs from its checksum: damaged, or changed afterwards"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding."""

    severity: Literal["error", "note"]
    file: str
    text: str


def validate(path: Path, rulesets: Sequence[str] = ()) -> list[Problem]:
    """What is wrong with the record in the folder ``path``; no error means it is valid.

    ``rulesets`` replaces the MLPerf round that the record names. Raises BadInput when ``path`` is
    no record at all.
    """
    file = path / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
        manifest = _parse(text)
    except FileNotFoundError as error:
        raise BadInput(f"{path} is not a run folder: it has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        return [Problem("error", MANIFEST, shown(f"cannot be read: {error}; run it again"))]
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if not (SCHEMAS / f"manifest-{version}.json").exists() or not isinstance(version, int):
        said = f"unknown schema_version {shown(version)}"
        return [Problem("error", MANIFEST, f"{said}: validate it with the version that made it")]
    problems = list(_schema_errors(version, "manifest", manifest, MANIFEST))
    if sealed(text) != text:
        problems.append(Problem("error", MANIFEST, _ALTERED))
    if any(p.text != _ALTERED for p in problems):
        return problems  # nothing below can be relied on
    problems += _file_errors(path, manifest)
    content: dict[str, Any] = {"manifest": manifest}
    for kind, name in (("config", "config.json"), ("system", "system.json")):
        content[kind], found = _document(path / name, kind, version)
        problems += found
    unfinished = manifest["files"] is None
    for kind, name in (("steps", "steps.jsonl"), ("telemetry", "telemetry.jsonl")):
        content[kind], found = _lines(path / name, kind, version, unfinished)
        problems += found
    if not any(p.severity == "error" for p in problems):
        checks = protocol.check(path, content, rulesets)
        problems += [Problem(severity, name, text) for severity, name, text in checks]
    return problems


def _parse(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON: unknown is null")

    return json.loads(text, parse_constant=refuse)


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
        yield Problem("note", MANIFEST, text)
        return
    for name, expected in listed.items():
        file = path / name
        if name not in present:
            yield Problem("error", name, "missing")
        elif file.is_symlink() or not file.is_file():
            continue
        elif file.stat().st_size != expected["bytes"] or file_sha256(file) != expected["sha256"]:
            yield Problem("error", name, _ALTERED)
    for name in sorted(set(present) - set(listed)):
        yield Problem("error", shown(name), "not part of the record: remove it")


def _document(file: Path, kind: str, version: int) -> tuple[Any, list[Problem]]:
    try:
        value = _parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return None, [Problem("error", file.name, shown(f"cannot be read: {error}"))]
    return value, list(_schema_errors(version, kind, value, file.name))


def _lines(
    file: Path, kind: str, version: int, unfinished: bool
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Valid lines, and the first few problems. A killed run may have cut its last line."""
    if not file.exists():
        return [], []
    values: list[dict[str, Any]] = []
    problems: list[Problem] = []
    text = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(text, 1):
        try:
            value = _parse(line)
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


def main(argv: Sequence[str] | None = None) -> int:
    """``bertbench validate``: 0 every record is a valid result, 1 at least one is not.

    A valid record of a simulated device is no result: it gives 1, or 0 with ``--simulated``.
    """
    parser = argparse.ArgumentParser(
        prog="bertbench validate",
        description="Check records: schema, checksums, protocol, MLPerf compliance.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of them")
    parser.add_argument(
        "--ruleset", action="append", default=[], help="MLPerf round instead of the record's own"
    )
    parser.add_argument(
        "--simulated", action="store_true", help="take valid records of simulated devices, too"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse_args(argv)
    results: dict[str, list[Problem]] = {}
    for path in options.runs:
        records, damaged = find_runs(path)
        if not path.exists() or not (records or damaged):
            raise BadInput(f"no record in {path}: give a run folder (results/SYSTEM/BENCHMARK/RUN)")
        results.update({str(run): validate(run, options.ruleset) for run in records})
        results.update({str(d.path): [Problem("error", MANIFEST, d.problem)] for d in damaged})
    valid = {run: not any(p.severity == "error" for p in found) for run, found in results.items()}
    simulated = {run: valid[run] and _simulated(Path(run)) for run in results}
    groups = _groups([run for run in results if valid[run] and not simulated[run]])
    if options.json:
        report = [
            {
                "run": run,
                "valid": valid[run],
                "simulated": simulated[run],
                "repeats": len(groups.get(run, ())),
                "problems": [asdict(p) for p in found],
            }
            for run, found in results.items()
        ]
        print(json.dumps(report, indent=1))
    else:
        for run, found in results.items():
            verdict = "valid, but SIMULATED: no result" if simulated[run] else "valid"
            print(f"{run}: {verdict if valid[run] else 'NOT VALID'}")
            for p in found:
                print(f"  {p.severity}: {p.file}: {p.text}")
        for group in dict.fromkeys(groups.values()):
            print(_repeats(group))
    return 0 if all(valid[r] and (options.simulated or not simulated[r]) for r in results) else 1


def _simulated(run: Path) -> bool:
    """What a valid record says of its devices."""
    return bool(_manifest(run).get("simulated", False))


def _manifest(run: Path) -> Any:
    return _parse((run / MANIFEST).read_text(encoding="utf-8"))


def _groups(runs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Of each finished run its repeats: same system, recipe, inputs, code and precision."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for run in runs:
        m = _manifest(Path(run))
        if m["status"] in ("ok", "below_quality"):
            same = [m[key] for key in ("system", "recipe_hash", "code_hash", "world_size")]
            key = (*same, m["extras"].get("precision"))
            groups.setdefault(key, []).append(run)
    return {run: tuple(group) for group in groups.values() for run in group}


def _repeats(group: Sequence[str]) -> str:
    """What may be said of so many repeats."""
    runs = [_manifest(Path(run)) for run in group]
    first, n = runs[0], len(runs)
    seeds = sorted({m["seed"] for m in runs})
    text = f"{n} run{'s' * (n > 1)} of {first['preset']} on {first['system']}"
    text += f" ({first['recipe_hash']}; {sum(m['status'] == 'ok' for m in runs)} ok)"
    if n < ENOUGH:
        text += f": indicative, an interval needs {ENOUGH} in fresh processes"
    if len(seeds) < n:
        text += f"; only {len(seeds)} different seed{'s' * (len(seeds) > 1)}"
    return shown(text)


if __name__ == "__main__":
    sys.exit(main())
