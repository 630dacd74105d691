# SPDX-License-Identifier: Apache-2.0
"""``bertbench export-mlperf``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bertbench.common.cli.verbs import parser
from bertbench.common.exchange.export_checks import refuse
from bertbench.common.exchange.export_mlperf import FIXED, export
from bertbench.common.exchange.export_system import FIELDS, read_info
from bertbench.common.files import shown
from bertbench.common.mlperf.compliance import RULESETS
from bertbench.common.results.store import load_results


def main(argv: Sequence[str] | None = None) -> int:
    """Write the submission; raises BadInput for damaged records."""
    verb = parser(
        "export-mlperf",
        usage="bertbench export-mlperf RUN... --out DIR --org ORG [--ruleset N.N] "
        "[--system_info FILE] [--FIELD TEXT ...]",
    )
    verb.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of them")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="writes DIR/ORG")
    verb.add_argument("--org", required=True, help="the submitting organisation")
    verb.add_argument(
        "--ruleset", metavar="N.N", help=f"MLPerf round: {', '.join(RULESETS)}; default: the runs'"
    )
    verb.add_argument(
        "--system_info", type=Path, metavar="FILE", help="JSON file with the fields below"
    )
    about = verb.add_argument_group("the system", "these override --system_info")
    for name, meaning in FIELDS.items():
        if name not in FIXED:
            about.add_argument(f"--{name}", dest=name, metavar="TEXT", help=meaning)
    given = verb.parse_args(argv)
    system = read_info(given.system_info) if given.system_info else {}
    system |= {name: value for name in FIELDS if (value := vars(given).get(name)) is not None}
    results, damaged = load_results(given.runs, references=False)
    refuse("damaged records", [f"{d.path}: {d.problem}" for d in damaged])
    tree, notes = export(results, given.out, given.org, fields=system, ruleset=given.ruleset)
    if given.json:
        print(json.dumps({"tree": str(tree), "runs": len(results), "notes": notes}))
    else:
        for note in notes:
            print(f"note: {shown(note, 400)}")
        print(f"wrote {shown(tree, 4096)}: the package checker found no errors")
    return 0
