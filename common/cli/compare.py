# SPDX-License-Identifier: Apache-2.0
"""``bertbench compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from bertbench.common.cli.verbs import parser
from bertbench.common.config.parser import Parser
from bertbench.common.errors import BadInput
from bertbench.common.results.comparable import load_side
from bertbench.common.results.compare import compare, render


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison and return its exit code; raises BadInput for a wrong threshold."""
    verb = parser(
        "compare",
        epilog="Exit code: 0 same or better, 1 a judged metric is significantly worse, "
        "2 not comparable",
    )
    verb.add_argument("lhs", help="baseline: a run folder, a folder of runs, or a pattern")
    verb.add_argument("rhs", help="the runs to compare with it, given likewise")
    verb.add_argument(
        "--metric", action="append", default=[], help="judge only this; repeat it for more"
    )
    add_comparison_flags(verb)
    given = verb.parse_args(argv)
    if not 0 <= given.threshold <= 100:
        raise BadInput(f"--threshold {given.threshold:g} must be a percentage from 0 to 100")
    found = compare(
        load_side(given.lhs),
        load_side(given.rhs),
        metrics=given.metric,
        threshold=given.threshold,
        force=given.force,
    )
    print(json.dumps(found.as_dict(), indent=1) if given.json else render(found))
    return found.exit_code


def add_comparison_flags(verb: Parser) -> None:
    """Add the flags that ``repeat --against`` shares."""
    verb.add_argument(
        "--threshold", type=float, default=1.0, metavar="PCT",
        help="a regression is worse by more than PCT percent",
    )  # fmt: skip
    verb.add_argument("--force", action="store_true", help="compare runs of different benchmarks")
