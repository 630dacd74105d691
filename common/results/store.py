# SPDX-License-Identifier: Apache-2.0
"""Load results for compare, report and export; damaged ones are returned, not raised.

    results, damaged = load_results([Path("results")])

There are records of runs (common/results/record.py), and published figures
(results/reference/*.json, schema/published-1.json), one Result per row. This module checks only
what the properties of Result rely on; ``validate`` checks the rest. Records are untrusted: escape
every text from them (``bertbench.common.files.shown`` for a terminal).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertbench.common.errors import BadInput
from bertbench.common.files import read_bytes, shown
from bertbench.common.measure.code import ROOT
from bertbench.common.results.published import written_out
from bertbench.common.results.record import SCHEMA_VERSION, STATUSES
from bertbench.common.results.result import (
    Damage,
    Result,
    check_quality,
    demand,
    identity,
    metrics_of,
    parse,
    verified,
)
from bertbench.common.results.seals import (
    MANIFEST,
    STEPS,
    is_sealed,
    is_written,
    record_files,
)

__all__ = ["KINDS", "REFERENCE", "Damaged", "Result", "find_runs", "load_results", "parse"]

REFERENCE = ROOT / "results" / "reference"
"""The published figures of this repository; a folder of this name can be anywhere."""
KINDS = ("run", "published", "mlperf")
_READ = ("config.json", "system.json", STEPS, "telemetry.jsonl")
"""Files of a run that Result reads, the first two at once."""
_PART = re.compile(r"step_\d{8,}(\.replaced)?|\.partial-.*|\.\d{8}T\d{6}Z_.*")
"""Checkpoints, and the folder in which a record or a checkpoint is made."""


@dataclass(frozen=True)
class Damaged:
    """An unusable path, and the reason in one line."""

    path: Path
    problem: str


def load_results(
    paths: Iterable[Path | str], *, references: bool = True
) -> tuple[list[Result], list[Damaged]]:
    """Return all results in ``paths``: run folders, folders above them, or published files.

    ``references`` includes published figures: those below ``paths`` in folders named ``reference``,
    and this repository's. Runs are ordered by id, and so by time; a duplicate counts once. Raises
    BadInput for a path that does not exist.
    """
    folders: dict[Path, None] = {}
    files: dict[Path, None] = {}
    damaged: list[Damaged] = []
    for path in map(Path, paths):
        if not path.exists():
            raise BadInput(f"{shown(path)}: no such file or folder")
        path = path.parent if path.name == MANIFEST else path
        if path.is_dir():
            _search(path, folders, files, damaged)
        else:
            files[path] = None
    if references and REFERENCE.is_dir():
        _search(REFERENCE, folders, files, damaged)
    results: dict[str, Result] = {}
    known: dict[str, Result] = {}
    for folder in _once(folders):
        try:
            result = _run(folder)
        except Damage as problem:
            damaged.append(Damaged(folder, str(problem)))
            continue
        first = known.setdefault(identity(result.manifest), result)
        if first is result:
            first = results.setdefault(result.run_id, result)
        if first is not result:
            text = f"is the same run as {first.path}, which is counted"
            damaged.append(Damaged(folder, shown(text, 400)))
    found = sorted(results.values(), key=lambda result: result.run_id)
    for file in _once(files) if references else ():
        try:
            found += _published(file)
        except Damage as problem:
            damaged.append(Damaged(file, str(problem)))
    return found, damaged


def find_runs(path: Path) -> tuple[list[Path], list[Damaged]]:
    """Return the run folders at or below ``path`` by name, and the damaged ones."""
    folders: dict[Path, None] = {}
    damaged: list[Damaged] = []
    _search(path, folders, {}, damaged)
    return list(folders), damaged


def _search(
    top: Path, folders: dict[Path, None], files: dict[Path, None], damaged: list[Damaged]
) -> None:
    """Add the run folders and published files at and below ``top``, links followed.

    Those in hidden folders are named as left out.
    """
    seen = set()

    def add_unreadable(error: OSError) -> None:
        damaged.append(Damaged(Path(error.filename), shown(f"cannot be read: {error.strerror}")))

    for name, below, inside in os.walk(top, onerror=add_unreadable, followlinks=True):
        folder = Path(name)
        if (real := os.path.realpath(name)) in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(b for b in below if not _PART.fullmatch(b))
        if MANIFEST in inside or MANIFEST in below:
            hidden = [part for part in folder.relative_to(top).parts if part.startswith(".")]
            if not hidden:
                folders[folder] = None
            elif STEPS in inside:
                text = f"is in the hidden folder {hidden[0]}, and left out: name it to include it"
                damaged.append(Damaged(folder, shown(text)))
            below.clear()
        elif STEPS in inside:
            damaged.append(Damaged(folder, f"has no {MANIFEST}"))
            below.clear()
        elif REFERENCE.name in (top.resolve().name, *folder.relative_to(top).parts):
            files.update((folder / i, None) for i in sorted(inside) if i.endswith(".json"))


def _once(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield each file or folder once, under its first name."""
    seen = set()
    for path in paths:
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            yield path


def _document(path: Path, content: bytes | None = None) -> dict[str, Any]:
    """Return a JSON object, of a file or of its ``content``."""
    try:
        value = parse(read_bytes(path) if content is None else content)
    except (OSError, ValueError) as error:
        raise Damage(shown(f"{path.name} cannot be read: {error}")) from error
    demand(isinstance(value, dict), f"{shown(path.name)} is not a JSON object")
    return dict(value)


def _run(folder: Path) -> Result:
    raw = verified(folder, MANIFEST)
    manifest = _document(folder / MANIFEST, raw)
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise Damage(f"{MANIFEST} has the unknown schema_version {shown(version, 20)}")
    for key in ("run_id", "system", "benchmark", "preset", "created_utc"):
        text = manifest.get(key)
        demand(isinstance(text, str) and text != "", f"{MANIFEST} has no {key}")
    demand(manifest.get("status") in STATUSES, f"{MANIFEST} has an unknown status")
    for key in ("seed", "world_size"):
        number = manifest.get(key)
        good = isinstance(number, int) and not isinstance(number, bool)
        demand(good and (key == "seed" or int(number or 0) > 0), f"{MANIFEST} has no valid {key}")
    check_quality(manifest.get("quality"), MANIFEST)
    metrics_of(manifest.get("metrics"))
    read = _sealed(folder, manifest, raw)
    config, system = (_document(folder / name, read.get(name)) for name in _READ[:2])
    devices = system.get("devices")
    demand(
        isinstance(devices, list) and devices and all(map(_is_device, devices)),
        "system.json has no devices, or one without a name",
    )
    for key in ("recipe", "impl", "run"):
        demand(isinstance(config.get(key), dict), f"config.json has no {key}")
    running = manifest.get("files") is None and is_written(folder)
    earlier = _earlier(manifest, folder.parent, config["impl"].get("precision"))
    return Result(folder, "run", manifest, config, system, running, earlier)


def earlier_precisions(folder: Path | None, asked: object) -> frozenset[str]:
    """Return the precisions of the run in ``folder`` and those before it, for one to continue it.

    ``asked`` is the precision in the new run's configuration; without a folder there are none.
    """
    if folder is None:
        return frozenset()
    return _earlier({"resumed_from": folder.name}, folder.parent, asked)


def _earlier(manifest: Mapping[str, Any], beside: Path, asked: object) -> frozenset[str]:
    """Return the precisions of the runs that a run continues; ``unknown`` for a missing record.

    The manifest names them; that of an older record does not, and those ``beside`` it are read.
    """
    found: set[str] = set()
    names = {manifest.get("run_id")}
    while (name := manifest.get("resumed_from")) is not None and name not in names:
        if isinstance(known := manifest.get("earlier_precisions"), list):
            return frozenset(found.union(map(str, known)))
        names.add(name)
        try:
            demand(isinstance(name, str) and Path(name).name == name, "no folder's name")
            manifest, ran = _precision(beside / name, asked)
        except Damage:
            return frozenset({*found, "unknown"})
        found |= ran
    return frozenset(found)


def _precision(folder: Path, asked: object) -> tuple[Mapping[str, Any], set[str]]:
    """Return a run's manifest and its precision; none where it is the one ``asked`` for again.

    Raises Damage where the record cannot be read.
    """
    manifest = _document(folder / MANIFEST, verified(folder, MANIFEST))
    impl: Any = _document(folder / "config.json").get("impl")
    demand(isinstance(impl, dict), "config.json has no impl")
    extras = manifest.get("extras")
    ran = extras.get("precision") if isinstance(extras, dict) else None
    before = impl.get("precision")
    if isinstance(ran, str) or before != asked:
        return manifest, {str(ran or before)}
    return manifest, set()  # on the same device it was the same


def _is_device(device: Any) -> bool:
    """Return whether a device has a name and backend of text."""
    texts = ("name", "backend")
    return isinstance(device, dict) and all(isinstance(device.get(k), str) for k in texts)


def _sealed(folder: Path, manifest: Mapping[str, Any], raw: bytes) -> dict[str, bytes]:
    """Return the content of the files read here; raise Damage unless all are as they were sealed.

    Only a run that did not end has no checksums.
    """
    files = manifest.get("files")
    demand(files is None or isinstance(files, dict), f"{MANIFEST} has no list of files")
    if files is None:
        unfinished = manifest["status"] == "interrupted" and manifest.get("checksum") is None
        demand(unfinished, f"{MANIFEST} says {manifest['status']}, but has no checksums")
        return {name: verified(folder, name) for name in _READ[:2]}
    demand(is_sealed(raw.decode(), manifest), f"{MANIFEST} differs from its checksum")
    for name, entry in files.items():
        sound = "/" not in name and "\0" not in name and isinstance(entry, dict)
        demand(sound, f"{MANIFEST} has a malformed entry for the file {shown(name, 40)!r}")
    there = {file.name for file in record_files(folder)}
    return {
        name: content
        for name in (*files, *(name for name in _READ if name in there and name not in files))
        for content in (verified(folder, name, manifest),)
        if name in _READ[:2]
    }


def _published(file: Path) -> list[Result]:
    try:
        content = written_out(_document(file))
    except ValueError as error:
        raise Damage(shown(error)) from error
    kind, rows = content.get("kind"), content.get("rows")
    if kind not in KINDS[1:]:
        raise Damage("is not a file of published figures: its kind is not published or mlperf")
    demand(isinstance(content.get("source"), dict), "has no source")
    demand(isinstance(rows, list), "has no rows")
    found = []
    for number, row in enumerate(rows or (), 1):
        demand(isinstance(row, dict), f"row {number} is not an object")
        for key in ("system", "benchmark"):
            demand(isinstance(row.get(key), str) and row[key], f"row {number} has no {key}")
        check_quality(row.get("quality"), f"row {number}")
        metrics_of(row.get("metrics"), f"row {number}")
        manifest = {**row, "run_id": f"{file.stem}-{number}", "source": content["source"]}
        found.append(Result(file, str(kind), manifest))
    return found
