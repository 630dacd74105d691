# SPDX-License-Identifier: Apache-2.0
"""The other ranks: meet them, and notice when one is gone.

A collective waits for a rank that was killed or stopped for as long as its timeout, ten minutes.
So a thread of every rank beats once a second in the store through which they met; rank 0 watches
all, the others watch rank 0. A silent rank is lost after ``BERTBENCH_PEER_TIMEOUT_S`` (60): the
record is closed as failed, and every rank ends with exit code 3 and a line that names the lost one.
A rank that beats but hangs is found by the collective's timeout, and named with its line of code.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from bertbench.common.config.launched import TIMEOUT, Ranks, meeting_point, timeout_s
from bertbench.common.errors import PROCESS_LOST, BertbenchError
from bertbench.common.files import shown

FORMING = 2.0
"""How many times as long as its timeout a rank waits for the others at the start."""
WAITED = "common/distributed/peers.py:"
"""Where a rank is whose collective has ended by its timeout: here, in ``explain``."""
_ROOT = Path(__file__).parents[2]
GRACE_S = 5.0
"""The main thread has this long to notice the loss by itself."""


class PeerLost(BertbenchError):
    """Another rank ended or stopped: this one cannot go on."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        # One that ended by itself said why, and would again: restarts.py repeats the others.
        self.exit_code = 1 if " ended: " in text else PROCESS_LOST


class Peers:
    """This rank's watch over the others, from ``meet`` to ``leave``."""

    def __init__(self, ranks: Ranks) -> None:
        meeting_point()
        self.ranks, self.timeout_s = ranks, timeout_s()
        self.on_lost: Callable[[str], int | None] = lambda text: None
        """Called in another thread, before the process ends; may return its exit code."""
        self.lost: str | None = None
        self.step: Callable[[], int] = lambda: 0
        """The last step that this rank did, for the others."""
        self._starter, self._beats = os.getppid(), 0
        self._agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._hosts = ranks.rank == 0 and not self._agent
        self._left, self._losing = threading.Event(), threading.Lock()
        self._period_s = min(1.0, self.timeout_s / 10)
        self._answered = 0.0
        """When the store last did: its process may be the one that was stopped."""
        self._end = time.monotonic() + FORMING * self.timeout_s
        self._address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store: Any = None
        self._own: Any = None
        """The watch's connection: another thread's wait must not hold it up."""
        self._prefix = f"bertbench/{attempt}/"
        self._threads: list[threading.Thread] = []

    def meet(self) -> None:
        """Wait for every rank and begin to watch; raises PeerLost where one does not come.

        Ctrl-C ends the wait at once, unlike torch's own.
        """
        try:
            if not _in_time(self._meet, self._end + 1):
                self._own = None  # it does not answer
                raise self._apart("rank 0 has not answered")
        except BaseException as error:
            self.leave(error)
            if isinstance(error, RuntimeError):
                raise PeerLost(f"the ranks cannot meet: {_line(error)}") from error
            raise
        self._answered = time.monotonic()
        for work in (self._watch, self._guard):
            self._threads.append(threading.Thread(target=work, name="peers", daemon=True))
            self._threads[-1].start()

    def _meet(self) -> None:
        # Rank 0 connects to itself by that name, too. Kubernetes knows a pod's name a while later.
        self._wait(self._resolvable, lambda: "this machine knows no such name")
        if not self._hosts:
            self._wait(self._reachable, lambda: "rank 0, or its address, does not answer")
        self.store = self._connect(self._hosts)
        self._own = self._connect(False)
        self._beat()
        if self.ranks.rank == 0:
            self._wait(lambda: not self._absent(), lambda: f"no rank {self._absent()[0]}")
            self._set("all", "1")
        self._wait(lambda: self._has("all"), lambda: "not every rank has come")

    def leave(self, error: BaseException | None = None) -> None:
        """End the watch; the others are told of ``error``, and the store outlives them."""
        if error is not None:
            self._tell(error)
        patience_s = 2.0 if self._left.is_set() else self.timeout_s  # they are ending, too
        self._left.set()
        end = time.monotonic() + patience_s
        if self._own is not None:
            _in_time(lambda: self._say_done(end), end + 1)
        for thread in self._threads:
            # One that comes back from torch's C++ while the interpreter ends is unwound through it,
            # which aborts the process. Without an answer from the store it cannot come back.
            if thread is not threading.current_thread():
                thread.join(2.0)

    def _say_done(self, end: float) -> None:
        with contextlib.suppress(RuntimeError):
            self._set(f"done/{self.ranks.rank}", "1")
            done = [f"{self._prefix}done/{rank}" for rank in range(self.ranks.size)]
            while self._hosts and self._answered and not self.lost and time.monotonic() < end:
                if self._own.check(done):
                    break
                time.sleep(0.05)

    def explain(self, error: BaseException) -> BaseException:
        """Return PeerLost for an error that a lost rank causes here; others unchanged.

        The others are told of these: they need not wait, and this rank ends by itself.
        """
        inner = isinstance(error, RuntimeError) and not isinstance(error, BertbenchError)
        if not inner or not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            self._tell(error)
            return error
        self._left.set()
        end = time.monotonic() + 2.0 + 3 * self._period_s  # whoever ended on purpose says so
        _in_time(lambda: self._hear(end), end + 1)
        if self.lost is None:
            self.lost = "another rank is gone: it hung up"
            if "onnection" not in str(error):
                self.lost = f"another rank is gone or hangs: {_line(error)}"
                _in_time(self._say_where, time.monotonic() + 2)
        return PeerLost(self.lost)

    def _hear(self, end: float) -> None:
        """Set what another rank says of the loss; rank 0 says which one has fallen silent."""
        others = range(1, self.ranks.size) if self.ranks.rank == 0 else ()
        before: dict[int, str] = {}
        while self.lost is None and time.monotonic() < end:
            with contextlib.suppress(RuntimeError):
                self._beat()  # the watch has left, and the others listen
                before = before or {rank: self._get(f"beat/{rank}") for rank in others}
                if self._has("ended"):
                    self.lost = self._get("ended")
            time.sleep(0.1)
        with contextlib.suppress(RuntimeError):
            silent = [r for r, beat in before.items() if self._get(f"beat/{r}") == beat]
            silent = [r for r in silent if not self._has(f"done/{r}")]
            if silent and self.lost is None:
                self.lost = f"{self._named(silent[0])} is gone: it hung up"
                self._set("ended", self.lost)

    def _tell(self, error: BaseException) -> None:
        self._left.set()
        if self._own is not None and self.lost is None and not isinstance(error, PeerLost):
            text = f"rank {self.ranks.rank} ended: {_line(error)}"
            with contextlib.suppress(RuntimeError):
                _in_time(lambda: self._set("ended", text), time.monotonic() + 2)

    # -- the watch --------------------------------------------------------------------------------
    def _watch(self) -> None:
        mine, size = self.ranks.rank, self.ranks.size
        watched = range(1, size) if mine == 0 else [0]
        seen = dict.fromkeys(watched, ("", time.monotonic()))
        while not self._left.wait(self._period_s):
            self._answered = time.monotonic()
            if os.getppid() != self._starter and "TORCHELASTIC_RUN_ID" in os.environ:
                self._lose("its torchrun is gone")
                return
            try:
                self._beat()
                for rank in watched:
                    value, since = self._get(f"beat/{rank}"), seen[rank][1]
                    if value != seen[rank][0] or self._has(f"done/{rank}"):
                        seen[rank] = value, time.monotonic()
                    elif time.monotonic() - since > self.timeout_s:
                        silence = f"has not answered for {self.timeout_s:g} s"
                        self._set("ended", f"{self._named(rank)} {silence}")
                text = self._get("ended") if self._has("ended") else None
            except RuntimeError:
                text = "rank 0 is gone"
            if text is not None:
                self._lose(text)
                return

    def _guard(self) -> None:
        """Watch the watch, which waits for the store without a limit."""
        while not self._left.wait(self._period_s):
            if time.monotonic() - self._answered > self.timeout_s:
                self._lose(f"rank 0 has not answered for {self.timeout_s:g} s")
                return

    def _lose(self, text: str) -> None:
        """End the process, unless the main thread does so in time."""
        with self._losing:
            if self._left.is_set() or self.lost is not None:
                return
            self.lost = text
        if self._left.wait(GRACE_S):
            return
        code = None
        try:
            code = self.on_lost(text)
            sys.stdout.flush()
        except Exception as error:  # a disk that is full, or a reader that has left
            text += f"; and its record is not closed: {_line(error)}"
        with contextlib.suppress(Exception):
            print(
                f"bertbench run: rank {self.ranks.rank} ends: {text}", file=sys.stderr, flush=True
            )
        os._exit(PeerLost(self.lost).exit_code if code is None else code)

    def _beat(self) -> None:
        self._beats += 1
        text = f"{self._beats} {self.step()} {place()} {socket.gethostname()}"
        self._set(f"beat/{self.ranks.rank}", text)

    def _named(self, rank: int) -> str:
        """Return ``rank 1 (last step 37)``, and print on which machine it ran: no record has that.

        Raises RuntimeError where the store does not answer.
        """
        _, step, _, host = self._get(f"beat/{rank}").split(maxsplit=3)
        print(f"bertbench run: rank {rank} ran on {shown(host, 80)}", file=sys.stderr)
        return f"rank {rank} (last step {step})"

    def _say_where(self) -> None:
        """Add to ``lost`` where ranks are that did not wait in vain, at most three; tell all."""
        where = {rank: self._get(f"beat/{rank}").split()[2] for rank in range(self.ranks.size)}
        for rank in [rank for rank, at in where.items() if not at.startswith(WAITED)][:3]:
            self.lost = f"{self.lost}; {self._named(rank)} is at {shown(where[rank])}"
        self._set("ended", self.lost or "")

    # -- the store --------------------------------------------------------------------------------
    def _connect(self, host: bool) -> Any:
        limit = timedelta(seconds=self.timeout_s)
        return TCPStore(
            *self._address, None, host, limit, wait_for_workers=False, multi_tenant=True
        )

    def _resolvable(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM))
        return False

    def _reachable(self) -> bool:
        """Ask by a plain socket: torch writes a paragraph for every refusal."""
        try:
            socket.create_connection(self._address, timeout=2).close()
        except OSError:
            return False
        return True

    def _wait(self, done: Callable[[], bool], why: Callable[[], str]) -> None:
        while not done():
            if self._own is not None and self._has("ended"):
                raise PeerLost(f"while the ranks met: {self._get('ended')}")
            if time.monotonic() > self._end:
                raise self._apart(why())
            time.sleep(0.1)

    def _apart(self, why: str) -> PeerLost:
        return PeerLost(
            f"the ranks cannot meet: {why} within {FORMING * self.timeout_s:g} s (twice {TIMEOUT}) "
            f"at {self._address[0]}:{self._address[1]}"
        )

    def _absent(self) -> list[int]:
        return [rank for rank in range(self.ranks.size) if not self._has(f"beat/{rank}")]

    def _set(self, key: str, value: str) -> None:
        self._own.set(self._prefix + key, value)

    def _has(self, key: str) -> bool:
        return bool(self._own.check([self._prefix + key]))

    def _get(self, key: str) -> str:
        return bytes(self._own.get(self._prefix + key)).decode("utf-8", "replace")


def _in_time(work: Callable[[], None], end: float) -> bool:
    """Work in a thread until ``end``; raise what it raises, return false where it goes on.

    A store whose process was stopped does not answer, and torch's calls to it know no limit.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="store", daemon=True)
    thread.start()
    while thread.is_alive() and time.monotonic() < end:
        thread.join(0.1)
    if errors:
        raise errors[0]
    return not thread.is_alive()


def place() -> str:
    """Return where this process's main thread is in bertbench's code, or ``?``."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if (file := Path(frame.f_code.co_filename)).is_relative_to(_ROOT):
            return f"{file.relative_to(_ROOT).as_posix()}:{frame.f_lineno}".replace(" ", "_")
        frame = frame.f_back
    return "?"


def _line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    return shown((str(error).strip() or type(error).__name__).splitlines()[0])
