# SPDX-License-Identifier: Apache-2.0
"""Ranks that do not come, end, are killed or stopped are noticed in time, in one line."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bertbench.common.config.launched import Ranks
from bertbench.common.distributed import peers as module
from bertbench.common.distributed.peers import PeerLost, Peers, place, timeout_s
from bertbench.common.errors import BadInput
from tests.ports import free_port


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes with which a watch would have ended its process; two ranks share this one."""
    codes: list[int] = []
    monkeypatch.setattr(module.os, "_exit", codes.append)
    monkeypatch.setattr(module, "GRACE_S", 0.1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv(module.TIMEOUT, "1")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return codes


def rank(number: int, size: int = 2) -> Peers:
    return Peers(Ranks(number, size, number, size))


@pytest.fixture
def two(exits: list[int]) -> Iterator[tuple[Peers, Peers]]:
    ranks = rank(0), rank(1)
    waiting = threading.Thread(target=ranks[1].meet)
    waiting.start()
    ranks[0].meet()
    waiting.join(10)
    yield ranks
    for one in ranks:
        one._left.set()


def until(done: Callable[[], object], limit: float = 10) -> float:
    begin = time.monotonic()
    while not done():
        assert time.monotonic() - begin < limit, "nothing happened"
        time.sleep(0.02)
    return time.monotonic() - begin


def leave_both(two: tuple[Peers, Peers]) -> None:
    leaving = threading.Thread(target=two[1].leave)
    leaving.start()
    two[0].leave()
    leaving.join(10)


def test_ranks_that_work_for_long_are_not_lost(two: tuple[Peers, Peers], exits: list[int]) -> None:
    time.sleep(2.5)
    leave_both(two)
    assert exits == [] and [one.lost for one in two] == [None, None]


def test_a_rank_that_is_done_is_not_lost(two: tuple[Peers, Peers], exits: list[int]) -> None:
    """Rank 0 closes the record, which takes its time, after the others have left."""
    two[1].leave()
    time.sleep(2.5)
    begin = time.monotonic()
    two[0].leave()
    assert time.monotonic() - begin < 0.5 and exits == []


def test_no_watch_is_in_the_store_when_the_process_ends(
    two: tuple[Peers, Peers], exits: list[int]
) -> None:
    """The interpreter's end would unwind it through C++ and abort the process."""
    threads = [thread for one in two for thread in one._threads]
    assert len(threads) == 4 and all(thread.is_alive() for thread in threads)
    leave_both(two)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_stands_still_is_lost(
    two: tuple[Peers, Peers], exits: list[int], stopped: int, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    other = two[1 - stopped]
    other.on_lost = told.append
    two[stopped]._left.set()  # its threads no longer run
    until(lambda: exits)
    assert exits == [3] and told == [f"rank {stopped} (last step 0) has not answered for 1 s"]
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"bertbench run: rank {1 - stopped} ends: {told[0]}"
    assert said[0].startswith(f"bertbench run: rank {stopped} ran on ") and len(said) == 2


def test_a_store_that_stands_still_is_lost(two: tuple[Peers, Peers], exits: list[int]) -> None:
    """Its process was stopped: no call of the watch returns."""
    free = threading.Event()
    two[1]._has = lambda key: free.wait(30)  # type: ignore[method-assign]
    until(lambda: exits)
    assert two[1].lost == "rank 0 has not answered for 1 s"
    free.set()


def test_a_store_that_is_gone_is_lost(two: tuple[Peers, Peers], exits: list[int]) -> None:
    def gone(key: str) -> bool:
        raise RuntimeError("Connection reset by peer")

    two[1]._has = gone  # type: ignore[method-assign]
    until(lambda: exits)
    assert two[1].lost == "rank 0 is gone"


def test_a_record_that_cannot_be_closed_holds_nothing_up(
    two: tuple[Peers, Peers], exits: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(text: str) -> None:
        raise OSError("no space left")

    two[0].on_lost = fails
    two[1]._left.set()
    until(lambda: exits)
    assert exits == [3]
    assert capsys.readouterr().err.endswith("; and its record is not closed: no space left\n")


def test_a_result_that_is_complete_keeps_its_exit_code(
    two: tuple[Peers, Peers], exits: list[int]
) -> None:
    """Or a supervisor would start the run again, which ended well."""
    two[0].on_lost = lambda text: 0
    two[1]._left.set()
    until(lambda: exits)
    assert exits == [0]


def test_a_rank_that_ends_says_why(two: tuple[Peers, Peers], exits: list[int]) -> None:
    two[1].leave(BadInput("no such file\nor so"))
    known = two[0].explain(RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed"))
    assert isinstance(known, PeerLost) and str(known) == "rank 1 ended: no such file"
    time.sleep(0.5)
    assert exits == []  # the main thread knows: the watch leaves the end to it


def test_a_rank_that_fails_tells_the_others_before_it_closes_its_record(
    two: tuple[Peers, Peers], exits: list[int]
) -> None:
    error = MemoryError("out of memory")
    assert two[0].explain(error) is error
    until(lambda: exits)
    assert exits == [1] and two[1].lost == "rank 0 ended: out of memory"  # it would again
    begin = time.monotonic()
    two[0].leave()
    assert time.monotonic() - begin < 3 and exits == [1]


def test_a_rank_that_is_killed_is_named_with_its_last_step(
    two: tuple[Peers, Peers], exits: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    two[1].step = lambda: 37
    until(lambda: " 37 " in two[0]._get("beat/1"))
    two[1]._left.set()
    known = two[0].explain(RuntimeError("[gloo/pair.cc:537] Connection reset by peer"))
    assert str(known) == "rank 1 (last step 37) is gone: it hung up" and exits == []
    assert isinstance(known, PeerLost) and known.exit_code == 3
    assert capsys.readouterr().err == f"bertbench run: rank 1 ran on {socket.gethostname()}\n"


def test_a_rank_that_still_answers_is_not_named(two: tuple[Peers, Peers], exits: list[int]) -> None:
    known = two[0].explain(RuntimeError("[gloo/pair.cc:537] Connection reset by peer"))
    assert str(known) == "another rank is gone: it hung up" and exits == []


def test_a_rank_that_hangs_is_named_with_its_line(
    two: tuple[Peers, Peers], exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both main threads are this one, so the place of the second is set."""
    beats = (f"{n} 37 common/data/hdf5.py:120 host" for n in itertools.count())
    monkeypatch.setattr(two[1], "_beat", lambda: two[1]._set("beat/1", next(beats)))
    until(lambda: "hdf5" in two[0]._get("beat/1"))
    known = two[0].explain(RuntimeError("[gloo/unbound_buffer.cc:84] Timed out waiting 600000ms"))
    assert str(known) == (
        "another rank is gone or hangs: [gloo/unbound_buffer.cc:84] Timed out waiting 600000ms; "
        "rank 1 (last step 37) is at common/data/hdf5.py:120"
    )
    assert isinstance(known, PeerLost) and known.exit_code == 3
    assert two[0]._get("ended") == str(known)


def test_the_place_of_the_main_thread_is_the_innermost_of_ours() -> None:
    found: list[str] = []
    asking = threading.Thread(target=lambda: found.append(place()))
    ours = Peers.__init__.__globals__ | {"go": lambda: (asking.start(), asking.join())}
    exec(compile("go()", str(module._ROOT / "common" / "no such file.py"), "exec"), ours)
    assert found == ["common/no_such_file.py:1"]
    found.clear()
    asking = threading.Thread(target=lambda: found.append(place()))
    asking.start()
    asking.join()
    assert found == ["?"]


def test_a_rank_whose_torchrun_is_gone_ends(
    exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would keep its place, which the next start needs."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    one = rank(0, 1)
    one._own = one.store = None
    one._starter = -1
    watch = threading.Thread(target=one._watch)
    watch.start()
    until(lambda: exits)
    assert exits == [3] and one.lost == "its torchrun is gone"
    watch.join(5)


@pytest.mark.parametrize(
    "error",
    [ValueError("gloo"), RuntimeError("mat1 and mat2 shapes"), BadInput("gloo"),
     KeyboardInterrupt(), KeyError("x")],
)  # fmt: skip
def test_other_errors_stay_what_they_are(exits: list[int], error: BaseException) -> None:
    assert rank(0).explain(error) is error


def test_a_rank_that_does_not_come_is_named(exits: list[int]) -> None:
    begin = time.monotonic()
    with pytest.raises(PeerLost, match=r"no rank 1 within 2 s .*BERTBENCH_PEER_TIMEOUT_S") as error:
        rank(0).meet()
    assert "\n" not in str(error.value) and time.monotonic() - begin < 4.5


def test_rank_0_that_does_not_come_is_named(exits: list[int]) -> None:
    begin = time.monotonic()
    with pytest.raises(PeerLost, match="rank 0, or its address, does not answer within 2 s"):
        rank(1).meet()
    assert time.monotonic() - begin < 6


def test_a_rank_that_ends_while_they_meet_is_told(exits: list[int]) -> None:
    """The third never comes; the second is stopped by Ctrl-C; the first does not wait any more."""
    said: list[str] = []

    def first() -> None:
        try:
            rank(0, 3).meet()
        except PeerLost as error:
            said.append(str(error))

    waiting = threading.Thread(target=first)
    waiting.start()
    second = rank(1, 3)
    second._wait = _interrupted(second)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        second.meet()
    waiting.join(10)
    assert said == ["while the ranks met: rank 1 ended: stopped"]


def _interrupted(peers: Peers) -> Callable[..., None]:
    """Waits for rank 0's address, and is stopped in the next wait."""
    plain = peers._wait

    def wait(done: Callable[[], bool], why: Callable[[], str]) -> None:
        if peers._own is not None:
            raise KeyboardInterrupt
        plain(done, why)

    return wait


def test_an_address_that_is_none_is_one_line(
    exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "no.such.host.invalid")
    for number in (0, 1):  # rank 0 is the store's host, and connects to itself by that name
        with pytest.raises(PeerLost, match="this machine knows no such name") as error:
            rank(number).meet()
        assert "\n" not in str(error.value)
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(BadInput, match="MASTER_ADDR"):
        rank(1)


def test_a_port_that_is_taken_is_one_line(exits: list[int]) -> None:
    import os
    import socket

    with socket.socket() as taken:
        taken.bind(("0.0.0.0", int(os.environ["MASTER_PORT"])))
        taken.listen()
        with pytest.raises(PeerLost, match="the ranks cannot meet") as error:
            rank(0).meet()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "0", "-5", "nan", "inf", "soon", "1e400", "0.5"])
def test_a_timeout_that_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(module.TIMEOUT, text)
    with pytest.raises(BadInput, match="not a number of seconds"):
        timeout_s()


@pytest.fixture
def silent(exits: list[int]) -> Iterator[None]:
    """A rank 0 that was stopped: its system takes connections, and nobody answers."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with socket.create_server(address):
        yield


@pytest.mark.usefixtures("silent")
def test_a_rank_0_stopped_before_the_ranks_meet_is_given_up_in_time() -> None:
    begin = time.monotonic()
    with pytest.raises(PeerLost, match="the ranks cannot meet"):
        rank(1).meet()
    assert time.monotonic() - begin < module.FORMING * 1 + 3


class Stopped:
    """The store of a process that was stopped between two answers."""

    def __init__(self, answers: int) -> None:
        self.answers, self.free = answers, threading.Event()

    def __getattr__(self, name: str) -> Callable[..., object]:
        def call(*values: object) -> bool:
            self.answers -= 1
            if self.answers < 0:
                self.free.wait(30)
            return False

        return call


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("answers", [1])
def test_a_store_that_stops_answering_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    """While the ranks meet, and where one of them leaves or is interrupted."""
    store, one = Stopped(answers), rank(1)
    monkeypatch.setattr(one, "_connect", lambda host: store)
    begin = time.monotonic()
    with pytest.raises(PeerLost, match="rank 0 has not answered within 2 s"):
        one.meet()
    assert time.monotonic() - begin < module.FORMING * 1 + 3
    one._own = store
    begin = time.monotonic()
    assert isinstance(one.explain(KeyboardInterrupt()), KeyboardInterrupt)
    one.leave()
    assert time.monotonic() - begin < 8
    store.free.set()


@pytest.mark.parametrize("text", ["1e300", "1e7", "nan", "inf", "0", "9" * 5000, "", "1\n"])
def test_a_timeout_that_cannot_be_one(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(module.TIMEOUT, text)
    if text == "1\n":  # as float() reads it
        assert timeout_s() == 1
        return
    with pytest.raises(BadInput, match="is not a number of seconds from 1 to 1000000"):
        timeout_s()
