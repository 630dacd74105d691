# SPDX-License-Identifier: Apache-2.0
"""The end of a run, for the person before the console: a sentence, few figures, what to do next.

All metrics are in the record.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bertbench.common.config.recipe import CHOSEN, RunOptions, Settings
from bertbench.common.files import Stream
from bertbench.common.measure.metric import SHARED
from bertbench.common.report.terminal import columns as terminal_columns
from bertbench.common.report.terminal import wrapped
from bertbench.common.report.words import duration, number, quantity
from bertbench.common.results.comparable import FINISHED
from bertbench.common.results.machines import Machine, reference
from bertbench.common.training.built import Built
from bertbench.common.training.events import EvalEvent, RunSummary

WIDEST = 80
LIMITS = {"--max_minutes": "max_minutes"} | {
    name: name for name in ("max_steps", "max_samples_termination")
}
"""The first word of a missed run's reason -> the setting that ended it."""


def width() -> int:
    """Return the columns of the terminal, at most ``WIDEST``."""
    return min(WIDEST, terminal_columns())


def of_run(
    summary: RunSummary, evals: Sequence[EvalEvent], built: Built, settings: Settings,
    recipe_hash: str | None,
) -> list[str]:  # fmt: skip
    """Return ``lines`` for this terminal; a simulated device is compared with no machine."""
    machine = reference(built.plan.precision, recipe_hash=recipe_hash)
    return lines(
        summary, evals, settings, resumed=built.resumed is not None, columns=width(),
        machine=None if built.devices[0].simulated else machine,
    )  # fmt: skip


def lines(
    summary: RunSummary,
    evals: Sequence[EvalEvent],
    settings: Settings,
    *,
    resumed: bool = False,
    machine: Machine | None = None,
    columns: int = WIDEST,
) -> list[str]:
    """Return the last texts of a run, in lines of at most ``columns``: its sentence first.

    ``evals`` are the run's evaluations, ``machine`` the one to compare with (None: no comparison).
    An error's text stays as it is.
    """
    values = {m.name: m.value for m in summary.metrics}
    sentence = _sentence(summary, evals, values, resumed)
    time = values.get("time_to_target_s")
    if machine is not None and time:
        times = number(machine.time_to_target_s / time, 2)
        sentence += f": {times} times as fast as the reference machine ({_of(machine)})"
    if summary.status in FINISHED:
        sentence = wrapped(sentence, columns)
    rows = _figures(summary, evals, values)
    if summary.status == "below_quality":
        rows.append(("to do", _advice(summary.reason, settings)))
    return [sentence, *(wrapped(text, columns, f"  {name:<10}") for name, text in rows)]


def _of(machine: Machine) -> str:
    return f"{machine.name}; median of {machine.runs} runs" if machine.runs > 1 else machine.name


def _sentence(
    summary: RunSummary, evals: Sequence[EvalEvent], values: dict[str, float], resumed: bool
) -> str:
    """Return what was reached, after how much, in which time."""
    status, last = summary.status, evals[-1] if evals else None
    if status not in FINISHED or "run_time_s" not in values:
        return f"{status}: {summary.reason}"
    since = " since it was resumed" if resumed else ""
    work = f"{summary.samples:,} samples in {duration(values['run_time_s'])}{since}"
    if last is not None and last.reached:
        reached = number(last.metrics[last.target_metric])
        return f"reached {last.target_metric} {reached} of {last.target_value:g} after {work}"
    if status == "ok":
        return f"ok: {summary.reason}, {work}" if summary.samples else f"ok: {summary.reason}"
    limit = summary.reason.partition(" before the target")[0]
    if last is None:
        return f"missed the target after {work}: {limit}, no evaluation was due"
    best = number(max(e.metrics[last.target_metric] for e in evals))
    goal = f"{last.target_metric} {last.target_value:g}"
    return f"missed {goal}: reached {best} at best after {work} ({limit})"


def _figures(
    summary: RunSummary, evals: Sequence[EvalEvent], values: dict[str, float]
) -> list[tuple[str, str]]:
    """Return the figures that matter, by what they are of."""
    said = {e.target_metric for e in evals[-1:] if e.reached}

    def joined(*names: str, unit: str | None = None) -> str:
        shown = [
            quantity(m.value, unit or m.unit)
            for name in names
            for m in summary.metrics
            if m.name == name
        ]
        return ", ".join(shown)

    speed = joined("sequences_per_second")
    if tokens := joined("real_tokens_per_second", unit="real tokens/s"):
        speed += f", {tokens}"
    scores = [m for m in summary.metrics if m.name not in SHARED and m.name not in said]
    used = [f"{100 * values[name]:.3g} % {name}" for name in ("mfu", "mfu_calibrated") if
            name in values]  # fmt: skip
    rows = {
        "scores": ", ".join(f"{m.name} {quantity(m.value, m.unit)}" for m in scores),
        "speed": speed or joined("inference_sequences_per_second"),
        "of peak": ", ".join(used),
        "memory": joined("peak_memory_bytes"),
        "power": joined("power_w", "energy_j"),
    }
    return [(name, text) for name, text in rows.items() if text]


def _advice(reason: str, settings: Settings) -> str:
    """Return what to change so that a run which missed its target may reach it."""
    limit = LIMITS.get(reason.split()[0].rstrip(","), "") if reason else ""
    if settings.origins.get(limit) in CHOSEN:
        return f"leave out --{limit}, or raise it"
    return (
        "compare with --kernels plain --precision fp32, which shows whether this device computes "
        "the same, and with another --seed"
    )


def program() -> str:
    """Return the command's words for a shell: its path where that is below this folder."""
    path = Path(sys.executable).parent / "bertbench"
    near = os.path.relpath(path)
    return shlex.quote(near) if path.is_file() and not near.startswith("..") else "bertbench"


class Nowhere(io.TextIOBase):
    """A stream for text that nobody asked for."""

    def write(self, text: str) -> int:
        return len(text)


def terminal(run: RunOptions) -> Stream:
    """Return where the lines of a run go: with ``--quiet`` nowhere, with ``--json`` aside."""
    return Stream(Nowhere() if run.quiet else sys.stderr if run.json else sys.stdout)


def print_end(settings: Settings, path: Path, summary: RunSummary, own: Sequence[str]) -> None:
    """Print where the record is, the next command and the benchmark's ``own`` lines.

    With ``--json`` an object instead, with ``--quiet`` the sentence, which is not printed yet.
    """
    out = Stream(sys.stdout)
    if settings.run.json:
        content = {"record": str(path), "status": summary.status, "reason": summary.reason,
                   "metrics": {m.name: m.value for m in summary.metrics}}  # fmt: skip
        print(json.dumps(content), file=out, flush=True)
        return
    if settings.run.quiet:
        print((summary.lines or [f"{summary.status}: {summary.reason}"])[0], file=out, flush=True)
        return
    found = [f"record      {path}"]
    if summary.status == "interrupted" and (path / "checkpoints").is_dir():
        found.append(f"to go on    the same command with --resume {path}")
    elif summary.status == "ok":
        folder = shlex.quote(str(settings.run.output_dir))
        found.append(f"next        {program()} report {folder} --output report")
    print("\n".join([*found, *own]), file=out, flush=True)
