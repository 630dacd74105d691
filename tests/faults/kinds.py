# SPDX-License-Identifier: Apache-2.0
"""The kinds of faults: each draws one from a random generator and does it to a command."""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
from pathlib import Path

from tests.faults.forks import Ended, command
from tests.faults.judge import TIMEOUT, Clean, Fault
from tests.faults.shim import Plan
from tests.faults.targets import TARGETS, pick

ERRNOS = {
    "write": "ENOSPC EIO EDQUOT", "read": "EIO", "open": "EACCES EMFILE EROFS EIO ENOSPC",
    "rename": "EIO EROFS ENOSPC EACCES", "fsync": "EIO ENOSPC", "mkdir": "ENOSPC EACCES EROFS",
    "unlink": "EACCES EROFS EIO", "close": "EIO ENOSPC", "mmap": "ENOMEM ENODEV EACCES",
    "stdio": "EPIPE ENOSPC EIO", "chmod": "EPERM EROFS", "list": "EACCES EIO EMFILE",
}  # fmt: skip
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP)


class Kind:
    """One fault, drawn; ``words`` describes it."""

    def __init__(self, rng: random.Random, case: Path, clean: dict[str, Clean]) -> None:
        self.rng, self.clean = rng, clean
        self.plan = Plan.shared()
        self.words, self.signal, self.call = "", 0, ""
        self.moved: str | None = None
        self.target = ""
        self.draw(case)

    def draw(self, case: Path) -> None:
        raise NotImplementedError

    def before(self) -> None:
        self.plan.arm()

    def run(self, argv: list[str], case: Path) -> Ended:
        return command(argv, cwd=case, timeout=TIMEOUT, before=self.before)

    def fault(self, case: Path) -> Fault:
        path = os.fsdecode(self.plan.fired_path).removeprefix(f"{case}/")
        output = self.call == "stdio"
        return Fault(self.signal, "" if output or self.moved else path, self.plan.fired > 0,
                     output, self.moved)  # fmt: skip

    def judge(self, case: Path, ended: Ended) -> list[str]:
        return []

    def draw_call(self, calls: list[str]) -> int:
        """Choose a call that the target makes; return the number of the one to disturb."""
        seen = self.clean[self.target].seen
        self.call = self.rng.choice([call for call in calls if seen[call]])
        return self.rng.randint(1, seen[self.call])


class Syscalls(Kind):
    def draw(self, case: Path) -> None:
        rng = self.rng
        self.target = pick(rng)
        k = self.draw_call(list(ERRNOS))
        name = rng.choice(ERRNOS[self.call].split())
        lasting = rng.random() < 0.4
        self.plan.set(self.call, "errno", getattr(errno, name), k, lasting, case)
        self.words = f"{self.call} {k} {'and later ones ' * lasting}{name}"


class Signals(Kind):
    def draw(self, case: Path) -> None:
        self.target = pick(self.rng)
        k = self.draw_call([*ERRNOS])
        self.signal = self.rng.choice(SIGNALS)
        self.plan.set(self.call, "signal", self.signal, k, prefix=case)
        self.words = f"{signal.Signals(self.signal).name} at {self.call} {k}"


KINDS: dict[str, type[Kind]] = {"syscalls": Syscalls, "signals": Signals}
