# SPDX-License-Identifier: Apache-2.0
"""The live view: files that grow, are cut, replaced or hostile; pipes; what it says and returns."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bertbench.common.cli import watch
from bertbench.common.cli.main import main
from bertbench.common.cli.watch import View, bars, render, sources
from bertbench.common.errors import BadInput
from bertbench.common.results import tail
from bertbench.common.results.tail import File, Pipe
from tests.unit.results.mlperf_runs import make
from tests.unit.test_record import create, step_event

ROOT = Path(__file__).parents[3]


def step(number: int, **changed: Any) -> str:
    event = {
        "kind": "step", "step": number, "samples": number * 8, "loss": 5.0 - number / 10,
        "sequences_per_second": 100.0 + number, "real_tokens_per_second": 5000.0,
        "time_s": 3.0 * number, "eta_s": 61.0,
    }  # fmt: skip
    return json.dumps(event | changed) + "\n"


def evaluation(value: float, reached: bool = False) -> str:
    event = {"kind": "eval", "metrics": {"mlm_accuracy": value}, "target_metric": "mlm_accuracy"}
    return json.dumps(event | {"target_value": 0.72, "reached": reached}) + "\n"


def text_of(*views: View, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(views))
    return console.file.getvalue()  # type: ignore[attr-defined]


def seen(file: Path) -> View:
    view = View(File(file))
    view.update()
    return view


# -- files ---------------------------------------------------------------------------------------


def test_a_file_is_followed_as_it_grows(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    view = seen(file)
    assert view.state == "waiting" and not view.over  # it is not there yet
    file.write_text('{"kind": "run_start", "step": 0, "samples": 0}\n' + step(1))
    view.update()
    assert (view.state, view.as_dict()["step"]) == ("running", 1)
    line = step(2)
    with file.open("a") as growing:
        growing.write(line[:30])
        growing.flush()
        view.update()
        assert view.as_dict()["step"] == 1  # half a line is none yet
        growing.write(line[30:] + evaluation(0.5))
    view.update()
    assert view.as_dict()["step"] == 2 and view.damaged == 0
    assert view.as_dict()["quality"] == {
        "metric": "mlm_accuracy", "value": 0.5, "target": 0.72, "reached": False,
    }  # fmt: skip
    said = text_of(view)
    assert "step 2" in said and "102.0 seq/s" in said and "at most 1:01 left" in said
    assert "mlm_accuracy 0.5000 of 0.72" in said and "reached" not in said


def test_lines_that_cannot_be_read_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text(step(1))
    view = seen(file)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", Mock(side_effect=PermissionError(errno.EACCES, "Denied", "f")))
        view.update()
        assert "cannot be read: f: Denied" in text_of(view)
        assert view.as_dict()["problem"] == "f: Denied" and view.ended_badly
    view.update()
    assert view.as_dict()["problem"] is None and not view.ended_badly
    with monkeypatch.context() as patch:
        patch.setattr(tail, "read_json", Mock(side_effect=OSError(errno.EMFILE, "Too many", "m")))
        view.update()
        assert "cannot be read: m: Too many" in text_of(view) and "step 1" in text_of(view)


def test_characters_cut_between_two_looks_are_whole(tmp_path: Path) -> None:
    file, line = tmp_path / "steps.jsonl", '{"kind": "step", "step": 1, "x": "\u00e9"}\n'.encode()
    file.write_bytes(line[:35])
    view = seen(file)
    with file.open("ab") as growing:
        growing.write(line[35:])
    view.update()
    assert view.damaged == 0 and view.as_dict()["step"] == 1


def test_a_file_that_was_replaced_or_cut_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text("".join(map(step, range(1, 9))))
    view = seen(file)
    other = tmp_path / "other"
    other.write_text("".join(map(step, range(1, 12))))
    other.rename(file)
    view.update()
    assert view.as_dict()["step"] == 11
    file.write_text(step(3))
    view.update()
    assert view.as_dict()["step"] == 3


@pytest.mark.parametrize(
    "line", ["{", "null", "3", "[]", '"kind"', '{"a": 1}', '{"kind": "boo"}', "\x1b[2J", "[" * 9999]
)
def test_damaged_lines_are_counted_and_passed_over(tmp_path: Path, line: str) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text(step(1) + line + "\n\n" + step(2))
    view = seen(file)
    assert view.damaged == 1 and view.as_dict()["step"] == 2
    assert "1 damaged line skipped" in text_of(view)


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5)
    | st.just(10**400) | st.just(1e308) | st.just(-1e308),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)  # fmt: skip
KEYS = st.sampled_from(
    ["kind", "step", "loss", "samples", "sequences_per_second", "metrics", "target_metric",
     "target_value", "reached", "time_s", "eta_s", "status", "real_tokens_per_second"]
)  # fmt: skip
KINDS = st.sampled_from(["run_start", "step", "eval", "checkpoint", "run_stop"])


@settings(deadline=None)
@given(st.lists(st.tuples(KINDS, st.dictionaries(KEYS, VALUES)), max_size=6))
def test_no_line_can_break_it(events: list[tuple[str, dict[str, Any]]]) -> None:
    view = View(File(Path("nowhere")))
    for kind, values in events:
        view.feed(json.dumps({"kind": kind} | values))
    assert text_of(view)
    json.dumps(view.as_dict(), allow_nan=False)


def test_nothing_hostile_reaches_the_terminal(tmp_path: Path) -> None:
    record = create(tmp_path, system="sys")
    file = record.path / "steps.jsonl"
    evil = "\x1b]0;owned\x07[red]{0.__class__}\n"
    bad = {"kind": "eval", "metrics": {evil: 0.5}, "target_metric": evil, "target_value": 1}
    file.write_text(
        step(1) + json.dumps(bad) + "\n" + '{"kind": "run_stop", "status": "\\u001b"}\n'
    )
    (record.path / "manifest.json").write_text(json.dumps({"preset": evil, "status": evil}))
    said = text_of(seen(record.path))
    assert "\x1b" not in said and "\x07" not in said
    assert "[red]{0.__class__}" in said  # as text, not as markup or a format


# -- records -------------------------------------------------------------------------------------


def test_a_record_from_its_start_to_its_end(tmp_path: Path) -> None:
    record = create(tmp_path)
    view = View(File(record.path))
    record.run_start(step=0, samples=0)
    record.on_step(step_event(6, 6))
    view.update()
    assert (view.state, view.over) == ("running", False)
    assert "toy on test-1x" in text_of(view)
    record.run_stop(step=6, samples=48, status="success")
    view.update()
    assert (view.state, view.over) == ("closing (success)", False)
    from bertbench.common.training.events import RunSummary

    record.close(RunSummary(status="failed", reason="r", step=6, samples=48))
    view.update()
    assert (view.state, view.over) == ("failed", True)


def test_steps_come_from_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"recipe": {"max_steps": 50}}')
    (tmp_path / "steps.jsonl").write_text(step(7))
    assert "step 7 of 50" in text_of(seen(tmp_path))


def test_a_run_that_says_nothing_is_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "steps.jsonl").write_text(step(7))
    view = seen(tmp_path)
    later = time.time() + 3700
    monkeypatch.setattr(time, "time", lambda: later)
    assert view.state.startswith("quiet for 1:01:")


def test_what_is_watched(tmp_path: Path) -> None:
    done = [make(tmp_path / "r", seed=seed) for seed in (1, 2)]
    newest = sorted(done, key=lambda p: p.name)[-1:]

    def names(*runs: Path | str) -> list[str]:
        return [source.name for source in sources([str(r) for r in runs], io.StringIO())]

    assert names(tmp_path / "r") == [p.name for p in newest]  # none is under way
    going = create(tmp_path / "r").path
    assert names(tmp_path / "r") == [going.name]
    assert names(done[0] / "steps.jsonl", done[1], "-") == [
        done[0].name, done[1].name, "standard input",
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(BadInput, match="no run in"):
            names(wrong)
    with pytest.raises(BadInput, match="watched once"):
        names("-", "-")


def test_a_run_that_was_killed_long_ago_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = create(tmp_path / "r").path
    killed.rename(killed.with_name("20200101T000000Z_abcdef0_aaaaaa"))
    done = make(tmp_path / "r", seed=1)
    later = time.time() + 25 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert [s.name for s in sources([str(tmp_path / "r")], io.StringIO())] == [done.name]


def test_a_run_that_is_quiet_promises_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text(step(1))
    assert "left" in text_of(seen(file))
    later = time.time() + 3700
    monkeypatch.setattr(time, "time", lambda: later)
    assert "left" not in text_of(seen(file))


@pytest.mark.parametrize(
    ("text", "code", "shows"),
    [
        ('{"kind": "run_stop", "status": "success"}\n', 0, "0.8000"),
        ('{"kind": "run_stop", "status": "aborted"}\n', 1, "ended (aborted)"),
        ("garbage\n", 1, "1 damaged line"),
    ],
)
def test_what_a_pipe_told_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    text: str, code: int, shows: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO(evaluation(0.8) + text))
    assert main(["watch", "-", "--once"]) == code
    assert shows in capsys.readouterr().out


def test_exit_codes_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = make(tmp_path / "a", seed=1)
    missed = make(tmp_path / "b", seed=1, value=0.1)
    assert main(["watch", str(good), "--json"]) == 0
    (state,) = json.loads(capsys.readouterr().out)
    assert (state["run"], state["state"], state["step"]) == (good.name, "ok", 10)
    assert state["quality"]["reached"] is True
    assert main(["watch", str(good), str(missed), "--once"]) == 1
    assert "below_quality" in capsys.readouterr().out
    assert main(["watch", str(tmp_path / "c")]) == 2
    assert main(["watch", str(good), "--interval", "0"]) == 2


def test_it_follows_until_all_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        file.write_text(step(1))
    ends: list[Callable[[], Any]] = [
        lambda: files[0].write_text(step(1) + '{"kind": "run_stop", "status": "success"}\n'),
        lambda: files[1].write_text(step(1) + step(4) + '{"kind": "run_stop", "status": "x"}\n'),
    ]
    monkeypatch.setattr(watch.time, "sleep", lambda s: ends.pop(0)())
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    views = [View(File(file)) for file in files]
    watch._follow(views, console, 1.0)
    assert not ends and [v.state for v in views] == ["ended (success)", "ended (x)"]
    assert "step 4" in console.file.getvalue()  # type: ignore[attr-defined]


# -- pipes ---------------------------------------------------------------------------------------


def test_a_pipe_that_ends_in_the_middle(tmp_path: Path) -> None:
    view = View(Pipe(io.StringIO(step(1) + step(2))))
    for _ in range(500):
        view.update()
        if view.over:
            break
        time.sleep(0.01)
    assert view.state == "cut off" and view.as_dict()["step"] == 2


def test_another_machines_run_through_a_pipe_that_stays_open(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text(step(1) + step(2) + evaluation(0.8, reached=True))
    tail = subprocess.Popen(["tail", "-n", "+1", "-F", str(file)], stdout=subprocess.PIPE)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bertbench", "watch", "-", "--once", "--json"],
            stdin=tail.stdout, capture_output=True, text=True, timeout=60, cwd=ROOT,
        )  # fmt: skip
    finally:
        tail.kill()
        tail.wait()
    assert done.returncode == 0, done.stderr
    (state,) = json.loads(done.stdout)
    assert (state["step"], state["quality"]["value"]) == (2, 0.8)


def test_bars() -> None:
    assert bars([]) == ""
    assert bars([1, 2, 8]) == "\u2581\u2582\u2588"
    assert bars([3, 3]) == "\u2584\u2584"
