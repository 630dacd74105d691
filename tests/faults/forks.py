# SPDX-License-Identifier: Apache-2.0
"""A server that forks: the product is imported once, each case runs in a process of its own.

A case has a supervisor, which prepares and judges, and in it a process that runs the command line
under limits of time and memory. The server itself never computes with torch.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ADDRESS_SPACE = 8 << 30
"""Bytes beyond those of the server that a case may reserve (its resident size is judged apart)."""


@dataclass
class Ended:
    """How a command ended."""

    code: int | None
    """None: it did not end in time."""
    seconds: float
    rss: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


def preload(extra: Iterable[str] = ()) -> None:
    """Import what runs import, so that no case has to; compute nothing."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    from bertbench.common.cli.verbs import VERBS

    for verb in VERBS.values():
        verb.load()
    for name in extra:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def command(
    argv: list[str], *, cwd: Path, timeout: float, before: Callable[[], None] = lambda: None,
    files: Path | None = None,
) -> Ended:  # fmt: skip
    """Run ``bertbench argv`` in a forked process; its output goes to files beside ``cwd``."""
    base = files or cwd.with_name(cwd.name + ".streams")
    base.mkdir(exist_ok=True)
    pid = start(argv, cwd=cwd, before=before, base=base)
    return wait(pid, base, timeout)


def start(argv: list[str], *, cwd: Path, before: Callable[[], None], base: Path) -> int:
    """Fork the process of a command and return its id; its output goes to files in ``base``."""
    for name in ("out", "err"):
        (base / name).write_bytes(b"")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            _become(argv, cwd, before, base)
        os._exit(99)
    return pid


def wait(pid: int, base: Path, timeout: float) -> Ended:
    """Wait for a process of ``start``; one that takes longer shows its stack and is killed."""
    begin, code = time.monotonic(), None
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        seconds = time.monotonic() - begin
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        if seconds > timeout:
            os.kill(pid, signal.SIGABRT)
            time.sleep(0.3)
            os.kill(pid, signal.SIGKILL)
            usage = os.wait4(pid, 0)[2]
            break
        time.sleep(0.005)
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)  # what it left running
    out, err = (_text(base / name) for name in ("out", "err"))
    return Ended(code, seconds, usage.ru_maxrss << 10, out, err)


def _text(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(4 << 20).decode("utf-8", "replace")


def _become(argv: list[str], cwd: Path, before: Callable[[], None], base: Path) -> None:
    """Do what the interpreter does for ``python -m bertbench argv``, and end."""
    os.setsid()
    os.chdir(cwd)
    for number, name in ((0, os.devnull), (1, base / "out"), (2, base / "err")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        descriptor = os.open(name, flags, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGABRT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})  # so that it starts no processes
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit + ADDRESS_SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from bertbench.common.cli.main import main

    sys.argv = ["bertbench", *argv]
    code: Any = 1
    try:
        before()
        code = main(argv)
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        _show(error)
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    os._exit(_finalise(code))


def _show(error: BaseException) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        traceback.print_exception(error)


def _finalise(code: Any) -> int:
    """End as an interpreter does: threads, exit handlers, streams."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    for ending in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            ending()
        except BaseException as error:
            _show(error)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            os.write(2, f"Exception ignored in: <stdout>: {error}\n".encode())
        code = 120
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    return code if isinstance(code, int) else 0 if code is None else 1


# -- many cases ------------------------------------------------------------------------------------


def in_fork(work: Callable[[], Any]) -> Any:
    """Return the JSON result of ``work``, done in a forked process."""
    ((_, result),) = map_forked([0], lambda _: work(), 1)
    return result


def map_forked(
    items: Iterable[Any], work: Callable[[Any], Any], jobs: int
) -> Iterator[tuple[Any, Any]]:
    """Yield each item with the JSON result of ``work(item)``, done in ``jobs`` processes at a time.

    The result is None where the process ended without one.
    """
    running: dict[int, tuple[Any, int]] = {}
    waiting = iter(items)
    more = True
    while more or running:
        while more and len(running) < jobs:
            try:
                item = next(waiting)
            except StopIteration:
                more = False
                break
            pid, descriptor = _fork_work(item, work)
            running[pid] = (item, descriptor)
        if not running:
            break
        pid, _ = os.wait()
        if pid not in running:
            continue
        item, descriptor = running.pop(pid)
        os.lseek(descriptor, 0, os.SEEK_SET)
        with os.fdopen(descriptor, "rb") as stream:
            text = stream.read()
        yield item, json.loads(text) if text else None


def _fork_work(item: Any, work: Callable[[Any], Any]) -> tuple[int, int]:
    descriptor = os.memfd_create("result")
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid, descriptor
    try:
        os.write(descriptor, json.dumps(work(item)).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


@contextlib.contextmanager
def workspace(keep: bool = False) -> Iterator[Path]:
    """A folder for all cases; removed at the end, also where files are read-only."""
    path = Path(tempfile.mkdtemp(prefix="campaign-")).resolve()
    try:
        yield path
    finally:
        if not keep:
            remove(path)


def remove(path: Path) -> None:
    """Remove a folder with read-only folders in it."""
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            Path(folder).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)
