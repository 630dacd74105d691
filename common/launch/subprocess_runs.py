# SPDX-License-Identifier: Apache-2.0
"""Runs as subprocesses, one after the other, for ``repeat`` and ``scale``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bertbench.common.files import host_cores, shown

PROGRAM = (sys.executable, "-m", "bertbench")
TORCHRUN = (sys.executable, "-m", "bertbench.common.launch.torchrun")
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Outcome:
    """The end of a run, as its own output reports it."""

    status: str
    """The record's status; without a record ``refused``, ``interrupted`` or ``killed``."""
    reason: str
    exit_code: int
    seconds: float
    """Wall-clock time of the process."""
    record: Path | None = None
    stopped: bool = False
    """Whether Ctrl-C or SIGTERM ended it."""


@dataclass(frozen=True, kw_only=True)
class Starter:
    """Starts ``bertbench run``, through torchrun for several devices."""

    program: Sequence[str] = PROGRAM
    torchrun: Sequence[str] = TORCHRUN
    verbose: bool = False
    """Whether to show the runs' output, which their records keep anyway."""

    def command(self, words: Sequence[str], processes: int = 1) -> list[str]:
        """Return the command for ``words``: ``run RECIPE [flags]``."""
        own = [*self.program, *words, "--json"]
        if processes == 1:
            return own
        flags = [f"--nproc-per-node={processes}", "--standalone", "--no-python"]
        return [*self.torchrun, *flags, *own]

    def run(self, words: Sequence[str], processes: int = 1) -> Outcome:
        """Run to the end. Ctrl-C and SIGTERM are passed on, so that the run can save and stop."""
        environment = {k: v for k, v in os.environ.items() if k not in _VARIABLES}
        environment["PYTHONSAFEPATH"] = "1"  # no modules from the working directory
        if processes > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, host_cores() // processes)))
        began = time.monotonic()
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                self.command(words, processes),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if self.verbose else errors,
                start_new_session=True,  # the terminal's signals reach it only through us
            )
            stopped = _wait(process)
            seconds = time.monotonic() - began
            answer, last = _answer(output), _last_lines(errors)
            return _outcome(process.returncode, answer, last, seconds, stopped)


def _wait(process: subprocess.Popen[bytes]) -> bool:
    """Wait for the end; return whether Ctrl-C or SIGTERM stopped the process."""
    try:
        process.wait()
        return False
    except KeyboardInterrupt:
        process.terminate()
    try:
        process.wait()
    except KeyboardInterrupt:  # a second Ctrl-C
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return True


def _answer(file: IO[bytes]) -> dict[str, Any]:
    """Return the last line of ``run --json``; torchrun and vendors may print others."""
    file.seek(0)
    for line in reversed(file.read().decode("utf-8", "replace").splitlines()):
        with contextlib.suppress(ValueError):
            answer = json.loads(line)
            if isinstance(answer, dict) and ("record" in answer or "error" in answer):
                return answer
    return {}


def _last_lines(file: IO[bytes], most: int = 3) -> str:
    file.seek(0)
    lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]
    return " | ".join(shown(line, 300) for line in [line for line in lines if line][-most:])


def _outcome(
    code: int, answer: dict[str, Any], errors: str, seconds: float, stopped: bool
) -> Outcome:
    record = None
    if "record" in answer:
        status, reason = str(answer.get("status")), str(answer.get("reason"))
        record = Path(str(answer["record"]))
    elif "error" in answer or code == 2:
        status, reason = "refused", str(answer.get("error") or errors)
    else:
        status = "interrupted" if stopped or code == 130 else "killed"
        reason = f"exit code {code}: {errors or 'no output'}"
    return Outcome(status, reason, code, seconds, record, stopped)
