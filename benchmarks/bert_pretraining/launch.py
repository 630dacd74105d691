# SPDX-License-Identifier: Apache-2.0
"""What the launcher script does once there is an environment: choose, say so, start.

It chooses the recipe (by whether there is data), the backend (by what `bertbench doctor` finds)
and the number of processes, prints the command that this comes to, and becomes that command.
Torch is not imported here, so that a vendor package cannot upset the launcher.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from benchmarks.bert_pretraining.flags import FLAGS
from benchmarks.bert_pretraining.recipes import PRESETS, PretrainingRecipe
from common.errors import BadInput, BertbenchError, Unsupported

WITH_DATA, WITHOUT_DATA = "deepspark_416", "mini"
"""The recipe where none is named: DeepSparkHub's command, or the one that needs no data."""

DEEPSPARK = ("--seed", "17103", "--skip_checkpoint")
"""What DeepSparkHub's command sets besides the recipe; flags of the user come after it."""

USAGE = """\
usage: [DATA=/path] bash train_bert_pretraining_amp_dist.sh [--recipe NAME] [flags]

  DATA=/path        MLPerf's data set (shards, evaluation set, bert_config.json, checkpoint):
                    trains {with_data} on the accelerators found
  without DATA      trains {without_data} on a small corpus that is fetched by itself
  --recipe NAME     another recipe: {recipes}
  --backend NAME    instead of the first accelerator found; cpu_ref is the CPU
  flags             those of the recipe (`.venv/bin/bertbench run RECIPE --help`) and of NVIDIA's
                    and DeepSparkHub's run_pretraining.py; the last of two wins
  --dry-run         say what would run

Environment: NPROC (processes on this node; default: one per accelerator), NNODES, NODE_RANK,
MASTER_ADDR, MASTER_PORT (several nodes: start it on each), INIT_LOSS_SCALE, and the vendor's
variable of visible devices."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A command, its environment, and what the user is told first."""

    command: list[str]
    environment: dict[str, str]
    says: list[str]
    rehearsal: list[str] | None = None
    """Run first by itself where several processes follow: it refuses once, and says it once."""


def plan(
    argv: Sequence[str], environment: Mapping[str, str], report: Mapping[str, Any], python: str
) -> Launch:
    """What to run for these flags, variables and ``bertbench doctor --json`` report.

    Raises BadInput or Unsupported with the fix.
    """
    says: list[str] = []
    named, rest = _split_recipe(argv)
    given, _ = FLAGS.read(rest)
    data = given.get("data", environment.get("DATA"))
    has_data = bool(data or "input_dir" in given)
    recipe = named or (WITH_DATA if has_data else WITHOUT_DATA)
    if recipe not in PRESETS:
        raise BadInput(f"unknown recipe {recipe!r}; there are: {', '.join(PRESETS)}")
    if data and not Path(data).is_dir():
        raise BadInput(f"DATA={data} is not a folder; it must hold the shards, see README.md")
    if named is None and not has_data:
        corpus = f"the text {given['text']}" if "text" in given else "the quick-start corpus"
        if given.get("synthetic") == "True":
            corpus = "synthetic tokens"
        says.append(
            f"DATA is not set: training {recipe} on {corpus}. "
            f"For MLPerf's BERT-large: DATA=/path/to/dataset"
        )
    backend = _choose_backend(given.get("backend", "auto"), recipe, report)
    if backend["name"] == "cpu_ref" and given.get("backend") != "cpu_ref":
        says.append("no accelerator was found: running on the CPU (cpu_ref)")
    nodes = _count(environment, "NNODES", 1)
    processes = _processes(environment, backend, recipe, nodes, says)

    own = ["--backend", str(backend["name"])]
    if data and "data" not in given:
        own += ["--data", data]
    if recipe.startswith("deepspark"):
        own += DEEPSPARK
    if environment.get("INIT_LOSS_SCALE"):
        own += ["--init_loss_scale", environment["INIT_LOSS_SCALE"]]
    command = [str(Path(python).parent / "bertbench"), "run", recipe, *own, *rest]
    says.append(f"{processes * nodes} x {backend['name']} ({backend['device']})")
    extra = {"PYTHONSAFEPATH": "1"}  # the folder we are called from is not a source of modules
    if processes * nodes == 1:
        return Launch(command, {**environment, **extra}, says)
    rehearsal = [*command, "--dry_run"]
    if given.get("dry_run") != "True":
        command = [*_torchrun(python, environment, processes, nodes), *command]
    if "OMP_NUM_THREADS" not in environment:
        extra["OMP_NUM_THREADS"] = str(max(1, int(report["cores"]) // processes))
    # What torchrun will set for each process; here it is for the one that rehearses.
    extra |= {"WORLD_SIZE": str(processes * nodes), "LOCAL_WORLD_SIZE": str(processes)}
    return Launch(command, {**environment, **extra}, says, rehearsal)


def _split_recipe(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The last --recipe and all other words."""
    named, rest, words = None, [], list(argv)
    while words:
        word = words.pop(0)
        if word == "--recipe":
            if not words:
                raise BadInput("--recipe needs a name")
            named = words.pop(0)
        elif word.startswith("--recipe="):
            named = word.partition("=")[2]
        else:
            rest.append(word)
    return named, rest


def _choose_backend(asked: str, recipe: str, report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The backend asked for, else the first accelerator; the CPU only for the smallest recipe."""
    found = {b["name"]: b for b in report["backends"]}
    if asked != "auto":
        if asked not in found:
            raise Unsupported(f"unknown backend {asked!r}; known: {', '.join(found)}")
        if not found[asked]["ok"]:
            raise Unsupported(f"backend {asked!r} cannot run here: {found[asked]['reason']}")
        return dict(found[asked])
    for b in found.values():
        if b["ok"] and b["accelerator"]:
            return dict(b)
    if recipe == WITHOUT_DATA:
        return dict(found["cpu_ref"])
    reasons = "; ".join(f"{n}: {b['reason']}" for n, b in found.items() if not b["ok"])
    raise Unsupported(
        f"{recipe} needs an accelerator and none was found{f' ({reasons})' if reasons else ''}. "
        f"`.venv/bin/bertbench doctor` shows why. To run it on the CPU: --backend cpu_ref"
    )


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise BadInput(f"{name}={text} is not a count: give a whole number from 1")
    return int(text)


def _processes(
    environment: Mapping[str, str],
    backend: Mapping[str, Any],
    recipe: str,
    nodes: int,
    says: list[str],
) -> int:
    """NPROC, else one per device; the smallest recipe uses as many as share its batch evenly."""
    devices = int(backend["device_count"])
    processes = _count(environment, "NPROC", devices)
    if recipe == WITHOUT_DATA and not environment.get("NPROC"):
        batch = cast("PretrainingRecipe", PRESETS[recipe].recipe).global_batch
        processes = max(n for n in range(1, devices + 1) if batch % (n * nodes) == 0 or n == 1)
        if processes < devices:
            says.append(f"{processes} of {devices} devices share a batch of {batch} evenly")
    return processes


def _torchrun(python: str, environment: Mapping[str, str], processes: int, nodes: int) -> list[str]:
    command = [python, "-m", "common.elastic", f"--nproc-per-node={processes}"]
    if nodes == 1:
        return [*command, "--standalone", "--no-python"]
    address, rank = environment.get("MASTER_ADDR"), environment.get("NODE_RANK")
    if not address or not rank:
        raise BadInput(f"NNODES={nodes} needs MASTER_ADDR (node 0) and NODE_RANK (0..{nodes - 1})")
    port = environment.get("MASTER_PORT") or "29500"
    place = [f"--node-rank={rank}", f"--master-addr={address}", f"--master-port={port}"]
    return [*command, f"--nnodes={nodes}", *place, "--no-python"]


def _doctor(python: str, backend: str) -> dict[str, Any]:
    """The doctor's report (on the one backend that was named), from a process of its own."""
    command = [str(Path(python).parent / "bertbench"), "doctor", "--json"]
    command += [] if backend == "auto" else [backend]
    done = subprocess.run(command, capture_output=True, text=True)
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


def main(argv: Sequence[str]) -> int:
    """Become the run; returns only when refused (2) or asked for help (0)."""
    if any(word in ("-h", "--help") for word in argv):
        names = {"with_data": WITH_DATA, "without_data": WITHOUT_DATA}
        print(USAGE.format(**names, recipes=", ".join(PRESETS)))
        return 0
    try:
        given, _ = FLAGS.read(_split_recipe(argv)[1])  # a typing error is told before all else
        report = _doctor(sys.executable, given.get("backend", "auto"))
        launch = plan(argv, os.environ, report, sys.executable)
    except BertbenchError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2
    _become(launch)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
