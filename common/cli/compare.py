# SPDX-License-Identifier: Apache-2.0
"""``bertbench compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from bertbench.common.config.parser import Parser
from bertbench.common.errors import BadInput
from bertbench.common.results.comparable import load_side
from bertbench.common.results.compare import compare, render


def main(argv: Sequence[str] | None = None) -> int:
    """``bertbench compare``: 0 same or better, 1 regression, 2 not comparable."""
    parser = Parser(
        "compare",
        "Compare two groups of runs: ratios, intervals, exact tests.",
        epilog="exit code: 0 same or better, 1 a judged metric is significantly worse, 2 refused",
    )
    parser.add_argument("lhs", help="baseline: a run folder, a folder of runs, or a pattern")
    parser.add_argument("rhs", help="what is compared with it")
    parser.add_argument(
        "--metric", action="append", default=[], help="show and judge these only (again for more)"
    )
    parser.add_argument(
        "--threshold", type=float, default=1.0, metavar="PCT", help="what a regression exceeds (1)"
    )
    parser.add_argument("--force", action="store_true", help="compare what is not the same")
    given = parser.parse_args(argv)
    if not 0 <= given.threshold <= 100:
        raise BadInput(f"--threshold {given.threshold:g}: give percent, from 0 to 100")
    found = compare(
        load_side(given.lhs),
        load_side(given.rhs),
        metrics=given.metric,
        threshold=given.threshold,
        force=given.force,
    )
    print(json.dumps(found.as_dict(), indent=1) if given.json else render(found))
    return found.exit_code
