# SPDX-License-Identifier: Apache-2.0
"""``bertbench quick``: an estimate on the clock that it is given, and no record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertbench.common.cli import quick, run_words
from bertbench.common.cli.main import main
from bertbench.common.errors import BadInput, Unsupported
from tests.unit.results.test_ending import EPYC
from tests.unit.test_closing import TINY as SMALL

TINY = [*SMALL, "--max_steps", "900"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The smallest recipe made smaller, in a folder that stays empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quick, "settings_of", lambda words: run_words.settings_of([*words, *TINY]))
    monkeypatch.setattr(quick, "reference", lambda precision, **_: EPYC)


def ticking(step_s: float = 0.25) -> Callable[[], float]:
    """A clock that goes on by ``step_s`` with each reading."""
    now = [0.0]

    def clock() -> float:
        now[0] += step_s
        return now[0]

    return clock


def measured(**given: Any) -> dict[str, Any]:
    found = quick.measure("cpu_ref", clock=ticking(), **given)
    assert found is not None
    return found


def test_the_rate_is_samples_over_the_clocks_seconds(tmp_path: Path) -> None:
    found = measured(seconds=10.0)
    assert found["estimate"] is True and found["backend"] == "cpu_ref"
    assert 0 < found["measured_s"] <= 11.0
    assert found["samples"] == 4 * (found["steps"] - quick.SKIPPED_STEPS) > 0
    rate = found["samples"] / found["measured_s"]
    assert found["sequences_per_second"] == pytest.approx(rate)
    times = rate / EPYC.sequences_per_second
    assert found["times_as_fast"] == pytest.approx(times)
    assert found["estimated_time_to_target_s"] == pytest.approx(EPYC.time_to_target_s / times)
    assert found["reference"]["name"] == "AMD EPYC, 2 cores"
    assert measured(seconds=20.0)["steps"] > found["steps"]
    assert not list(tmp_path.iterdir())  # no record


def test_too_few_steps_are_no_estimate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(seconds=0.1)
    assert found["sequences_per_second"] is found["reference"] is found["times_as_fast"] is None
    assert "an unknown speed" in quick.render(found)
    monkeypatch.setattr(quick, "measure", lambda name: found)
    assert main(["quick", "--backend", "cpu_ref", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["sequences_per_second"] is None


@pytest.mark.parametrize("columns", [60, 80])
def test_it_prints_both_machines_and_the_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    found = measured(seconds=5.0) | {
        "device": "a device", "precision": "bf16", "sequences_per_second": 49.2,
        "estimated_time_to_target_s": 273.8, "other_work": True,
    }  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(quick, "measure", lambda name: found)
    assert main(["quick", "--backend", "cpu_ref"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert all(len(line) <= columns for line in printed if " next " not in line)
    text = " ".join(" ".join(printed).split())
    assert text.startswith("mini on synthetic tokens, 10 s on one device of cpu_ref:")
    assert "here about 49.2 sequences/s (a device, bf16; an estimate)" in text
    assert "reference 98.3 sequences/s (AMD EPYC, 2 cores; median of 10 runs on text)" in text
    assert "mini reaches its target in about 4.6 min, once its data is prepared" in text
    assert "note other work keeps this machine busy: idle it is faster" in text
    assert text.endswith("run mini --backend cpu_ref")


def test_a_simulated_device_is_compared_with_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from bertbench.backends.cpu_ref.backend import CpuRef

    describe = CpuRef.describe
    monkeypatch.setattr(CpuRef, "describe", lambda self: replace(describe(self), simulated=True))
    found = measured(seconds=5.0)
    assert found["reference"] is None and "simulated" in quick.render(found)


def test_the_cpu_is_measured_with_a_message_where_there_is_no_accelerator(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str) -> Any:
        raise Unsupported(f"no {name}")

    monkeypatch.setattr(quick.backends, "resolve", nothing)
    assert quick._backend("auto") == "cpu_ref"
    assert "no accelerator was found" in capsys.readouterr().err
    with pytest.raises(Unsupported):
        quick._backend("other")


def test_it_is_called_once_and_not_by_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(BadInput, match="WORLD_SIZE"):
        quick.measure("cpu_ref")


def test_a_signal_ends_it_without_a_figure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "measure", lambda name: None)
    assert main(["quick", "--backend", "cpu_ref", "--json"]) == 130
    assert capsys.readouterr().out == ""
