# SPDX-License-Identifier: Apache-2.0
"""Contract: timers read the time of the device's work, and training does not wait for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bertbench.backends.base import Backend
from bertbench.backends.timers import HostTimer
from bertbench.common.distributed.world import World
from bertbench.common.training.events import Observer
from bertbench.common.training.loop import train
from tests.contract.helpers import TRIES, Work
from tests.contract.tiny_task import HostReads, tiny_task


def timed(backend: Backend, work: Work, units: int) -> float:
    timer = backend.timer()
    timer.start()
    work(units)
    timer.stop()
    (seconds,) = timer.seconds()
    return seconds


def test_timer_reads_n_times_the_work_as_n_times_the_seconds(backend: Backend, work: Work) -> None:
    """Eight times the work reads as four to sixteen times the seconds, in one of ten tries."""
    pairs = []
    for _ in range(TRIES):
        once, many = timed(backend, work, 1), timed(backend, work, 8)
        if 0 < 4 * once < many < 16 * once:
            return
        pairs.append((once, many))
    pytest.fail(f"seconds of one unit of work and of eight were {pairs}: the timer reads a clock "
                "that is not the work's", pytrace=False)  # fmt: skip


@pytest.mark.parametrize("clock", ["the adapter's", "host-sync"])
def test_timer_agrees_with_the_arrival_of_the_result(
    backend: Backend, work: Work, clock: str
) -> None:
    """``timer()``, and a host timer over ``synchronize()``, read what waiting for a number takes.

    Time in which the device waits for the host counts, too: a step is as long as it is. It is far
    longer than the work beside it, which several busy processors may count several times.
    """
    for idle_s, units in ((0.0, 8), (0.1, 1)):
        tries = []
        for _ in range(TRIES):
            timer = backend.timer() if clock == "the adapter's" else HostTimer(backend.synchronize)
            work.settle()
            begin = time.perf_counter()
            timer.start()
            time.sleep(idle_s)
            result = work(units)
            timer.stop()
            float(result[0, 0])
            wall = time.perf_counter() - begin
            (seconds,) = timer.seconds()
            tries.append((seconds, wall))
            if 0.5 * wall < seconds < 1.1 * wall + 1e-3:
                break
        else:
            pytest.fail(
                f"(seconds of clock {timer.clock}, seconds until the result arrived) were {tries} "
                f"(the host slept for {idle_s} s of them): synchronise before reading the host's "
                "clock, read a wall clock, and give seconds (events give milliseconds)",
                pytrace=False,
            )


def test_synchronize_waits_for_the_device(backend: Backend, work: Work) -> None:
    """After ``synchronize()`` the result is there: reading it takes no time to speak of."""
    left, whole = [], work.wall(8)
    for _ in range(TRIES):
        result = work(8)
        backend.synchronize()
        begin = time.perf_counter()
        float(result[0, 0])
        left.append(time.perf_counter() - begin)
        if left[-1] < 0.5 * whole:
            return
    pytest.fail(f"of {whole} s of work, {left} s were left after synchronize()", pytrace=False)


@contextlib.contextmanager
def waits(backend: Backend, note: Callable[[], None]) -> Iterator[None]:
    """Calls ``note`` for every synchronisation, by the adapter or past it by the device module."""
    inside = 0

    def watch(original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if not inside:
                note()
            inside += 1
            try:
                return original(*args, **kwargs)
            finally:
                inside -= 1

        return watched

    with pytest.MonkeyPatch.context() as patch:
        for owner in (torch.accelerator, backend.module, backend):
            if hasattr(owner, "synchronize"):
                patch.setattr(owner, "synchronize", watch(owner.synchronize))
        yield


def test_timer_blocks_only_where_its_clock_demands_it(backend: Backend, work: Work) -> None:
    """A host timer synchronises once at each end; any other only when its seconds are read."""
    counts = [0]

    def note() -> None:
        counts[-1] += 1

    with waits(backend, note):
        timer = backend.timer()
        work.settle()
        counts[-1] = 0
        for step in (timer.start, lambda: work(1), timer.stop, timer.seconds):
            step()
            counts.append(0)
    start, between, stop, read = counts[:4]
    assert between == 0
    if timer.clock == "host-sync":
        assert (start, stop) == (1, 1), (
            f"a host timer synchronised {start} times at its start and {stop} at its end: once "
            "each, or work still in the queue is left out or charged to the wrong side"
        )
    else:
        assert (start, stop) == (0, 0), f"clock {timer.clock} blocks: {start} at start, {stop} stop"
        assert read >= 1, "seconds() must wait until the device has passed the marks"


def test_training_waits_for_the_device_only_at_reports(backend: Backend) -> None:
    """Between two reports the loop neither synchronises nor reads a number from the device.

    Allowed: one synchronisation when time starts, one at each report and one at the end; after a
    window's last batch, whatever the report reads. fp16's scaler must read one flag per step, so
    another precision is used.
    """
    precision = next(p for p in backend.capabilities.precisions if p != "fp16")
    task, plan = tiny_task(backend, "--precision", precision, "--log_freq", "5")
    log: list[str] = []

    class Reports(Observer):
        def on_step(self, event: Any) -> None:
            log.append("report")

    original = task.train_batches

    def batches(position: Any) -> Iterator[Any]:
        for batch in original(position):
            log.append("batch")
            yield batch

    task.train_batches = batches  # type: ignore[method-assign]
    reads = HostReads(backend.device_type, lambda name: log.append(f"reads {name}"))
    with waits(backend, lambda: log.append("wait")), reads:
        train(task, backend=backend, world=World(), plan=plan, observers=[Reports()])
    assert log.count("batch") == 10 and log.count("report") == 2
    between = [
        log[i] for i in range(log.index("batch"), len(log))
        if log[i] not in ("batch", "report")
        and next((e for e in log[i:] if e in ("batch", "report")), "report") == "batch"
        and next(e for e in reversed(log[:i]) if e in ("batch", "report")) == "batch"
    ]  # fmt: skip
    assert not between, f"inside the timed region the host waits for the device: {set(between)}"
    assert log.count("wait") == 4, (
        f"{log.count('wait')} synchronisations, not 1 at the start + 2 reports + 1 at the end"
    )
