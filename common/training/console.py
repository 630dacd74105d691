# SPDX-License-Identifier: Apache-2.0
"""The console of a run: plain lines, also kept in ``console.log``; a progress bar on a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bertbench.common.files import Stream, clock
from bertbench.common.training.events import EvalEvent, Observer, RunSummary, StepEvent


class ConsoleObserver(Observer):
    """One aligned line per report on rank 0; it outlives its terminal and its log.

    ``lost`` receives a note when ``out`` or ``log`` can no longer be written.
    """

    def __init__(
        self, *, max_steps: int, target: float | None, log: IO[str] | None = None,
        out: Stream | None = None, lost: Callable[[str], object] = str,
    ) -> None:  # fmt: skip
        self._outputs = {"the terminal": out or Stream(sys.stdout)}
        if log is not None:
            self._outputs["console.log"] = Stream(log)
        self._console = Console(
            file=self._outputs["the terminal"], highlight=False, soft_wrap=True  # type: ignore[arg-type]
        )  # fmt: skip
        self._lost, self._max_steps, self._target = lost, max_steps, target
        self._notes: list[str] = []
        self._accuracy: float | None = None
        self._bar: Progress | None = None
        self._row: TaskID | None = None

    def say(self, text: str, style: str | None = None, short: str | None = None) -> None:
        """Print a line, or a ``short`` form of it, and keep it."""
        if "the terminal" in self._outputs:
            self._console.print(short or text, style=style, markup=False)
        if "console.log" in self._outputs:
            self._outputs["console.log"].write(text + "\n")
            self._outputs["console.log"].flush()
        for name in [name for name, stream in self._outputs.items() if stream.problem]:
            note = f"{name} can no longer be written: {self._outputs.pop(name).problem}"
            self._lost(note)
            self.note(note)

    def note(self, text: str) -> None:
        self._notes.append(text)
        self.say(f"note: {text}", style="yellow")

    def run_start(self, *, step: int, samples: int) -> None:
        where = f" at step {step}, {samples} samples" if step else ""
        what = "training" if self._max_steps else "inference"
        self.say(f"{time.strftime('%H:%M:%S')} {what} starts{where}")
        if self._console.is_terminal and self._max_steps and "the terminal" in self._outputs:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[info]}"),
                TimeElapsedColumn(), console=self._console, transient=True,
            )  # fmt: skip
            self._row = self._bar.add_task("step", total=self._max_steps, completed=step, info="")
            self._bar.start()

    def on_step(self, event: StepEvent) -> None:
        width, most = len(str(self._max_steps)), shutil.get_terminal_size().columns
        accuracy, norm, scale = event.metrics.get("mlm_accuracy"), event.grad_norm, event.loss_scale
        parts = (  # those with the largest numbers leave a narrow terminal first
            (0, f"step {event.step:>{width}}/{self._max_steps}"),
            (0, f"loss {event.loss:7.4f}"),
            (0, f"{_shown(event.sequences_per_second, '8.1f')} seq/s"),
            (4, f"{_shown(event.real_tokens_per_second, '9.0f')} tok/s"),
            (1, accuracy is not None and f"train acc {accuracy:.4f}"),
            (3, f"lr {event.learning_rate:.2e}"),
            (5, norm is not None and f"|g| {norm:.2f}"),
            (2, scale is not None and f"scale {scale:g} skipped {event.skipped_steps}"),
            (0, event.eta_s is not None and f"at most {clock(event.eta_s)} left"),
        )
        lines = ["  ".join(t for at, t in parts if t and at <= rank) for rank in (5, 4, 3, 2, 1, 0)]
        lines.append(" ".join(lines[-1].split()))
        self.say(lines[0], short=next((line for line in lines if len(line) <= most), lines[-1]))
        if self._bar is not None and self._row is not None:
            shown = "-" if self._accuracy is None else f"{self._accuracy:.4f}"
            goal = "" if self._target is None else f" of {self._target:g}"
            self._bar.update(self._row, completed=event.step, info=f"held-out acc {shown}{goal}")

    def on_eval(self, event: EvalEvent) -> None:
        value = event.metrics[event.target_metric]
        self._accuracy = value
        goal = "" if event.target_value is None else f" (target {event.target_value:g})"
        mark = "  TARGET REACHED" if event.reached else ""
        parts = [f"{event.target_metric} {value:.5f}{goal}"]
        if "loss" in event.metrics:
            parts.append(f"loss {event.metrics['loss']:.4f}")
        if event.inference_sequences_per_second is not None:
            parts.append(f"{event.inference_sequences_per_second:.1f} seq/s")
        self.say(
            f"eval at {event.samples} samples: {', '.join(parts)}, {event.eval_s:.1f} s{mark}",
            style="bold green" if event.reached else "cyan",
        )

    def on_checkpoint(self, *, path: str, step: int, samples: int, seconds: float) -> None:
        self.say(f"checkpoint of step {step}: {path} ({seconds:.1f} s)")

    def run_stop(self, *, step: int, samples: int, status: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def close(self, summary: RunSummary) -> None:
        self.run_stop(step=summary.step, samples=summary.samples, status=summary.status)
        first, *rest = summary.lines or [f"{summary.status}: {summary.reason}"]
        self.say(first, style="bold green" if summary.status == "ok" else "bold red")
        for text in rest:
            self.say(text)
        for text in self._notes:
            self.say(f"note: {text}", style="yellow")


def _shown(rate: float | None, form: str) -> str:
    """Format a rate; an unknown one is a dash."""
    return "-".rjust(int(form.split(".")[0])) if rate is None else format(rate, form)
