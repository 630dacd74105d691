# SPDX-License-Identifier: Apache-2.0
"""MLPerf's convergence check: its verdicts, its numbers, and what has no reference points."""

from __future__ import annotations

import json
import logging
import tarfile
from pathlib import Path

import pytest

from bertbench.common.cli.main import main
from bertbench.common.cli.rcp import main as rcp_main
from bertbench.common.cli.rcp import render
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.exchange import rcp
from bertbench.common.exchange.rcp import check_convergence
from tests.unit.results.mlperf_runs import make

ARCHIVE = Path(__file__).parents[4] / "shared" / "data" / "mlperf_logs" / "bert-logs.tar.xz"
MEAN_448, LEAST_448 = 2_414_421.33, 2_274_732.03
"""Of rounds 4.1 and 5.0 at batch 448: olympic mean of the reference's runs, smallest accepted."""


def logs(root: Path, *steps: int, **changed: object) -> list[Path]:
    values = {"batch": 448, "division": "closed"} | changed
    return [
        make(root, seed=seed, steps=count, **values) / "result_0.txt"  # type: ignore[arg-type]
        for seed, count in enumerate(steps)
    ]


def test_slower_than_the_reference_passes(tmp_path: Path) -> None:
    before = logging.getLogger().level, list(logging.getLogger().handlers)
    found = check_convergence(logs(tmp_path, 5000, *[5600] * 8, 9000), "5.0.0")
    assert found.passed and found.verdict == "no faster than the reference"
    assert found.samples == 5600 * 448  # fastest and slowest dropped
    assert found.reference == pytest.approx(MEAN_448)
    assert found.least == pytest.approx(LEAST_448)
    assert (found.global_batch, found.reference_batch, found.factor) == (448, 448, 1.0)
    assert "2,508,800 to the target" in render(found) and "indicative" not in render(found)
    # Whoever logs in this process does so as before.
    assert before == (logging.getLogger().level, list(logging.getLogger().handlers))


def test_a_little_faster_is_scaled(tmp_path: Path) -> None:
    found = check_convergence(logs(tmp_path, *[5250] * 10), "5.0.0")
    assert found.passed
    assert found.factor == pytest.approx(MEAN_448 / (5250 * 448))
    assert "MLPerf counts the time x 1.0265" in render(found)


def test_too_fast_fails(tmp_path: Path) -> None:
    found = check_convergence(logs(tmp_path, *[5000] * 4), "5.0.0")
    assert not found.passed and found.factor == 1.0
    assert "the task differs" in found.verdict
    assert "a submission has 10 runs: this is indicative" in render(found)


def test_between_two_reference_points(tmp_path: Path) -> None:
    found = check_convergence(logs(tmp_path, *[4000] * 3, batch=768), "5.0.0")
    assert found.passed and found.interpolated
    assert found.reference == pytest.approx(2_443_934, abs=1)
    assert found.least == pytest.approx(2_306_738, abs=1)


def test_batch_sizes_beyond_the_reference(tmp_path: Path) -> None:
    small = check_convergence(logs(tmp_path / "s", *[20000] * 3, batch=224), "5.0.0")
    assert small.passed and (small.global_batch, small.reference_batch) == (224, 448)
    large = check_convergence(logs(tmp_path / "l", *[100] * 3, batch=65536), "5.0.0")
    assert not large.passed and "no reference point for this batch size" in large.verdict
    assert large.reference is None and "reference   " not in render(large)
    mixed = logs(tmp_path / "m", 5600, 5600) + logs(tmp_path / "n", 5600, batch=256)
    with pytest.raises(BadInput, match="must have one batch size"):
        check_convergence(mixed, "5.0.0")


def test_runs_that_missed_the_target(tmp_path: Path) -> None:
    missed = logs(tmp_path, 5600, 5600, value=0.7)
    found = check_convergence(missed + logs(tmp_path / "more", 5600, 5600), "5.0.0")
    assert not found.passed and found.verdict.startswith("more than one run missed the target")


def test_records_and_exit_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rcp, "check_sound", lambda runs: None)  # tested with the export
    logs(tmp_path / "good", 5600, 5600, 5600)
    logs(tmp_path / "fast", 4000, 4000, 4000)
    assert main(["rcp", str(tmp_path / "good"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ruleset"] == "5.0.0"
    assert main(["rcp", str(tmp_path / "fast")]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_records_are_checked_first(tmp_path: Path) -> None:
    logs(tmp_path, 5600, status="failed")
    with pytest.raises(BadInput, match="run them again"):
        rcp_main([str(tmp_path)])


def test_mini_has_no_reference_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (log,) = logs(tmp_path, 10, division="open")
    assert main(["rcp", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "MLPerf has no reference convergence points for the recipe toy" in told
    with pytest.raises(Unsupported, match=r"no reference convergence points.*division open"):
        check_convergence([log] * 3, "5.0.0")


def test_refusals(tmp_path: Path) -> None:
    few = logs(tmp_path, 5600, 5600)
    with pytest.raises(BadInput, match="2 runs are too few"):
        check_convergence(few, "5.0.0")
    with pytest.raises(BadInput, match=r"no reference points in round '0.7.0'"):
        check_convergence(few * 2, "0.7.0")
    with pytest.raises(BadInput, match="not both"):
        rcp_main([str(few[0]), str(few[1].parent)])
    cut = tmp_path / "cut.txt"
    cut.write_text(few[0].read_text()[:-60])
    with pytest.raises(BadInput, match=r"cut.txt: line \d+ is cut or damaged"):
        check_convergence([cut] * 3, "5.0.0")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("run_stop", None, "no run_stop"), ("global_batch_size", [448], "not a whole number")],
)
def test_logs_that_nothing_can_be_said_of(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    (log,) = logs(tmp_path, 5600)
    lines = []
    for line in log.read_text().splitlines():
        if f'"key": "{key}"' in line:
            if value is None:
                continue
            head, _, event = line.partition("{")
            line = head + json.dumps(json.loads("{" + event) | {"value": value})
        lines.append(line)
    log.write_text("\n".join(lines) + "\n")
    with pytest.raises(BadInput, match=message):
        check_convergence([log] * 3, "5.0.0")


@pytest.mark.skipif(not ARCHIVE.exists(), reason="the real MLPerf logs are not here")
def test_real_logs_of_an_early_round(tmp_path: Path) -> None:
    folder = "v1.0/NVIDIA/results/dgxa100_ngc21.05_pytorch/bert"
    with tarfile.open(ARCHIVE) as archive:
        for member in archive.getmembers():
            if member.isfile() and member.name.startswith(folder):
                target = tmp_path / Path(member.name).name
                target.write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
    found = check_convergence(sorted(tmp_path.glob("result_*.txt")), "5.0.0")
    assert found.passed and found.runs == 10 and found.samples == 2_775_192
