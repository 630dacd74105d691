# SPDX-License-Identifier: Apache-2.0
"""Launcher scripts: choose the backend and the processes, print the command, run it.

A benchmark's ``launch.py`` reads the script's words into a ``Request``; the rest is here. This
module does not import torch, so a vendor's package cannot break the launcher.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from bertbench.common.config.launched import check_alone, meeting_point, ranks
from bertbench.common.config.recipe import Preset
from bertbench.common.config.started import found, with_nodes
from bertbench.common.errors import BadInput, BertbenchError, Unsupported
from bertbench.common.files import Stream, shown
from bertbench.common.launch import restarts

CPU = "cpu_ref"
Report = Mapping[str, Any]
"""The output of `bertbench doctor --json`."""

USAGE = """\
  flags             the recipe's flags (`.venv/bin/bertbench run RECIPE --help`) and those of the
                    reference scripts; the last of two wins
  --dry-run         print the settings and run nothing

Environment: NPROC (processes on this node; default: the number that the script's name says, or one
per accelerator), the vendor's variable of visible devices and, to start the script on each of
several nodes, NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT. srun, mpirun and Kubernetes' jobs set
them, or what they follow from: docs/cluster.md. MAX_RESTARTS: how often a run that lost a process
starts again from its newest checkpoint (default: 0)."""
"""The end of every script's usage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The meaning of a script's words, before the devices are known."""

    recipe: str
    values: Mapping[str, str]
    """Values that the flags set, by field name."""
    flags: Sequence[str]
    """The user's flags, unchanged."""
    script_flags: Sequence[str] = ()
    """The script's own flags; the user's follow and win."""
    global_batch: int
    """Sequences per step of the recipe."""
    small: bool = False
    """Whether the recipe falls back to the CPU, and to as many devices as divide its batch."""
    devices: int | None = None
    """Number of devices in the script's name or its parameters."""
    precision: str | None = None
    """Precision where no flag sets one; fp32 on a device that lacks it."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the run, unless the user sets them."""
    messages: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """A command, its environment, and the messages to print first."""

    command: list[str]
    environment: dict[str, str]
    messages: list[str]
    rehearsal: list[str] | None = None
    """A dry run before several processes start: it refuses once, and not once per process."""


@dataclass(slots=True)
class Devices:
    """The chosen backend and number of processes."""

    backend: Mapping[str, Any]
    """The backend's entry in the doctor's report."""
    processes: int
    """Number of processes on this node."""
    nodes: int
    messages: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.backend["name"])


def take(argv: Sequence[str], flag: str, value: str) -> tuple[str | None, list[str]]:
    """Return the value of the last ``flag``, and all other words.

    Raises BadInput with a description of the ``value`` where it is missing.
    """
    taken, rest, words = None, [], list(argv)
    while words:
        word = words.pop(0)
        if word == flag:
            if not words:
                raise BadInput(f"{flag} needs {value}")
            taken = words.pop(0)
        elif word.startswith(f"{flag}="):
            taken = word.partition("=")[2]
        else:
            rest.append(word)
    return taken, rest


def find_preset(name: str, presets: Mapping[str, Preset]) -> Preset:
    """Return the recipe called ``name``. Raises BadInput with the names there are."""
    if name not in presets:
        raise BadInput(f"unknown recipe {name!r}; there are: {', '.join(presets)}")
    return presets[name]


def plan(request: Request, environment: Mapping[str, str], report: Report, python: str) -> Launch:
    """Return the command for ``request`` on the devices in ``report``.

    ``python`` is the interpreter of the environment to run in. Raises BadInput or Unsupported.
    """
    environment = with_nodes({**request.variables, **environment})
    start = None if environment.get("NNODES") else found(environment)
    if start is not None:  # its processes are here already, one for each device
        number = str(start.ranks.local_size)
        if environment.get("NPROC") not in (None, "", number):
            raise BadInput(
                f"NPROC={shown(environment['NPROC'], 20)}: {start.by} has started {number} "
                f"processes on this machine itself: unset NPROC"
            )
        environment = {**environment, "NPROC": number}
    devices = choose_devices(request, environment, report)
    messages = [*request.messages, *devices.messages]
    script_flags = [*request.script_flags]
    if request.precision is not None and "precision" not in request.values:
        precision = request.precision
        if precision not in ("fp32", *devices.backend["precisions"]):
            messages.append(f"{devices.name} has no {precision.upper()} here: FP32 (or --amp)")
            precision = "fp32"
        script_flags += ["--precision", precision]
    processes, nodes = devices.processes, devices.nodes
    command = [str(Path(python).parent / "bertbench"), "run", request.recipe]
    command += ["--backend", devices.name, *script_flags, *request.flags]
    if request.values.get("backend", devices.name) != devices.name:
        command += ["--backend", devices.name]  # every process takes the one chosen for auto
    total = processes * nodes if start is None else start.ranks.size
    by = "" if start is None else f", started by {start.by}"
    messages.append(f"{total} x {devices.name} ({devices.backend['device']}){by}")
    extra = {"PYTHONSAFEPATH": "1"}  # no modules from the working directory
    if total == 1 or start is not None:
        return Launch(command, {**environment, **extra}, messages)
    _check_alone(environment, nodes)
    started = [*torchrun(python, environment, processes, nodes), *command]
    rehearsal: list[str] | None = [*command, "--dry_run"]
    if request.values.get("dry_run") == "True":  # in one process, and without a rehearsal of it
        started, rehearsal = command, None
    if "OMP_NUM_THREADS" not in environment:
        extra["OMP_NUM_THREADS"] = str(max(1, int(report["cores"]) // processes))
    environment.pop("BERTBENCH_INSTALLED_S", None)  # its processes are new ones
    # torchrun sets these for each process; the rehearsal needs them, too.
    extra |= {"WORLD_SIZE": str(processes * nodes), "LOCAL_WORLD_SIZE": str(processes)}
    extra |= {"RANK": "0", "LOCAL_RANK": "0"}
    return Launch(started, {**environment, **extra}, messages, rehearsal)


def choose_devices(request: Request, environment: Mapping[str, str], report: Report) -> Devices:
    """Return the backend and the number of processes. Raises Unsupported or BadInput."""
    name = _asked(request)
    chosen = Devices(_choose_backend(name, request, report), 1, _count(environment, "NNODES", 1))
    if chosen.name == CPU and name != CPU:
        chosen.messages.append(f"no accelerator was found: running on the CPU ({CPU})")
    chosen.processes = _processes(request, environment, chosen)
    return chosen


def _asked(request: Request) -> str:
    """Return the backend that the flags name, by its own name, or ``auto``."""
    from bertbench.backends import own_name

    return own_name(request.values.get("backend", "auto"))


def _check_alone(environment: Mapping[str, str], nodes: int) -> None:
    """Raise BadInput where this script was started more often than once on each node.

    The processes cannot see it, since torchrun's variables replace those of their launcher.
    """
    check_alone(environment, nodes)
    if nodes == 1 and (size := ranks(environment).size) > 1:
        raise BadInput(
            f"WORLD_SIZE={size} without NNODES: each of {size} scripts would start a whole run of "
            f"its own: set NNODES (their number), NODE_RANK and MASTER_ADDR, or unset WORLD_SIZE"
        )


def _count(environment: Mapping[str, str], name: str, default: int, least: int = 1) -> int:
    """Return the variable's whole number from ``least``; BadInput for anything else."""
    text = environment.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise BadInput(f"{name}={shown(text, 20)} is not a count: give a whole number from {least}")
    return int(text)


def _choose_backend(name: str, request: Request, report: Report) -> Mapping[str, Any]:
    """Return the named backend, else the first accelerator, else the CPU for a small recipe."""
    from bertbench.backends import FAMILIES  # here: it refuses a wrong BERTBENCH_SIMULATE

    found = {b["name"]: b for b in report["backends"]}
    if name in FAMILIES:
        found = {n: b for n, b in found.items() if n in FAMILIES[name]}
    elif name != "auto":
        if name not in found:
            raise Unsupported(f"unknown backend {name!r}; known: {', '.join(found)}")
        if not found[name]["ok"]:
            raise Unsupported(
                f"backend {name!r} cannot run here: {found[name]['reason']}"
                + (_alternatives(name, report) if request.devices else "")
            )
        return dict(found[name])
    for b in found.values():
        if b["ok"] and b["accelerator"]:
            return dict(b)
    if request.small and name == "auto":
        return dict(found[CPU])
    reasons = "; ".join(f"{n}: {b['reason']}" for n, b in found.items() if not b["ok"])
    needed = "an accelerator" if name == "auto" else f"one of {', '.join(FAMILIES[name])}"
    raise Unsupported(
        f"{request.recipe} needs {needed} and none was found{f' ({reasons})' if reasons else ''}. "
        f"`.venv/bin/bertbench doctor` shows why." + _alternatives(name, report)
    )


def _alternatives(name: str, report: Report) -> str:
    """Return the backends that can run here besides ``name``, as flags."""
    others = [b["name"] for b in report["backends"] if b["ok"] and b["accelerator"]]
    others = [other for other in others if other != name]
    available = f" Available: --backend {' or --backend '.join(others)}." if others else ""
    return f"{available} To run it on the CPU: --backend {CPU}"


def _processes(request: Request, environment: Mapping[str, str], chosen: Devices) -> int:
    """Return NPROC, else the promised number, else one per device that shares the batch evenly."""
    available = int(chosen.backend["device_count"])
    if environment.get("NPROC"):
        processes = _count(environment, "NPROC", available)
        if request.devices not in (None, processes):
            chosen.messages.append(f"NPROC: {processes} processes instead of {request.devices}")
        return processes
    if request.devices is not None and chosen.name != CPU:
        if available < request.devices:
            raise Unsupported(
                f"this script is for {request.devices} devices and {chosen.name} has {available}: "
                f"NPROC={available} runs the same recipe on those, --backend {CPU} on the CPU"
            )
        return request.devices
    processes = available
    if request.small:
        batch, nodes = request.global_batch, chosen.nodes
        processes = max(n for n in range(1, available + 1) if batch % (n * nodes) == 0 or n == 1)
        if processes < available:
            text = f"{processes} of {available} devices share a batch of {batch} evenly"
            chosen.messages.append(text)
    return processes


def torchrun(python: str, environment: Mapping[str, str], processes: int, nodes: int) -> list[str]:
    """Return the words of torchrun for so many processes on each node, before the command.

    Raises BadInput where the environment does not say where several nodes meet.
    """
    command = [python, "-m", "bertbench.common.launch.torchrun", f"--nproc-per-node={processes}"]
    if nodes == 1:
        return [*command, "--standalone", "--no-python"]
    address = environment.get("MASTER_ADDR")
    if not address or not environment.get("NODE_RANK"):
        raise BadInput(f"NNODES={nodes} needs MASTER_ADDR (node 0) and NODE_RANK (0..{nodes - 1})")
    rank = _count(environment, "NODE_RANK", 0, 0)
    if rank >= nodes:
        raise BadInput(f"NODE_RANK={rank} is not one of 0..{nodes - 1} (NNODES={nodes})")
    port = environment.get("MASTER_PORT") or "29500"
    meeting_point({"MASTER_ADDR": address, "MASTER_PORT": port})
    place = [f"--node-rank={rank}", f"--master-addr={address}", f"--master-port={port}"]
    return [*command, f"--nnodes={nodes}", *place, "--no-python"]


def doctor(python: str, backend: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run `bertbench doctor` on the named backend, or on all for ``auto`` and for a family.

    Raises Unsupported for an unknown backend, BertbenchError for a doctor that fails.
    """
    from bertbench.backends import FAMILIES

    command = [str(Path(python).parent / "bertbench"), "doctor", "--json"]
    command += [] if backend in ("auto", *FAMILIES) else [backend]
    process = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=dict(environment)
    )
    if process.returncode == 2:
        raise Unsupported(process.stderr.strip().removeprefix("bertbench doctor: "))
    begin = process.stdout.find("{\n")  # a vendor's torch may print before the report
    if begin < 0:
        raise BertbenchError(f"`{shlex.join(command)}` failed:\n{process.stderr.strip()[-2000:]}")
    report: dict[str, Any] = json.loads(process.stdout[begin:])
    return report


def prepare(request: Request) -> Launch:
    """Return the command for ``request`` on this machine's devices; raises as ``plan``."""
    environment = {**request.variables, **os.environ}
    report = doctor(sys.executable, _asked(request), environment)
    return plan(request, environment, report, sys.executable)


def complete(launch: Launch, log: Path | None = None) -> int:
    """Run to the end and return the exit code; ``log`` gets a copy of the output.

    Ctrl-C and SIGTERM are passed on, so that the run can save and stop.
    """
    code = _announce(launch)
    if code:
        return code
    pipe, errors = (None, None) if log is None else (subprocess.PIPE, subprocess.STDOUT)
    out = Stream(sys.stdout)
    with contextlib.ExitStack() as kept:
        file = None if log is None else kept.enter_context(log.open("ab"))
        process = subprocess.Popen(
            launch.command, env=launch.environment, stdout=pipe, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, lambda number, _: process.send_signal(number))
            kept.callback(signal.signal, number, before)
        if process.stdout is not None and file is not None:
            for line in kept.enter_context(process.stdout):
                file.write(line)
                print(line.decode("utf-8", "replace"), end="", file=out, flush=True)
        code = process.wait()
    return code if code >= 0 else 128 - code


def _announce(launch: Launch) -> int:
    """Print messages and command, and rehearse; return the rehearsal's exit code."""
    out = Stream(sys.stdout)  # a reader that has left does not stop the run
    for text in [*launch.messages, shlex.join(launch.command)]:
        print(f"launch: {text}", file=out, flush=True)
    if launch.rehearsal is None:
        return 0
    command, output = launch.rehearsal, subprocess.DEVNULL
    return subprocess.run(command, env=launch.environment, stdout=output).returncode


def _become(launch: Launch, most: int) -> NoReturn:
    code = _announce(launch)
    if code:
        sys.exit(code)
    if most:
        sys.exit(restarts.repeat(launch.command, launch.environment, most))
    os.execve(launch.command[0], launch.command, launch.environment)


def main(
    argv: Sequence[str], usage: str, read: Callable[[Sequence[str], Mapping[str, str]], Request]
) -> int:
    """Replace this process by the run; return 0 after the help, 2 after an error.

    Args:
        argv: the script's words.
        usage: the benchmark's part of the help.
        read: turns words and environment into a request, or raises BertbenchError.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(usage + USAGE)
        return 0
    try:
        most = restarts.restarts(os.environ)
        launch = prepare(read(argv, os.environ))
    except BertbenchError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2
    _become(launch, most)
