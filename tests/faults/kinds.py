# SPDX-License-Identifier: Apache-2.0
"""The kinds of faults: each draws one from a random generator and does it to a command."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import signal
import sys
from pathlib import Path

from tests.faults.forks import Ended, command
from tests.faults.judge import Clean, Fault, again, clock_problems, judge, sensor_problems
from tests.faults.shim import Plan
from tests.faults.targets import TARGETS, pick, use_sensor

ERRNOS = {
    "write": "ENOSPC EIO EDQUOT", "read": "EIO", "open": "EACCES EMFILE EROFS EIO ENOSPC",
    "rename": "EIO EROFS ENOSPC EACCES", "fsync": "EIO ENOSPC", "mkdir": "ENOSPC EACCES EROFS",
    "unlink": "EACCES EROFS EIO", "close": "EIO ENOSPC", "mmap": "ENOMEM ENODEV EACCES",
    "stdio": "EPIPE ENOSPC EIO", "chmod": "EPERM EROFS", "list": "EACCES EIO EMFILE",
}  # fmt: skip
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP)
RUNS = [name for name, target in TARGETS.items() if target.trains]


class Kind:
    """One fault, drawn; ``words`` describes it."""

    def __init__(self, rng: random.Random, case: Path, clean: dict[str, Clean]) -> None:
        self.rng, self.clean = rng, clean
        self.plan = Plan.shared()
        self.words, self.signal, self.call, self.target = "", 0, "", ""
        self.moved: str | None = None
        self.draw(case)

    def draw(self, case: Path) -> None:
        """Choose target and fault."""
        raise NotImplementedError

    def before(self) -> None:
        """Begin, in the process that is to be disturbed."""
        self.plan.arm()

    def run(self, case: Path) -> Ended:
        target = TARGETS[self.target]
        return command(list(target.argv), cwd=case, timeout=target.timeout, before=self.before)

    def path(self, case: Path) -> str:
        """Return where the fault struck, relative to the case's folder."""
        found = os.fsdecode(self.plan.fired_path)
        return found.removeprefix(f"{case}/") if found.startswith(f"{case}/") else ""

    def problems(self, case: Path, ended: Ended, before: dict[str, str]) -> list[str]:
        fault = Fault(
            signal=self.signal,
            path="" if self.moved else self.path(case),
            struck=self.struck(),
            on_output=self.call == "stdio",
            moved=self.moved,
        )
        clean, target = self.clean[self.target], TARGETS[self.target]
        found = judge(case, target, ended, fault, clean, before)
        return found + (again(case, target, clean) if target.again else [])

    def struck(self) -> bool:
        return self.plan.fired > 0

    def draw_call(self, calls: list[str]) -> int:
        """Choose a call that the target makes; return the number of the one to disturb.

        A quarter is drawn from the last calls: the end of a run is short and has most of its care.
        """
        seen = self.clean[self.target].seen
        self.call = self.rng.choice([call for call in calls if seen[call]])
        most = seen[self.call]
        least = max(1, int(most * 0.85)) if self.rng.random() < 0.25 else 1
        return self.rng.randint(least, most)


class Syscalls(Kind):
    """A call fails, once or from then on; or the standard streams are closed or full."""

    def draw(self, case: Path) -> None:
        rng = self.rng
        self.target = pick(rng)
        self.stream = rng.choice(("closed", "full", "pipe")) if rng.random() < 0.08 else None
        k = self.draw_call(list(ERRNOS))
        if self.stream is not None:
            self.number, self.call = rng.choice((1, 2)), "stdio"
            self.plan.set(prefix=case)
            self.words = f"stream {self.number} is {self.stream}"
            return
        name = rng.choice(ERRNOS[self.call].split())
        lasting = rng.random() < 0.4
        self.plan.set(self.call, "errno", getattr(errno, name), k, lasting, case)
        self.words = f"{self.call} {k} {'and later ones ' * lasting}{name}"

    def before(self) -> None:
        if self.stream == "closed":
            os.close(self.number)  # as the interpreter starts then: the stream is None
            setattr(sys, "stdout" if self.number == 1 else "stderr", None)
        elif self.stream is not None:
            reader, writer = os.pipe()
            os.close(reader)
            if self.stream == "full":
                writer = os.open("/dev/full", os.O_WRONLY)
            os.dup2(writer, self.number)
            stream = os.fdopen(self.number, "w", buffering=self.number - 1 or -1, closefd=False)
            setattr(sys, "stdout" if self.number == 1 else "stderr", stream)
        super().before()

    def struck(self) -> bool:
        return self.stream is not None or super().struck()


class Signals(Kind):
    """A signal arrives at a call."""

    def draw(self, case: Path) -> None:
        self.target = pick(self.rng)
        k = self.draw_call([*ERRNOS])
        self.signal = self.rng.choice(SIGNALS)
        self.plan.set(self.call, "signal", self.signal, k, prefix=case)
        self.words = f"{signal.Signals(self.signal).name} at {self.call} {k}"


class Clocks(Kind):
    """The wall clock is set at a reading of it."""

    def draw(self, case: Path) -> None:
        self.target = self.rng.choice(RUNS)
        k = self.draw_call(["clock"])
        seconds = self.rng.choice((-3600, 3600, -86400, 86400, -30, 30, -10, 400 * 86400))
        self.plan.set("clock", "clock", seconds, k, True)
        self.words = f"the clock is {seconds:+} s off from reading {k} on"

    def problems(self, case: Path, ended: Ended, before: dict[str, str]) -> list[str]:
        return super().problems(case, ended, before) + clock_problems(
            case, ended, self.target == "resume"
        )


class Disks(Kind):
    """The disk is full after some bytes, a file may not grow, or a folder is taken away."""

    def draw(self, case: Path) -> None:
        rng = self.rng
        self.limit: int | None = None
        how = rng.choice(("budget", "limit", "move", "move"))
        writers = [name for name in TARGETS if self.clean[name].written]
        if how == "move":
            self.target = rng.choice(RUNS)
            k = self.draw_call(["write", "open", "fsync"])
            moved = {"run": ["data"], "synthetic": ["data"], "squad": ["squad", "vocab.txt"],
                     "resume": ["data", "stopped"]}[self.target]  # fmt: skip
            self.moved = rng.choice(moved)
            self.plan.set(self.call, "move", 0, k, False, case, case / self.moved, case / ".away")
            self.words = f"{self.moved} is taken away at {self.call} {k}"
            return
        self.target = pick(rng, writers)
        most = self.clean[self.target].written
        size = rng.randint(1, most)
        if how == "budget":
            self.call = "write"
            self.plan.set("write", "budget", 0, size, True, case)
            self.words = f"the disk is full after {size} of {most} bytes"
        else:
            self.limit = rng.choice((1, 100, 4096, 20_000, 60_000, size))
            self.plan.set(prefix=case)
            self.words = f"no file may be larger than {self.limit} bytes"

    def before(self) -> None:
        if self.limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))
        super().before()

    def struck(self) -> bool:
        return self.limit is not None or super().struck()

    def path(self, case: Path) -> str:
        return "new" if self.limit is not None else super().path(case)


class Sensors(Kind):
    """A sensor resets, lies, hangs, or fails while a run goes on."""

    FAULTS = (
        "reset", "nan", "infinity", "negative", "text", "none", "a list", "nothing",
        "lacks the key", "hangs", "is slow", "KeyError", "TypeError", "ZeroDivisionError",
        "OSError", "MemoryError", "huge",
    )  # fmt: skip

    def draw(self, case: Path) -> None:
        self.target = self.rng.choice(("run", "synthetic", "squad"))
        self.what = self.rng.choice(self.FAULTS)
        self.key = self.rng.choice(("energy_j", "power_w"))
        self.k = self.rng.randint(1, 20)
        self.plan.set(prefix=case)
        self.words = f"{self.key} {self.what} at reading {self.k}"

    def before(self) -> None:
        use_sensor(self.key, self.what, self.k)
        super().before()

    def struck(self) -> bool:
        return False  # a run must end as the undisturbed one

    def problems(self, case: Path, ended: Ended, before: dict[str, str]) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return super().problems(case, ended, before) + sensor_problems(case, ended)
        return ["no record"]


KINDS: dict[str, type[Kind]] = {
    "syscalls": Syscalls, "signals": Signals, "clocks": Clocks, "disks": Disks, "sensors": Sensors,
}  # fmt: skip
