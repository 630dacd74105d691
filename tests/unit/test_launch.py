# SPDX-License-Identifier: Apache-2.0
"""The launcher: which recipe, backend and processes, and the command this comes to."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bertbench.benchmarks.bert_pretraining.launch import USAGE, read
from bertbench.benchmarks.bert_pretraining.recipes import PRESETS
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.files import host_cores
from bertbench.common.launch import torchrun as elastic
from bertbench.common.launch.launcher import Launch, main, plan

ROOT = Path(__file__).parents[2]
CPU = {"name": "cpu_ref", "ok": True, "reason": "", "accelerator": False, "device_count": 1,
       "device": "a CPU"}  # fmt: skip
ABSENT = {"name": "gcu", "ok": False, "reason": "torch_gcu is not installed"}
PYTHON = "/venv/bin/python"


def accelerators(count: int) -> dict[str, Any]:
    return {**CPU, "name": "gcu", "accelerator": True, "device_count": count, "device": "a GCU"}


def go(argv: str = "", count: int = 0, **environment: str) -> Launch:
    report = {"cores": 16, "backends": [accelerators(count) if count else ABSENT, CPU]}
    return plan(read(argv.split(), environment), environment, report, PYTHON)


def test_without_data_and_accelerator_mini_runs_on_the_cpu_and_says_so() -> None:
    launch = go()
    assert launch.command == ["/venv/bin/bertbench", "run", "mini", "--backend", "cpu_ref"]
    assert any("DATA is not set" in text for text in launch.messages)
    assert any("no accelerator was found" in text for text in launch.messages)


def test_without_data_mini_takes_the_accelerators() -> None:
    launch = go("--seed 3", count=8)
    assert launch.command == [
        *("/venv/bin/python", "-m", "bertbench.common.launch.torchrun", "--nproc-per-node=8"),
        *("--standalone", "--no-python", "/venv/bin/bertbench", "run", "mini"),
        *("--backend", "gcu", "--seed", "3"),
    ]
    assert launch.environment["OMP_NUM_THREADS"] == "2"
    assert launch.rehearsal == [*launch.command[6:], "--dry_run"]
    assert launch.environment["WORLD_SIZE"] == "8"
    assert not any("no accelerator" in text for text in launch.messages)


def test_one_accelerator_needs_no_torchrun() -> None:
    launch = go(count=1)
    assert launch.command[:3] == ["/venv/bin/bertbench", "run", "mini"]
    assert launch.rehearsal is None


def test_a_dry_run_is_one_process_that_knows_of_the_others() -> None:
    launch = go("--dry-run", count=8)
    assert launch.command[:3] == ["/venv/bin/bertbench", "run", "mini"]
    assert launch.environment["WORLD_SIZE"] == "8"
    assert launch.rehearsal is None  # which would be the same again


@pytest.mark.parametrize(
    ("ends", "code"), [("exit(0)", 0), ("exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_exit_code_of_the_processes_is_kept(ends: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bertbench.common.launch.torchrun", "--standalone",
         "--nproc-per-node=1", "--no-python", sys.executable, "-c", ends],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("given", [None, "7"])
def test_processes_that_are_told_to_stop_have_time_to_save(
    monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    name, seen = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", []
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr(elastic.run, "main", lambda argv: seen.append(os.environ[name]))
    assert elastic.main([]) == 0 and seen == [given or "600"]


def test_only_the_command_line_counts_for_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "PET_NNODES": "2", "PET_MAX_RESTARTS": "3"})
    monkeypatch.setattr(elastic.run, "main", lambda argv: None)
    assert elastic.main([]) == 0
    assert not [name for name in os.environ if name.startswith("PET_")]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_torchrun_ignores_a_hangup_under_nohup(
    monkeypatch: pytest.MonkeyPatch, handler: signal.Handlers
) -> None:
    name = "TORCHELASTIC_SIGNALS_TO_HANDLE"
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != name})
    monkeypatch.setattr(elastic.run, "main", lambda argv: None)
    before = signal.signal(signal.SIGHUP, handler)
    try:
        assert elastic.main([]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    wanted = None if handler == signal.SIG_DFL else "SIGTERM,SIGINT,SIGQUIT"
    assert os.environ.get(name) == wanted


@pytest.mark.parametrize("count", range(1, 20))
def test_mini_uses_as_many_devices_as_share_its_batch(count: int) -> None:
    launch = go(count=count)
    flag = [w for w in launch.command if w.startswith("--nproc-per-node=")]
    processes = int(flag[0].partition("=")[2]) if flag else 1
    batch = PRESETS["mini"].recipe.global_batch  # type: ignore[attr-defined]
    assert batch % processes == 0
    assert processes <= count < 2 * processes or processes == batch
    assert (processes < count) == any(f"of {count} devices" in text for text in launch.messages)


def test_data_runs_deepsparks_command_on_the_accelerators(tmp_path: Path) -> None:
    launch = go("--max_steps 9 --seed 1", count=8, DATA=str(tmp_path))
    at = launch.command.index("run")
    assert launch.command[at:] == [
        *("run", "deepspark_416", "--backend", "gcu", "--data", str(tmp_path)),
        *("--seed", "17103", "--skip_checkpoint", "--max_steps", "9", "--seed", "1"),
    ]


def test_data_without_accelerator_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"torch_gcu is not installed.*--backend cpu_ref"):
        go(DATA=str(tmp_path))
    launch = go("--backend cpu_ref", DATA=str(tmp_path))
    assert launch.command[1:5] == ["run", "deepspark_416", "--backend", "cpu_ref"]
    assert not any("no accelerator" in text for text in launch.messages), "it was asked for"


def test_cpu_is_what_the_user_means(tmp_path: Path) -> None:
    launch = go("--backend cpu", DATA=str(tmp_path))
    assert launch.command[1:5] == ["run", "deepspark_416", "--backend", "cpu_ref"]
    assert launch.command[-2:] == ["--backend", "cpu_ref"]
    assert "no accelerator was found" not in "".join(launch.messages)


def test_named_recipe_never_falls_back_to_the_cpu() -> None:
    with pytest.raises(Unsupported, match="--backend cpu_ref"):
        go("--recipe base --synthetic")
    assert go("--recipe=base --recipe mini").command[2] == "mini"


def test_auto_is_not_left_to_each_process() -> None:
    assert go("--backend auto", count=2).command[-2:] == ["--backend", "gcu"]
    assert go("--backend gcu", count=2).command.count("--backend") == 2


def test_variables_of_the_reference_and_of_torchrun(tmp_path: Path) -> None:
    launch = go(count=4, DATA=str(tmp_path), NPROC="2", NNODES="2", NODE_RANK="1",
                MASTER_ADDR="node0", INIT_LOSS_SCALE="1024", OMP_NUM_THREADS="7")  # fmt: skip
    command = " ".join(launch.command)
    assert (
        "--nproc-per-node=2 --nnodes=2 --node-rank=1 --master-addr=node0 --master-port=29500"
        in command
    )
    assert "--init_loss_scale 1024" in command
    assert launch.environment["OMP_NUM_THREADS"] == "7"
    assert any(text.startswith("4 x gcu") for text in launch.messages)


NODES = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0", "NPROC": "2"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}


@pytest.mark.parametrize("more", [{}, STEP, {"WORLD_SIZE": "2", "RANK": "1"}, {"PET_NNODES": "2"}])
def test_one_script_on_each_node_is_one_run(more: dict[str, str]) -> None:
    assert "--nnodes=2" in go(**NODES, **more).command


SRUN = {**STEP, "SLURM_NODEID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_STEP_NODELIST": "n[01-02]", "SLURM_JOB_ID": "7"}  # fmt: skip
PODS = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "MASTER_ADDR": "n01", "MASTER_PORT": "23456"}


@pytest.mark.parametrize(
    "started",
    [
        SRUN,
        {"NNODES": "2", "JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "n01"},
        PODS | {"RANK": "1", "WORLD_SIZE": "2"},
        # Kubeflow's WORLD_SIZE counts the processes of all pods.
        PODS | {"RANK": "1", "WORLD_SIZE": "8", "PET_NNODES": "2", "PET_NODE_RANK": "1",
                "PET_NPROC_PER_NODE": "4"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK":
         "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "MASTER_ADDR": "n01"},
    ],
)  # fmt: skip
def test_a_launcher_that_starts_the_script_on_each_node(started: dict[str, str]) -> None:
    launch = go(count=4, **started)
    command = " ".join(launch.command)
    assert "--nnodes=2 --node-rank=1 --master-addr=n01 --master-port=" in command
    assert "--nproc-per-node=4" in command and launch.environment["WORLD_SIZE"] == "8"


def test_a_launcher_that_starts_every_process_needs_no_torchrun() -> None:
    more = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
            "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}  # fmt: skip
    launch = go(count=4, **{**SRUN, **more})
    assert launch.command[:3] == ["/venv/bin/bertbench", "run", "mini"]
    assert launch.rehearsal is None and "RANK" not in launch.environment
    assert "8 x gcu" in launch.messages[-1] and "started by Slurm" in launch.messages[-1]
    with pytest.raises(BadInput, match=r"NPROC=2: Slurm has started 4 processes .* unset NPROC"):
        go(count=4, **{**SRUN, **more, "NPROC": "2"})


STOPPABLE = """
import signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""


def test_sigterm_reaches_the_processes() -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "bertbench.common.launch.torchrun", "--standalone",
         "--nproc-per-node=1", "--no-python", sys.executable, "-c", STOPPABLE],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    started.terminate()
    said, _ = started.communicate(timeout=60)
    assert (said, started.returncode) == ("saved\n", 130)


@pytest.mark.parametrize(
    ("argv", "environment", "message"),
    [
        ("", {"DATA": "/nowhere"}, "DATA=/nowhere is not a folder"),
        ("", {"NPROC": "all"}, "NPROC=all is not a count"),
        ("", {"NPROC": "0"}, "NPROC=0"),
        ("", {"NPROC": "9" * 5000}, "NPROC=9+.* is not a count"),
        ("", {"NNODES": "9" * 5000}, "NNODES=9+.* is not a count"),
        ("", {"NPROC": "\u0662"}, "NPROC=.* is not a count"),
        ("", {"NNODES": "2"}, "MASTER_ADDR"),
        ("", {**NODES, "NODE_RANK": "2"}, "NODE_RANK=2 is not one of 0..1"),
        ("", {**NODES, "NODE_RANK": "x"}, "NODE_RANK=x is not a count"),
        ("", {**NODES, "MASTER_PORT": "abc"}, "MASTER_PORT=.abc. is not"),
        ("", {**NODES, "MASTER_ADDR": "node1..cluster"}, "MASTER_ADDR=node1..cluster is no name"),
        ("", {**NODES, **STEP, "SLURM_STEP_NUM_TASKS": "3"}, "several processes were started"),
        ("", {"NPROC": "2", **STEP}, "Slurm started this process, but SLURM_NODEID is not set"),
        ("", {"NPROC": "2", "FLUX_JOB_SIZE": "2"}, "several processes were started"),
        ("", {"NPROC": "2", "PET_NNODES": "2"}, "several processes were started"),
        ("", {"NPROC": "2", "WORLD_SIZE": "2", "RANK": "1"}, "WORLD_SIZE=2 without NNODES"),
        ("", {"JOB_COMPLETION_INDEX": "1"}, "JOB_COMPLETION_INDEX=1 without NNODES"),
        ("", {"NNODES": "2", "JOB_COMPLETION_INDEX": "1"}, "needs MASTER_ADDR"),
        ("--recipe maxi", {}, "unknown recipe 'maxi'"),
        ("--recipe", {}, "needs a name"),
        ("--lerning_rate 1", {}, "did you mean --learning_rate"),
        ("--backend tpu", {}, "unknown backend 'tpu'"),
        ("--backend gcu", {}, "torch_gcu is not installed"),
        ("--backend gpu", {}, "needs one of cuda, rocm, corex"),
    ],
)
def test_refusals(argv: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises((BadInput, Unsupported), match=message):
        go(argv, **environment)


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5, 7}, raising=False)
    assert host_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert host_cores() == (os.cpu_count() or 1)


def test_only_the_backend_that_was_named_is_examined(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--backend", "quantum"], USAGE, read) == 2
    assert "launch: unknown backend 'quantum'; known: cuda" in capsys.readouterr().err
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[1:])
        return subprocess.CompletedProcess(command, 1, "", "Traceback: torch is broken")

    monkeypatch.setattr(subprocess, "run", run)
    for flags in (["--backend", "gcu"], []):
        assert main(flags, USAGE, read) == 2
        assert "torch is broken" in capsys.readouterr().err
    assert asked == [["doctor", "--json", "gcu"], ["doctor", "--json"]]


def test_scripts_of_the_root_lead_to_the_launcher() -> None:
    name = "train_bert_pretraining_amp_dist.sh"
    real = ROOT / "benchmarks" / "bert_pretraining" / name
    assert "bertbench.benchmarks.bert_pretraining.launch" in real.read_text()
    for folder in (ROOT, ROOT / "scripts"):
        assert f'real="$root/benchmarks/bert_pretraining/{name}"\n' in (folder / name).read_text()


@pytest.mark.parametrize(
    ("script", "first"),
    [
        ("benchmarks/bert_pretraining/train_bert_pretraining_amp_dist.sh", "usage: [DATA=/path]"),
        ("benchmarks/bert_squad/launch.sh", "usage: [DATA_PATH=/path]"),
    ],
)
def test_help_installs_nothing(tmp_path: Path, script: str, first: str) -> None:
    copy = tmp_path / script
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / script, copy)
    (tmp_path / "bertbench").symlink_to(ROOT / "bertbench")
    (tmp_path / "init.sh").write_text("echo installs; exit 7")
    for python, said, code in ((sys.executable, first, 0), ("/bin/false", "installs", 7)):
        done = subprocess.run(
            ["bash", str(copy), "--help"], cwd="/", env={**os.environ, "PYTHON": python},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout.startswith(said) and done.returncode == code, done


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    ("script", "module"),
    [
        ("train_bert_pretraining_amp_dist.sh", "bert_pretraining"),
        ("scripts/train_bert_pretraining_amp_dist.sh", "bert_pretraining"),
        ("benchmarks/bert_pretraining/train_bert_pretraining_amp_dist.sh", "bert_pretraining"),
        ("scripts/run_squad_1gpu.sh", "bert_squad"),
        ("benchmarks/bert_squad/launch.sh", "bert_squad"),
    ],
)
def test_scripts_are_found_however_they_are_called(
    tmp_path: Path, shell: str, script: str, module: str
) -> None:
    """By their path, by a link, by sh, with CDPATH, and as the copy that sbatch runs."""
    root, elsewhere = tmp_path / "bert bench", tmp_path / "elsewhere"
    for name in {script, f"benchmarks/{module}/{Path(script).name}",
                 "benchmarks/bert_squad/launch.sh", "init.sh"}:  # fmt: skip
        if (ROOT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / ".bertbench").touch()
    python = root / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$0 $*"\n')
    python.chmod(0o755)
    (elsewhere / root.name / "scripts").mkdir(parents=True)
    (elsewhere / "link.sh").symlink_to(root / script)
    shutil.copy(root / script, elsewhere / "slurm_script")
    wanted = f"{python} -I -m bertbench.benchmarks.{module}.launch"
    for path, folder, submitted in (
        (root / script, "/", None),
        (elsewhere / "link.sh", "/", None),
        (Path(root.name) / script, tmp_path, None),
        (elsewhere / "slurm_script", "/", root),
        *([] if script.startswith("b") else [(elsewhere / "slurm_script", "/", root / "scripts")]),
    ):
        environment = {"PATH": os.environ["PATH"], "CDPATH": str(elsewhere)}
        if submitted is not None:
            submitted.mkdir(exist_ok=True)
            environment["SLURM_SUBMIT_DIR"] = str(submitted)
        done = subprocess.run(
            [shell, str(path), "a b"], cwd=folder, env=environment, capture_output=True, text=True
        )
        said = done.stdout.replace("/scripts/..", "").replace("/../..", "").strip()
        assert said.startswith(wanted) and said.endswith("a b"), (path, submitted, done)
    if not script.startswith("b"):
        lost = subprocess.run(
            [shell, str(elsewhere / "slurm_script")], capture_output=True, text=True
        )
        assert lost.returncode == 2 and "sbatch it from the checkout's folder" in lost.stderr
