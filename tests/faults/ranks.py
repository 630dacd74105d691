# SPDX-License-Identifier: Apache-2.0
"""One rank of two is killed, stopped or interrupted; both have to end soon, with a record."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

from tests.faults.forks import Ended, start, wait
from tests.faults.judge import Fault, inputs, records, streams, trained
from tests.faults.kinds import Kind
from tests.faults.targets import MINI
from tests.ports import free_port

STEPS = 120
COMMAND = [*MINI, "--data", "data", "--output_dir", "new", "--max_steps", str(STEPS),
           "--skip_checkpoint", "--eval_iter_samples", "400"]  # fmt: skip
BOUND = 60.0
"""Seconds from the signal until both ranks have to have ended."""
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP", "SIGHUP")


class Ranks(Kind):
    """Two ranks that meet over gloo, as a launcher without a supervisor starts them."""

    def draw(self, case: Path) -> None:
        rng = self.rng
        self.target = "run"
        self.rank = rng.randrange(2)
        self.name = rng.choice(SIGNALS)
        self.signal = int(getattr(signal, self.name))
        self.step = rng.choice((None, rng.randint(1, STEPS - 20)))
        self.delay = rng.uniform(0.1, 2)
        moment = f"step {self.step}" if self.step else f"{self.delay:.2f} s after its start"
        self.words = f"{self.name} of rank {self.rank} at {moment}"
        self.plan.set(prefix=case)

    def run(self, case: Path) -> Ended:
        port = str(free_port())
        folders = [case.with_name(f"rank{rank}") for rank in range(2)]
        pids = []
        for rank, folder in enumerate(folders):
            folder.mkdir()
            pids.append(start(COMMAND, cwd=case, before=lambda r=rank: _join(r, port), base=folder))
        self._strike(pids[self.rank], case)
        begin = time.monotonic()
        if self.name == "SIGSTOP":
            self.ended = [Ended(0, 0.0, 0, "", "")] * 2
            other = 1 - self.rank
            self.ended[other] = wait(pids[other], folders[other], BOUND)
            os.kill(pids[self.rank], signal.SIGKILL)
            self.ended[self.rank] = wait(pids[self.rank], folders[self.rank], 5)
            self.ended[self.rank].code = -signal.SIGSTOP
        else:
            self.ended = [
                wait(pid, folder, max(1.0, BOUND - (time.monotonic() - begin)))
                for pid, folder in zip(pids, folders, strict=True)
            ]
        out, err = ("".join(getattr(e, part) for e in self.ended) for part in ("out", "err"))
        return Ended(self.ended[0].code, time.monotonic() - begin, 0, out, err)

    def _strike(self, pid: int, case: Path) -> None:
        if self.step is None:
            time.sleep(self.delay)
        else:
            end = time.monotonic() + BOUND
            while _steps(case) < self.step and time.monotonic() < end:
                time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, self.signal)

    def problems(self, case: Path, ended: Ended, before: dict[str, str]) -> list[str]:
        found = []
        for rank, one in enumerate(self.ended):
            own = self.signal if rank == self.rank else 0
            said = streams(one, signal=own, timeout=BOUND)
            # The one that is left alone ends as one that lost another; the other never does.
            lost = "exit code 3" if rank != self.rank or self.name == "SIGSTOP" else ""
            found += [f"rank {rank}: {p}" for p in said if p != lost]
        clean = self.clean["run"]
        # Two ranks do other steps than one: only what is left is judged, not its numbers.
        for record in records(case / "new"):
            manifest = json.loads((record / "manifest.json").read_text())
            if manifest["status"] == "ok" and manifest["step"] < STEPS:
                found.append(f"the record is ok at step {manifest['step']} of {STEPS}")
        found += [
            p for p in trained(case, ended, Fault(self.signal), clean) if "other numbers" not in p
        ]
        return found + [f"{k}: changed" for k, v in before.items() if inputs(case).get(k) != v]


def _join(rank: int, port: str) -> None:
    os.environ |= {
        "BERTBENCH_PEER_TIMEOUT_S": "8",
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip


def _steps(case: Path) -> int:
    """Return how many steps the record has."""
    text = "".join(path.read_text() for path in case.glob("new/*/*/[!.]*/steps.jsonl"))
    return text.count('"kind": "step"')
