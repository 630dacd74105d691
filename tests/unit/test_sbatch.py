# SPDX-License-Identifier: Apache-2.0
"""The Slurm job script, with stand-ins for Slurm's commands; and on a real Slurm if asked for."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "slurm" / "bertbench.sbatch"
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$SEEN"
trap 'exit 130' TERM
[ -z "${WAITS:-}" ] || { touch "$SEEN.ready"; for _ in $(seq 200); do sleep 0.1; done; }
exit "${CODE:-0}"
"""
SCONTROL = '#!/usr/bin/env bash\nprintf "scontrol %s\\n" "$*" >> "$SEEN"\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".bertbench").touch()
    (tmp_path / "train.sh").touch()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def environment(checkout: Path, **more: str) -> dict[str, str]:
    found = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    path = f"{checkout / 'bin'}:{found['PATH']}"
    return found | {"PATH": path, "SEEN": str(checkout / "seen"), "SLURM_JOB_ID": "7"} | more


def job(checkout: Path, *words: str, **more: str) -> tuple[int, list[str]]:
    """Run the script; return its exit code and the commands that it gave."""
    (checkout / "seen").write_text("")
    done = subprocess.run(
        ["bash", str(SCRIPT), *words], cwd=checkout, env=environment(checkout, **more),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.returncode, (checkout / "seen").read_text().splitlines()


def test_a_job_runs_the_script_on_each_node(checkout: Path) -> None:
    more = {"SRUN_FLAGS": "--a=1 --b", "CONTAINER": "apptainer exec image.sif"}
    code, seen = job(checkout, "train.sh", "--recipe", "mini", **more)
    assert code == 0
    assert seen == [
        "--kill-on-bad-exit=0 --a=1 --b apptainer exec image.sif bash train.sh --recipe mini "
        "--output_dir results/slurm-7"
    ]


def test_a_job_that_starts_again_resumes(checkout: Path) -> None:
    (checkout / "out/system/benchmark/run/checkpoints/step_00000020").mkdir(parents=True)
    code, seen = job(checkout, "train.sh", OUTPUT="out", SLURM_RESTART_COUNT="1")
    assert code == 0 and seen[0].endswith("--output_dir out --resume last")


@pytest.mark.parametrize("code", [1, 2, 137])
def test_a_run_that_fails_is_not_queued_again(checkout: Path, code: int) -> None:
    assert job(checkout, "train.sh", CODE=str(code)) == (
        code,
        ["--kill-on-bad-exit=0 bash train.sh --output_dir results/slurm-7"],
    )


def test_a_run_that_saved_and_stopped_is_queued_again(checkout: Path) -> None:
    code, seen = job(checkout, "train.sh", CODE="130")
    assert code == 130 and seen[1:] == ["scontrol requeue 7"]


def test_a_cancelled_job_is_not_queued_again(checkout: Path) -> None:
    started = subprocess.Popen(
        ["bash", str(SCRIPT), "train.sh"], cwd=checkout, env=environment(checkout, WAITS="1"),
        start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 30
    while not (checkout / "seen.ready").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGTERM)  # as scancel does: the script and the steps
    assert started.wait(60) == 130
    assert len((checkout / "seen").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"), [((), "name a launcher"), (("no.sh",), "no file no.sh")]
)
def test_wrong_words_are_one_line(checkout: Path, words: tuple[str, ...], said: str) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), *words], cwd=checkout, env=environment(checkout),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


NODES = os.environ.get("BERTBENCH_SLURM_NODES")


@pytest.mark.skipif(
    NODES is None or shutil.which("sbatch") is None,
    reason="set BERTBENCH_SLURM_NODES=2 on a Slurm cluster, in a checkout that its nodes share",
)
def test_a_real_job_is_requeued_and_reaches_its_end(tmp_path: Path) -> None:
    words = ["train_bert_pretraining_amp_dist.sh", "--recipe", "mini", "--backend", "cpu_ref",
             "--max_steps", "60", "--num_samples_per_checkpoint", "1280"]  # fmt: skip
    log = ROOT / "results" / f"slurm-test-{os.getpid()}"
    output = log.with_suffix(".records")
    said = subprocess.run(
        ["sbatch", f"--nodes={NODES}", f"--output={log}.log", f"--export=ALL,OUTPUT={output}",
         "scripts/slurm/bertbench.sbatch", *words],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    number = re.findall(r"\d+", said)[-1]
    wait(lambda: any(output.glob("*/*/*/checkpoints/step_*")), 600)
    subprocess.run(["scontrol", "requeue", number], check=True)
    wait(
        lambda: "start 2" in text(log) and "training starts" in text(log).split("start 2")[-1], 600
    )
    wait(lambda: not squeue(number), 900)
    ended = text(log).split("start 2")[-1]
    assert "step 60/60" in ended and "step 20/60" not in ended


def text(log: Path) -> str:
    return log.with_suffix(".log").read_text()


def squeue(number: str) -> str:
    return subprocess.run(["squeue", "-h", "-j", number], capture_output=True, text=True).stdout


def wait(done: Callable[[], object], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end
        time.sleep(1)
