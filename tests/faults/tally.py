# SPDX-License-Identifier: Apache-2.0
"""Count cases tried and right by kind; show how each failure is repeated."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from tests.faults import forks


def arguments(doc: str | None, kinds: Iterable[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--n", type=int, default=100, help="cases of each kind")
    parser.add_argument("--kind", action="append", choices=list(kinds))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int, metavar="I", help="this case alone, with its output")
    parser.add_argument("--seconds", type=float, help="begin no case later than this")
    given = parser.parse_args()
    given.kind = given.kind or list(kinds)
    return given


def tally(
    script: str, given: argparse.Namespace, work: Callable[[tuple[str, int]], Any]
) -> dict[str, tuple[int, int]]:
    """Do the cases in turn, one of each kind after the other; return tried and right by kind.

    ``work`` returns the words of a case and its problems.
    """
    tried: Counter[str] = Counter()
    right: Counter[str] = Counter()
    end = None if given.seconds is None else time.monotonic() + given.seconds
    indexes = range(given.n) if given.only is None else [given.only]

    def cases() -> Iterable[tuple[str, int]]:
        for index in indexes:
            for kind in given.kind:
                if end is None or time.monotonic() < end:
                    yield kind, index

    for (kind, index), result in forks.map_forked(cases(), work, given.jobs):
        words, problems = result or ("?", ["the tester itself failed"])
        tried[kind] += 1
        right[kind] += not problems
        if problems:
            again = f"python {script} --seed {given.seed} --kind {kind} --only {index}"
            print(f"FAIL {kind}: {words}: {'; '.join(problems[:3])}\n  {again}", flush=True)
    for kind in given.kind:
        print(f"{kind}: {tried[kind]} tried, {right[kind]} right")
    print(f"all: {tried.total()} tried, {right.total()} right")
    return {kind: (tried[kind], right[kind]) for kind in given.kind}
