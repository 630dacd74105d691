# SPDX-License-Identifier: Apache-2.0
"""TensorBoard events of a run (``--tensorboard DIR``), to look at; the record is the result.

Each run writes into ``DIR/<run id>``, outside its record: such files have the host's name in
theirs, and a record never does. The package ``tensorboard`` is an extra.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertbench.common.errors import BadInput, Unsupported, install
from bertbench.common.training.events import EvalEvent, Observer, RunSummary, StepEvent

_FLUSH_S = 10
_SPEED = ("sequences_per_second", "real_tokens_per_second", "data_wait_s")
_TRAIN = ("loss", "learning_rate", "grad_norm", "loss_scale")


def writer_class() -> Any:
    """Return torch's SummaryWriter; raises Unsupported without the package tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise Unsupported(
            f"--tensorboard needs the package tensorboard ({error}): {install('tensorboard')}"
        ) from error
    return SummaryWriter


class TensorBoard(Observer):
    """Scalars over steps: ``train/...``, ``eval/...`` and ``speed/...``; the run's end, as text.

    Raises BadInput where the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        make = writer_class()
        try:
            self._writer = make(str(folder), flush_secs=_FLUSH_S)
        except OSError as error:
            raise BadInput(f"--tensorboard: cannot write into {folder}: {error}") from error
        self._step = 0
        self._hook = threading.excepthook
        threading.excepthook = self._thread_failed

    def _thread_failed(self, failure: Any) -> None:
        """Show the traceback of a thread, but of a writer's: the next event raises its error."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._hook(failure)

    def on_step(self, event: StepEvent) -> None:
        self._add(step_scalars(event), event.step)

    def on_eval(self, event: EvalEvent) -> None:
        self._add(eval_scalars(event), event.step)
        self._writer.flush()  # the next may take long

    def note(self, text: str) -> None:
        self._writer.add_text("note", text, self._step)

    def close(self, summary: RunSummary) -> None:
        try:
            self._writer.add_text("end", f"{summary.status}: {summary.reason}", summary.step)
            self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _add(self, values: Mapping[str, float], step: int) -> None:
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)


def step_scalars(event: StepEvent) -> dict[str, float]:
    """Return ``train/...`` and ``speed/...`` of a step, as far as known and finite."""
    groups = ((_TRAIN, "train"), (_SPEED, "speed"))
    found = {f"{group}/{name}": getattr(event, name) for names, group in groups for name in names}
    return _known(found | {f"train/{name}": value for name, value in event.metrics.items()})


def eval_scalars(event: EvalEvent) -> dict[str, float]:
    """Return ``eval/...`` and the duration of an evaluation, as far as known and finite."""
    found: dict[str, float | None] = {f"eval/{name}": v for name, v in event.metrics.items()}
    return _known(found | {"eval/target": event.target_value, "speed/eval_s": event.eval_s})


def _known(found: Mapping[str, float | None]) -> dict[str, float]:
    return {name: v for name, v in found.items() if v is not None and math.isfinite(v)}
