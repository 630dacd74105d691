# SPDX-License-Identifier: Apache-2.0
"""A rank that is stopped ends a run of two in time, with its record closed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bertbench.common.results.validate import validate
from tests.ports import free_port
from tests.smoke.conftest import ROOT, TINY, lines, manifest

TIMEOUT_S = 8


@pytest.fixture
def ranks(tmp_path: Path):
    """Two ranks without torchrun, which would end the other one by itself."""
    port, started = str(free_port()), []
    words = ["run", "mini", *TINY, "--synthetic", "--max_steps", "1000000", "--skip_checkpoint"]
    for rank in ("0", "1"):
        env = os.environ | {
            "RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
            "BERTBENCH_PEER_TIMEOUT_S": str(TIMEOUT_S),
        }  # fmt: skip
        started.append(subprocess.Popen(
            [sys.executable, "-m", "bertbench", *words, "--output_dir", str(tmp_path)],
            cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ))  # fmt: skip
    deadline = time.monotonic() + 120
    while not any(
        '"kind": "step"' in path.read_text() for path in tmp_path.glob("*/*/*/steps.jsonl")
    ):
        assert time.monotonic() < deadline and all(p.poll() is None for p in started)
        time.sleep(0.1)
    yield started, tmp_path
    for process in started:
        process.kill()
        process.communicate()


def test_the_other_rank_ends_in_time(ranks) -> None:
    (first, second), folder = ranks
    second.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    _, said = first.communicate(timeout=120)
    assert time.monotonic() - begin < TIMEOUT_S + 20
    assert first.returncode == 3 and "Traceback" not in said
    assert f"rank 1 ran on {socket.gethostname()}\n" in said and said.count("\n") <= 2
    (record,) = (path.parent for path in folder.glob("*/*/*/manifest.json"))
    found = manifest(record)
    assert found["status"] == "failed"
    step = max(line["step"] for line in lines(record, "step"))
    assert any(f"step {at}: " in found["reason"] for at in (step, step + 1))
    assert re.search(r"rank 1 \(last step \d+\) has not answered for 8 s", found["reason"])
    assert socket.gethostname() not in found["reason"]
    assert [p for p in validate(record) if p.severity == "error"] == []
    second.send_signal(signal.SIGCONT)  # it goes on, and finds the other gone
    _, said = second.communicate(timeout=60)
    assert second.returncode == 3 and "Traceback" not in said and said.count("\n") <= 1
