# SPDX-License-Identifier: Apache-2.0
"""A launcher's run of two processes, one of which is killed, goes on and ends with its losses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.faults.judge import numbers
from tests.smoke.conftest import ROOT, TINY, manifest

STEPS = 200
WORDS = [*TINY, "--max_steps", str(STEPS), "--num_samples_per_checkpoint", "80",
         "--eval_iter_samples", "800"]  # fmt: skip


def start(data: Path, out: Path) -> subprocess.Popen[str]:
    module = "bertbench.benchmarks.bert_pretraining.launch"
    flags = ["--recipe", "mini", *WORDS, "--data", str(data), "--output_dir", str(out)]
    env = os.environ | {"NPROC": "2", "MAX_RESTARTS": "2", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *flags], cwd=ROOT, env=env, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def worker(launcher: subprocess.Popen[str], rank: str) -> psutil.Process:
    family = psutil.Process(launcher.pid).children(recursive=True)
    ranks = [one for one in family if "TORCHELASTIC_RUN_ID" in one.environ()]
    ranks = [one for one in ranks if one.environ().get("RANK") == rank]
    return min(ranks, key=lambda one: one.create_time())  # the others read its data


def test_a_killed_rank_costs_a_restart_and_changes_no_loss(prepared: Path, tmp_path: Path) -> None:
    undisturbed = start(prepared, tmp_path / "a")
    _, said = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, said
    (whole,) = (path.parent for path in tmp_path.glob("a/*/*/*/manifest.json"))

    process = start(prepared, tmp_path / "b")
    end = time.monotonic() + 120
    while not any(tmp_path.glob("b/*/*/*/checkpoints/step_*")):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    worker(process, "1").kill()
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "lost" in said and "restarts left: 2" in said and "Traceback" not in said

    first, second = sorted(path.parent for path in tmp_path.glob("b/*/*/*/manifest.json"))
    assert manifest(first)["status"] == "failed" and manifest(second)["status"] == "ok"
    assert "rank 1 (last step" in manifest(first)["reason"]
    assert manifest(second)["resumed_from"] == first.name
    expected, after = numbers(whole), numbers(second)
    assert 0 < len(after["steps"]) < STEPS
    assert after["steps"] == expected["steps"][-len(after["steps"]) :]
    assert after["metrics"] == expected["metrics"]
