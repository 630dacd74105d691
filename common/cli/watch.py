# SPDX-License-Identifier: Apache-2.0
"""``bertbench watch``: the progress of runs, from the steps.jsonl that each one writes.

It follows a file as it grows, also on a mounted disk, and a run on another machine through a pipe:
``ssh HOST tail -n +1 -F RUN/steps.jsonl | bertbench watch -``. It does not trust the file: it
counts damaged lines, and removes control characters from text.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from bertbench.common.cli.filters import PLACE, add_filters, filters_of, load_runs
from bertbench.common.cli.verbs import parser
from bertbench.common.errors import BadInput
from bertbench.common.files import clock, parse_json, shown
from bertbench.common.results.result import number
from bertbench.common.results.seals import MANIFEST, STEPS
from bertbench.common.results.store import find_runs
from bertbench.common.results.tail import File, LineSource, Pipe, json_object

_HISTORY = 40
_QUIET_S = 120.0
"""Seconds without a report until a run is shown as quiet."""
_BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_DEAD_S = 24 * 3600.0
"""Seconds without a write until an unfinished run in a folder counts as killed."""
_RESTING_S = 2.0
_INDENT = " " * 10
_STYLES = {"ok": "green", "ended (success)": "green", "running": "cyan", "waiting": "dim"}


class View:
    """The state of one run."""

    def __init__(self, source: LineSource) -> None:
        self.source = source
        self.step: Mapping[str, Any] = {}
        self.evaluation: Mapping[str, Any] = {}
        self.facts: Mapping[str, Any] = {}
        self.checkpoints = self.damaged = 0
        self.stopped: str | None = None
        self.rates: deque[float] = deque(maxlen=_HISTORY)
        self.qualities: deque[float] = deque(maxlen=_HISTORY)
        self.begun = False

    def update(self) -> None:
        """Read new lines. Facts come first: a finished run has all its lines."""
        self.facts = self.source.facts()
        while lines := self.source.lines():
            for line in lines:
                self.feed(line)

    def feed(self, line: str) -> None:
        """Apply one line of steps.jsonl; count any other as damaged."""
        if not line.strip():
            return
        try:
            event = parse_json(line)
            kind = event["kind"]
        except (ValueError, KeyError, TypeError):
            self.damaged += 1
            return
        self.begun = True
        if kind == "run_start":
            self.stopped = None
        elif kind == "step":
            self.step = event
            _keep(self.rates, event.get("sequences_per_second"))
        elif kind == "eval":
            self.evaluation = event
            _keep(self.qualities, self.quality)
        elif kind == "checkpoint":
            self.checkpoints += 1
        elif kind == "run_stop":
            self.stopped = shown(event.get("status"), 20)
        else:
            self.damaged += 1

    @property
    def quality(self) -> float | None:
        """The last evaluation's target metric."""
        metrics = self.evaluation.get("metrics")
        name = self.evaluation.get("target_metric")
        return number(metrics.get(str(name))) if isinstance(metrics, dict) else None

    @property
    def state(self) -> str:
        """The record's status, or else the state that the lines show."""
        if "status" in self.facts:
            return shown(self.facts["status"], 20)
        if self.stopped is not None and self.over:
            return f"ended ({self.stopped})"
        if self.source.ended():
            return "cut off"
        quiet = self.source.quiet_s()
        if quiet is not None and quiet > _QUIET_S:
            return f"quiet for {clock(quiet)}"
        if self.stopped is not None:
            return f"closing ({self.stopped})"
        return "running" if self.begun else "waiting"

    @property
    def over(self) -> bool:
        """Whether the run has ended, by its record or else by its last line."""
        return self.source.ended() or (self.stopped is not None and "title" not in self.facts)

    @property
    def ended_badly(self) -> bool:
        """Whether the run has ended in another way than ok, or cannot be read."""
        if self.source.problem is not None:
            return True
        if "status" in self.facts:
            return bool(self.facts["status"] != "ok")
        return self.over and self.stopped != "success"

    @property
    def resting(self) -> bool:
        """Whether a pipe stays open without new lines."""
        return self.begun and (self.source.quiet_s() or 0.0) > _RESTING_S

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values; unknown is None."""
        step = {k: number(self.step.get(k)) for k in ("step", "samples", "loss", "time_s", "eta_s")}
        target = number(self.evaluation.get("target_value"))
        return {
            "run": self.source.name,
            "state": self.state,
            **step,
            "max_steps": self.facts.get("max_steps"),
            "sequences_per_second": number(self.step.get("sequences_per_second")),
            "real_tokens_per_second": number(self.step.get("real_tokens_per_second")),
            "quality": {
                "metric": shown(self.evaluation.get("target_metric"), 40),
                "value": self.quality,
                "target": target,
                "reached": self.evaluation.get("reached") is True,
            }
            if self.evaluation
            else None,
            "checkpoints": self.checkpoints,
            "damaged_lines": self.damaged,
            "problem": self.source.problem,
        }


def render(views: Sequence[View]) -> Group:
    """Return a few lines a run: state and name, numbers, history of speed and quality."""
    return Group(*(line for view in views for line in _lines(view)))


def _lines(view: View) -> Iterator[Text]:
    now, state, total = view.as_dict(), view.state, view.facts.get("max_steps")
    style = _STYLES.get(state, "red" if view.over else "yellow")
    name = shown(f"{view.source.name}  {view.facts.get('title', '')}", 120)
    yield Text.assemble((f"{state:<9} ", style), (name.strip(), "bold"))
    quiet = view.over or state.startswith("quiet")
    left = None if quiet or now["eta_s"] is None else clock(now["eta_s"])
    parts = (
        []
        if now["step"] is None
        else [
            f"step {now['step']:.0f}" + (f" of {total:.0f}" if total else ""),
            _formatted("loss {:.4f}", now["loss"]),
            _formatted("{:,.1f} seq/s", now["sequences_per_second"]),
            _formatted("{:,.0f} tok/s", now["real_tokens_per_second"]),
            "" if now["time_s"] is None else f"time {clock(now['time_s'])}",
            "" if left is None else f"at most {left} left",
        ]
    )
    if parts:
        yield Text(_INDENT + "  ".join(part for part in parts if part))
    if quality := now["quality"]:
        text = str(quality["metric"]) + _formatted(" {:.4f}", quality["value"])
        text += _formatted(" of {:g}", quality["target"])
        yield Text(
            f"{_INDENT}{text}{', reached' * quality['reached']}  {bars(view.qualities)}",
            style="green" if quality["reached"] else "",
        )
    if len(view.rates) > 1:
        yield Text(f"{_INDENT}seq/s {bars(view.rates)}", style="dim")
    if view.damaged:
        text = f"{view.damaged} damaged line{'s' * (view.damaged > 1)} skipped"
        yield Text(_INDENT + text, style="yellow")
    if view.source.problem is not None:
        yield Text(f"{_INDENT}cannot be read: {view.source.problem}", style="red")


def bars(values: Iterable[float]) -> str:
    """Return one block character a value, scaled from the smallest to the largest."""
    found = list(values)
    if not found:
        return ""
    low, spread = min(found), float(max(found) - min(found))
    if not spread or not math.isfinite(spread):
        return _BARS[3] * len(found)
    return "".join(_BARS[round((v - low) / spread * (len(_BARS) - 1))] for v in found)


def sources(runs: Sequence[str], stream: IO[str]) -> list[LineSource]:
    """Return the sources of ``-``, run folders, files and folders of runs.

    A folder of runs gives its unfinished runs, or else its newest. Raises BadInput for a path
    without runs.
    """
    found: list[LineSource] = []
    for run in runs:
        path = Path(run)
        if run == "-":
            found.append(Pipe(stream))
        elif path.is_file() or (path / MANIFEST).exists() or (path / STEPS).exists():
            found.append(File(path))
        else:
            below = sorted(find_runs(path)[0], key=lambda p: p.name) if path.is_dir() else []
            if not below:
                raise BadInput(
                    f"no run in {shown(path)}: name a run folder, its {STEPS}, or - for a pipe"
                )
            found += map(File, _going(below))
    if sum(isinstance(source, Pipe) for source in found) > 1:
        raise BadInput("standard input can be watched once")
    return found


def _going(runs: list[Path]) -> list[Path]:
    """Return the unfinished ones of runs in time order, or else the newest."""
    return [run for run in runs if _goes_on(run)] or runs[-1:]


def _chosen(given: argparse.Namespace) -> list[LineSource]:
    """Return the sources of the runs that are named or, with filters, pass them."""
    if not (filters := filters_of(given)):
        return sources(given.runs or [str(PLACE)], sys.stdin)
    runs = [run.path for run in load_runs(given, given.runs)[0]]
    return [File(run) for run in (runs if filters.latest else _going(runs))]


def _goes_on(run: Path) -> bool:
    """Return whether a run has an open record and wrote something recently."""
    if json_object(run / MANIFEST).get("files") is not None:
        return False
    newest = max(file.lstat().st_mtime for file in run.iterdir())
    return time.time() - newest < _DEAD_S


def main(argv: Sequence[str]) -> int:
    """Show the runs; returns 1 if one ended in another way than ok. Raises BadInput."""
    verb = parser(
        "watch",
        epilog="From another machine: ssh HOST tail -n +1 -F RUN/steps.jsonl | bertbench watch -. "
        "Exit code: 0, or 1 if a run ended in another way than ok",
    )
    verb.add_argument(
        "runs", nargs="*", metavar="RUN",
        help="run folder, steps.jsonl, or -; of a folder of runs the unfinished ones, or else the "
        f"newest (default: {PLACE})",
    )  # fmt: skip
    verb.add_argument("--once", action="store_true", help="print the state once, and exit")
    verb.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds between updates"
    )
    add_filters(verb)
    given = verb.parse_args(argv)
    if not given.interval > 0:
        raise BadInput(f"--interval {given.interval} must be above 0")
    views = [View(source) for source in _chosen(given)]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # terminals without block characters
    console = Console(highlight=False)
    if given.once or given.json or not console.is_terminal:
        while True:  # until each pipe is read
            for view in views:
                view.update()
            if all(v.over or v.resting for v in views if isinstance(v.source, Pipe)):
                break
            time.sleep(0.01)
        if given.json:
            print(json.dumps([view.as_dict() for view in views], indent=1))
        else:
            console.print(render(views))
    else:
        _follow(views, console, given.interval)
    return 1 if any(view.ended_badly for view in views) else 0


def _follow(views: Sequence[View], console: Console, interval_s: float) -> None:
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                for view in views:
                    view.update()
                live.update(render(views), refresh=True)
                if all(view.over for view in views):
                    return
                time.sleep(interval_s)
    except KeyboardInterrupt:
        pass  # the user leaves


def _keep(history: deque[float], value: Any) -> None:
    found = number(value)
    if found is not None:
        history.append(found)


def _formatted(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)
