# SPDX-License-Identifier: Apache-2.0
"""README's tables of results, from the records in results/: nobody types them.

python tools/readme_results.py           # writes them
python tools/readme_results.py --check   # 1 if they are not what the records say
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.results.report import twin
from common.results.report.page import Report
from common.results.store import load_results

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- results: written by tools/readme_results.py -->", "<!-- end of results -->"
TABLES = ("configurations", "scaling-table")


def made(results: Path) -> str:
    """The tables of what was measured, as the report's Markdown has them, without its links."""
    report = Report(*load_results([results], references=False))
    found = [t for s in report.sections for t in s.tables if t.id in TABLES and not s.simulated]
    return "\n\n".join("\n".join((t.intro, "", *twin.rows(t, links=False))) for t in found)


def written(readme: str, tables: str) -> str:
    """``readme`` with ``tables`` between its two marks."""
    head, rest = readme.split(BEGIN)
    return f"{head}{BEGIN}\n{tables}\n{END}{rest.split(END)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = written(old, made(ROOT / "results"))
    if given.check:
        if old != new:
            print("README.md: its results are not those of results/: run tools/readme_results.py")
        return int(old != new)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
