# SPDX-License-Identifier: Apache-2.0
"""Disturb real commands by the thousand, and judge what they did.

    python tests/faults/campaign.py --seed S --n N [--kind KIND] [--jobs J]

Each failure prints its own reproduction; the end counts the cases tried and right, by kind.
"""

from __future__ import annotations

import random
import shutil
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.faults import forks, hosts, kinds, shim
from tests.faults.judge import Clean, inputs, numbers, records, tree
from tests.faults.ranks import Ranks
from tests.faults.shim import CALLS, Plan
from tests.faults.tally import arguments, tally
from tests.faults.targets import TARGETS, known, make_base

NAME = "tests/faults/campaign.py"
KINDS: dict[str, type[kinds.Kind]] = kinds.KINDS | {"ranks": Ranks, "hosts": hosts.Hosts}


def clean_run(base: Path, folder: Path, name: str) -> dict[str, Any]:
    """Return Clean of a target: what two undisturbed runs (one, if slow) have in common."""
    target, found = TARGETS[name], []
    for number in range(1 if name == "repeat" else 2):
        time.sleep(number * 1.1)  # files that tell the second must differ, or they count as fixed
        case = folder / f"clean-{name}-{number}" / "case"
        shutil.copytree(base, case)
        plan = Plan.shared()
        plan.set("write", "budget", k=1 << 40, prefix=case)
        ended = forks.command(list(target.argv), cwd=case, timeout=120, before=plan.arm)
        assert ended.code is not None and ended.code >= 0, f"{name}: {ended}"
        seen = {call: int(plan.seen[i]) for i, call in enumerate(CALLS)}
        clean = Clean(ended.seconds, ended.rss, seen, int(plan.done), ended.code)
        clean.lines = ended.out.splitlines()
        if target.trains:
            (record,) = records(case / "new")
            clean.record["numbers"] = numbers(record)
        elif target.output:
            clean.tree = tree(case / target.output)
            clean.record["old"] = tree(base / target.output)
        found.append(clean)
        forks.remove(case.parent)
    one, two = found[0], found[-1]
    assert one.record == two.record, f"{name}: {one.record} is not {two.record}"
    comparable = not target.trains and len(found) == 2
    one.lines = [line for line in one.lines if comparable and line in two.lines]
    one.tree = {k: v if two.tree.get(k) == v else "" for k, v in one.tree.items() if k in two.tree}
    return asdict(one)


def two_hosts(base: Path) -> dict[str, Any]:
    """Return the numbers of a run of two hosts without a fault."""
    case = base.with_name("clean-hosts") / "case"
    shutil.copytree(base, case)
    return {"numbers": hosts.undisturbed(case)}


def one_case(
    case_id: tuple[str, int], *, seed: int, base: Path, folder: Path,
    clean: dict[str, Clean], before: dict[str, str], verbose: bool,
) -> tuple[str, list[str]]:  # fmt: skip
    """Return the fault's words and its problems."""
    kind, index = case_id
    rng = random.Random(f"{seed}-{kind}-{index}")
    case = folder / f"{kind}-{index}" / "case"
    shutil.copytree(base, case)
    drawn = KINDS[kind](rng, case, clean)
    ended = drawn.run(case)
    problems = drawn.problems(case, ended, before)
    if verbose:
        print(f"{drawn.words}: {ended.code}, {ended.seconds:.1f} s\n{ended.text}")
    where = f" ({path})" if (path := drawn.path(case)) else ""
    forks.remove(case.parent)
    return f"{drawn.target}: {drawn.words}{where}", problems


def main() -> int:
    given = arguments(__doc__, KINDS)
    if "hosts" in given.kind and (reason := hosts.why_not()):
        print(f"hosts: left out: {reason}")
        given.kind.remove("hosts")
    forks.preload()
    with forks.workspace() as folder:
        base = folder / "base"
        base.mkdir()
        assert forks.in_fork(lambda: make_base(base) or True), "no base"
        forks.preload(known(base))
        needed = TARGETS if set(given.kind) - {"ranks", "hosts"} else ["run"]
        before = forks.in_fork(lambda: inputs(base))
        undisturbed = partial(clean_run, base, folder)
        clean = {
            name: Clean(**result)
            for name, result in forks.map_forked(needed, undisturbed, given.jobs)
        }
        if "hosts" in given.kind:
            clean["hosts"] = Clean(0, 0, {}, 0, 0, record=forks.in_fork(partial(two_hosts, base)))
        work = partial(
            one_case, seed=given.seed, base=base, folder=folder, clean=clean, before=before,
            verbose=given.only is not None,
        )  # fmt: skip
        counts = tally(NAME, given, work)
    return int(any(tried > right for tried, right in counts.values()))


if __name__ == "__main__":
    shim.preloaded()
    sys.exit(main())
