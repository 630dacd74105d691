# SPDX-License-Identifier: Apache-2.0
"""The report's tables as JSON and CSV: complete, and harmless in a spreadsheet."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bertbench.common.cli.main import main
from tests.browser.records import figures, quality, steps, write_results
from tests.unit.results.constructed import make_run


def written(root: Path) -> tuple[Path, dict[str, Any]]:
    out = root / "out"
    assert main(["report", str(root / "results"), "--out", str(out)]) == 0
    return out, {t["id"]: t for t in json.loads((out / "tables.json").read_text())["tables"]}


def read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_each_table_has_its_numbers_and_its_texts(tmp_path: Path) -> None:
    for seed, seconds in enumerate((110.0, 137.0, 153.0)):
        values = figures(800 / seconds) | {"time_to_target_s": seconds}
        make_run(tmp_path / "results", values, seed=seed, quality=quality(0.6), lines=steps(8.0))
    out, tables = written(tmp_path)
    whole = tables["configurations"]
    (row,) = whole["rows"]
    cell = row["cells"][whole["columns"].index("Time to target")]
    assert cell == {"text": "2 min 17 s", "number": 137.0, "note": "1 min 50 s to 2 min 33 s"}
    (line,) = read(out / whole["file"])
    assert line["Kind"] == row["kind"] == "measured" and float(line["Time to target"]) == 137.0
    assert line["Time to target, as shown"] == "2 min 17 s (1 min 50 s to 2 min 33 s)"
    assert line["Power, W"] == "100.0"
    plot = tables["learning-0-samples"]
    assert [len(read(out / plot["file"]))] == [len(plot["rows"])] and plot["rows"]
    assert plot["section"] == "Measured"


def test_every_table_of_the_page_is_there_and_no_text_is_a_formula(tmp_path: Path) -> None:
    write_results(tmp_path / "results")
    make_run(tmp_path / "results", status="failed", reason="=1+1", seed=50)
    out, tables = written(tmp_path)
    page = (out / "report.html").read_text()
    assert page.count('<table class="data"') == sum("kind" in t["rows"][0] for t in tables.values())
    assert {t["file"] for t in tables.values()} == {f"tables/{p.name}" for p in
                                                    (out / "tables").iterdir()}  # fmt: skip
    reasons = [line["Reason"] for line in read(out / "tables" / "failures.csv")]
    assert "'=1+1" in reasons
    told = [cell.get("text") for row in tables["failures"]["rows"] for cell in row["cells"]]
    assert "=1+1" in told
    for file in (out / "tables").iterdir():
        for line in read(file):
            for value in filter(None, line.values()):
                assert not value.startswith(("=", "@")), (file.name, value)


def test_a_report_without_prices_does_not_wait_for_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "results", figures(10.0))
    code = (
        "import sys; from bertbench.common.cli.main import main\n"
        f"assert main(['report', {str(tmp_path / 'results')!r}, '--out', {str(tmp_path)!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
