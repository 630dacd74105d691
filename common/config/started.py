# SPDX-License-Identifier: Apache-2.0
"""The variables of Open MPI, MPICH, Slurm and Kubernetes, put into torchrun's.

torch, collectives and the vendors' packages read torchrun's. A process that another launcher
started gets them here: all of them, or one line that says what is missing. The names are those of
Open MPI 4.1, MPICH 4's Hydra (and Intel MPI), Slurm 22.05's srun and Kubeflow's PyTorchJob.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import NamedTuple

from bertbench.common.config.launched import Ranks, number_of, ranks
from bertbench.common.errors import BadInput
from bertbench.common.files import shown

STARTED_BY = "BERTBENCH_STARTED_BY"
PORTS = range(15000, 30000)
"""Below Kubernetes' node ports and Linux's ports of outgoing connections."""


class Start(NamedTuple):
    """One process's place, as its launcher says it."""

    by: str
    ranks: Ranks
    address: str | None
    """Of rank 0's machine; None where the launcher does not say it."""
    port: int | None
    """The same in all processes of one start; None likewise."""


def found(environment: Mapping[str, str]) -> Start | None:
    """Return the place among several processes that a launcher started; None for a lone process,
    or under torchrun. Raises BadInput where its variables are incomplete or contradict each other.
    """
    env = environment
    if "TORCHELASTIC_RUN_ID" in env or {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= env.keys():
        return None
    if env.get("WORLD_SIZE") == "1" and env.get("RANK", "0") == "0":  # "each is a whole run"
        return None
    # mpirun inside a Slurm job has srun's variables, too: its daemons'.
    for launcher in (_open_mpi, _mpich, _slurm, _kubernetes):
        start = launcher(env)
        if start is not None and start.ranks.size > 1:
            for name, value in (("WORLD_SIZE", start.ranks.size), ("RANK", start.ranks.rank)):
                if name in env and number_of(env, name) != value:
                    raise BadInput(
                        f"{name}={shown(env[name], 20)} contradicts {start.by}, which says "
                        f"{value}: unset it (RANK=0, WORLD_SIZE=1: each process is a whole run)"
                    )
            return start
    return None


def adopt(environment: MutableMapping[str, str]) -> str | None:
    """Set torchrun's variables for a process that another launcher started among several.

    Returns a note for the user where this is one process of a job that has more tasks. Raises
    BadInput as ``found``, and where the processes cannot know at which address to meet.
    """
    env = environment
    start = found(env)
    if start is None:
        tasks = env.get("SLURM_NTASKS", "1")
        if "WORLD_SIZE" not in env and not _is_step(env) and tasks not in ("", "0", "1"):
            tasks = shown(tasks, 20)
            return f"this Slurm job has {tasks} tasks, and this is one process: srun starts all"
        return None
    for name, value in zip(
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), start.ranks, strict=True
    ):
        env[name] = str(value)
    ranks(env)
    for name, place in (("MASTER_ADDR", start.address), ("MASTER_PORT", start.port)):
        if env.get(name) is None and place is None:
            raise BadInput(
                f"{name} is not set, and {start.by} does not say "
                + ("on which machine rank 0 is" if name == "MASTER_ADDR" else "a number all share")
                + ": pass it to all processes (mpirun -x NAME=VALUE, mpiexec -genv NAME VALUE)"
            )
        env.setdefault(name, str(place))
    env[STARTED_BY] = start.by
    return None


def with_nodes(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT as a launcher says
    them that started this script once on each node: srun or mpirun, a PyTorchJob or, for NODE_RANK,
    an Indexed Job. What the user sets stays. Raises BadInput where its variables are incomplete.
    """
    env = dict(environment)
    if env.get("NNODES"):
        if "JOB_COMPLETION_INDEX" in env:
            env.setdefault("NODE_RANK", env["JOB_COMPLETION_INDEX"])
        return env
    if env.get("PET_NNODES", "").isdecimal() and "PET_NODE_RANK" in env:
        nodes, rank = env["PET_NNODES"], env["PET_NODE_RANK"]
        if env.get("PET_NPROC_PER_NODE", "").isdecimal():
            env.setdefault("NPROC", env["PET_NPROC_PER_NODE"])
    elif (start := found(env)) is not None and start.ranks.local_size == 1:
        nodes, rank = str(start.ranks.size), str(start.ranks.rank)
        for name, place in (("MASTER_ADDR", start.address), ("MASTER_PORT", start.port)):
            if place is not None:
                env.setdefault(name, str(place))
    elif env.get("JOB_COMPLETION_INDEX", "0") != "0":
        raise BadInput(
            f"JOB_COMPLETION_INDEX={shown(env['JOB_COMPLETION_INDEX'], 20)} without NNODES: set "
            f"NNODES to the Job's completions, or to 1 where each pod is a whole run"
        )
    else:
        return env
    if nodes == "1":
        return env
    for name in ("RANK", "WORLD_SIZE"):  # of pods; torchrun sets those of processes
        env.pop(name, None)
    return {**env, "NNODES": nodes, "NODE_RANK": rank}


def _numbers(env: Mapping[str, str], by: str, *names: str) -> list[int]:
    """Return the variables' numbers; raises BadInput for a missing or a wrong one."""
    if missing := [name for name in names if name not in env]:
        raise BadInput(
            f"{by} started this process, but {' and '.join(missing)} is not set: let it start all "
            f"processes, or unset its variables"
        )
    return [number_of(env, name) for name in names]


def _fitting(by: str, place: Ranks) -> Ranks:
    """Return the place; raises BadInput where its numbers contradict each other."""
    for text, value, size in (
        ("rank", place.rank, place.size),
        ("local rank", place.local_rank, place.local_size),
        ("processes on this machine", place.local_size, place.size + 1),
    ):
        if value >= size:
            raise BadInput(f"{by}: {text} {value} does not fit {place}: unset its variables")
    return place


def _one_machine(place: Ranks) -> str | None:
    return "127.0.0.1" if place.size == place.local_size else None


def _port(*parts: str) -> int:
    """Return a port that all processes of one start compute, and another start hardly does."""
    return PORTS[zlib.crc32("/".join(parts).encode()) % len(PORTS)]


def _open_mpi(env: Mapping[str, str]) -> Start | None:
    names = tuple(f"OMPI_COMM_WORLD_{n}" for n in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
    if not env.keys() & set(names):
        return None
    place = _fitting("Open MPI", Ranks(*_numbers(env, "Open MPI", *names)))
    job = env.get("PMIX_NAMESPACE") or env.get("OMPI_MCA_ess_base_jobid")
    return Start("Open MPI", place, _one_machine(place), _port(job) if job else None)


def _mpich(env: Mapping[str, str]) -> Start | None:
    names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    if not env.keys() & set(names) or (_is_step(env) and not env.keys() & set(names[2:])):
        return None  # srun --mpi=pmi2 sets the first two
    place = _fitting("MPICH", Ranks(*_numbers(env, "MPICH", *names)))
    return Start("MPICH", place, _one_machine(place), None)


def _is_step(env: Mapping[str, str]) -> bool:
    """Whether srun started this: a script of sbatch has the other variables, too."""
    return bool({"SLURM_STEP_ID", "SLURM_STEPID"} & env.keys())


def _slurm(env: Mapping[str, str]) -> Start | None:
    if not _is_step(env):
        return None
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    if env.get(size, "1") == "1":
        return None
    node, tasks = (
        _numbers(env, "Slurm", "SLURM_NODEID")[0],
        env.get("SLURM_STEP_TASKS_PER_NODE", ""),
    )
    local = list(_tasks_per_node(tasks))
    if node >= len(local):
        raise BadInput(
            f"Slurm: SLURM_STEP_TASKS_PER_NODE={shown(tasks, 40)} has no node {node} (SLURM_NODEID)"
        )
    rank, world, local_rank = _numbers(env, "Slurm", "SLURM_PROCID", size, "SLURM_LOCALID")
    place = _fitting("Slurm", Ranks(rank, world, local_rank, local[node]))
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
    step = env.get("SLURM_STEP_ID") or env.get("SLURM_STEPID") or ""
    job = env.get("SLURM_JOB_ID")
    port = None if job is None else _port(job, step)
    return Start("Slurm", place, _one_machine(place) or first_node(nodes), port)


def _tasks_per_node(text: str) -> Iterator[int]:
    """Yield the numbers of ``2(x3),1``: three nodes with two tasks each, and one with one."""
    for part in text.split(","):
        if (match := re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", part)) is None:
            raise BadInput(
                f"Slurm: SLURM_STEP_TASKS_PER_NODE={shown(text, 40)!r} is not a list of counts"
            )
        yield from [int(match[1])] * int(match[2] or 1)


def first_node(nodes: str) -> str | None:
    """Return the first name of a list such as ``rack[2-3]n[01,07-09],login``; None without one."""
    first = re.match(r"(?:[^,\[\]]|\[[^\]]*\])*", nodes)
    name = re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0]) if first else ""
    return name or None


def _kubernetes(env: Mapping[str, str]) -> Start | None:
    """Kubeflow gives a pod RANK and WORLD_SIZE, and no local ones: one process in each pod."""
    if "KUBERNETES_SERVICE_HOST" not in env or not {"RANK", "WORLD_SIZE"} <= env.keys():
        return None
    processes = env.get("PET_NPROC_PER_NODE", "1")
    if processes not in ("", "1", "auto"):
        raise BadInput(
            f"Kubernetes: this pod is to have {shown(processes, 20)} processes "
            f"(PET_NPROC_PER_NODE): start it by torchrun or a launcher script"
        )
    rank, world = _numbers(env, "Kubernetes", "RANK", "WORLD_SIZE")
    return Start("Kubernetes", _fitting("Kubernetes", Ranks(rank, world, 0, 1)), None, None)
