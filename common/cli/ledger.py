# SPDX-License-Identifier: Apache-2.0
"""The runs of ``repeat``: their ledger, how the missing ones are made, and their summary."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from bertbench.common.errors import BadInput
from bertbench.common.files import clock, read_json, shown, why, write_atomic
from bertbench.common.launch.subprocess_runs import Outcome, Starter
from bertbench.common.measure.code import code_hash, git_state
from bertbench.common.results import statistics
from bertbench.common.results.comparable import Side, differences
from bertbench.common.results.record import STATUSES
from bertbench.common.results.seals import MANIFEST
from bertbench.common.results.store import load_results

COMPLETE = tuple(status for status in STATUSES if status != "interrupted")
RUN, AGAINST = "run", "against"
"""The sides of a ledger."""


@dataclass
class Ledger:
    """The runs of one command."""

    path: Path
    sides: dict[str, list[str]]
    """Words of each side's run without its seed; ``against`` comes first."""
    first_seed: int
    processes: int = 1
    runs: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(
        cls, root: Path, sides: dict[str, list[str]], first_seed: int, processes: int, fresh: bool
    ) -> Ledger:
        """Return the command's ledger with its runs so far; raises BadInput if it is damaged."""
        key = [sides, first_seed, processes]
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        ledger = cls(root / "repeats" / f"{name}.json", sides, first_seed, processes)
        if fresh or not os.path.lexists(ledger.path):
            return ledger
        try:
            ledger.runs = [_entry(run) for run in read_json(ledger.path)["runs"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{ledger.path} is damaged ({why(error)}): remove it, or use --fresh"
            ) from error
        return ledger

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes off the ledger; raises BadInput where one is at work."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BadInput(
                    f"the same command is at work already (ledger {self.path}): wait for its end, "
                    f"or give the runs other seeds with --seed"
                ) from error
            yield

    def other_code(self, seeds: Sequence[int]) -> str | None:
        """Return how the code of a complete run differs from the present one; None if all agree.

        Runs in older ledgers do not name theirs.
        """
        now = code_now()
        for name, seed in order(list(self.sides), seeds):
            code = (self.find(name, seed) or {}).get("code", now)
            if code != now:
                return f"seed {seed} ran on code {_shown(code)}, and the code is now {_shown(now)}"
        return None

    def crashed(self, side: str, seeds: Sequence[int]) -> list[int]:
        """Return the seeds of the runs that were killed, one for each, whatever came of them."""
        return [
            run["seed"]
            for run in self.runs
            if run["side"] == side and run["seed"] in seeds and run["status"] == "killed"
        ]

    def find(self, side: str, seed: int) -> dict[str, Any] | None:
        """Return the complete run with this seed."""
        for run in reversed(self.runs):
            if (run["side"], run["seed"]) == (side, seed) and run["status"] in COMPLETE:
                return run if (Path(run["record"] or "") / MANIFEST).exists() else None
        return None

    def add(self, side: str, seed: int, began: datetime, ended: Outcome) -> None:
        self.runs.append(
            {
                "side": side,
                "seed": seed,
                "record": None if ended.record is None else str(ended.record),
                "status": ended.status,
                "reason": ended.reason,
                "exit_code": ended.exit_code,
                "seconds": ended.seconds,
                "started_utc": began.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "code": code_now(),
            }
        )
        write_atomic(self.path, json.dumps(self.as_dict(), indent=1) + "\n")

    def as_dict(self) -> dict[str, Any]:
        content = {"schema_version": 1, "kind": "repeat", **asdict(self)}
        del content["path"]
        return content

    def side(self, name: str, seeds: Sequence[int]) -> Side:
        """Return the complete runs of one side."""
        entries = [run for seed in seeds if (run := self.find(name, seed)) is not None]
        return Side(name, *load_results([run["record"] for run in entries], references=False))


def _entry(run: Any) -> dict[str, Any]:
    """Return a run of a ledger; raises TypeError where it is none."""
    kinds: dict[str, Any] = {"side": str, "seed": int, "status": str, "record": (str, type(None))}
    for key, kind in kinds.items():
        if not isinstance(run, dict) or not isinstance(run[key], kind) or run[key] is True:
            raise TypeError(f"a run has no valid {key}")
    return dict(run)


def code_now() -> dict[str, Any]:
    """Return the code of the runs that are made now, as a ledger has it."""
    return {"commit": git_state()["commit"], "code_hash": code_hash()}


def _shown(code: Any) -> str:
    known = code if isinstance(code, dict) else {}
    return f"{shown(known.get('code_hash'), 16)} of commit {shown(known.get('commit'), 12)}"


def order(names: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Return pairs of side and seed, alternating: AB BA AB ..."""
    return [
        (name, seed)
        for place, seed in enumerate(seeds)
        for name in (names if place % 2 == 0 else list(reversed(names)))
    ]


def summary(side: Side, made: int) -> dict[str, Any]:
    """Return stability and metrics of a side; ``made`` includes runs without a record."""
    metrics = []
    for name in dict.fromkeys(name for run in side.finished for name in run.metrics):
        entries = [run.metrics[name] for run in side.finished if name in run.metrics]
        values = [float(entry["value"]) for entry in entries]
        interval = statistics.median_interval(values)
        metrics.append(
            {
                "name": name,
                "unit": entries[0]["unit"],
                "median": statistics.median(values),
                "n": len(values),
                "min": min(values),
                "max": max(values),
                "interval": None if interval is None else interval._asdict(),
            }
        )
    reached = side.statuses.get("ok", 0)
    targeted = any(  # one without an evaluation missed its target, too
        run.status == "below_quality" or (run.quality and run.quality.get("target") is not None)
        for run in side.runs
    )
    return {
        "statuses": side.statuses,
        "stability": {
            "value": reached / made,
            "reached": reached,
            "n": made,
            "definition": "runs that reached their target / runs made"
            if targeted
            else "runs that ended as ok (no evaluation had a target) / runs made",
        },
        "metrics": metrics,
    }


def render_summary(found: dict[str, Any], *, figures: bool = True) -> str:
    """Return the summary for people; ``figures`` is False if a comparison follows."""
    stability = found["stability"]
    lines = [
        f"stability {stability['reached']}/{stability['n']} = {stability['value']:.3g}, "
        f"n = {stability['n']}: {stability['definition']}",
        f"status: {', '.join(f'{n} {status}' for status, n in found['statuses'].items())}",
    ]
    if not figures:
        return "\n".join(lines)
    for metric in found["metrics"]:
        interval = metric["interval"]
        spread = "indicative: no interval" if interval is None else (
            f"{interval['confidence']:.1%} [{interval['low']:.6g}, {interval['high']:.6g}]"
        )  # fmt: skip
        lines.append(
            f"  {shown(metric['name'], 40):<34} {metric['median']:>12.6g} "
            f"{shown(metric['unit'], 16):<12} n={metric['n']}, "
            f"{metric['min']:.6g}-{metric['max']:.6g}, {spread}"
        )
    least = min((metric["n"] for metric in found["metrics"]), default=0)
    lines.append("median over runs, smallest-largest, distribution-free interval of the median")
    if least < statistics.ENOUGH:
        lines.append(f"an interval needs {statistics.ENOUGH} runs")
    return "\n".join(lines)


class Repeat:
    """One invocation of the verb."""

    def __init__(
        self, ledger: Ledger, count: int, starter: Starter, force: bool, out: IO[str]
    ) -> None:
        self.ledger, self.starter, self.force, self.out = ledger, starter, force, out
        self.seeds = range(ledger.first_seed, ledger.first_seed + count)
        self.todo = [
            (name, seed)
            for name, seed in order(list(ledger.sides), self.seeds)
            if ledger.find(name, seed) is None
        ]
        self.all = count * len(ledger.sides)
        self.silent: list[tuple[str, int, Outcome]] = []
        """Runs of this invocation that left no result."""
        self.refusal: list[str] = []

    def execute(self) -> int | None:
        """Make the missing runs; returns an exit code if that stops early."""
        seconds: list[float] = []
        done = self.all - len(self.todo)
        self._say(
            f"{self.all} run{'s' * (self.all != 1)} in new processes, "
            + f"seeds {self.seeds[0]}-{self.seeds[-1]}"
            + (f"; {done} are complete" if done else "")
        )
        for number, (name, seed) in enumerate(self.todo, done + 1):
            if self._incomparable():
                return 2
            began = datetime.now(timezone.utc)
            self._say(f"[{number}/{self.all}] {name}, seed {seed}: {began.astimezone():%H:%M:%S}")
            words = [*self.ledger.sides[name], "--seed", str(seed)]
            ended = self.starter.run(words, self.ledger.processes)
            seconds.append(ended.seconds)
            left = sum(seconds) / len(seconds) * (self.all - number)
            self._say(
                f"  {ended.status} after {clock(ended.seconds)}: {shown(ended.reason, 400)}"
                + (f"; about {clock(left)} left" if left else "")
            )
            if ended.status == "refused":  # every other seed would be
                self.refusal = [ended.reason]
                return 2
            self.ledger.add(name, seed, began, ended)
            if ended.stopped or ended.exit_code == 130:
                self._say(f"stopped: the same command continues ({self.ledger.path})")
                return 130
            if ended.status not in COMPLETE:
                self.silent.append((name, seed, ended))
        return 2 if self._incomparable() else None

    def _incomparable(self) -> bool:
        """Report differences between the two sides, or between the runs of one side.

        One side's runs differ if its words now mean another recipe, data set or device, or
        another machine shares the folder.
        """
        if self.force:
            return False
        if code := self.ledger.other_code(self.seeds):
            self.refusal = [code]
            self._say(f"not comparable, stopping: {code}")
            self._say("--fresh repeats all runs; --force continues")
            return True
        sides = [self.ledger.side(name, self.seeds) for name in self.ledger.sides]
        self.refusal = differences(*sides) if all(side.runs for side in sides) else []
        if self.refusal:
            self._say("\n  ".join(("not comparable, stopping:", *self.refusal)))
            self._say(
                "--fresh repeats all runs; --force continues"
                if len(sides) == 1
                else "--force continues, and the comparison lists the differences"
            )
        return bool(self.refusal)

    def _say(self, text: str) -> None:
        print(text, file=self.out, flush=True)
