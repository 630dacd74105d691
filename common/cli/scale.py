# SPDX-License-Identifier: Apache-2.0
"""``bertbench scale``: throughput and efficiency of one recipe on 1, 2, 4, 8 devices.

Every run has its own record; ``<output_dir>/scales/<UTC>_<id>/scale.json`` holds the table.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bertbench.common.cli.run_words import (
    add_output_flags,
    progress,
    settings_of,
    split_words,
    stoppable,
)
from bertbench.common.cli.verbs import parser
from bertbench.common.config.recipe import Settings
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.files import clock, host_cores, shown, write_atomic
from bertbench.common.launch import launcher as launch
from bertbench.common.launch.subprocess_runs import Outcome, Starter
from bertbench.common.results.scaling import (
    DEFINITIONS,
    HOST_NOTE,
    ScalingPoint,
    as_dict,
    fill,
    relate,
    render,
)
from bertbench.common.results.store import Result, load_results

PREFLIGHT_MINUTES = 9.0
_LONGEST_S, _SHORTEST_S, _OVERHEAD_S = 120.0, 5.0, 60.0
"""Limits of a preflight run's training, and the first estimate of its other seconds."""
QUIET = {"eval_iter_samples": "0", "target_mlm_accuracy": "None"}
"""Fields that switch off evaluation and early stops."""
Examine = Callable[[str], launch.Report]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs to make."""

    words: list[str]
    devices: list[int]
    weak: bool
    synthetic: bool
    repeats: int
    minutes: float
    base_batch: int
    backend: str
    shares_host: bool
    output_dir: Path
    quiet: list[str]
    notes: list[str]
    threads: int
    """Host threads of each process, the same for every number of devices."""

    def batch(self, devices: int) -> int:
        return self.base_batch * (devices if self.weak else 1)

    def command(self, devices: int, seconds: float | None) -> list[str]:
        """Return the words of one run; ``seconds`` limits its training."""
        words = [*self.words, "--backend", self.backend]
        words += ["--global_batch", str(self.batch(devices)), "--num_threads", str(self.threads)]
        if seconds is not None:
            words += [*self.quiet, "--max_minutes", f"{seconds / 60:.3f}"]
        return words


def plan(settings: Settings, words: list[str], given: Any, examine: Examine) -> Plan:
    """Return the runs to make; raises BadInput or Unsupported before any starts."""
    devices, notes = device_numbers(given.devices), []
    if devices[0] != 1:
        devices = [1, *devices]
        notes.append("adding 1 device: efficiency is relative to it")
    batch = int(settings.recipe.global_batch)
    uneven = [n for n in devices if batch % n]
    if given.strong and uneven:
        fitting = ",".join(str(n) for n in devices if n not in uneven)
        uneven_text = " and ".join(map(str, uneven))
        raise BadInput(
            f"a global batch of {batch} cannot be shared evenly by {uneven_text} devices: "
            f"--devices {fitting}, another --global_batch, or --weak"
        )
    request = launch.Request(
        recipe=words[1], values={"backend": settings.run.backend}, flags=(), global_batch=batch
    )
    chosen = launch.choose_devices(request, {}, examine(settings.run.backend))
    shares_host = not chosen.backend["accelerator"]
    there = int(chosen.backend["device_count"])
    if not shares_host and devices[-1] > there:
        fitting = ",".join(str(n) for n in devices if n <= there)
        raise Unsupported(
            f"{chosen.name} has {there} device{'s' * (there != 1)} here, not {devices[-1]}: "
            f"--devices {fitting}"
        )
    if shares_host and devices[-1] > 1:
        notes.append(f"{chosen.name}: {HOST_NOTE}")
    # One process with all of the host's threads would be no baseline for several that share them.
    threads = settings.impl.num_threads or max(1, host_cores() // devices[-1])
    notes.append(f"{threads} host threads in each process, whatever the number of devices")
    quiet = []
    if given.synthetic:
        quiet = ["--synthetic", "--skip_checkpoint"]
        for name, value in QUIET.items():
            quiet += [f"--{name}", value] if hasattr(settings.recipe, name) else []
        quiet += ["--no_do_predict"] if hasattr(settings.run, "do_predict") else []
    return Plan(
        words=words,
        devices=devices,
        weak=not given.strong,
        synthetic=given.synthetic,
        repeats=given.repeats,
        minutes=given.minutes,
        base_batch=batch,
        backend=chosen.name,
        shares_host=shares_host,
        output_dir=settings.run.output_dir,
        quiet=quiet,
        notes=notes,
        threads=threads,
    )


def device_numbers(text: str) -> list[int]:
    """Return the numbers of a flag ``--devices``, ascending; raises BadInput for other words."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and 0 < int(part) <= 65536 for part in parts):
        raise BadInput(f"--devices {shown(text)}: give numbers from 1, such as 1,2,4,8")
    return sorted({int(part) for part in parts})


class Budget:
    """The training time of each preflight run, within a limit for all."""

    def __init__(self, minutes: float, runs: int, now: Callable[[], float] = time.monotonic):
        self._end, self._left, self._now = now() + 60 * minutes, runs, now
        self._overhead = _OVERHEAD_S

    def next(self) -> float:
        """Return the seconds of the next run."""
        share = (self._end - self._now()) / max(self._left, 1) - self._overhead
        return min(max(share, _SHORTEST_S), _LONGEST_S)

    def spent(self, seconds: float, trained: float) -> None:
        """Account for a run of ``seconds`` with ``trained`` seconds of training."""
        self._left -= 1
        self._overhead = max(seconds - trained, 1.0)


def execute(
    plan: Plan, starter: Starter, say: Callable[[str], None]
) -> tuple[list[ScalingPoint], Outcome]:
    """Make all runs, alternating the repeats; returns the rows and the last run."""
    rows = [ScalingPoint(devices=n, global_batch=plan.batch(n)) for n in plan.devices]
    todo = [row for _ in range(plan.repeats) for row in rows]
    budget = Budget(plan.minutes, len(todo))
    found: dict[int, list[Result]] = {row.devices: [] for row in rows}
    ended = Outcome(status="none", reason="", exit_code=0, seconds=0.0)
    for number, row in enumerate(todo, 1):
        seconds = budget.next() if plan.synthetic else None
        limit = f", at most {seconds:.0f} s of training" if seconds is not None else ""
        say(f"[{number}/{len(todo)}] {row.devices} x {plan.backend}, batch "
            f"{row.global_batch}{limit}")  # fmt: skip
        ended = starter.run(plan.command(row.devices, seconds), row.devices)
        budget.spent(ended.seconds, seconds or 0.0)
        row.statuses.append(ended.status)
        if ended.record is not None:
            row.records.append(str(ended.record))
            results, damaged = load_results([ended.record], references=False)
            found[row.devices] += results
            for problem in damaged:
                ended = Outcome(**asdict(ended) | {"reason": f"its record: {problem.problem}"})
        fill(row, found[row.devices], quality=not plan.synthetic)
        rate = "no rate" if row.rate is None else f"{row.rate:.5g} sequences/s"
        say(f"  {ended.status} after {clock(ended.seconds)}: {shown(ended.reason, 400)}; {rate}")
        if len(row.rates) < len(row.statuses):
            row.reason = ended.reason
        if ended.stopped or ended.exit_code == 130 or (number == 1 and ended.status == "refused"):
            break
    relate(rows, plan.weak, plan.shares_host)
    return rows, ended


def _examine(backend: str) -> launch.Report:
    return launch.doctor(sys.executable, backend, os.environ)


def main(
    argv: Sequence[str], *, starter: Starter | None = None, examine: Examine = _examine
) -> int:
    """Make the runs and print the table; returns the exit code. Raises BadInput or Unsupported."""
    verb = parser(
        "scale",
        usage="bertbench scale --devices 1,2,4,8 [--strong] [--synthetic] [...] -- run RECIPE "
        "[flags]",
        epilog="Exit code: 0 every number of devices has a rate, 1 some have none, 2 refused, "
        "130 stopped",
    )
    verb.add_argument("--devices", default="1,2,4,8", metavar="N,N", help="numbers of devices")
    mode = verb.add_mutually_exclusive_group()
    mode.add_argument("--weak", action="store_true", help=f"default; {DEFINITIONS['weak']}")
    mode.add_argument("--strong", action="store_true", help=str(DEFINITIONS["strong"]))
    verb.add_argument(
        "--synthetic", action="store_true", help="a preflight in minutes: no data, no accuracy"
    )
    verb.add_argument(
        "--minutes", type=float, default=PREFLIGHT_MINUTES, metavar="MIN",
        help="limit of the whole preflight in minutes",
    )  # fmt: skip
    verb.add_argument(
        "--repeats",
        type=int,
        default=1,
        metavar="N",
        help="runs of each number, for a median",
    )
    add_output_flags(verb)
    own, words = split_words("scale", argv)
    given = verb.parse_args(own)
    if given.repeats < 1 or not 0 < given.minutes < 1e6:
        raise BadInput("--repeats must be at least 1 and --minutes above 0")
    chosen = plan(settings_of(words), words, given, examine)
    out = progress(given)

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    say(f"{'weak' if chosen.weak else 'strong'} scaling of: {shown(shlex.join(words), 400)}")
    for text in chosen.notes:
        say(text)
    try:
        with stoppable():
            rows, ended = execute(chosen, starter or Starter(verbose=given.verbose), say)
    except KeyboardInterrupt:  # between two runs
        return 130
    if not any(row.records for row in rows) and ended.status == "refused":
        raise Unsupported(ended.reason)
    found, path = _write(chosen, rows)
    print(json.dumps(found | {"path": str(path)}, indent=1) if given.json
          else f"\n{render(found)}\ntable        {path}")  # fmt: skip
    if ended.stopped or ended.exit_code == 130:
        return 130
    return 0 if all(row.rate is not None for row in rows) else 1


def _write(chosen: Plan, rows: Sequence[ScalingPoint]) -> tuple[dict[str, Any], Path]:
    """Write scale.json; returns its content and its path."""
    found = as_dict(
        rows,
        weak=chosen.weak,
        synthetic=chosen.synthetic,
        backend=chosen.backend,
        shares_host=chosen.shares_host,
        command=chosen.words,
        repeats=chosen.repeats,
    )
    stamp = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}_{secrets.token_hex(3)}"
    path = chosen.output_dir / "scales" / stamp / "scale.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(found, indent=1) + "\n")
    return found, path
