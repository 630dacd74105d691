# SPDX-License-Identifier: Apache-2.0
"""Validate the records of all runs, and pack them into one file."""

from __future__ import annotations

import tarfile
from pathlib import Path

from bertbench.common.results.store import find_runs
from bertbench.common.results.validate import validate
from check.device import Check
from check.figure import NotAvailable, SectionReport

ARCHIVE = "records.tar.gz"


class InvalidRecords(Exception):
    """Some record fails `bertbench validate`."""


def records(check: Check, report: SectionReport) -> None:
    """Validate all records of this call; raise InvalidRecords, or NotAvailable without records."""
    runs, damaged = find_runs(check.results) if check.results.is_dir() else ([], [])
    if not (runs or damaged):
        raise NotAvailable("no section wrote a record")
    problems = [f"{d.path.name}: {d.problem}" for d in damaged]
    valid = 0
    for run in runs:
        errors = [p for p in validate(run) if p.severity == "error"]
        problems += [f"{run.name}: {p.file}: {p.text}" for p in errors]
        valid += not errors
    definition = "records of this call, below results/"
    report.figure("records", len(runs) + len(damaged), "records", definition)
    report.figure("valid records", valid, "records", "those without an error of bertbench validate")
    if problems:
        raise InvalidRecords("; ".join(problems))


def pack(check: Check) -> Path | None:
    """Write results/ into one archive; return its path, or None without results."""
    if not check.results.is_dir():
        return None
    path = check.folder / ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        archive.add(check.results, "results")
    return path
