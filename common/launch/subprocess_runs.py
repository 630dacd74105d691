# SPDX-License-Identifier: Apache-2.0
"""Runs in processes of their own, one after the other, for ``repeat`` and ``scale``."""

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

from bertbench.common.files import shown

PROGRAM = (sys.executable, "-m", "bertbench")
ELASTIC = (sys.executable, "-m", "bertbench.common.launch.torchrun")
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a run ended, as it said itself."""

    status: str
    """The record's status; ``refused`` before there was one, ``killed`` without a word."""
    reason: str
    exit_code: int
    seconds: float
    """Wall-clock time of the process."""
    record: Path | None = None
    stopped: bool = False
    """Whether it ended because we were told to."""


@dataclass(frozen=True, kw_only=True)
class Starter:
    """Starts ``bertbench run``; through torchrun where it is for several devices."""

    program: Sequence[str] = PROGRAM
    elastic: Sequence[str] = ELASTIC
    verbose: bool = False
    """Show what the runs print, which their records keep in any case."""

    def command(self, words: Sequence[str], processes: int = 1) -> list[str]:
        """``words`` are ``run RECIPE [flags]``."""
        own = [*self.program, *words, "--json"]
        if processes == 1:
            return own
        torchrun = [f"--nproc-per-node={processes}", "--standalone", "--no-python"]
        return [*self.elastic, *torchrun, *own]

    def run(self, words: Sequence[str], processes: int = 1) -> Done:
        """Run to the end. Ctrl-C and SIGTERM are passed on, and the run ends in order."""
        environment = {k: v for k, v in os.environ.items() if k not in _TORCHRUN}
        environment["PYTHONSAFEPATH"] = "1"  # the folder we are called from is no source of modules
        if processes > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // processes)))
        began = time.monotonic()
        with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                self.command(words, processes),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=None if self.verbose else complaints,
                start_new_session=True,  # signals of the terminal reach it through us alone
            )
            stopped = _wait(process)
            seconds = time.monotonic() - began
            last = _last_lines(complaints)
            return _done(process.returncode, _answer(told), last, seconds, stopped)


def _wait(process: subprocess.Popen[bytes]) -> bool:
    """Whether it had to be stopped."""
    try:
        process.wait()
        return False
    except KeyboardInterrupt:
        process.terminate()
    try:
        process.wait()
    except KeyboardInterrupt:  # asked twice
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return True


def _answer(file: IO[bytes]) -> dict[str, Any]:
    """The last line that ``run --json`` printed; torchrun and vendors may print others."""
    file.seek(0)
    for line in reversed(file.read().decode("utf-8", "replace").splitlines()):
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict) and ("record" in told or "error" in told):
                return told
    return {}


def _last_lines(file: IO[bytes], most: int = 3) -> str:
    file.seek(0)
    lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]
    return " | ".join(shown(line, 300) for line in [line for line in lines if line][-most:])


def _done(
    code: int, answer: dict[str, Any], complaints: str, seconds: float, stopped: bool
) -> Done:
    if "record" in answer:
        return Done(
            status=str(answer.get("status")),
            reason=str(answer.get("reason")),
            exit_code=code,
            seconds=seconds,
            record=Path(str(answer["record"])),
            stopped=stopped,
        )
    if "error" in answer or code == 2:
        status, reason = "refused", str(answer.get("error") or complaints)
    else:
        status = "interrupted" if stopped or code == 130 else "killed"
        reason = f"exit code {code}: {complaints or 'it said nothing'}"
    return Done(status=status, reason=reason, exit_code=code, seconds=seconds, stopped=stopped)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
