# SPDX-License-Identifier: Apache-2.0
"""A run that lost a process starts again, from its own newest checkpoint and not from another's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bertbench.common.distributed.peers import PeerLost
from bertbench.common.errors import BadInput
from bertbench.common.launch import restarts
from bertbench.common.launch.restarts import RECORDS, announce, newest, repeat, was_lost
from tests.smoke.conftest import ROOT

COUNT = """
echo start "$@" >> starts
n=$(wc -l < starts)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(restarts, "PAUSE_S", 0.1)
    monkeypatch.setattr(restarts, "LOOK_S", 0.1)
    monkeypatch.setenv("BERTBENCH_PEER_TIMEOUT_S", "1")
    monkeypatch.chdir(tmp_path)
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def shell(script: str) -> list[str]:
    return ["bash", "-c", COUNT + script, "bash"]


def starts() -> list[str]:
    return Path("starts").read_text().splitlines()


@pytest.mark.parametrize("code", [3, 137])
def test_a_lost_run_starts_again_and_no_more_often_than_asked(
    code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert repeat(shell(f"[ $n = 3 ] || exit {code}"), os.environ, 5) == 0
    assert len(starts()) == 3
    assert f"lost (exit code {code}); restarts left: 5" in capsys.readouterr().err
    Path("starts").unlink()
    assert repeat(shell(f"exit {code}"), os.environ, 2) == code
    assert len(starts()) == 3


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_an_end_of_its_own_is_the_end(code: int) -> None:
    """Done, missed or failed, refused, interrupted with a checkpoint."""
    assert not was_lost(code) and repeat(shell(f"exit {code}"), os.environ, 5) == code
    assert len(starts()) == 1


def test_a_killed_command_has_the_shells_exit_code() -> None:
    assert repeat(shell("kill -9 $$"), os.environ, 1) == 137
    assert len(starts()) == 2


def test_it_resumes_the_newest_record_of_this_launch_that_has_a_checkpoint() -> None:
    for name, checkpoint in (
        ("a", "step_00000010"),
        ("b", ".partial-x"),
        ("other", "step_00000099"),
    ):
        Path(name, "checkpoints", checkpoint).mkdir(parents=True)
    listed = "for r in a b; do echo $PWD/$r; done >> $" + RECORDS
    assert repeat(shell(f"[ $n = 2 ] && exit 0; {listed}; exit 3"), os.environ, 1) == 0
    assert starts() == ["start", f"start --resume {Path('a').resolve()}"]


def test_a_record_is_announced_to_its_supervisor_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(RECORDS, raising=False)
    announce(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(RECORDS, "listed")
    announce(Path("run"))
    assert Path("listed").read_text() == f"{tmp_path / 'run'}\n" and newest(Path("listed")) is None


def test_a_process_that_was_stopped_is_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """Its child holds the place of a rank, which the next start needs."""
    monkey = "sleep 60 & child=$!; kill -STOP $child; wait $child; exit 3"
    begin = time.monotonic()
    assert repeat(shell(f"[ $n = 2 ] && exit 0; {monkey}"), os.environ, 1) == 0
    assert time.monotonic() - begin < 20 and len(starts()) == 2
    assert "is stopped, and the others have lost it" in capsys.readouterr().err


def test_what_is_left_of_a_start_is_killed_before_the_next() -> None:
    left = "setsid sleep 60 & echo $! > child; sleep 0.5; exit 3"
    assert repeat(shell(f"[ $n = 2 ] && exit 0; {left}"), os.environ, 1) == 0
    child = int(Path("child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"


@pytest.mark.parametrize("moment", ["while it runs", "between two starts"])
def test_sigterm_ends_the_run_and_its_supervisor(moment: str) -> None:
    script = (
        "from bertbench.common.launch import restarts; import os, sys; restarts.PAUSE_S = 60;"
        "sys.exit(restarts.repeat(sys.argv[1:], os.environ, 3))"
    )
    runs = "trap 'exit 130' TERM; echo up; for i in $(seq 600); do sleep 0.1; done"
    work = runs if moment == "while it runs" else "echo up; exit 3"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *shell(work)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130 and len(starts()) == 1


@pytest.mark.parametrize("text", ["-1", "two", "99999", "1.5"])
def test_a_count_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=f"MAX_RESTARTS={text} is not a count"):
        restarts.restarts({"MAX_RESTARTS": text})
    assert restarts.restarts({}) == restarts.restarts({"MAX_RESTARTS": ""}) == 0


def test_only_the_loss_of_another_process_may_go_on() -> None:
    """A rank that ended by itself would end so again: its words are not those of a loss."""
    assert was_lost(PeerLost("rank 1 (last step 37) has not answered for 60 s").exit_code)
    assert not was_lost(PeerLost("rank 1 ended: no such file").exit_code)
