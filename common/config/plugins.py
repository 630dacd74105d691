# SPDX-License-Identifier: Apache-2.0
"""Backends and benchmarks of other installed packages, found through their entry points."""

from __future__ import annotations

from collections.abc import Container
from importlib.metadata import EntryPoint, entry_points


def third_parties(
    group: str, what: str, taken: Container[str]
) -> tuple[dict[str, EntryPoint], list[str]]:
    """Return the usable entry points of ``group`` by name, and a line for each refused one.

    ``what`` is the word for such a thing in these lines; names in ``taken`` are built in.
    """
    found: dict[str, EntryPoint] = {}
    problems: list[str] = []
    # By name, so that no choice depends on the order of a folder.
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        if entry.name in taken:
            why = "that name is built in"
        elif entry.name in found:
            why = f"{package(found[entry.name])} provides that name already"
        else:
            found[entry.name] = entry
            continue
        problems.append(f"{what} {entry.name!r} of {package(entry)} is refused: {why}")
    return found, problems


def package(entry: EntryPoint) -> str:
    """Return the name of the package that an entry point belongs to."""
    return f"package {entry.dist.name}" if entry.dist else entry.value
