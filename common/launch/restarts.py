# SPDX-License-Identifier: Apache-2.0
"""Start a run again after one of its processes was lost, from its newest complete checkpoint.

One supervisor on each node repeats the command of its launcher. The run keeps its number of
processes: with fewer it would be another benchmark. torchrun's own restarts need its agents to stay
in touch, so a network that was cut ends them; these need nothing but the address of rank 0.

This module does not import torch, as the launcher does not.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from bertbench.common.config.launched import timeout_s
from bertbench.common.errors import PROCESS_LOST, BadInput
from bertbench.common.files import Stream, shown

RESTARTS = "MAX_RESTARTS"
RECORDS = "BERTBENCH_RECORDS_OF_LAUNCH"
"""The file in which rank 0 lists the folders of this launch's records, one a line."""
PAUSE_S = 5.0
"""Before the next start: the processes on other nodes have to notice the loss, too."""
POLL_S, LOOK_S = 0.2, 1.0
_CHECKPOINT = re.compile(r"step_\d{8,}")


def restarts(environment: Mapping[str, str]) -> int:
    """Return how often a lost run is started again; raises BadInput for no such number."""
    text = environment.get(RESTARTS) or "0"
    if not (text.isascii() and text.isdecimal() and len(text) < 5):
        raise BadInput(f"{RESTARTS}={shown(text, 20)} is not a count: give a whole number from 0")
    return int(text)


def announce(record: Path) -> None:
    """Tell this launch's supervisor, if there is one, the folder of a record."""
    if file := os.environ.get(RECORDS):
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.write(f"{record.resolve()}\n")


def newest(records: Path) -> Path | None:
    """Return the newest of the records listed in the file that has a complete checkpoint."""
    for line in reversed(records.read_text(encoding="utf-8").splitlines()):
        folder = Path(line) / "checkpoints"
        if folder.is_dir() and any(_CHECKPOINT.fullmatch(p.name) for p in folder.iterdir()):
            return Path(line)
    return None


def was_lost(code: int) -> bool:
    """Return whether an exit code is of a run that may go on, not one that failed by itself."""
    return code == PROCESS_LOST or (code > 128 and code != 130)


class Supervisor:
    """Repeats a command in which a process was lost, at most ``most`` times.

    ``start`` starts it with further words and returns the process's id; ``code`` says how an ended
    one ended (None while it runs).
    """

    def __init__(
        self,
        most: int,
        records: Path,
        start: Callable[[list[str]], int],
        code: Callable[[], int | None],
        *,
        patience_s: float,
        pause_s: float,
    ) -> None:
        self._most, self._records = most, records
        self._start, self._code = start, code
        self._patience_s, self._pause_s = patience_s, pause_s
        self._stopped = False
        self._process = 0

    def run(self) -> int:
        """Return the exit code of the last start."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._pass_on)
        for left in range(self._most, -1, -1):
            record = newest(self._records)
            words = [] if record is None else ["--resume", str(record)]
            self._process = self._start(words)
            code = self._wait()
            if self._stopped or not left or not was_lost(code):
                break
            self._say(f"a process of the run was lost (exit code {code}); restarts left: {left}")
            self._rest()
            if self._stopped:
                return 130
        return code

    def _wait(self) -> int:
        """Wait for the end; kill what was stopped, and at the end what is left of it.

        Either would keep the next start from its place among the others.
        """
        family: set[psutil.Process] = set()
        since: dict[int, float] = {}
        looked = 0.0
        while (code := self._code()) is None:
            time.sleep(POLL_S)
            if (now := time.monotonic()) - looked > LOOK_S:
                looked = now  # those whose parent has ended are no descendants any more
                family = {one for one in family if one.is_running()} | _family(self._process)
                stopped = [one for one in family if _is_stopped(one)]
                since = {one.pid: since.get(one.pid, now) for one in stopped}
                for one in stopped:
                    if now - since[one.pid] > self._patience_s:
                        self._say(f"process {one.pid} is stopped, and the others have lost it")
                        _kill(one)
        for one in family:
            _kill(one)
        return code

    def _rest(self) -> None:
        end = time.monotonic() + self._pause_s
        while time.monotonic() < end and not self._stopped:
            time.sleep(POLL_S)

    def _pass_on(self, number: int, frame: object) -> None:
        self._stopped = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process, number)

    def _say(self, text: str) -> None:
        print(f"launch: {text}", file=Stream(sys.stderr), flush=True)


def _family(pid: int) -> set[psutil.Process]:
    """Return a process and its descendants; none where it has just ended."""
    try:
        process = psutil.Process(pid)
        return {process, *process.children(recursive=True)}
    except psutil.Error:
        return set()


def _is_stopped(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_STOPPED)
    return False


def _kill(process: psutil.Process) -> None:
    """Kill it if it still runs; psutil knows it from a later process of the same number."""
    with contextlib.suppress(psutil.Error):
        process.kill()


def repeat(command: list[str], environment: Mapping[str, str], most: int) -> int:
    """Run the command to the end, again after a loss; return its exit code.

    Ctrl-C and SIGTERM are passed on and end it.
    """
    with tempfile.TemporaryDirectory(prefix="bertbench-") as folder:
        records = Path(folder) / "records"
        records.touch()
        env = {**environment, RECORDS: str(records)}
        running: list[subprocess.Popen[bytes]] = []

        def start(words: list[str]) -> int:
            running[:] = [subprocess.Popen([*command, *words], env=env, start_new_session=True)]
            return running[0].pid

        def code() -> int | None:
            found = running[0].poll()
            return None if found is None else found if found >= 0 else 128 - found

        pauses = {"patience_s": timeout_s() + PAUSE_S, "pause_s": PAUSE_S}
        return Supervisor(most, records, start, code, **pauses).run()
