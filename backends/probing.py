# SPDX-License-Identifier: Apache-2.0
"""Finds out whether a backend can run here without letting its vendor's package do any harm.

Whatever needs that package happens in a process of its own, with a time limit: one that hangs,
crashes, exits or prints is an answer of one line. A backend that says ``absent()`` costs nothing.
"""

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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertbench.backends import registry
from bertbench.common.errors import BadInput

if TYPE_CHECKING:
    from bertbench.backends.base import Backend

TIMEOUT_S = 30.0
SIMULATED_TIMEOUT_S = 300.0
"""The first use of the simulated accelerator compiles it."""
TIMEOUT_ENV = "BERTBENCH_PROBE_TIMEOUT"
"""Seconds instead of TIMEOUT_S, where a first import is slow (a network file system)."""

AT_ONCE = 4
"""Processes that run beside each other."""

_POLL_S = 0.02
_KILL_S = 2.0
"""How long a killed process may take to go: one that sits in its driver may never."""

_CHILD = """\
import sys
sys.path[:] = {path!r}
from bertbench.backends import probing
probing.child({name!r}, {details!r}, {answer!r})
"""

Answer = dict[str, Any]
"""``name``, ``ok``, ``reason``; with details and if ok, what ``_details`` says."""


def examine(
    names: Sequence[str],
    *,
    details: bool = False,
    first: bool = False,
    timeout_s: float | None = None,
) -> dict[str, Answer]:
    """An answer for each name, in their order; never raises because of a backend.

    With ``first``, ends as soon as the first name in order that works is known; names after it
    are then left out. Raises Unsupported for an unknown name, BadInput for a limit that is none.
    """
    limit = _limit(timeout_s)
    answers: dict[str, Answer] = {}
    waiting = []
    for name in names:
        why = _absent(name)
        if why is None:
            waiting.append(name)
        else:
            answers[name] = {"name": name, "ok": False, "reason": why}
    running: list[_Process] = []
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                running.append(_Process(waiting.pop(0), details, limit))
            for process in list(running):
                answer = process.poll()
                if answer is not None:
                    running.remove(process)
                    answers[process.name] = answer
            if first and (chosen := _first(names, answers)) is not None:
                names = names[: chosen + 1]
                break
            if running:
                time.sleep(_POLL_S)
    finally:
        for process in running:
            process.kill()
    return {name: answers[name] for name in names}


def _limit(asked: float | None) -> float:
    text = os.environ.get(TIMEOUT_ENV)
    usual = SIMULATED_TIMEOUT_S if os.environ.get("BERTBENCH_SIMULATE") else TIMEOUT_S
    try:
        limit = asked if asked is not None else float(text or usual)
    except ValueError:
        limit = -1.0
    if not 0 < limit < float("inf"):
        what = f"{TIMEOUT_ENV}={text}" if asked is None else f"a time limit of {asked}"
        raise BadInput(f"{what}: give a number of seconds above 0")
    return limit


def _first(names: Sequence[str], answers: dict[str, Answer]) -> int | None:
    """The position of the first that works, if all before it are known not to."""
    for position, name in enumerate(names):
        if name not in answers:
            return None
        if answers[name]["ok"]:
            return position
    return None


def _absent(name: str) -> str | None:
    """Why a built-in backend cannot run here, if that is seen without a process."""
    if name not in registry.names():
        registry.load(name)  # raises, and lists what there is
    if name not in registry.BUILT_IN:
        return None  # the adapter's own module may import anything
    try:
        return registry.load(name).absent()
    except Exception as error:
        return f"failed to load: {_one_line(error)}"


class _Process:
    """The examination of one backend, in a session of its own."""

    def __init__(self, name: str, details: bool, limit_s: float) -> None:
        self.name = name
        self._limit_s = limit_s
        self._folder = tempfile.TemporaryDirectory(prefix="bertbench-probe-")
        self._answer = Path(self._folder.name) / "answer.json"
        self._output = Path(self._folder.name) / "output"
        code = _CHILD.format(path=sys.path, name=name, details=details, answer=str(self._answer))
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # what it starts ends with it
            )
        self._deadline = time.monotonic() + limit_s

    def poll(self) -> Answer | None:
        """The answer, once there is one."""
        code = self._process.poll()
        if code is None and time.monotonic() < self._deadline:
            return None
        if code is None:
            gone = self.kill()
            stuck = "" if gone else ", and cannot be killed: its driver may be stuck"
            reason = f"timed out after {self._limit_s:g} s{stuck} (for longer: {TIMEOUT_ENV}=S)"
        elif self._answer.exists():
            answer: Answer = json.loads(self._answer.read_text())
            self._folder.cleanup()
            return answer
        else:
            reason = (
                f"crashed with {_signal(-code)}" if code < 0 else f"ended with exit code {code}"
            )
            said = self._output.read_text(errors="replace").strip().splitlines()
            reason += f" (its last line: {_one_line(said[-1])})" if said else ""
            self._folder.cleanup()
        return {"name": self.name, "ok": False, "reason": reason}

    def kill(self) -> bool:
        """End it and all it started; whether it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(_KILL_S)
        except subprocess.TimeoutExpired:
            return False
        self._folder.cleanup()
        return True


def child(name: str, details: bool, path: str) -> None:
    """Examine one backend and leave the answer at ``path``; then end this process at once."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    except (ImportError, ValueError, OSError):
        pass  # then a crash may leave a core file
    try:
        answer = _examine(name, details)
    except BaseException as error:  # SystemExit, too: it came from the vendor's package
        answer = {"ok": False, "reason": f"failed to load: {_one_line(error)}"}
    answer["reason"] = _one_line(answer["reason"])
    written = Path(path).with_suffix(".part")
    written.write_text(json.dumps({"name": name, **answer}))
    written.replace(path)
    os._exit(0)  # what a package does at exit may hang or crash, and changes nothing now


def _examine(name: str, details: bool) -> Answer:
    kind = registry.load(name)
    probe = kind.probe()
    answer: Answer = {"ok": probe.ok, "reason": probe.reason}
    if not (probe.ok and details):
        return answer
    try:
        return answer | _details(kind)
    except Exception as error:
        return {
            "ok": False,
            "reason": f"{probe.reason}, but it fails when used: {_one_line(error)}",
        }


def _details(kind: type[Backend]) -> Answer:
    """What the record of a run would say of this device and its adapter."""
    backend: Backend = kind()
    info, can = backend.describe(), backend.capabilities
    count = kind.device_count()
    telemetry = backend.telemetry()
    return {
        "accelerator": kind.device_type != "cpu",
        "verified": kind.verified,
        "simulated": info.simulated,
        "device_count": count,
        "device": info.name,
        "devices": _devices(backend, info.name, count),
        "memory_bytes": info.memory_bytes,
        "driver": info.driver,
        "runtime": info.runtime,
        "precisions": list(can.precisions),
        "kernels": list(can.kernels),
        "collective": can.collective,
        "compilers": list(can.compilers),
        "timer": backend.timer().clock,
        "telemetry": None if telemetry is None else telemetry.source,
        "notes": dict(can.notes),
        "extras": dict(info.extras),
    }


def _devices(backend: Backend, name: str, count: int) -> dict[str, int]:
    """Name -> how many. The first is as the adapter calls it; others as their module does."""
    found = {name: 1}
    call = getattr(backend.module, "get_device_name", None) if count > 1 else None
    mine = None if call is None else str(call(0))
    for index in range(1, count):
        other = mine if call is None else str(call(index))
        other = name if other == mine else str(other)
        found[other] = found.get(other, 0) + 1
    return found


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _one_line(problem: BaseException | str) -> str:
    """The first line of an error, or a text, fit for a line of a report."""
    if isinstance(problem, str):
        return " ".join(problem.split())[:300]
    text = str(problem).strip().splitlines()
    kind = type(problem).__name__
    return f"{kind}: {' '.join(text[0].split())[:200]}" if text else kind
