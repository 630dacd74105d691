# SPDX-License-Identifier: Apache-2.0
"""``bertbench export-mlperf``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bertbench.common.cli.filters import PLACE, add_filters, chosen_folders
from bertbench.common.cli.verbs import parser
from bertbench.common.errors import BadInput
from bertbench.common.exchange import export_inference
from bertbench.common.exchange.export_checks import refuse
from bertbench.common.exchange.export_mlperf import FIXED, export
from bertbench.common.exchange.export_system import FIELDS, INFERENCE_FIELDS, read_info
from bertbench.common.files import shown
from bertbench.common.mlperf.compliance import RULESETS
from bertbench.common.results.store import load_results


def main(argv: Sequence[str] | None = None) -> int:
    """Write the submission; raises BadInput for damaged records."""
    verb = parser(
        "export-mlperf",
        usage="bertbench export-mlperf [RUN...] --output DIR --org ORG [--ruleset N.N] "
        "[--division DIVISION] [--system_info FILE] [--FIELD TEXT ...]",
    )
    verb.add_argument(
        "runs", nargs="*", type=Path, help=f"run folders, or folders of them (default: {PLACE})"
    )
    verb.add_output("--out", required=True, help="writes DIR/ORG; of inference DIR/DIVISION/ORG")
    verb.add_argument("--org", required=True, help="the submitting organisation")
    verb.add_argument(
        "--ruleset", metavar="N.N", help=f"MLPerf round: {', '.join(RULESETS)}; default: the runs'"
    )
    verb.add_argument("--division", choices=("closed", "open"), help="of inference; default: open")
    verb.add_argument(
        "--system_info", type=Path, metavar="FILE", help="JSON file with the fields below"
    )
    about = verb.add_argument_group("the system", "these override --system_info")
    names = {**FIELDS, **INFERENCE_FIELDS}
    for name, meaning in names.items():
        if name not in FIXED:
            about.add_argument(f"--{name}", dest=name, metavar="TEXT", help=meaning)
    add_filters(verb, without=("status",))  # --status is the system's; unfinished runs are refused
    given = verb.parse_args(argv)
    system = read_info(given.system_info) if given.system_info else {}
    chosen = {name: vars(given).get(name) for name in names if name not in FIXED}
    system |= {name: value for name, value in chosen.items() if value is not None}
    results, damaged = load_results(chosen_folders(given, given.runs), references=False)
    refuse("damaged records", [f"{d.path}: {d.problem}" for d in damaged])
    if any(result.exported for result in results):
        if given.ruleset is not None:
            raise BadInput(f"--ruleset is training's; inference: round {export_inference.ROUND}")
        tree, notes = export_inference.export(
            results, given.output, given.org, division=given.division or "open", fields=system
        )
        checked = f"MLPerf Inference {export_inference.ROUND}, checked by its rules"
    else:
        if given.division is not None:
            raise BadInput("--division is inference's: training runs have theirs in their logs")
        tree, notes = export(results, given.output, given.org, fields=system, ruleset=given.ruleset)
        checked = "the package checker found no errors"
    if given.json:
        print(json.dumps({"tree": str(tree), "runs": len(results), "notes": notes}))
    else:
        for note in notes:
            print(f"note: {shown(note, 400)}")
        print(f"wrote {shown(tree, 4096)}: {checked}")
    return 0
