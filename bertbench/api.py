# SPDX-License-Identifier: Apache-2.0
"""The verbs that a notebook or another program calls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from bertbench.common.errors import BadInput
from bertbench.common.results.comparable import Side, load_side
from bertbench.common.results.compare import Comparison
from bertbench.common.results.compare import compare as compare_sides
from bertbench.common.results.result import Result
from bertbench.common.results.store import load_results


def run(recipe: str, **options: object) -> Result:
    """Run a recipe in this process and return its record, whose ``status`` says how it ended.

    ``options`` are the flags of ``bertbench run RECIPE``, e.g. ``max_steps=20, synthetic=True``.
    Raises BadInput or Unsupported where the run is refused before it has a record.
    """
    from bertbench.benchmarks import resolve
    from bertbench.common.run import run as run_settings

    if "help" in options:
        raise BadInput("help is a word of the command line: see `bertbench run RECIPE --help`")
    record = run_settings(resolve(recipe, flags(options)), started=time.monotonic()).record
    if record is None:
        raise BadInput("run needs a record to return: leave dry_run out, and call it on rank 0")
    return load_records(record)[0]


def flags(options: dict[str, object]) -> list[str]:
    """Return ``options`` as words of the command line."""
    words: list[str] = []
    for name, value in options.items():
        switch = isinstance(value, bool)
        words.append(f"--{'no_' * (value is False)}{name}" + ("" if switch else f"={value}"))
    return words


def load_records(*paths: str | Path) -> list[Result]:
    """Return the runs in folders of records, in the order of their paths.

    Raises BadInput without a record, and for a damaged one.
    """
    results, damaged = load_results([Path(path) for path in paths], references=False)
    if damaged:
        raise BadInput("; ".join(f"{d.path}: {d.problem}" for d in damaged))
    if not paths:
        raise BadInput("name a folder of records, e.g. results")
    if not results:
        raise BadInput(f"no record in {', '.join(map(str, paths))}: name a folder of results")
    return results


def compare(
    lhs: str | Path | Result | Sequence[Result],
    rhs: str | Path | Result | Sequence[Result],
    *others: str | Path | Result | Sequence[Result],
    metrics: Sequence[str] = (),
    threshold: float = 1.0,
    force: bool = False,
    across: Sequence[str] = (),
) -> Comparison:
    """Compare the runs ``rhs``, and ``others``, with the baseline ``lhs``.

    Each is a folder, a pattern or records. ``threshold`` is the change in percent that is a
    regression. ``across`` names the fields whose differences are compared, e.g. ``["precision"]``;
    ``force`` compares different benchmarks. Raises BadInput where a group has no run, or a metric
    is nowhere.
    """
    if not 0 <= threshold <= 100:
        raise BadInput(f"threshold {threshold}: give percent, from 0 to 100")
    metrics = [metrics] if isinstance(metrics, str) else metrics
    across = [across] if isinstance(across, str) else across
    sides = [_side(lhs, "baseline"), _side(rhs, "candidate")]
    sides += [_side(runs, f"candidate {i}") for i, runs in enumerate(others, 2)]
    return compare_sides(*sides, metrics=metrics, threshold=threshold, force=force, across=across)


def _side(runs: str | Path | Result | Sequence[Result], label: str) -> Side:
    if isinstance(runs, (str, Path)):
        return load_side(str(runs))
    return Side(label, [runs] if isinstance(runs, Result) else list(runs), [])
