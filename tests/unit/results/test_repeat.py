# SPDX-License-Identifier: Apache-2.0
"""Repeating a run: seeds, turns, going on after a stop, and what is made of failures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bertbench.common.cli.ledger import code_now as code
from bertbench.common.cli.ledger import order
from bertbench.common.cli.main import main as cli
from bertbench.common.cli.repeat import main
from bertbench.common.cli.sweep import choose
from bertbench.common.cli.sweep import render as render_sweep
from bertbench.common.errors import BadInput
from bertbench.common.launch.subprocess_runs import Starter
from bertbench.common.results.record import sealed

ROOT = Path(__file__).parents[3]
FAKE = (sys.executable, str(Path(__file__).with_name("fake_runner.py")))
FAKES = Starter(program=FAKE, torchrun=FAKE)
RATE = "sequences_per_second"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.delenv("FAKE_BEHAVIOUR", raising=False)
    return tmp_path


def behave(monkeypatch: pytest.MonkeyPatch, **what: str) -> None:
    named = {key.removeprefix("seed"): value for key, value in what.items()}
    monkeypatch.setenv("FAKE_BEHAVIOUR", json.dumps(named))


def started(place: Path) -> list[dict[str, Any]]:
    log = place / "log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def repeat(place: Path, *own: str, flags: tuple[str, ...] = ()) -> int:
    out = ["--output_dir", str(place / "out"), "--backend", "cpu_ref"]
    return main([*own, "--", "run", "mini", *out, *flags], starter=FAKES)


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_seeds_are_consecutive_and_recorded(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert repeat(place, "6", "--json") == 0
    found = told(capsys)
    assert [run["seed"] for run in started(place)] == [42, 43, 44, 45, 46, 47] == found["seeds"]
    ledger = json.loads(Path(found["ledger"]).read_text())
    assert [run["seed"] for run in ledger["runs"]] == found["seeds"]
    assert {run["status"] for run in ledger["runs"]} == {"ok"}
    assert found["run"]["records"] == [run["record"] for run in ledger["runs"]]
    (rate,) = found["run"]["metrics"]
    assert (rate["median"], rate["n"], rate["min"], rate["max"]) == (144.5, 6, 142.0, 147.0)
    assert rate["interval"] == {"low": 142.0, "high": 147.0, "confidence": 0.96875}
    stability = found["run"]["stability"]
    assert (stability["value"], stability["reached"], stability["n"]) == (1.0, 6, 6)
    assert stability["definition"] == "runs that reached their target / runs made"


def test_progress_and_summary_for_people(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert repeat(place, "2", flags=("--seed", "7")) == 0
    text = capsys.readouterr().out
    assert [run["seed"] for run in started(place)] == [7, 8]
    assert "2 runs in new processes, seeds 7-8" in text
    assert "[1/2] run, seed 7:" in text and "[2/2] run, seed 8:" in text
    assert "about 0:00 left" in text and "stability 2/2 = 1, n = 2" in text
    assert "indicative: no interval" in text and "an interval needs 6 runs" in text


def test_what_is_complete_is_not_repeated(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert repeat(place, "2") == 0
    assert repeat(place, "4", "--json") == 0
    assert [run["seed"] for run in started(place)] == [42, 43, 44, 45]
    captured = capsys.readouterr()
    assert "2 are complete" in captured.err
    records = json.loads(captured.out[captured.out.index("{") :])["run"]["records"]
    shutil.rmtree(records[1])  # a record that is gone is made again
    assert repeat(place, "4") == 0
    assert [run["seed"] for run in started(place)][4:] == [43]
    assert repeat(place, "2", "--fresh") == 0
    assert [run["seed"] for run in started(place)][5:] == [42, 43]
    assert repeat(place, "2", flags=("--kernels", "plain")) == 0  # another command
    assert len(started(place)) == 9


def test_runs_of_another_recipe_behind_the_same_words_are_no_repeats(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert repeat(place, "1", "--json") == 0
    (record,) = told(capsys)["run"]["records"]
    file = Path(record) / "manifest.json"
    file.write_text(sealed(file.read_text().replace('"simulated": false', '"simulated": true')))
    assert repeat(place, "2", "--json") == 2
    captured = capsys.readouterr()
    assert "mixes" in captured.err and "--fresh" in captured.err
    assert repeat(place, "2", "--force") == 0
    assert repeat(place, "2", "--fresh") == 0


def test_a_record_of_another_machine_is_no_repeat(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that two machines share: the ledger has the runs of both."""
    assert repeat(place, "1", "--json") == 0
    (record,) = told(capsys)["run"]["records"]
    file = Path(record) / "manifest.json"
    file.write_text(sealed(file.read_text().replace('"system": "1x-card"', '"system": "node-b"')))
    assert repeat(place, "2") == 2
    assert "system: run mixes 1x-card, node-b" in capsys.readouterr().out
    assert repeat(place, "2", "--force") == 0


def test_stability_says_whether_there_was_a_target(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--synthetic`` stands for a run without an evaluation."""
    behave(monkeypatch, seed42="below_quality")
    assert repeat(place, "1", "--json", flags=("--synthetic",)) == 1
    assert told(capsys)["run"]["stability"]["definition"].startswith("runs that reached their")
    behave(monkeypatch)
    assert repeat(place, "1", "--fresh", "--json", flags=("--synthetic",)) == 0
    assert "(no evaluation had a target)" in told(capsys)["run"]["stability"]["definition"]


def test_a_failure_is_a_result_and_a_killed_run_is_none(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(monkeypatch, seed43="failed", seed44="kill", seed45="below_quality")
    assert repeat(place, "4") == 1
    text = capsys.readouterr().out
    assert "killed after 0:00: exit code -9: about to die" in text
    assert "stability 1/4 = 0.25, n = 4" in text
    assert "1 runs left no result: the same command repeats them" in text
    behave(monkeypatch)
    assert repeat(place, "4", "--json") == 1
    assert [run["seed"] for run in started(place)] == [42, 43, 44, 45, 44]
    found = told(capsys)["run"]
    assert found["statuses"] == {"ok": 2, "failed": 1, "below_quality": 1}
    assert found["stability"]["value"] == 0.5 and found["metrics"][0]["n"] == 3


def test_a_refusal_ends_it_at_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(monkeypatch, seed42="refuse")
    assert repeat(place, "3") == 2
    assert len(started(place)) == 1 and "no such thing" in capsys.readouterr().out
    assert repeat(place, "3", "--json") == 2
    assert told(capsys) == {"error": "no such thing", "exit_code": 2}


def test_two_runs_take_turns() -> None:
    assert order(["a", "b"], [1, 2, 3]) == [
        ("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3), ("b", 3),
    ]  # fmt: skip


def against(place: Path, *flags: str) -> str:
    return f"run mini --output_dir '{place}/out' --backend cpu_ref {' '.join(flags)}"


def test_against_compares_with_the_baseline(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--micro_batch", "2")
    assert repeat(place, "6", "--json", "--against", against(place), flags=flags) == 0
    taken = [(run["seed"], "--micro_batch" in run["words"]) for run in started(place)]
    assert taken[:5] == [(42, False), (42, True), (43, True), (43, False), (44, False)]
    rows = {row["name"]: row for row in told(capsys)["comparison"]["rows"]}
    assert rows[RATE]["p"] == 2 / 924 and rows[RATE]["verdict"] == "better"
    # The other way round it is a regression; each command has its own ledger.
    assert repeat(place, "6", "--against", against(place, *flags)) == 1
    assert len(started(place)) == 24
    assert "  regression" in capsys.readouterr().out


def test_what_is_not_the_same_stops_after_one_pair(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--learning_rate", "0.5")
    assert repeat(place, "3", "--against", against(place), flags=flags) == 2
    assert len(started(place)) == 2
    assert "recipe: 0123456789abcdef against eeeeeeeeeeeeeeee" in capsys.readouterr().out
    assert repeat(place, "3", "--force", "--against", against(place), flags=flags) == 0
    assert len(started(place)) == 6 and "NOT THE SAME BENCHMARK" in capsys.readouterr().out


def test_several_devices_go_through_torchrun(place: Path) -> None:
    assert repeat(place, "1", "--devices", "2") == 0
    assert [run["world"] for run in started(place)] == [2]


def test_ctrl_c_stops_the_run_in_order_and_the_command_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(monkeypatch, seed43="hang")

    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while not (place / "log.hanging").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code = repeat(place, "3")
    thread.join()
    assert code == 130 and "stopped: the same command continues" in capsys.readouterr().out
    assert [run["seed"] for run in started(place)] == [42, 43]
    behave(monkeypatch)
    assert repeat(place, "3") == 0
    assert [run["seed"] for run in started(place)] == [42, 43, 43, 44]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["2"], "give the run after --"),
        (["2", "--", "train", "mini"], "give the run after --"),
        (["0", "--", "run", "mini"], "whole numbers from 1"),
        (["x", "--", "run", "mini"], "invalid int value"),
        (["2", "--", "run", "nonsense"], "unknown recipe"),
        (["2", "--", "run", "mini", "--resume", "last"], "--resume is of a single run"),
        (["2", "--", "run", "mini", "--dry_run"], "--dry_run is of a single run"),
        (["2", "--against", "run 'mini", "--", "run", "mini"], "No closing quotation"),
        (["2", "--against", "mini", "--", "run", "mini"], "give the run"),
    ],
)
def test_what_cannot_be_repeated_is_refused(args: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        main(args, starter=FAKES)


def test_a_broken_ledger_is_refused_with_the_fix(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert repeat(place, "1", "--json") == 0
    ledger = Path(told(capsys)["ledger"])
    run = json.loads(ledger.read_text())["runs"][0]
    wrong = [
        "{", "[]", '{"runs": [{}]}', '{"runs": [{"side": [], "seed": 1}]}', "[" * 100_000, "null",
        '{"runs": null}', '{"runs": {"a": 1}}', '{"runs": [7]}', '{"runs": [[["side", "run"]]]}',
        *(
            json.dumps({"runs": [run | {key: value}]})
            for key, value in (
                ("seed", "42"), ("seed", True), ("seed", None), ("seed", 42.0), ("record", 1),
                ("record", {}), ("status", ["ok"]), ("status", None), ("side", 0),
            )
        ),
    ]  # fmt: skip
    for content in wrong:
        ledger.write_text(content)
        with pytest.raises(BadInput, match="or use --fresh"):
            repeat(place, "1")
    ledger.unlink()
    os.mkfifo(ledger)
    with pytest.raises(BadInput, match="not a plain file"):
        repeat(place, "1")
    assert repeat(place, "1", "--fresh") == 0


@pytest.mark.parametrize("part", ["commit", "code_hash"])
def test_a_group_is_of_one_code(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    assert repeat(place, "2") == 0
    before = code()
    monkeypatch.setattr("bertbench.common.cli.ledger.code_now", lambda: before | {part: "f" * 40})
    assert repeat(place, "3", "--json") == 2
    captured = capsys.readouterr()
    assert f"and the code is now {'f' * 16 if part == 'code_hash' else ''}" in captured.err
    assert "--fresh" in captured.err and len(started(place)) == 2
    assert repeat(place, "3", "--force") == 0 and len(started(place)) == 3
    assert repeat(place, "2", "--fresh") == 0 and len(started(place)) == 5
    assert repeat(place, "3") == 0 and len(started(place)) == 6


def test_code_that_changes_between_two_runs_stops_the_group(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = iter("aab")
    monkeypatch.setattr("bertbench.common.cli.ledger.code_now", lambda: {"code_hash": next(codes)})
    assert repeat(place, "3") == 2
    assert "ran on code a of" in capsys.readouterr().out and len(started(place)) == 1


def test_a_command_that_is_at_work_is_not_started_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(monkeypatch, seed42="hang")
    words = ["2", "--", "run", "mini", "--output_dir", str(place / "out"), "--backend", "cpu_ref"]
    code = (
        "import sys; from bertbench.common.cli.repeat import main; from tests.unit.results."
        "test_repeat import FAKES; sys.exit(main(sys.argv[1:], starter=FAKES))"
    )
    first = subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (place / "log.hanging").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for fresh in ([], ["--fresh"], ["--force"]):
        with pytest.raises(BadInput, match="at work already"):
            main([*fresh, *words], starter=FAKES)
    first.terminate()
    assert first.wait(60) == 130 and len(started(place)) == 1
    behave(monkeypatch)
    assert repeat(place, "2") == 0 and len(started(place)) == 3


def test_a_crash_stays_in_the_summary(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(monkeypatch, seed43="kill")
    assert repeat(place, "2") == 1
    behave(monkeypatch)
    assert repeat(place, "2") == 0
    assert "1 runs crashed so far: seed 43" in capsys.readouterr().out.split("[2/2]")[-1]
    assert repeat(place, "2", "--json") == 0
    assert told(capsys)["run"]["crashed"] == [43]


def test_help_and_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli(["repeat", "--help"])
    assert "consecutive seeds" in capsys.readouterr().out
    assert cli(["repeat", "3"]) == 2


def test_the_real_command_refuses_through_a_real_process(tmp_path: Path) -> None:
    """What the fake stands in for: the program is started, and its reason is told."""
    done = subprocess.run(
        [sys.executable, "-m", "bertbench", "repeat", "2", "--", "run", "mini",
         "--backend", "cpu_ref", "--global_batch", "5", "--micro_batch", "3",
         "--synthetic", "--output_dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "--micro_batch 3 does not divide" in done.stdout


def sweep(place: Path, *own: str, flags: tuple[str, ...] = ()) -> int:
    return repeat(place, *own, "--sweep", "micro_batch=4,8", flags=flags)


def test_a_sweep_runs_each_value_and_names_the_best(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(place, "6", "--sweep", "kernels=plain,native", "--json") == 0
    found = told(capsys)
    values = [row["values"] for row in found["sweep"]]
    assert values == [
        {"kernels": k, "micro_batch": m} for k in ("plain", "native") for m in ("4", "8")
    ]
    assert [run["seed"] for run in started(place)] == [42, 43, 44, 45, 46, 47] * 4
    words = ["--kernels", "plain", "--micro_batch", "8", "--seed", "42", "--json"]
    assert started(place)[6]["words"][-7:] == words
    assert (found["best"], found["best_by"]) == (values[0], RATE)
    assert len({row["ledger"] for row in found["sweep"]}) == 4
    assert sweep(place, "6") == 0
    text = capsys.readouterr().out
    assert "value 2 of 2: micro_batch=8" in text
    assert "micro_batch=4  6/6      289 (284 to 294, 96.9%)" in text
    assert "best by sequences_per_second: micro_batch=4, 289 (284 to 294, 96.9%); not shown" in text


def test_a_sweep_goes_on_where_it_stopped(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(place, "1") == 0
    assert sweep(place, "2") == 0
    assert [run["seed"] for run in started(place)] == [42, 42, 43, 43]
    assert repeat(place, "2", flags=("--micro_batch", "8")) == 0  # the same words: the same runs
    assert len(started(place)) == 4
    behave(monkeypatch, seed42="refuse")
    capsys.readouterr()
    with pytest.raises(BadInput, match="micro_batch=4: no such thing"):
        sweep(place, "1", "--fresh")
    assert len(started(place)) == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("micro_batch", "NAME=VALUE"),
        ("micro_batch=4,4", "different values"),
        ("micro_batch=4,,8", "different values"),
        ("micro_batch=8,5", "micro_batch=5: --micro_batch 5 does not divide"),
        ("micro_batch=8,0", "micro_batch=0: --micro_batch is 0"),
        ("no_such_flag=1,2", "no_such_flag=1: unknown flag"),
        ("seed=1,2", "repeat counts seeds"),
        ("output_dir=a,b", "it changes no run"),
        ("micro_batch=4,04", "micro_batch=4 and micro_batch=04 are the same run"),
        ("micro_batch=4, 4", "different values"),
    ],
)
def test_a_sweep_is_checked_before_its_first_run(place: Path, text: str, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        repeat(place, "1", "--sweep", text)
    assert started(place) == []


def test_a_sweep_is_no_comparison_of_two(place: Path) -> None:
    with pytest.raises(BadInput, match="leave --against out"):
        sweep(place, "1", "--against", "run mini --kernels plain")


def test_quiet_leaves_the_result_and_the_errors(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert repeat(place, "2", "--quiet") == 0
    text = capsys.readouterr().out
    assert "seed 42:" not in text and "stability 2/2" in text
    behave(monkeypatch, seed42="refuse")
    assert repeat(place, "1", "--quiet", "--fresh") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "no such thing" in captured.err
    with pytest.raises(BadInput, match="not allowed with"):
        repeat(place, "1", "--quiet", "--verbose")


def row(value: str, reached: int, rate: float, time_s: float) -> dict[str, Any]:
    metrics = [
        {"name": name, "median": number, "interval": None}
        for name, number in ((RATE, rate), ("time_to_target_s", time_s))
    ]
    stability = {"value": reached / 6, "reached": reached, "n": 6}
    return {"values": {"learning_rate": value}, "stability": stability, "metrics": metrics}


def test_a_value_whose_runs_fail_is_not_the_best() -> None:
    rows = [row("1e-4", 6, 100.0, 50.0), row("1e-3", 6, 90.0, 40.0), row("1.0", 0, 101.0, 0.0)]
    best, metric = choose(rows)
    assert (best, metric) == (rows[1], "time_to_target_s")
    text = render_sweep(rows, best, metric)
    assert "left out, since fewer of their runs ended well: learning_rate=1.0" in text
    steady = [row("1", 5, 100.0, 50.0), row("2", 5, 110.0, 60.0), row("3", 1, 200.0, 1.0)]
    assert choose(steady) == (steady[1], RATE)
