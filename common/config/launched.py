# SPDX-License-Identifier: Apache-2.0
"""Which process of how many this is, from the variables that torchrun sets.

``srun`` and ``mpirun`` set others, without torchrun's meeting point: there every process would be a
whole run that calls itself the only one. ``SLURM_NTASKS`` says nothing, since a script of sbatch
has it, too, and is one process: the variables of a job step do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import NamedTuple

from bertbench.common.errors import BadInput
from bertbench.common.files import shown

MOST = 1 << 20
SIZES = (
    "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_SIZE", "PALS_LOCAL_SIZE", "JSM_NAMESPACE_SIZE", "HOROVOD_SIZE",
    "FLUX_JOB_SIZE", "PET_NNODES",
)  # fmt: skip
"""Above 1, several processes were started."""
RANKS = (
    "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_RANK", "PALS_RANKID", "ALPS_APP_PE", "JSM_NAMESPACE_RANK", "FLUX_TASK_RANK",
    "HOROVOD_RANK", "PET_NODE_RANK",
)  # fmt: skip
"""Above 0, another process was started, too."""
TIMEOUT, TIMEOUT_S, LONGEST_S = "BERTBENCH_PEER_TIMEOUT_S", 60.0, 10**6
_FIX = (
    "start it with torchrun (`torchrun --nproc-per-node=N --no-python bertbench run ...`), once on "
    "each machine"
)


class Ranks(NamedTuple):
    """This process among all, and among those of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def ranks(environment: Mapping[str, str] | None = None) -> Ranks:
    """Return torchrun's numbers; without any, those of the only process.

    Raises BadInput where they are not numbers, contradict each other or are there in part.
    """
    env = os.environ if environment is None else environment
    rank, size = _number(env, "RANK", 0), _number(env, "WORLD_SIZE", 1)
    local = _number(env, "LOCAL_RANK", 0), _number(env, "LOCAL_WORLD_SIZE", 1)
    if size is None and rank is None and local == (None, None):
        return Ranks()
    if size is None or (rank is None and size > 1):
        missing = "WORLD_SIZE" if size is None else "RANK"
        there = [n for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if n in env]
        raise BadInput(f"{' and '.join(there)} without {missing}: {_FIX}, or unset them all")
    rank = rank or 0
    if local == (None, None):  # as torch's own documentation starts two processes by hand
        local = rank, size
    elif None in local and size > 1:
        missing = "LOCAL_RANK" if local[0] is None else "LOCAL_WORLD_SIZE"
        raise BadInput(f"{missing} is not set, but its counterpart is: {_FIX}")
    local_rank, local_size = local[0] or 0, local[1] or 1
    for name, value, of, limit in (
        ("RANK", rank, "WORLD_SIZE", size),
        ("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size),
        ("LOCAL_WORLD_SIZE", local_size, "WORLD_SIZE", size + 1),
    ):
        if value >= limit:
            raise BadInput(f"{name}={value} does not fit {of}={env.get(of, limit)}: {_FIX}")
    return Ranks(rank, size, local_rank, local_size)


def check_alone(environment: Mapping[str, str] | None = None, starters: int | None = None) -> None:
    """Raise BadInput where srun, mpirun and the like started more processes than one run has.

    These are torchruns, one on each of the run's ``starters`` machines (None: as torchrun says), or
    the run itself. Without torchrun, WORLD_SIZE is the user's word for how many belong together.
    """
    env = os.environ if environment is None else environment
    if starters is None:
        if "WORLD_SIZE" in env and "GROUP_WORLD_SIZE" not in env:
            return
        starters = _number(env, "GROUP_WORLD_SIZE", 1) or 1
    sizes = [*SIZES, "SLURM_NTASKS"] if {"SLURM_STEP_ID", "SLURM_STEPID"} & env.keys() else SIZES
    for names, most in ((sizes, starters), (RANKS, starters - 1)):
        for name in names:
            text = env.get(name, "")
            if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > most:
                raise BadInput(
                    f"{name}={text}: several processes were started, and each would be a whole run "
                    f"of its own: {_FIX} with its number (--nnodes=N, or NNODES=N of the scripts); "
                    f"for a single run, set RANK=0 and WORLD_SIZE=1, and no torchrun"
                )


def meeting_point(environment: Mapping[str, str] | None = None) -> None:
    """Raise BadInput unless MASTER_ADDR and MASTER_PORT say where the processes meet."""
    env = os.environ if environment is None else environment
    address = env.get("MASTER_ADDR", "").strip()
    if not address:
        raise BadInput(f"MASTER_ADDR is not set, but WORLD_SIZE is above 1: {_FIX}")
    try:
        address.encode("idna")  # as sockets do
    except UnicodeError:
        raise BadInput(
            f"MASTER_ADDR={shown(address, 80)} is no name or address of a machine: {_FIX}"
        ) from None
    port = _number(env, "MASTER_PORT", 1)
    if port is None or port > 65535:
        raise BadInput(f"MASTER_PORT={shown(env.get('MASTER_PORT', ''), 20)} is not a port: {_FIX}")


def timeout_s() -> float:
    """Return the seconds after which a silent process is lost; BadInput for another text."""
    text = os.environ.get(TIMEOUT, str(TIMEOUT_S))
    with contextlib.suppress(ValueError):
        if 1 <= float(text) <= LONGEST_S:
            return float(text)
    raise BadInput(f"{TIMEOUT}={shown(text, 20)} is not a number of seconds from 1 to {LONGEST_S}")


def number(name: str) -> int:
    """Return one of torchrun's numbers alone; see ``number_of``."""
    return number_of(os.environ, name)


def number_of(environment: Mapping[str, str], name: str) -> int:
    """Return a launcher's number, 0 for a rank and 1 for a size that is not set.

    Raises BadInput unless it is a number.
    """
    least = 1 if name.endswith("SIZE") else 0
    found = _number(environment, name, least)
    return least if found is None else found


def _number(env: Mapping[str, str], name: str, least: int) -> int | None:
    """Return the variable's whole number, None where it is not set."""
    text = env.get(name)
    if text is None:
        return None
    good = text.isascii() and text.isdecimal() and len(text) < 10
    if not good or not least <= int(text) <= MOST:
        raise BadInput(
            f"{name}={shown(text, 20)!r} is not a whole number from {least}: {_FIX}, or unset it"
        )
    return int(text)
