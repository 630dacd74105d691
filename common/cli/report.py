# SPDX-License-Identifier: Apache-2.0
"""``bertbench report``: one HTML file that opens offline; the same in Markdown, JSON and CSV."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bertbench.common.cli.filters import PLACE, add_filters, filters_of
from bertbench.common.cli.verbs import parser
from bertbench.common.errors import BadInput
from bertbench.common.files import shown, write_atomic
from bertbench.common.results.store import load_results


def main(argv: Sequence[str]) -> int:
    """Write DIR/report.html, report.md and the tables; damaged records are listed and left out.

    Raises BadInput without records, for wrong prices, or if DIR cannot be written.
    """
    from bertbench.common.report.markdown import text
    from bertbench.common.report.page import Report, html
    from bertbench.common.report.prices import load
    from bertbench.common.report.table_files import INDEX, table_files

    verb = parser("report")
    verb.add_argument(
        "results", nargs="*", type=Path, metavar="RESULTS",
        help=f"run folders, or folders of them (default: {PLACE})",
    )  # fmt: skip
    verb.add_output(
        "--out", required=True, help="writes report.html, report.md, tables.json and tables/*.csv"
    )
    verb.add_argument(
        "--price", type=Path, metavar="FILE",
        help="prices of devices, TOML or CSV: the report then has costs (results/README.md)",
    )  # fmt: skip
    verb.add_argument("--no_references", action="store_true", help="leave out published figures")
    add_filters(verb)
    given = verb.parse_args(argv)
    prices = [] if given.price is None else load(given.price)
    paths = given.results or [PLACE]
    results, damaged = load_results(paths, references=not given.no_references)
    if not results and not damaged:
        raise BadInput(f"no record in {', '.join(map(shown, paths))}: name a folder of results")
    runs = filters_of(given).select([r for r in results if r.kind == "run"])
    results = [*runs, *(r for r in results if r.kind != "run")]
    report = Report(results, damaged, prices)
    files = {
        "html": given.output / "report.html", "markdown": given.output / "report.md",
        "tables": given.output / INDEX,
    }  # fmt: skip
    pages = {"report.html": html(report), "report.md": text(report), **table_files(report)}
    _write(given.output, pages)
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


def _write(out: Path, pages: Mapping[str, str]) -> None:
    try:
        for name, page in pages.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out / name, page)
    except OSError as error:
        why = f"cannot write into {shown(out)}: {error.strerror}"
        raise BadInput(f"{why}. Choose another --output.") from error
