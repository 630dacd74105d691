# SPDX-License-Identifier: Apache-2.0
"""Records and checkpoints that commit c52bbaa wrote, before the modules moved, are read today."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bertbench.common.cli.main import main
from bertbench.common.results.store import load_results
from bertbench.common.results.validate import validate

FIXTURES = Path(__file__).parents[1] / "fixtures" / "before_rooms"
RECORDS = FIXTURES / "before"
BENCHMARKS = ("bert_pretraining", "bert_squad")


def record(benchmark: str) -> Path:
    (found,) = (RECORDS / benchmark).iterdir()
    return found


def reported(run: Path, step: int) -> float:
    """The loss of a reported step."""
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    (loss,) = (e["loss"] for e in lines if e["kind"] == "step" and e["step"] == step)
    return float(loss)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_record_of_before_is_valid(benchmark: str) -> None:
    problems = validate(record(benchmark))
    assert not [p for p in problems if p.severity == "error"]


def test_records_of_before_are_compared_and_reported(tmp_path: Path) -> None:
    results, damaged = load_results([RECORDS], references=False)
    assert len(results) == 2 and not damaged
    assert main(["report", str(RECORDS), "--out", str(tmp_path), "--no-references"]) == 0
    page = (tmp_path / "report.md").read_text()
    assert "mini" in page and "squad" in page
    same = str(record("bert_pretraining"))
    assert main(["compare", same, same, "--metric", "sequences_per_second"]) == 0


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_checkpoint_of_before_goes_on(
    benchmark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 5 and 6 from the checkpoint of step 4 have the loss that the whole run had."""
    old = record(benchmark)
    copy = tmp_path / old.name
    shutil.copytree(old, copy)
    for name in ("vocab.txt", "train.json", "dev.json"):
        shutil.copy(FIXTURES / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    command = json.loads((old / "manifest.json").read_text())["command"]
    assert main([*command, "--resume", str(copy), "--output_dir", "new"]) in (0, 1)
    (run,) = (tmp_path / "new").glob(f"*/{benchmark}/*")
    assert reported(run, 6) == pytest.approx(reported(old, 6), rel=1e-4)
    assert not [p for p in validate(run) if p.severity == "error"]
