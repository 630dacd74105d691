# SPDX-License-Identifier: Apache-2.0
"""``bertbench quick``: the speed of this machine in seconds, and how long the first run will take.

It trains the smallest recipe on synthetic tokens. Its rate is an estimate: it writes no record.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from bertbench import backends, benchmarks
from bertbench.common.cli.run_words import settings_of
from bertbench.common.cli.verbs import parser
from bertbench.common.config.recipe import recipe_hash
from bertbench.common.distributed.world import World
from bertbench.common.errors import Unsupported
from bertbench.common.launch.launcher import CPU
from bertbench.common.launch.threads import OtherWork, host_threads
from bertbench.common.report.ending import program, width
from bertbench.common.report.terminal import wrapped
from bertbench.common.report.words import number
from bertbench.common.results.machines import reference
from bertbench.common.training.loop import train

RECIPE = "mini"
SECONDS = 10.0
"""Of training; to find the devices and to build the model takes as long again."""
SKIPPED_STEPS = 1
"""Steps that the rate leaves out."""


def main(argv: Sequence[str]) -> int:
    """Measure and print; raises Unsupported where the named backend cannot run here."""
    verb = parser("quick")
    verb.add_argument(
        "--backend",
        default="auto",
        help="auto takes the first working accelerator, else the CPU (cpu_ref, or cpu)",
    )
    given = verb.parse_args(argv)
    name = _backend(given.backend)
    if not given.json:
        print(f"{RECIPE} on synthetic tokens, {SECONDS:g} s on one device of {name}:", flush=True)
    content = measure(name)
    if content is None:
        print("bertbench quick: stopped", file=sys.stderr)
        return 130
    print(json.dumps(content) if given.json else render(content))
    return 0 if content["sequences_per_second"] else 1


def _backend(name: str) -> str:
    """Return the name of a working backend: for ``auto`` an accelerator, else the CPU."""
    try:
        return backends.resolve(name).name
    except Unsupported:
        if name != "auto":
            raise
    print(f"no accelerator was found: measuring the CPU ({CPU})", file=sys.stderr)
    return CPU


def measure(
    name: str, seconds: float = SECONDS, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any] | None:
    """Return the rate of the backend ``name`` and what it is compared with; None after a signal.

    Unknown values are None, as the rate of a device that did not end its first steps.
    """
    settings = settings_of(["run", RECIPE, "--synthetic", "--backend", name, "--skip_checkpoint"])
    benchmark = benchmarks.load(settings.preset.benchmark)
    backend = backends.load(name)(0)
    torch.set_num_threads(host_threads(1))
    world, other_work = World(), OtherWork()
    task = benchmark.build(settings, backend, world, benchmark.prepare(settings))
    plan = replace(
        task.plan(settings), max_minutes=seconds / 60, skip_steps=SKIPPED_STEPS, log_freq=10
    )
    backend.verify_precision(plan.precision)
    busy = bool(other_work.notes(world.size))
    out = train(task, backend=backend, world=world, plan=plan, observers=[], clock=clock)
    if out.status == "interrupted":
        return None
    window, device = out.train_window, backend.describe()
    rate = window and window.sequences_per_second
    machine = reference(plan.precision, recipe_alone=recipe_hash(settings.recipe))
    machine = None if device.simulated or not rate else machine
    times = None if machine is None or not rate else rate / machine.sequences_per_second
    return {
        "recipe": RECIPE,
        "estimate": True,
        "backend": name,
        "device": device.name,
        "simulated": device.simulated,
        "precision": plan.precision,
        "steps": out.steps_done,
        "samples": window and window.samples,
        "measured_s": window and window.seconds,
        "sequences_per_second": rate,
        "real_tokens_per_second": window and window.real_tokens_per_second,
        "reference": machine and machine._asdict() | {"name": machine.name},
        "times_as_fast": times,
        "estimated_time_to_target_s": machine and times and machine.time_to_target_s / times,
        "other_work": busy,
    }


def render(content: dict[str, Any]) -> str:
    """Return the lines for people, none wider than the terminal."""
    known, rate = content["reference"], content["sequences_per_second"]
    device = content["device"] + ", simulated" * content["simulated"]
    here = f"about {number(rate, 3)} sequences/s" if rate else "an unknown speed"
    why = "an estimate" if rate else f"{content['steps']} steps are too few for an estimate"
    rows = [("here", f"{here} ({device}, {content['precision']}; {why})")]
    if known is not None:
        runs = f"median of {known['runs']} runs on text"
        there = f"{number(known['sequences_per_second'], 3)} sequences/s"
        seconds = content["estimated_time_to_target_s"]
        time_s = f"{number(seconds, 2)} s" if seconds < 120 else f"{number(seconds / 60, 2)} min"
        rows += [
            ("reference", f"{there} ({known['name']}; {runs})"),
            ("so", f"{RECIPE} reaches its target in about {time_s}, once its data is prepared"),
        ]
    if content["other_work"]:
        rows.append(("note", "other work keeps this machine busy: idle it is faster"))
    rows.append(("next", f"{program()} run {RECIPE} --backend {content['backend']}"))
    return "\n".join(wrapped(text, width(), f"  {name:<10}") for name, text in rows)
