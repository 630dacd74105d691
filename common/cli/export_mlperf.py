# SPDX-License-Identifier: Apache-2.0
"""``bertbench export-mlperf``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bertbench.common.config.parser import Parser
from bertbench.common.errors import BadInput
from bertbench.common.exchange.export_checks import several
from bertbench.common.exchange.export_mlperf import FIXED, export
from bertbench.common.exchange.export_system import FIELDS, read_info
from bertbench.common.mlperf.compliance import RULESETS
from bertbench.common.results.store import load_results


def main(argv: Sequence[str] | None = None) -> int:
    """The verb: 0 exported; refusals are raised as BadInput with the fix."""
    parser = Parser(
        "export-mlperf",
        "Write runs as an MLPerf submission that the official package checker accepts.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of them")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where: DIR/ORG")
    parser.add_argument("--org", required=True, help="the organisation that submits")
    parser.add_argument("--ruleset", help=f"MLPerf round: {', '.join(RULESETS)} (the records')")
    parser.add_argument("--system_info", type=Path, metavar="FILE", help="fields below, as JSON")
    about = parser.add_argument_group("about the system", "instead of, or in, --system_info")
    for name, meaning in FIELDS.items():
        if name not in FIXED:
            about.add_argument(f"--{name}", dest=name, metavar="TEXT", help=meaning)
    given = parser.parse_args(argv)
    told = read_info(given.system_info) if given.system_info else {}
    told |= {name: value for name in FIELDS if (value := vars(given).get(name)) is not None}
    results, damaged = load_results(given.runs, references=False)
    if damaged:
        raise BadInput(several("damaged records", [f"{d.path}: {d.problem}" for d in damaged]))
    tree, notes = export(results, given.out, given.org, fields=told, ruleset=given.ruleset)
    if given.json:
        print(json.dumps({"tree": str(tree), "runs": len(results), "notes": notes}))
    else:
        for note in notes:
            print(f"note: {note}")
        print(f"wrote {tree}: the package checker found no errors")
    return 0
