# SPDX-License-Identifier: Apache-2.0
"""Keep the report's table of inference, of records that are too large for the repository.

    python tools/inference_table.py sparse_int8 --json results/peers/inference/models.json

An accuracy test's log of dev-v1.1 has 31 MB for each model. The file gets the table's rows as
``bertbench report`` shows them, the machine, and the records' ids; tools/readme_results.py puts
them into the page. Exit codes: 0; 2, refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertbench.common.errors import BadInput, BertbenchError
from bertbench.common.report import markdown
from bertbench.common.report.page import Report
from bertbench.common.results.store import load_results

TABLE = "inference-measured"


def gather(folder: Path) -> dict[str, Any]:
    """Return the table of the records below ``folder``; raise BadInput where there is none."""
    results, damaged = load_results([folder], references=False)
    if damaged:
        raise BadInput(f"{folder}: {len(damaged)} damaged records: see bertbench validate")
    tables = [t for s in Report(results, damaged).sections for t in s.tables if t.id == TABLE]
    if not tables:
        raise BadInput(f"{folder}: no record of bertbench infer below it")
    used = [r for r in results if r.exported]
    systems = {json.dumps(environment(r.system), sort_keys=True) for r in used}
    if len(systems) != 1:
        raise BadInput(f"{folder}: records of {len(systems)} machines: gather those of one")
    return {
        "environment": json.loads(systems.pop()),
        "code": sorted({r.code_hash for r in used}),
        "runs": [r.run_id for r in used],
        "lines": markdown.rows(tables[0], links=False),
    }


def environment(system: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the figures depend on of a record's system.json."""
    software = system.get("software", {})
    names = ("torch", "onnxruntime", "openvino", "mlcommons-loadgen")
    known = {name: software.get(name) for name in names}
    return {"processor": system.get("cpu"), "threads": system.get("threads"), **known}


def show(content: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    return "\n".join(content["lines"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what scripts/run_sparse_int8.sh has written")
    parser.add_argument("--json", type=Path, help="write it here")
    given = parser.parse_args()
    try:
        content = gather(given.folder)
    except BertbenchError as error:
        print(f"inference_table: {error}", file=sys.stderr)
        return 2
    print(show(content))
    if given.json is not None:
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
