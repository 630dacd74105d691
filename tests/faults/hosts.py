# SPDX-License-Identifier: Apache-2.0
"""Two hosts, which are network namespaces with a cable between them, and a fault in one of them.

Each host has a supervisor as the launcher scripts start it with MAX_RESTARTS. Whatever is done, the
run ends with the losses of an undisturbed one, or its record says that it did not end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.forks import Ended, start
from tests.faults.judge import inputs, records, streams
from tests.faults.judge import numbers as numbers_of
from tests.faults.kinds import Kind
from tests.faults.targets import MINI

STEPS = 60
COMMAND = [*MINI, "--data", "data", "--output_dir", "new", "--max_steps", str(STEPS),
           "--eval_iter_start_samples", "160", "--eval_iter_samples", "160"]  # fmt: skip
RESTARTS, PATIENCE_S, PAUSE_S = 3, 3, 1.0
BOUND_S = 150.0
CLONE_NEWNET = 0x40000000
FAULTS = ("kill", "stop", "partition", "cut", "slow", "disk", "term", "host")


def why_not() -> str | None:
    """Return why this machine can have no two hosts, or None."""
    try:
        with Network():
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return f"network namespaces need root and iproute2: {str(said).strip()}"


class Network:
    """Two namespaces and a cable, for the duration of a block."""

    def __enter__(self) -> Network:
        self._names = [f"bertbench-{os.getpid()}-{host}" for host in range(2)]
        try:
            self.__exit__()  # what a killed campaign left under these names
            for name in self._names:
                _ip("netns", "add", name)
            one, two = self._names
            _ip("link", "add", "cable", "netns", one, "type", "veth", "peer", "name", "cable",
                "netns", two)  # fmt: skip
            for host, name in enumerate(self._names):
                _ip("-n", name, "addr", "add", f"{address(host)}/24", "dev", "cable")
                for link in ("lo", "cable"):
                    _ip("-n", name, "link", "set", link, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def enter(self, host: int) -> None:
        """Put this process, and those that it starts, onto a host."""
        with Path(f"/run/netns/{self._names[host]}").open() as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def connect(self, on: bool) -> None:
        """Plug the cable in, or pull it out."""
        _ip("-n", self._names[0], "link", "set", "cable", "up" if on else "down")

    def slow(self, kilobits: int) -> None:
        """Let packets wait for so narrow a line, and be lost where too many wait."""
        for name in self._names:
            _ip("netns", "exec", name, "tc", "qdisc", "add", "dev", "cable", "root", "tbf",
                "rate", f"{kilobits}kbit", "burst", "4kb", "limit", "30kb")  # fmt: skip


def address(host: int) -> str:
    return f"10.77.0.{host + 1}"


def _ip(*words: str) -> None:
    command = ["ip", *words]
    subprocess.run(command, check=True, capture_output=True, text=True)


@dataclass
class Round:
    """One start of both hosts, and how it ended."""

    case: Path
    number: int
    codes: list[int | None] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def folder(self, host: int) -> Path:
        return self.case.with_name(f"round{self.number}-host{host}")

    def ended(self) -> list[Ended]:
        """Return how every start of a worker ended, with its output."""
        found = []
        for host in range(len(self.codes)):
            for folder in sorted(self.folder(host).glob("start*")):
                code = folder / "code"
                out, err = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
                known = int(code.read_text()) if code.exists() else 0
                found.append(Ended(known, time.monotonic() - self.began, 0, out, err))
        return found


class Hosts(Kind):
    """One run of two hosts; a fault at a random step of it."""

    def draw(self, case: Path) -> None:
        rng = self.rng
        self.target = "hosts"
        self.fault = rng.choice(FAULTS)
        self.host = rng.randrange(2)
        self.step = rng.choice((None, rng.randint(1, STEPS - 5)))
        self.delay = rng.uniform(0.05, 2.5)
        self.cut_s = rng.uniform(0.2, 1.5) if self.fault == "cut" else rng.uniform(5, 9)
        self.kilobits = rng.choice((8_000, 16_000, 40_000))
        at = f"step {self.step}" if self.step else f"{self.delay:.2f} s after its start"
        more = {"cut": f" for {self.cut_s:.1f} s", "partition": f" for {self.cut_s:.1f} s",
                "slow": f" at {self.kilobits} kbit/s"}  # fmt: skip
        self.words = f"{self.fault}{more.get(self.fault, '')} of host {self.host} at {at}"
        # A disk that is full, for host 0, which writes: this write and all later ones fail.
        self.plan.set("write", "errno", errno.ENOSPC, 1 + rng.randrange(40), True, case / "new")

    def run(self, case: Path) -> Ended:
        begin = time.monotonic()
        self.rounds = [self._round(case, 1, self.fault)]
        if self.fault in ("term", "host") and self.rounds[0].codes != [0, 0]:
            self.rounds.append(self._round(case, 2, None))
        ended = [one for each in self.rounds for one in each.ended()]
        out, err = ("".join(getattr(e, part) for e in ended) for part in ("out", "err"))
        return Ended(self.rounds[-1].codes[0], time.monotonic() - begin, 0, out, err)

    def _round(self, case: Path, number: int, fault: str | None) -> Round:
        this = Round(case, number)
        with Network() as network:
            if fault == "slow":
                network.slow(self.kilobits)
            pids = [_supervise(this, network, host, self.plan if fault == "disk" else None)
                    for host in range(2)]  # fmt: skip
            if fault not in (None, "slow", "disk"):
                self._moment(case)
                self._strike(network, fault, pids[self.host], pids)
            this.codes = [_wait(pid, this.began + BOUND_S) for pid in pids]
        return this

    def _moment(self, case: Path) -> None:
        if self.step is None:
            time.sleep(self.delay)
            return
        end = time.monotonic() + BOUND_S / 2
        while _steps(case) < self.step and time.monotonic() < end:
            time.sleep(0.002)

    def _strike(self, network: Network, fault: str, pid: int, pids: list[int]) -> None:
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            workers = psutil.Process(pid).children()
            if fault == "term":
                for each in pids:
                    os.kill(each, signal.SIGTERM)
            elif fault in ("cut", "partition"):
                network.connect(False)
                time.sleep(self.cut_s)
                network.connect(True)
            elif fault == "host":
                os.kill(pid, signal.SIGKILL)
                for worker in workers:
                    worker.kill()
            else:
                for worker in workers:
                    worker.send_signal(signal.SIGKILL if fault == "kill" else signal.SIGSTOP)

    def problems(self, case: Path, ended: Ended, before: dict[str, str]) -> list[str]:
        found = []
        if None in [code for each in self.rounds for code in each.codes]:
            found.append(f"no end within {BOUND_S:.0f} s")
        for each in self.rounds:
            for one in each.ended():
                own = -one.code if one.code in (-signal.SIGKILL, -signal.SIGTERM) else 0
                found += [p for p in streams(one, signal=own) if p != "exit code 3"]
        full = self.fault == "disk" and "o space left" in ended.text  # said: it may end, too
        found += list(_judge(case, self.clean["hosts"].record["numbers"], ended.code == 0, full))
        if self.fault in ("cut", "slow") and self.rounds[0].codes != [0, 0]:
            found.append(f"the run did not survive it: exit codes {self.rounds[0].codes}")
        if ended.code != 0 and not full:
            found.append(f"not trained to the end: exit codes {[r.codes for r in self.rounds]}")
        return found + [f"{k}: changed" for k, v in before.items() if inputs(case).get(k) != v]


def undisturbed(case: Path) -> dict[str, Any]:
    """Return the numbers of a run of two hosts without a fault."""
    this = Round(case, 0)
    with Network() as network:
        pids = [_supervise(this, network, host, None) for host in range(2)]
        this.codes = [_wait(pid, this.began + BOUND_S) for pid in pids]
    text = "".join(one.text for one in this.ended())
    assert this.codes == [0, 0], f"exit codes {this.codes}: {text[-2000:]}"
    (record,) = records(case / "new")
    return numbers_of(record)


def _judge(case: Path, clean: dict[str, Any], trained: bool, full: bool) -> Iterator[str]:
    """Yield what is wrong with the records: each step has the loss of the undisturbed run."""
    from bertbench.common.results.validate import validate

    losses = {step: (samples, loss) for step, samples, loss in clean["steps"]}
    reached: set[int] = set()
    ends = []
    for record in records(case / "new"):
        manifest = json.loads((record / "manifest.json").read_text())
        errors = [f"{p.file}: {p.text}" for p in validate(record) if p.severity == "error"]
        if errors and not full:
            yield f"record ({manifest['status']}) invalid: {errors[0][:160]}"
        for step, samples, loss in numbers_of(record)["steps"]:
            reached.add(step)
            if losses[step] != (samples, loss):
                yield f"step {step}: loss {loss}, undisturbed {losses[step][1]}"
                break
        ends.append(manifest["status"])
        if manifest["status"] == "ok" and numbers_of(record)["metrics"] != clean["metrics"]:
            yield f"other results: {numbers_of(record)['metrics']}"
        if manifest["status"] != "ok" and manifest["files"] is not None and not manifest["reason"]:
            yield f"a record is {manifest['status']} without a reason"
    if trained and ("ok" not in ends or reached != set(losses)):
        yield f"exit code 0, but records {ends} with {len(reached)} of {len(losses)} steps"
    if not trained and not full and "ok" in ends:
        yield f"not trained to the end, but records {ends}"


def _supervise(this: Round, network: Network, host: int, plan: Any) -> int:
    """Fork a host's supervisor, which forks the workers; return its process id."""
    folder = this.folder(host)
    folder.mkdir()
    (folder / "records").touch()
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        network.enter(host)
        code = _supervisor(this, folder, host, plan)
    finally:
        os._exit(code)


def _supervisor(this: Round, folder: Path, host: int, plan: Any) -> int:
    from bertbench.common.launch.restarts import Supervisor

    running: list[tuple[int, Path]] = []

    def begin(words: list[str]) -> int:
        base = folder / f"start{len(running)}"
        base.mkdir()
        again = ["--resume", "last"] if this.number > 1 and _checkpoints(this.case) else []

        def before() -> None:
            os.environ |= _place(host, folder / "records")
            if plan is not None and host == 0:
                plan.arm()

        pid = start([*COMMAND, *again, *words], cwd=this.case, before=before, base=base)
        running.append((pid, base))
        return pid

    def code() -> int | None:
        pid, base = running[-1]
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            return None
        found = os.waitstatus_to_exitcode(status)
        (base / "code").write_text(str(found))
        return found if found >= 0 else 128 - found

    with (folder / "said").open("w") as said:
        os.dup2(said.fileno(), 2)
        return Supervisor(
            RESTARTS, folder / "records", begin, code, patience_s=PATIENCE_S + PAUSE_S,
            pause_s=PAUSE_S,
        ).run()  # fmt: skip


def _place(host: int, listed: Path) -> dict[str, str]:
    return {
        "BERTBENCH_PEER_TIMEOUT_S": str(PATIENCE_S), "BERTBENCH_RECORDS_OF_LAUNCH": str(listed),
        "RANK": str(host), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": address(0), "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "cable",
    }  # fmt: skip


def _wait(pid: int, end: float) -> int | None:
    """Wait for a supervisor; one that takes too long is killed with all that it started."""
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    with contextlib.suppress(psutil.Error):
        for one in psutil.Process(pid).children(recursive=True):
            one.kill()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _checkpoints(case: Path) -> bool:
    return any(case.glob("new/*/*/*/checkpoints/step_*"))


def _steps(case: Path) -> int:
    """Return how many steps the records have."""
    text = "".join(path.read_text() for path in case.glob("new/*/*/[!.]*/steps.jsonl"))
    return text.count('"kind": "step"')
