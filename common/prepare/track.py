# SPDX-License-Identifier: Apache-2.0
"""Progress of a long job: a bar on a terminal, a plain line now and then when piped.

Both go to standard error, so that ``--json`` on standard output stays clean.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
LINE_EVERY_S = 10.0
"""Seconds between lines when piped."""


def tracked(
    items: Iterable[Item], what: str, total: int, console: Console | None = None
) -> Iterator[Item]:
    """Yield ``items``, ``total`` in number, and show how many are finished."""
    console = console or Console(stderr=True, highlight=False, soft_wrap=True)
    start = shown = time.monotonic()
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            yield from bar.track(items, total, description=what)
    else:
        for done, item in enumerate(items, 1):
            yield item
            if time.monotonic() - shown >= LINE_EVERY_S:
                shown = time.monotonic()
                _say(console, f"{what}: {done:,} of {total:,}, {shown - start:.0f} s")
    _say(console, f"{what}: {total:,} done in {time.monotonic() - start:.1f} s")


def _say(console: Console, line: str) -> None:
    with contextlib.suppress(OSError):  # standard error is full or gone: the work goes on
        console.print(line, markup=False)
