# SPDX-License-Identifier: Apache-2.0
"""Finds out whether a backend can run here, safe from harm by its vendor's package.

The package is imported in a separate process with a time limit. If it hangs, crashes, exits or
prints, the answer is a line that says so. A backend whose ``absent()`` has a reason needs no
process.
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
"""Replaces TIMEOUT_S, in seconds, where a first import is slow (a network file system)."""

AT_ONCE = 4
"""Processes that run at the same time."""

_POLL_S = 0.02
_KILL_S = 2.0
"""How long to wait for a killed process to end: one inside its driver may never end."""

_CHILD = """\
import sys
sys.path[:] = {path!r}
from bertbench.backends import probing
probing.child({name!r}, {details!r}, {answer!r})
"""

Answer = dict[str, Any]
"""``name``, ``ok``, ``reason``; with details and if ok, the keys of ``_details``."""


def examine(
    names: Sequence[str],
    *,
    details: bool = False,
    first: bool = False,
    timeout_s: float | None = None,
) -> dict[str, Answer]:
    """Return an answer for each name, in their order; a backend's failure is an answer, too.

    With ``first``, return once the first name in order that works is known, without the names
    after it. Raises Unsupported for an unknown name and BadInput for an invalid time limit.
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


def _limit(timeout_s: float | None) -> float:
    text = os.environ.get(TIMEOUT_ENV)
    default = SIMULATED_TIMEOUT_S if os.environ.get("BERTBENCH_SIMULATE") else TIMEOUT_S
    try:
        limit = timeout_s if timeout_s is not None else float(text or default)
    except ValueError:
        limit = -1.0
    if not 0 < limit < float("inf"):
        what = f"{TIMEOUT_ENV}={text}" if timeout_s is None else f"a time limit of {timeout_s}"
        raise BadInput(f"{what}: give a number of seconds above 0")
    return limit


def _first(names: Sequence[str], answers: dict[str, Answer]) -> int | None:
    """Return the position of the first that works, if all before it are known to fail."""
    for position, name in enumerate(names):
        if name not in answers:
            return None
        if answers[name]["ok"]:
            return position
    return None


def _absent(name: str) -> str | None:
    """Return why a built-in backend cannot run here, if that is known without a process."""
    if name not in registry.names():
        registry.load(name)  # raises, with the known names
    if name not in registry.BUILT_IN:
        return None  # the adapter's own module may import anything
    try:
        return registry.load(name).absent()
    except Exception as error:
        return f"failed to load: {_one_line(error)}"


class _Process:
    """The examination of one backend, in a new session."""

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
                start_new_session=True,  # so that its children are killed with it
            )
        self._deadline = time.monotonic() + limit_s

    def poll(self) -> Answer | None:
        """Return the answer, or None while it is running."""
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
            lines = self._output.read_text(errors="replace").strip().splitlines()
            reason += f" (its last line: {_one_line(lines[-1])})" if lines else ""
            self._folder.cleanup()
        return {"name": self.name, "ok": False, "reason": reason}

    def kill(self) -> bool:
        """Kill it and its children; return whether it has ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(_KILL_S)
        except subprocess.TimeoutExpired:
            return False
        self._folder.cleanup()
        return True


def child(name: str, details: bool, path: str) -> None:
    """Examine one backend, write the answer to ``path`` and end this process at once."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    except (ImportError, ValueError, OSError):
        pass  # then a crash may leave a core file
    try:
        answer = _examine(name, details)
    except BaseException as error:  # SystemExit, too: the vendor's package raised it
        answer = {"ok": False, "reason": f"failed to load: {_one_line(error)}"}
    answer["reason"] = _one_line(answer["reason"])
    written = Path(path).with_suffix(".part")
    written.write_text(json.dumps({"name": name, **answer}))
    written.replace(path)
    os._exit(0)  # a package's exit handlers may hang or crash


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
    """Return the facts of this device and its adapter that a run would record."""
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
    """Return name -> count; the adapter names the first device, its module the others."""
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
    """Return an error's type and first line, or a text, as one line of limited length."""
    if isinstance(problem, str):
        return " ".join(problem.split())[:300]
    text = str(problem).strip().splitlines()
    kind = type(problem).__name__
    return f"{kind}: {' '.join(text[0].split())[:200]}" if text else kind
