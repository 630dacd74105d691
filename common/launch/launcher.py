# SPDX-License-Identifier: Apache-2.0
"""What a launcher script does once there is an environment: choose, say so, start.

The benchmark says which recipe its script means and what that needs (``Wish``); here the backend
(by what `bertbench doctor` finds) and the number of processes are chosen, and the command that this
comes to is printed and run. Torch is not imported, so that a vendor package cannot upset the
launcher.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from bertbench.common.errors import BadInput, BertbenchError, Unsupported

CPU = "cpu_ref"
Report = Mapping[str, Any]
"""What `bertbench doctor --json` prints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a benchmark wants to be run, before it is known on what."""

    recipe: str
    given: Mapping[str, str]
    """What the user's flags set, by our fields' names."""
    rest: Sequence[str]
    """The user's flags, as they came."""
    own: Sequence[str] = ()
    """Flags of the script itself; the user's come after them."""
    global_batch: int
    """Sequences per step of the recipe."""
    small: bool = False
    """Whether it runs on the CPU without being asked, and on fewer devices than there are."""
    cards: int | None = None
    """Devices that the script's name or its parameters promise."""
    says: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """A command, its environment, and what the user is told first."""

    command: list[str]
    environment: dict[str, str]
    says: list[str]
    rehearsal: list[str] | None = None
    """Run first by itself where several processes follow: it refuses once, and says it once."""


@dataclass(slots=True)
class Devices:
    """What was chosen to run on."""

    backend: Mapping[str, Any]
    """Its entry in the doctor's report."""
    processes: int
    """On this node."""
    nodes: int
    says: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.backend["name"])


def split_recipe(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The last --recipe and all other words."""
    return take(argv, "--recipe", "a name")


def take(argv: Sequence[str], flag: str, what: str) -> tuple[str | None, list[str]]:
    """The value of the last ``flag`` and all other words; BadInput where it has none."""
    taken, rest, words = None, [], list(argv)
    while words:
        word = words.pop(0)
        if word == flag:
            if not words:
                raise BadInput(f"{flag} needs {what}")
            taken = words.pop(0)
        elif word.startswith(f"{flag}="):
            taken = word.partition("=")[2]
        else:
            rest.append(word)
    return taken, rest


def choose_devices(
    wish: Wish,
    environment: Mapping[str, str],
    report: Report,
    families: Mapping[str, Sequence[str]] | None = None,
) -> Devices:
    """The backend and the number of processes; Unsupported or BadInput with the fix.

    ``families`` are names that may stand for several backends.
    """
    asked = wish.given.get("backend", "auto")
    backend = _choose_backend(asked, wish, report, families or {})
    chosen = Devices(backend, 1, count(environment, "NNODES", 1))
    if backend["name"] == CPU and asked != CPU:
        chosen.says.append(f"no accelerator was found: running on the CPU ({CPU})")
    chosen.processes = _processes(wish, environment, chosen)
    return chosen


def assemble(
    wish: Wish, devices: Devices, environment: Mapping[str, str], report: Report, python: str
) -> Launch:
    """The command for ``wish`` on ``devices``; ``python`` is that of the environment."""
    processes, nodes = devices.processes, devices.nodes
    says = [*wish.says, *devices.says]
    command = [str(Path(python).parent / "bertbench"), "run", wish.recipe]
    command += ["--backend", devices.name, *wish.own, *wish.rest]
    if wish.given.get("backend", devices.name) != devices.name:
        command += ["--backend", devices.name]  # auto, say: it was looked for just now
    says.append(f"{processes * nodes} x {devices.name} ({devices.backend['device']})")
    extra = {"PYTHONSAFEPATH": "1"}  # the folder we are called from is not a source of modules
    if processes * nodes == 1:
        return Launch(command, {**environment, **extra}, says)
    rehearsal = [*command, "--dry_run"]
    if wish.given.get("dry_run") != "True":
        command = [*_torchrun(python, environment, processes, nodes), *command]
    if "OMP_NUM_THREADS" not in environment:
        extra["OMP_NUM_THREADS"] = str(max(1, int(report["cores"]) // processes))
    # What torchrun will set for each process; here it is for the one that rehearses.
    extra |= {"WORLD_SIZE": str(processes * nodes), "LOCAL_WORLD_SIZE": str(processes)}
    return Launch(command, {**environment, **extra}, says, rehearsal)


def count(environment: Mapping[str, str], name: str, default: int) -> int:
    """The whole number from 1 in a variable; BadInput for anything else."""
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise BadInput(f"{name}={text} is not a count: give a whole number from 1")
    return int(text)


def _choose_backend(
    asked: str, wish: Wish, report: Report, families: Mapping[str, Sequence[str]]
) -> Mapping[str, Any]:
    """The backend asked for, else the first accelerator; the CPU only for a small recipe."""
    found = {b["name"]: b for b in report["backends"]}
    if asked in families:
        found = {n: b for n, b in found.items() if n in families[asked]}
    elif asked != "auto":
        if asked not in found:
            raise Unsupported(f"unknown backend {asked!r}; known: {', '.join(found)}")
        if not found[asked]["ok"]:
            raise Unsupported(
                f"backend {asked!r} cannot run here: {found[asked]['reason']}"
                + (_way_out(asked, report) if wish.cards else "")
            )
        return dict(found[asked])
    for b in found.values():
        if b["ok"] and b["accelerator"]:
            return dict(b)
    if wish.small and asked == "auto":
        return dict(found[CPU])
    reasons = "; ".join(f"{n}: {b['reason']}" for n, b in found.items() if not b["ok"])
    what = "an accelerator" if asked == "auto" else f"one of {', '.join(families[asked])}"
    raise Unsupported(
        f"{wish.recipe} needs {what} and none was found{f' ({reasons})' if reasons else ''}. "
        f"`.venv/bin/bertbench doctor` shows why." + _way_out(asked, report)
    )


def _way_out(asked: str, report: Report) -> str:
    """What else there is to run on."""
    others = [b["name"] for b in report["backends"] if b["ok"] and b["accelerator"]]
    others = [name for name in others if name != asked]
    there = f" Here is: --backend {' or --backend '.join(others)}." if others else ""
    return f"{there} To run it on the CPU: --backend {CPU}"


def _processes(wish: Wish, environment: Mapping[str, str], chosen: Devices) -> int:
    """NPROC, else one per device or as many as promised; a small recipe shares its batch evenly."""
    devices = int(chosen.backend["device_count"])
    if environment.get("NPROC"):
        processes = count(environment, "NPROC", devices)
        if wish.cards not in (None, processes):
            chosen.says.append(f"NPROC: {processes} processes instead of {wish.cards}")
        return processes
    if wish.cards is not None and chosen.name != CPU:
        if devices < wish.cards:
            raise Unsupported(
                f"this is for {wish.cards} devices and {chosen.name} has {devices}: "
                f"NPROC={devices} runs the same recipe on what is here, --backend {CPU} on the CPU"
            )
        return wish.cards
    processes = devices
    if wish.small:
        batch, nodes = wish.global_batch, chosen.nodes
        processes = max(n for n in range(1, devices + 1) if batch % (n * nodes) == 0 or n == 1)
        if processes < devices:
            chosen.says.append(f"{processes} of {devices} devices share a batch of {batch} evenly")
    return processes


def _torchrun(python: str, environment: Mapping[str, str], processes: int, nodes: int) -> list[str]:
    command = [python, "-m", "bertbench.common.launch.torchrun", f"--nproc-per-node={processes}"]
    if nodes == 1:
        return [*command, "--standalone", "--no-python"]
    address, rank = environment.get("MASTER_ADDR"), environment.get("NODE_RANK")
    if not address or not rank:
        raise BadInput(f"NNODES={nodes} needs MASTER_ADDR (node 0) and NODE_RANK (0..{nodes - 1})")
    port = environment.get("MASTER_PORT") or "29500"
    place = [f"--node-rank={rank}", f"--master-addr={address}", f"--master-port={port}"]
    return [*command, f"--nnodes={nodes}", *place, "--no-python"]


def doctor(python: str, backend: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The doctor's report (on the one backend that was named), from a process of its own."""
    command = [str(Path(python).parent / "bertbench"), "doctor", "--json"]
    command += [] if backend == "auto" else [backend]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(environment))
    if done.returncode == 2:
        raise Unsupported(done.stderr.strip().removeprefix("bertbench doctor: "))
    begin = done.stdout.find("{\n")  # a vendor's torch may greet on stdout before the report
    if begin < 0:
        raise BertbenchError(f"`{shlex.join(command)}` failed:\n{done.stderr.strip()[-2000:]}")
    report: dict[str, Any] = json.loads(done.stdout[begin:])
    return report


def _become(launch: Launch) -> NoReturn:
    for text in launch.says:
        print(f"launch: {text}")
    print(f"launch: {shlex.join(launch.command)}", flush=True)
    if launch.rehearsal is not None:
        done = subprocess.run(
            launch.rehearsal, env=launch.environment, stdout=subprocess.DEVNULL, text=True
        )
        if done.returncode:
            sys.exit(done.returncode)
    os.execve(launch.command[0], launch.command, launch.environment)


def start(make: Callable[[], Launch]) -> int:
    """Become the run that ``make`` plans; returns only when it refuses (2)."""
    try:
        launch = make()
    except BertbenchError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2
    _become(launch)
