# SPDX-License-Identifier: Apache-2.0
"""Progress of a long job: a bar on a terminal, a plain line now and then when piped.

Both go to standard error, so that ``--json`` on standard output stays clean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0
"""Seconds between lines when piped."""


@contextmanager
def track(what: str, total: int, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of items just finished, out of ``total``."""
    console = console or Console(stderr=True, highlight=False, soft_wrap=True)
    start = shown = time.monotonic()
    done = 0
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)

            def advance(count: int) -> None:
                nonlocal done
                done += count
                bar.advance(task, count)

            yield advance
    else:

        def report(count: int) -> None:
            nonlocal done, shown
            done += count
            if time.monotonic() - shown >= LINE_EVERY_S:
                shown = time.monotonic()
                console.print(f"{what}: {done:,} of {total:,}, {shown - start:.0f} s", markup=False)

        yield report
    console.print(f"{what}: {done:,} done in {time.monotonic() - start:.1f} s", markup=False)
