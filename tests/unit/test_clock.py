# SPDX-License-Identifier: Apache-2.0
"""A wall clock that is set in the middle of a run moves its dates by nothing, and its lengths."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertbench import api
from bertbench.benchmarks.bert_squad.outputs import Outputs
from bertbench.common.measure.clock import Clock, command_began, process_began
from bertbench.common.mlperf.log import MlperfLog, read_log
from bertbench.common.results.validate import validate
from bertbench.common.training.events import Observer

HOUR = 3600.0
ROOT = Path(__file__).parents[2]


class Times:
    """A wall clock that can be set, and one that cannot."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_700_000_000.0, 50.0

    def passes(self, seconds: float, *, set_by: float = 0.0) -> None:
        self.wall += seconds + set_by
        self.steady += seconds

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.steady)


@pytest.mark.parametrize("set_by", [HOUR, -HOUR, -2.0, 10 * 365 * 24 * HOUR, -1.7e9])
def test_dates_go_on_from_the_start(set_by: float) -> None:
    times = Times()
    clock = times.clock()
    times.passes(2, set_by=set_by)
    assert clock.date() == 1_700_000_002
    assert clock.date(49.0) == 1_699_999_999
    (note,) = clock.contradictions()
    way = "forward" if set_by > 0 else "back"
    assert f"went {way} by {abs(set_by):.0f} s" in note


@pytest.mark.parametrize("set_by", [0.0, 0.9, -0.9])
def test_a_leap_second_is_no_contradiction(set_by: float) -> None:
    times = Times()
    clock = times.clock()
    times.passes(HOUR, set_by=set_by)
    assert clock.contradictions() == []


def test_the_start_of_the_process_does_not_follow_the_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = process_began()
    assert 0 < time.monotonic() - before < 24 * HOUR
    monkeypatch.setattr(time, "time", lambda: 5.0)
    assert process_began() == pytest.approx(before, abs=0.05)
    stat = tmp_path / "stat"
    for text in ("", "1 (a b", "1 (a) R x y", "1 (" + "x) " * 30):  # what no Linux writes
        stat.write_text(text)
        assert process_began(stat) <= time.monotonic()
    stat.write_text("1 (a) (b) " + " ".join(["R"] + ["1"] * 18 + ["0"]))
    lived = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert time.monotonic() - process_began(stat) == pytest.approx(lived, abs=0.05)


class SetBy:
    """``time.time`` that somebody sets by ``by``."""

    def __init__(self) -> None:
        self.by, self.real = 0.0, time.time

    def __call__(self) -> float:
        return self.real() + self.by


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> SetBy:
    made = SetBy()
    monkeypatch.setattr(time, "time", made)
    monkeypatch.setattr(time, "time_ns", lambda: int(made() * 1e9))
    return made


def log_of(path: Path, **more: object) -> MlperfLog:
    facts = {"division": "open", "org": "o", "platform": "p", "status": "onprem", "seed": 1}
    return MlperfLog(path, **(facts | {"values": {}} | more))  # type: ignore[arg-type]


def times_of(path: Path) -> list[int]:
    return [e["time_ms"] for _, e in read_log(path.read_text().splitlines()) if e is not None]


@pytest.mark.parametrize("by", [-HOUR, HOUR])
def test_an_mlperf_log_has_one_clock(tmp_path: Path, wall: SetBy, by: float) -> None:
    began, date = time.monotonic() - 3, time.time() - 3
    log = log_of(tmp_path / "log", began=began)
    log.init_start()
    wall.by = by
    log.init_stop()
    log.run_start(step=0, samples=0)
    wall.by = 0.0
    log.run_stop(step=1, samples=8, status="success")
    found = times_of(tmp_path / "log")
    assert found == sorted(found)
    assert found[0] == pytest.approx(1e3 * date, abs=100)
    assert 2_900 < found[-1] - found[0] < 4_000


@pytest.mark.parametrize(("by", "least"), [(-HOUR, 0), (HOUR, HOUR)])
def test_a_resumed_log_never_goes_back(
    tmp_path: Path, wall: SetBy, by: float, least: float
) -> None:
    before = log_of(tmp_path / "before")
    before.init_start()
    before.run_start(step=0, samples=0)
    wall.by = by
    log = log_of(tmp_path / "after", previous=tmp_path / "before")
    log.run_start(step=1, samples=8)
    log.run_stop(step=2, samples=16, status="success")
    found = times_of(tmp_path / "after")
    assert found == sorted(found)
    assert least * 1e3 <= found[-1] - found[0] < (least + 5) * 1e3
    said = [e["metadata"] for _, e in read_log((tmp_path / "after").read_text().splitlines())
            if e is not None and e["key"] == "resumed"]  # fmt: skip
    assert ("clock_set_back_ms" in said[0]) == (by < 0)


def test_dllogger_has_one_clock(tmp_path: Path, wall: SetBy) -> None:
    outputs = Outputs(
        None,  # type: ignore[arg-type]
        SimpleNamespace(run=SimpleNamespace(json_summary=None)),  # type: ignore[arg-type]
        tmp_path,
    )
    outputs._parameter(a=1)
    wall.by = -HOUR
    outputs._parameter(a=2)
    lines = [json.loads(line[5:]) for line in (tmp_path / "dllogger.json").read_text().splitlines()]
    first, second = (float(line["timestamp"]) for line in lines)
    assert first <= second < first + 60
    assert 0 <= float(lines[1]["elapsedtime"]) < 60


@pytest.mark.parametrize("by", [-HOUR, HOUR])
def test_a_run_over_a_clock_that_is_set(
    tmp_path: Path, wall: SetBy, by: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All durations stay those of the run, and its record notes what happened."""
    import bertbench.common.training.console as console

    class Sets(console.ConsoleObserver):
        def run_start(self, *, step: int, samples: int) -> None:
            wall.by = by
            super().run_start(step=step, samples=samples)

    monkeypatch.setattr("bertbench.common.run.ConsoleObserver", Sets)
    assert issubclass(Sets, Observer)
    started = time.monotonic()
    result = api.run(
        "mini", synthetic=True, max_steps=1, hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=64, vocab_size=256, max_seq_length=32,
        max_position_embeddings=32, max_predictions_per_seq=4, global_batch=2, micro_batch=2,
        num_eval_examples=4, target_mlm_accuracy=None, backend="cpu_ref", num_threads=1,
        output_dir=tmp_path / "results", skip_checkpoint=True,
    )  # fmt: skip
    took = time.monotonic() - started
    for name in ("e2e_time_s", "run_time_s", "init_s"):
        assert 0 < result.value(name) <= took, name
    record = result.path
    manifest = json.loads((record / "manifest.json").read_text())
    assert any("the wall clock went" in note for note in manifest["notes"])
    first, last = (
        datetime.strptime(manifest[k], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
        for k in ("created_utc", "finished_utc")
    )
    assert 0 <= (last - first).total_seconds() <= took + 1
    log = times_of(record / "result_0.txt")
    assert log == sorted(log) and log[-1] - log[0] <= 1e3 * took
    assert [p for p in validate(record) if p.severity != "note"] == []


@pytest.mark.parametrize(
    ("text", "began"),
    [
        ("", 100.0), ("270", 370.0), ("0", 100.0), ("400", 500.0), ("401", 500.0),
        ("999999999", 500.0), ("-3600", 100.0), ("x", 100.0), ("1e3", 100.0), ("9" * 5000, 100.0),
    ],
)  # fmt: skip
def test_the_installation_is_not_part_of_a_run(text: str, began: float) -> None:
    """The process began at 100 and it is 500: pip's seconds are left out, and nothing else."""
    environment = {"BERTBENCH_INSTALLED_S": text} if text else {}
    assert command_began(environment, lambda: 100.0, lambda: 500.0) == began


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize(
    "script", ["bert_pretraining/train_bert_pretraining_amp_dist.sh", "bert_squad/launch.sh"]
)
def test_a_script_says_how_long_it_installed(tmp_path: Path, script: str, installed: bool) -> None:
    copy = tmp_path / "benchmarks" / script
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks" / script, copy)
    (tmp_path / "init.sh").write_text("sleep 1.2")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/bash\necho "${BERTBENCH_INSTALLED_S-none}"')
    python.chmod(0o755)
    if installed:
        (tmp_path / ".venv" / ".bertbench").touch()
    done = subprocess.run(["bash", str(copy)], capture_output=True, text=True)
    assert done.stdout.strip() in (["none"] if installed else ["1", "2"]), done.stderr
