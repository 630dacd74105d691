# SPDX-License-Identifier: Apache-2.0
"""The labels of each dev and test set in the record, in the layout of GLUE's submissions.

A test set's file has the name that the server knows (MNLI-m.tsv), a dev set's begins with dev_. The
first line is ``index``, a tab and ``prediction``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bertbench.common.files import write_atomic
from bertbench.common.training.events import EvalEvent, Observer

if TYPE_CHECKING:
    from bertbench.benchmarks.glue.task import GlueTask


class Predictions(Observer):
    """Writes a file for each set into ``folder``. Raises OSError where one cannot be written."""

    def __init__(self, task: GlueTask, folder: Path) -> None:
        self._task, self._folder = task, folder
        self.files = tuple(part.file for part in task.source.parts)

    def on_eval(self, event: EvalEvent) -> None:
        for part, labels in self._task.predictions():
            lines = [f"{i}\t{label}" for i, label in zip(part.index, labels, strict=True)]
            text = "\n".join(("index\tprediction", *lines)) + "\n"
            write_atomic(self._folder / part.file, text)


def closing(folder: Path) -> list[str]:
    """Return the lines that a terminal shows at the end."""
    return [f"predictions {path}" for path in sorted(folder.glob("*.tsv"))]
