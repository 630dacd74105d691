# SPDX-License-Identifier: Apache-2.0
"""Launchers' variables: one run on N processes, one alone, or one line that says what is wrong."""

from __future__ import annotations

import os

import pytest

from bertbench.common.config.launched import RANKS, SIZES, Ranks, check_alone, meeting_point, ranks
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks()),
        (TORCHRUN, Ranks(3, 4, 1, 2)),
        ({"WORLD_SIZE": "1"}, Ranks()),
        ({"WORLD_SIZE": "1", "RANK": "0"}, Ranks()),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, Ranks()),
        ({"WORLD_SIZE": "2", "RANK": "1"}, Ranks(1, 2, 1, 2)),
    ],
)
def test_numbers_are_read(environment: dict[str, str], expected: Ranks) -> None:
    assert ranks(environment) == expected


WRONG = ["", " ", "two", "-1", "1.0", "0x2", "1e3", "\u0662", "9" * 5000, "99999999999", "1\n2"]


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("name", TORCHRUN)
def test_what_is_no_number_is_one_line(name: str, text: str) -> None:
    with pytest.raises(BadInput, match=name) as error:
        ranks(TORCHRUN | {name: text})
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"RANK": "0"},
        {"RANK": "1"},
        {"LOCAL_RANK": "0"},
        {"LOCAL_WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "2"},
        {"WORLD_SIZE": "0", "RANK": "0"},
        TORCHRUN | {"RANK": "4"},
        TORCHRUN | {"WORLD_SIZE": "3"},
        TORCHRUN | {"LOCAL_RANK": "2"},
        TORCHRUN | {"LOCAL_WORLD_SIZE": "5"},
        {"WORLD_SIZE": "1", "RANK": "1"},
    ],
)
def test_half_set_or_contradicting_numbers_are_one_line(environment: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="torchrun"):
        ranks(environment)


@pytest.mark.parametrize(
    "environment",
    [
        SRUN,
        SRUN | {"SLURM_PROCID": "1"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
        {"SLURM_STEPID": "1", "SLURM_NTASKS": "2"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_SIZE": "2", "PMI_RANK": "0", "MPI_LOCALNRANKS": "2"},
        {"PALS_RANKID": "1"},
        {"MPI_LOCALNRANKS": "8"},
        *({name: "2"} for name in (*SIZES, *RANKS)),
    ],
)
def test_several_whole_runs_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="torchrun --nproc-per-node") as error:
        check_alone(environment)
    assert "\n" not in str(error.value)
    check_alone(environment | {"WORLD_SIZE": "1"})  # the user says so, or torchrun does


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_NPROCS": "8"},  # salloc's shell
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        dict.fromkeys(SIZES, "1") | dict.fromkeys(RANKS, "0"),
        dict.fromkeys((*SIZES, *RANKS), ""),
        dict.fromkeys((*SIZES, *RANKS), "many"),
    ],
)
def test_one_process_of_a_cluster_runs(environment: dict[str, str]) -> None:
    """A script of sbatch and the shell of salloc have SLURM_NTASKS, and are one process."""
    check_alone(environment)


def test_the_world_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, *SIZES, *RANKS):
        monkeypatch.delenv(name, raising=False)
    assert World.from_env() == World()
    monkeypatch.setattr(os, "environ", {**os.environ, "OMPI_COMM_WORLD_SIZE": "2"})
    with pytest.raises(BadInput, match="OMPI_COMM_WORLD_SIZE=2"):
        World.from_env()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"MASTER_ADDR": "", "MASTER_PORT": "29500"},
        {"MASTER_PORT": "29500"},
        {"MASTER_ADDR": "node0"},
        *({"MASTER_ADDR": "node0", "MASTER_PORT": p} for p in (*WRONG, "0", "65536", "http")),
    ],
)
def test_without_a_meeting_point_it_is_one_line(environment: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="MASTER_") as error:
        meeting_point(environment)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    meeting_point({"MASTER_ADDR": "node0", "MASTER_PORT": "29500"})


GROUPS = {**TORCHRUN, "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "7"}
"""torchrun's processes on two machines."""


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "MPI_LOCALNRANKS": "1"},
        {"FLUX_JOB_SIZE": "2", "FLUX_TASK_RANK": "1"},
        {"PET_NNODES": "2", "PET_NODE_RANK": "1"},
    ],
)
def test_one_torchrun_on_each_machine_is_one_run(environment: dict[str, str]) -> None:
    """And the same torchruns of one machine each are several."""
    check_alone(GROUPS | environment)
    check_alone(environment, 2)
    for alone in (GROUPS | environment | {"GROUP_WORLD_SIZE": "1"}, environment):
        with pytest.raises(BadInput, match="several processes were started"):
            check_alone(alone)
    with pytest.raises(BadInput, match="several processes were started"):
        check_alone(environment | {"WORLD_SIZE": "1"}, 1)


@pytest.mark.parametrize("address", ["node1..cluster", ".", "a" * 64, "\udcff"])
def test_an_address_that_cannot_be_one_is_one_line(address: str) -> None:
    with pytest.raises(BadInput, match="MASTER_ADDR") as error:
        meeting_point({"MASTER_ADDR": address, "MASTER_PORT": "29500"})
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
