# SPDX-License-Identifier: Apache-2.0
"""``bertbench report``: one HTML file that opens offline, and the same in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bertbench.common.cli.verbs import parser
from bertbench.common.errors import BadInput
from bertbench.common.files import shown, write_atomic
from bertbench.common.results.store import load_results


def main(argv: Sequence[str]) -> int:
    """Write DIR/report.html and DIR/report.md; damaged records are listed and left out.

    Raises BadInput without records, for wrong prices, or if DIR cannot be written.
    """
    from bertbench.common.report.markdown import text
    from bertbench.common.report.page import Report, html
    from bertbench.common.report.prices import load

    verb = parser("report")
    verb.add_argument(
        "results", nargs="*", type=Path, metavar="RESULTS",
        help="run folders, or folders of them (default: results)",
    )  # fmt: skip
    verb.add_output("--out", required=True, help="writes report.html and report.md")
    verb.add_argument(
        "--price", type=Path, metavar="FILE",
        help="prices of devices, TOML or CSV: the report then has costs (results/README.md)",
    )  # fmt: skip
    verb.add_argument("--no_references", action="store_true", help="leave out published figures")
    given = verb.parse_args(argv)
    prices = [] if given.price is None else load(given.price)
    paths = given.results or [Path("results")]
    results, damaged = load_results(paths, references=not given.no_references)
    if not results and not damaged:
        raise BadInput(f"no record in {', '.join(map(shown, paths))}: name a folder of results")
    report = Report(results, damaged, prices)
    files = {"html": given.output / "report.html", "markdown": given.output / "report.md"}
    pages = {files["html"]: html(report), files["markdown"]: text(report)}
    try:
        given.output.mkdir(parents=True, exist_ok=True)
        for path, page in pages.items():
            write_atomic(path, page)
    except OSError as error:
        why = f"cannot write into {shown(given.output)}: {error.strerror}"
        raise BadInput(f"{why}. Choose another --output.") from error
    counted = {
        "runs": sum(e.made for e in report.real),
        "running": sum(len(e.results) - e.made for e in report.real + report.simulated),
        "simulated": sum(e.made for e in report.simulated),
        "published": len(report.published),
        "damaged": len(damaged),
    }
    if given.json:
        written = {kind: str(path) for kind, path in files.items()}
        problems = [{"path": str(d.path), "problem": d.problem} for d in damaged]
        print(json.dumps(written | counted | {"problems": problems}))
        return 0
    told = {what: n for what, n in counted.items() if n or what != "running"}
    print(", ".join(f"{n} {what}" for what, n in told.items()))
    for d in damaged:
        print(f"  damaged: {shown(d.path)}: {shown(d.problem, 400)}")
    for path in files.values():
        print(f"wrote {shown(path, 4096)}")
    return 0
