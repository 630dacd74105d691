# SPDX-License-Identifier: Apache-2.0
"""Other launchers' variables: whole, half and wrong; and two processes that they start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertbench.common.config.launched import Ranks
from bertbench.common.config.started import PORTS, STARTED_BY, adopt, first_node, found
from bertbench.common.errors import BadInput

OMPI = "OMPI_COMM_WORLD_"
WHOLE: dict[str, tuple[dict[str, str], Ranks]] = {
    "Slurm": (
        {"SLURM_JOB_ID": "41", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "7",
         "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_NTASKS": "9",
         "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_STEP_NODELIST": "n[08-10,12]"},
        Ranks(5, 7, 1, 2),
    ),
    "Open MPI": (
        {f"{OMPI}RANK": "3", f"{OMPI}SIZE": "4", f"{OMPI}LOCAL_RANK": "1",
         f"{OMPI}LOCAL_SIZE": "2", "PMIX_NAMESPACE": "831455233", "MASTER_ADDR": "head"},
        Ranks(3, 4, 1, 2),
    ),
    "MPICH": (
        {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2",
         "MASTER_PORT": "29400"},
        Ranks(1, 2, 1, 2),
    ),
    "Kubernetes": (
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "RANK": "1", "WORLD_SIZE": "2",
         "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"},
        Ranks(1, 2, 0, 1),
    ),
}  # fmt: skip
ADDRESS = {"Slurm": "n08", "Open MPI": "head", "MPICH": "127.0.0.1", "Kubernetes": "job-master-0"}


@pytest.mark.parametrize("by", WHOLE)
def test_a_whole_set_becomes_torchruns(by: str) -> None:
    environment, place = WHOLE[by]
    env = dict(environment)
    assert adopt(env) is None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    assert tuple(int(env[name]) for name in names) == place
    assert (env["MASTER_ADDR"], env[STARTED_BY]) == (ADDRESS[by], by)
    assert int(env["MASTER_PORT"]) in (*PORTS, 29400, 23456)
    again = dict(env)
    assert adopt(again) is None and again == env


@pytest.mark.parametrize("by", WHOLE)
def test_every_process_of_a_start_finds_the_same_port(by: str) -> None:
    environment, _ = WHOLE[by]
    one, two = dict(environment), dict(environment)
    two |= {name: "0" for name in two if name.endswith(("PROCID", "LOCALID", "RANK", "RANKID"))}
    adopt(one)
    adopt(two)
    assert one["MASTER_PORT"] == two["MASTER_PORT"]
    if by == "Slurm":
        other = {**environment, "SLURM_STEP_ID": "3"}
        adopt(other)
        assert other["MASTER_PORT"] != one["MASTER_PORT"]


COUNTED = (
    *("SLURM_STEP_TASKS", "SLURM_PROC", "SLURM_LOCAL", "SLURM_NODEID"),
    *(OMPI, "PMI_", "MPI_"),
)
HALF = [(by, name) for by, (env, _) in WHOLE.items() for name in env if name.startswith(COUNTED)]


@pytest.mark.parametrize(("by", "name"), HALF)
def test_a_missing_variable_is_named(by: str, name: str) -> None:
    env = {k: v for k, v in WHOLE[by][0].items() if k != name}
    with pytest.raises(BadInput, match=name) as error:
        adopt(env)
    assert by in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", " ", "two", "-1", "1.5", "9" * 5000])
@pytest.mark.parametrize(("by", "name"), HALF)
def test_what_is_no_number_is_one_line(by: str, name: str, text: str) -> None:
    with pytest.raises(BadInput, match=name) as error:
        adopt(WHOLE[by][0] | {name: text})
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("by", "wrong", "said"),
    [
        ("Slurm", {"SLURM_PROCID": "7"}, "rank 7 does not fit"),
        ("Slurm", {"SLURM_LOCALID": "2"}, "local rank 2 does not fit"),
        ("Slurm", {"SLURM_NODEID": "4"}, "has no node 4"),
        ("Slurm", {"SLURM_STEP_TASKS_PER_NODE": "8(x4)"}, "processes on this machine 8"),
        ("Slurm", {"WORLD_SIZE": "8"}, "WORLD_SIZE=8 contradicts Slurm, which says 7"),
        ("Slurm", {"WORLD_SIZE": "7", "RANK": "0"}, "RANK=0 contradicts Slurm, which says 5"),
        ("Slurm", {"SLURM_STEP_NODELIST": ""}, "MASTER_ADDR is not set"),
        ("Open MPI", {f"{OMPI}RANK": "4"}, "rank 4 does not fit"),
        ("MPICH", {"PMI_SIZE": "3"}, "MASTER_ADDR is not set, and MPICH"),
        ("Kubernetes", {"RANK": "2"}, "rank 2 does not fit"),
        ("Kubernetes", {"PET_NPROC_PER_NODE": "4"}, "4 processes"),
    ],
)
def test_contradictions_are_one_line(by: str, wrong: dict[str, str], said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        adopt(WHOLE[by][0] | wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("by", "name"), [("Open MPI", "MASTER_ADDR"), ("MPICH", "MASTER_PORT"),
                                          ("Open MPI", "PMIX_NAMESPACE"),
                                          ("Kubernetes", "MASTER_ADDR")])  # fmt: skip
def test_no_meeting_point_is_one_line(by: str, name: str) -> None:
    env = {k: v for k, v in WHOLE[by][0].items() if k != name}
    with pytest.raises(BadInput, match=r"MASTER_(ADDR|PORT) is not set"):
        adopt(env)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
        {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {f"{OMPI}{n}": v for n, v in (("RANK", "0"), ("SIZE", "1"), ("LOCAL_RANK", "0"),
                                      ("LOCAL_SIZE", "1"))},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        WHOLE["Slurm"][0] | {"RANK": "0", "WORLD_SIZE": "1"},  # the user's word
        WHOLE["Slurm"][0] | {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2"},
    ],
)  # fmt: skip
def test_a_lone_process_and_torchruns_are_left_alone(environment: dict[str, str]) -> None:
    env = dict(environment)
    assert found(env) is None and adopt(env) is None
    assert env == environment


def test_a_script_of_sbatch_with_many_tasks_is_told() -> None:
    note = adopt({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"})
    assert note is not None and "16 tasks" in note and "srun" in note


def test_mpirun_inside_a_slurm_job_is_mpirun() -> None:
    env = WHOLE["Slurm"][0] | WHOLE["Open MPI"][0]
    start = found(env)
    assert start is not None and (start.by, start.ranks) == ("Open MPI", Ranks(3, 4, 1, 2))


def test_sruns_own_pmi_is_slurm() -> None:
    start = found(WHOLE["Slurm"][0] | {"PMI_RANK": "5", "PMI_SIZE": "7", "PMIX_RANK": "5"})
    assert start is not None and start.by == "Slurm"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"), ("n[1-2]", "n1"), ("n[01,07-09],login", "n01"), ("a,b", "a"),
        ("rack[2-3]n[01,07]", "rack2n01"), ("gpu[003-004].site", "gpu003.site"), ("", None),
    ],
)  # fmt: skip
def test_the_first_node_of_a_list(nodes: str, first: str | None) -> None:
    assert first_node(nodes) == first


def run_both(environments: list[dict[str, str]], output: Path) -> list[tuple[int, str]]:
    """Start one process of `bertbench run` for each environment; return exit codes and errors."""
    words = [
        "run", "mini", "--backend", "cpu_ref", "--synthetic", "--max_steps", "2",
        "--hidden_size", "64", "--num_hidden_layers", "1", "--num_attention_heads", "2",
        "--intermediate_size", "128", "--skip_checkpoint", "--output_dir", str(output),
    ]  # fmt: skip
    clean = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("SLURM_", "OMPI_", "PMI", "MPI_", "MASTER_", "RANK", "WORLD_"))
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "bertbench", *words],
            env={**clean, **env, "OMP_NUM_THREADS": "1"}, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for env in environments
    ]  # fmt: skip
    ended = [process.communicate(timeout=300)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, ended, strict=True)]


SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "n1"}  # fmt: skip
MPIRUN = {f"{OMPI}SIZE": "2", f"{OMPI}LOCAL_SIZE": "2"}


@pytest.mark.parametrize("by", ["Slurm", "Open MPI"])
def test_two_processes_are_one_run(by: str, tmp_path: Path) -> None:
    job = str(os.getpid())  # of which the port follows: another test's run has another
    ranked = [
        {"SLURM_PROCID": r, "SLURM_LOCALID": r, "SLURM_JOB_ID": job, **SRUN}
        if by == "Slurm"
        else {f"{OMPI}RANK": r, f"{OMPI}LOCAL_RANK": r, "PMIX_NAMESPACE": job, **MPIRUN}
        for r in "01"
    ]
    for code, errors in run_both(ranked, tmp_path):
        assert code == 0, errors
    record = next(tmp_path.glob("*/*/*/manifest.json"))
    assert len(list(tmp_path.glob("*/*/*/manifest.json"))) == 1
    assert json.loads(record.read_text())["status"] == "ok"
    system = json.loads((record.parent / "system.json").read_text())
    assert json.dumps(system).count(f'"BERTBENCH_STARTED_BY": "{by}"') >= 1
    assert json.dumps(system).count('"WORLD_SIZE": "2"') >= 1
