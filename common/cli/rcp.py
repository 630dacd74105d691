# SPDX-License-Identifier: Apache-2.0
"""``bertbench rcp``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bertbench.common.cli.filters import PLACE, add_filters, chosen_folders
from bertbench.common.cli.verbs import parser
from bertbench.common.exchange.export_checks import runs_needed
from bertbench.common.exchange.rcp import ROUNDS, Convergence, check_convergence, find_logs


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdict; returns 0 for passed, 1 for failed."""
    verb = parser("rcp", epilog="Exit code: 0 passed, 1 failed, 2 no reference points")
    verb.add_argument(
        "runs", nargs="*", type=Path,
        help=f"run folders, folders of them, or MLPerf logs (default: {PLACE})",
    )  # fmt: skip
    verb.add_argument(
        "--ruleset", metavar="N.N", help=f"MLPerf round: {', '.join(ROUNDS)}; default: the runs'"
    )
    add_filters(verb)
    given = verb.parse_args(argv)
    logs, ruleset = find_logs(chosen_folders(given, given.runs), given.ruleset)
    found = check_convergence(logs, ruleset)
    print(json.dumps(asdict(found), indent=1) if given.json else render(found))
    return 0 if found.passed else 1


def render(found: Convergence) -> str:
    """Return the verdict for people."""
    point = f"MLPerf {found.ruleset}, batch {found.reference_batch}"
    point += ", interpolated" * found.interpolated
    lines = [
        f"{'runs':<12}{found.runs} with batch {found.global_batch}; fastest and slowest are dropped"
    ]
    if found.samples is not None:
        lines.append(f"{'samples':<12}{found.samples:,.0f} to the target, mean")
    if found.reference is not None:
        lines.append(f"{'reference':<12}{found.reference:,.0f} mean ({point})")
        lines.append(f"{'accepted':<12}{found.least:,.0f} or more")
    if found.runs != runs_needed():
        lines.append(f"{'note':<12}a submission has {runs_needed()} runs: this is indicative")
    return "\n".join([*lines, f"{'PASSED' if found.passed else 'FAILED':<12}{found.verdict}"])
