# SPDX-License-Identifier: Apache-2.0
"""What ``validate`` finds beyond a record's own parts: the manifest's bytes, warm-up, repeats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bertbench.common.cli.validate import main
from bertbench.common.measure.metric import Metric, metric
from bertbench.common.results.seals import sealed
from bertbench.common.results.store import load_results
from bertbench.common.results.validate import validate
from tests.unit.test_record import create, errors, forge, run


def told(path: Path) -> str:
    return "\n".join(f"{p.severity}: {p.file}: {p.text}" for p in validate(path))


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "steps.jsonl", "result_0.txt"])
def test_a_changed_byte_is_found_in_every_file(tmp_path: Path, name: str) -> None:
    path = run(tmp_path)
    path.chmod(0o755)
    file = path / name
    file.chmod(0o644)
    content = file.read_bytes()
    place = content.index(b'"r"') + 1 if name == "manifest.json" else content.index(b":") + 1
    for byte in (b"x", b"\t" if name != "manifest.json" else b"q"):
        file.write_bytes(content[:place] + byte + content[place + 1 :])
        assert any(text.startswith(f"{name}: differs from its checksum") for text in errors(path))
    file.write_bytes(content)
    assert errors(path) == []


def test_a_checksum_of_itself() -> None:
    text = json.dumps({"checksum": "f" * 64, "other": {"checksum": "a" * 64}})
    right = sealed(text)
    assert right != text and sealed(right) == right
    assert '"other": {"checksum": "' + "a" * 64 in right
    assert sealed('{"a": 1}') == '{"a": 1}'


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("checksum") and None,
        lambda m: m.update(checksum=None),
        lambda m: m.update(checksum=m["checksum"].upper()),
        lambda m: m.update(checksum=None, files=None),
        lambda m: m.update(files=None),
        lambda m: m.update(files={}),
        lambda m: m["files"].pop("steps.jsonl") and None,
    ],
)
def test_a_finished_run_without_checksums_is_no_result(
    tmp_path: Path, change: Callable[[Any], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tmp_path, metrics=(metric("power_w", 12.5),))
    forge(path, "manifest.json", change)
    forge(path, "manifest.json", lambda m: m["metrics"][-1].update(value=1250.0))
    assert errors(path)
    results, (damaged,) = load_results([path], references=False)
    assert not results and damaged.problem


def test_an_unfinished_record_has_none(tmp_path: Path) -> None:
    record = create(tmp_path)
    assert json.loads((record.path / "manifest.json").read_text())["checksum"] is None
    assert errors(record.path) == []


def share(name: str, value: float) -> Metric:
    return replace(metric("mfu", value), name=name)


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        (share("mfu", 1.01), "error: manifest.json: mfu is 1.01: above 1 is impossible"),
        (share("mfu_of_165_tflops", 2.0), "error: manifest.json: mfu_of_165_tflops is 2.0: above"),
        (share("mfu_calibrated", 1.2), "note: manifest.json: mfu_calibrated is 1.2: calibrate on"),
        (metric("model_flops_per_second", 0.0), "error: manifest.json: model_flops_per_second is"),
    ],
)
def test_impossible_rates(tmp_path: Path, extra: Metric, wanted: str) -> None:
    assert wanted in told(run(tmp_path / "a", metrics=(extra,)))
    good = replace(extra, value=0.5)
    assert "mfu" not in told(run(tmp_path / "b", metrics=(good,)))


def windows(first_s: float) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """The run's two windows as five, of which the first takes ``first_s``."""

    def change(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        step = lines[1]
        made = []
        for number in range(5):
            seconds = first_s if number == 0 else 1.0
            rates = {"sequences_per_second": 16 / seconds, "real_tokens_per_second": 99 / seconds}
            made.append(
                step | rates | {"padded_tokens_per_second": 99 / seconds, "window_s": seconds}
                | {"step": 2 * number + 2, "samples": 16 * number + 16, "window_steps": 2,
                   "time_s": 3.0 + number}
            )  # fmt: skip
        return [lines[0], *made, *lines[3:]]

    return change


def test_a_slow_first_window_is_told(tmp_path: Path) -> None:
    slow, steady = run(tmp_path / "a"), run(tmp_path / "b")
    forge(slow, "steps.jsonl", windows(2.0))
    forge(steady, "steps.jsonl", windows(1.01))
    rate = 80 / 6  # sequences over the windows' seconds
    forge(slow, "manifest.json", lambda m: m["metrics"][0].update(value=rate))
    assert errors(slow) == errors(steady) == []
    assert "first window of the rates was the slowest: without it they are 20.0% higher" in told(
        slow
    )
    assert "first window" not in told(steady)


def test_repeats_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run(tmp_path / str(number)) for number in range(6)]
    run(tmp_path / "0", value=0.1, status="below_quality")
    forge(runs[5], "manifest.json", lambda m: m.update(code_hash="0" * 16))
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (six,) = [line for line in lines if line.startswith("6 runs of toy on test-1x")]
    assert "5 ok" in six and "indicative" not in six and "only 1 different seed" in six
    (one,) = [line for line in lines if line.startswith("1 run of toy")]
    assert "indicative; an interval needs 6" in one
    assert main([str(tmp_path), "--json"]) == 0
    counts = [entry["repeats"] for entry in json.loads(capsys.readouterr().out)]
    assert sorted(counts) == [1, 6, 6, 6, 6, 6, 6]


def test_copies_under_other_names_are_one_repeat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tmp_path)
    for number in range(5):
        copy = first.with_name(f"20260102T00000{number}Z_abcdefa_00000{number}")
        shutil.copytree(first, copy)
        change = {"run_id": copy.name, "finished_utc": "2026-01-02T00:00:00Z"}
        forge(copy, "manifest.json", lambda m, change=change: m.update(change))
    main([str(tmp_path), "--json"])
    counts = [entry["repeats"] for entry in json.loads(capsys.readouterr().out)]
    assert sorted(counts) == [0, 0, 0, 0, 0, 1]
    main([str(tmp_path)])
    assert "1 run of toy" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["steps", "metrics", "seed", "samples", "extras", "notes"])
@pytest.mark.parametrize("value", [10**300, [[[[]]]], {"a": {}}, "x\n/run: valid"])
def test_hostile_values_are_findings(
    tmp_path: Path, key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tmp_path, mlperf=None)
    if key == "steps":
        forge(path, "steps.jsonl", lambda lines: [*lines[:1], {**lines[1], "loss": value}])
    else:
        forge(path, "manifest.json", lambda m: m.update({key: value}))
    assert main([str(path)]) in (0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert not any(line.startswith("/run: valid") or not line.isprintable() for line in lines)


def test_runs_with_other_kernels_are_not_repeats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, attention in enumerate(("fused", "fused", "plain")):
        path = run(tmp_path / str(number))
        kernels = {"attention": attention}
        forge(path, "manifest.json", lambda m, k=kernels: m["extras"].update(kernels=k))
    assert main([str(tmp_path), "--json"]) == 0
    counts = [entry["repeats"] for entry in json.loads(capsys.readouterr().out)]
    assert sorted(counts) == [1, 2, 2]
