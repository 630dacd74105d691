# SPDX-License-Identifier: Apache-2.0
"""Run one section in a separate process.

A section that raises, crashes, hangs or corrupts the device's context cannot affect another one.
The process is forked, which saves the import of torch; therefore the parent must never compute
with torch or open a device.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

from check.device import Check
from check.figure import (
    FAILED,
    NOT_AVAILABLE,
    PASSED,
    SKIPPED,
    NotAvailable,
    Outcome,
    SectionReport,
    one_line,
    read_report,
)

T = TypeVar("T")


class Stopped(Exception):
    """Ctrl-C or a signal ended a section; ``outcome`` holds its figures."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.name)
        self.outcome = outcome


class Failed(Exception):
    """A part of a section that ran in a separate process failed."""


TINY_EXPECTED_S = 8.0
"""Expected seconds of a section with --tiny, on two slow cores."""
_KILL_S = 5.0
"""Seconds to wait for a killed process; one that is stuck in its driver may never end."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the check."""

    name: str
    summary: str
    """One line."""
    expected_s: float
    """Seconds on one H100, estimated; the budget is compared with it."""
    run: Callable[[Check, SectionReport], None]
    closing: bool = False
    """The budget never skips it: its expected time is reserved."""
    calibrated: bool = False
    """Some of its figures need the calibration of this call."""
    only: bool = False
    """It runs only where --only names it: the usual budget has no time for it."""

    def expected(self, check: Check) -> float:
        """Return the expected seconds with the sizes of ``check``."""
        return TINY_EXPECTED_S if check.tiny else self.expected_s

    def limit(self, check: Check) -> float:
        """Return the seconds after which the section is stopped."""
        expected = self.expected(check)
        if self.closing:
            return expected + 15.0
        return max(check.size(60, 400), 3 * expected)  # a busy host must not fail a section


def alone(name: str, calibrated: bool) -> str:
    """Return the options that run a section by itself."""
    return f"--only {'calibrate,' if calibrated else ''}{name} --output OTHER"


def skip(section: Section, check: Check, left_s: float, budget_s: float) -> Outcome | None:
    """Return the outcome of a section that does not fit the time left, or None if it fits."""
    expected = section.expected(check)
    if section.closing or expected <= left_s:
        return None
    left = max(0.0, left_s)
    reason = (
        f"its expected {expected:.0f} s exceed the {left:.0f} s left of the budget of "
        f"{budget_s:g} s; run it with {alone(section.name, section.calibrated)}"
    )
    return Outcome(
        name=section.name, status=SKIPPED, reason=reason, seconds=None, expected_s=expected
    )


def run_section(section: Section, check: Check, left_s: float) -> Outcome:
    """Run a section for at most its limit and, unless it is closing, at most ``left_s`` seconds.

    Its output and the traceback of a failure go to ``<folder>/<name>.txt``. Raises Stopped after
    Ctrl-C.
    """
    output, lines = check.folder / f"{section.name}.txt", check.folder / f".{section.name}.jsonl"
    limit = section.limit(check) if section.closing else min(section.limit(check), left_s)
    sys.stdout.flush()
    sys.stderr.flush()
    begin, stopped = time.monotonic(), False
    child = multiprocessing.get_context("fork").Process(
        target=_child, args=(section, check, output, lines)
    )
    child.start()
    try:
        child.join(limit)
    except KeyboardInterrupt:
        stopped = True
    late = child.is_alive()
    _kill(child)
    child.join(_KILL_S)
    seconds = time.monotonic() - begin
    figures, facts, end = read_report(lines)
    lines.unlink(missing_ok=True)
    if output.exists() and not output.stat().st_size:
        output.unlink()
    if stopped:
        end = (FAILED, "stopped by a signal")
    elif late:
        end = (FAILED, f"stopped after {limit:.0f} s, its limit")
    elif end is None:
        end = (FAILED, f"its process {_ending(child.exitcode)}; see {output.name}")
    outcome = Outcome(
        name=section.name,
        status=end[0],
        reason=end[1],
        seconds=seconds,
        expected_s=section.expected(check),
        figures=tuple(figures),
        facts=tuple(facts),
    )
    if stopped:
        raise Stopped(outcome)
    return outcome


def apart(call: Callable[[], T]) -> T:
    """Return the result of ``call`` from a separate process, so that each run has a fresh one.

    The section must not have opened its device. Raises NotAvailable or Failed as ``call`` did.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(call, theirs))
    child.start()
    theirs.close()
    try:
        status, value = ours.recv()
    except EOFError:
        child.join(_KILL_S)
        status, value = FAILED, f"its process {_ending(child.exitcode)}"
    child.join(_KILL_S)
    if status == NOT_AVAILABLE:
        raise NotAvailable(value)
    if status == FAILED:
        raise Failed(value)
    found: T = value
    return found


def _answer(call: Callable[[], object], to: Connection) -> None:
    try:
        to.send((PASSED, call()))
    except NotAvailable as reason:
        to.send((NOT_AVAILABLE, str(reason)))
    except BaseException as error:
        traceback.print_exc()
        to.send((FAILED, one_line(error)))


def _child(section: Section, check: Check, output: Path, lines: Path) -> None:
    os.setsid()  # whatever it starts can be ended with it
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    file = output.open("a", encoding="utf-8", buffering=1)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    faulthandler.enable(file)
    report = SectionReport(section.name, lines)
    try:
        section.run(check, report)
        report.end(PASSED)
    except NotAvailable as reason:
        report.end(NOT_AVAILABLE, one_line(str(reason)))
    except BaseException as error:  # SystemExit of a command line, too
        traceback.print_exc()
        report.end(FAILED, f"{one_line(error)} (traceback: {output.name})")
    file.flush()


def _kill(child: BaseProcess) -> None:
    """Kill the process and everything that it started."""
    if child.is_alive():
        child.kill()
    if child.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)


def _ending(code: int | None) -> str:
    if code is None:
        return "cannot be stopped: its driver may be stuck"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
