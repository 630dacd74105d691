# SPDX-License-Identifier: Apache-2.0
"""``bertbench repeat``: the same run in new processes, with consecutive seeds.

With ``--against`` two runs alternate (ABBA...), so that heat and other load affect both alike. The
ledger ``<output_dir>/repeats/<id>.json`` lists the runs; its id is that of the command, which
continues with the incomplete seeds when it is given again. A failed run is complete; an
interrupted or killed one is not, nor is one whose record was deleted. One process at a time makes
the runs of a ledger, and all of the same code. ``--sweep`` is in sweep.py.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from typing import IO, Any

from bertbench.common.cli.compare import add_comparison_flags
from bertbench.common.cli.ledger import AGAINST, RUN, Ledger, Repeat, render_summary, summary
from bertbench.common.cli.run_words import (
    add_output_flags,
    progress,
    run_words,
    settings_of,
    split_words,
    stoppable,
)
from bertbench.common.cli.sweep import sweep
from bertbench.common.cli.verbs import parser
from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.launch.subprocess_runs import Starter
from bertbench.common.report.comparison import render
from bertbench.common.results.compare import Comparison, compare


def main(argv: Sequence[str], *, starter: Starter | None = None) -> int:
    """Make the runs and print their summary; returns the exit code. Raises BadInput."""
    verb = parser(
        "repeat",
        usage='bertbench repeat N [--against "run RECIPE ..." | --sweep NAME=VALUE,VALUE] [...] '
        "-- run RECIPE [flags]",
        epilog="Seeds count from the run's --seed. The same command continues where it stopped. "
        "Exit code: 0 every run ended as ok (with --against: as of compare), 1 some did not, "
        "2 refused, 130 stopped",
    )
    verb.add_argument("count", type=int, metavar="N", help="number of seeds; an interval needs 6")
    verb.add_argument("--against", metavar="RUN", help="baseline to alternate and compare with")
    verb.add_argument("--devices", type=int, default=1, metavar="K", help="processes of a run")
    verb.add_argument(
        "--sweep", action="append", default=[], metavar="NAME=V,V",
        help="N runs of each value of a flag, and a table; several --sweep: all combinations",
    )  # fmt: skip
    add_comparison_flags(verb)
    verb.add_argument("--fresh", action="store_true", help="repeat complete runs, too")
    add_output_flags(verb)
    own, words = split_words("repeat", argv)
    given = verb.parse_args(own)
    if given.count < 1 or given.devices < 1:
        raise BadInput("N and --devices must be whole numbers from 1")
    starter, out = starter or Starter(verbose=given.verbose), progress(given)
    if given.sweep:
        if given.against is not None:
            raise BadInput("--sweep compares values itself: leave --against out")
        try:
            with stoppable():
                return sweep(words, given, starter, out)
        except KeyboardInterrupt:  # between two runs
            return 130
    settings = settings_of(words)
    sides = {RUN: words}
    if given.against is not None:
        baseline = run_words("repeat", _shell_words(given.against))
        settings_of(baseline)
        sides = {AGAINST: baseline, RUN: words}
    where = (settings.run.output_dir, sides, settings.run.seed, given.devices)
    with Ledger.open(*where, fresh=True).locked():
        ledger = Ledger.open(*where, given.fresh)
        return _repeat(ledger, given, starter, out)


def _repeat(ledger: Ledger, given: Any, starter: Starter, out: IO[str]) -> int:
    """Make the runs of a ledger and print their summary; return the exit code."""
    work = Repeat(ledger, given.count, starter, given.force, out)
    try:
        with stoppable():
            code = work.execute()
    except KeyboardInterrupt:  # between two runs
        return 130
    if code is not None:
        if given.json:
            print(json.dumps({"error": "; ".join(work.refusal) or "stopped", "exit_code": code}))
        elif given.quiet and work.refusal:
            print(f"bertbench repeat: {'; '.join(work.refusal)}", file=sys.stderr)
        return code
    return _report(work, given)


def _report(work: Repeat, given: Any) -> int:
    ledger = work.ledger
    found: dict[str, Any] = {"ledger": str(ledger.path), "seeds": list(work.seeds)}
    sides = {name: ledger.side(name, work.seeds) for name in ledger.sides}
    silent = {name: sum(side == name for side, _, _ in work.silent) for name in sides}
    for name, side in sides.items():
        found[name] = summary(side, len(side.runs) + len(side.damaged) + silent[name])
        found[name]["records"] = [str(run.path) for run in side.runs]
        found[name]["without_result"] = silent[name]
        found[name]["crashed"] = ledger.crashed(name, work.seeds)
    comparison: Comparison | None = None
    if AGAINST in sides and all(side.runs for side in sides.values()):
        comparison = compare(
            sides[AGAINST], sides[RUN], threshold=given.threshold, force=given.force
        )
        found["comparison"] = comparison.as_dict()
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        for name in sides:
            print(f"\n{name}: {shown(shlex.join(ledger.sides[name]), 400)}")
            print(render_summary(found[name], figures=comparison is None))
            if seeds := found[name]["crashed"]:
                print(f"{len(seeds)} runs crashed so far: seed {', '.join(map(str, seeds))}")
        if comparison is not None:
            print(f"\n{render(comparison)}")
        print(f"ledger    {ledger.path}")
        if work.silent:
            print(f"{len(work.silent)} runs left no result: the same command repeats them")
    if comparison is not None and not work.silent:
        return comparison.exit_code
    return int(any(entry["stability"]["value"] < 1 for entry in (found[name] for name in sides)))


def _shell_words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BadInput(f"--against {shown(text)!r}: {error}") from error
