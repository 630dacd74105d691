# SPDX-License-Identifier: Apache-2.0
"""Sensors that reset, wrap, hang, die and lie: the energy is right, or unknown with the reason."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

import pytest

from bertbench.common.measure.telemetry import PROMPT_S, Sampler, energy, possible, prepared
from bertbench.common.training.summary import reading

WATTS = 100.0


def by_second(counter: list[Any], watts: float | None = WATTS) -> list[dict[str, Any]]:
    """A reading a second: the counter (None: missing) and a constant power."""
    power = {} if watts is None else {"power_w": watts}
    return [{"t": float(i), **power} | ({} if c is None else {"energy_j": c})
            for i, c in enumerate(counter)]  # fmt: skip


def sampled(samples: list[dict[str, Any]]) -> Sampler:
    """A sampler that has read these."""
    left: Iterator[dict[str, Any]] = iter(samples)
    now: list[float] = []

    def read() -> Mapping[str, float]:
        taken = dict(next(left))
        now.append(taken.pop("t"))
        return taken

    sampler = Sampler(read, source="test", period_s=3600, clock=lambda: now[-1])
    sampler.start()
    for _ in samples[2:]:
        sampler.take()
    sampler.stop()
    return sampler


RESET = [900.0, 1000.0, 1100.0, 0.0, 100.0, 200.0, 300.0]
WRAPS = [4_294_967.0, 4_294_967.2, 32.8, 132.8]
STUCK = [500.0] * 4
STOPS = [0.0, 100.0, 200.0, 200.0, 200.0, 200.0]


@pytest.mark.parametrize(
    ("counter", "joules"),
    [
        (RESET, 600),
        ([0.0, math.nan, 200.0, 300.0], 300),
        ([math.nan, 100.0, 200.0], 200),
        ([0.0, 100.0, math.nan], 200),
        ([0.0, "N/A", None, 300.0], 300),
        ([0.0, 100.0, 1e12, 300.0], 300),
        ([0.0, -1.0, 200.0], 200),
        ([5.0, 10**400, 205.0], 200),
        (STUCK, 300),
        (STOPS, 500),
        ([1000.0, 1100.0, 10.0, 110.0, 5.0, 105.0], 500),
    ],
)
def test_a_counter_is_believed_interval_by_interval(counter: list[Any], joules: float) -> None:
    """Where it cannot be, power times time stands in; the metric's source says so."""
    sampler = sampled(by_second(counter))
    assert sampler.energy_j() == pytest.approx(joules)
    assert sampler.power_w() == pytest.approx(joules / (len(counter) - 1))
    found = reading(sampler)
    assert found is not None and found.problem is None


def test_what_the_power_stands_in_for_is_said() -> None:
    found = reading(sampled(by_second(RESET)))
    assert found is not None and "went back or was unreadable 1 times" in found.source
    assert reading(sampled(by_second([0.0, 100.0, 200.0]))).source == "test"  # type: ignore[union-attr]


@pytest.mark.parametrize("counter", [RESET, WRAPS, [0.0, 1e12], [0.0, math.nan], STUCK, STOPS])
def test_a_counter_alone_that_breaks_gives_no_energy(counter: list[float]) -> None:
    sampler = sampled(by_second(counter, watts=None))
    assert sampler.energy_j() is None and sampler.power_w() is None
    found = reading(sampler)
    assert found is not None and found.problem is not None
    assert "energy" in found.problem


def test_a_whole_run_of_no_joules_is_unknown() -> None:
    samples = [{"t": 0.0, "energy_j": 7.0}, {"t": 0.5, "energy_j": 7.0}]
    assert energy(samples) == 0  # one short window between two others
    assert sampled(samples).energy_j() is None


@pytest.mark.parametrize(
    "watts",
    [math.nan, math.inf, -100.0, 0.0, 65_535.0, "100 W", None, True, 10**400, Decimal(5), [1]],
)  # fmt: skip
def test_a_power_that_no_device_has_is_unknown(watts: Any) -> None:
    samples = [{"t": 0.0, "power_w": 100.0}, {"t": 1.0, "power_w": watts}]
    sampler = sampled([*samples, {"t": 2.0, "power_w": 100.0}])
    assert sampler.energy_j() is None and sampler.power_w() is None
    assert all(math.isfinite(v) for s in sampler.samples() for v in s.values())
    found = reading(sampler)
    assert found is not None and "power_w of" in (found.problem or "")


@pytest.mark.parametrize("degrees", [math.nan, 32767.0, -273.15, "hot", 1e30])
def test_a_temperature_that_no_device_has_is_left_out(degrees: Any) -> None:
    sampler = sampled(
        [{"t": float(i), "power_w": 5.0, "temperature_c": c} for i, c in enumerate((50.0, degrees))]
    )
    assert sampler.highest("temperature_c") == 50
    assert sampler.energy_j() == 5
    assert "temperature_c of" in sampler.doubts()[0]


def test_numbers_of_other_kinds_are_numbers() -> None:
    import numpy as np

    assert possible("power_w", np.float32(5)) == 5 and possible("energy_j", np.int64(7)) == 7
    assert possible("throttled", True) == 1


def test_a_gap_between_readings_of_power_is_not_covered() -> None:
    sampler = sampled([{"t": 0.0, "power_w": 9.0}, {"t": 60.0, "power_w": 9.0}])
    assert sampler.energy_j() is None
    assert "do not cover" in (sampler.why_unknown() or "")


class Unforeseen(BaseException):
    """No Exception."""


@pytest.mark.parametrize(
    "error",
    [KeyError("power"), TypeError("None"), ZeroDivisionError(), SystemExit(1), Unforeseen(),
     AttributeError("x"), StopIteration(), MemoryError()],
)  # fmt: skip
def test_a_sampler_that_dies_says_so(error: BaseException) -> None:
    """Whatever ends its thread: no part of the energy looks like all of it."""
    readings = iter([{"energy_j": 0.0}, {"energy_j": 14.0}])
    died = threading.Event()

    def read() -> dict[str, float]:
        found = next(readings, None)
        if found is None:
            died.set()
            raise error
        return found

    sampler = Sampler(read, source="test", period_s=0.001)
    sampler.start()
    assert died.wait(10)
    sampler.stop()
    assert type(error).__name__ in (sampler.problem or "")
    assert sampler.energy_j() is None and reading(sampler).problem  # type: ignore[union-attr]


@pytest.mark.parametrize("wrong", [None, 5.0, "power", [1], [("a", 1, 2)]])
def test_a_reader_that_returns_no_mapping_is_a_problem(wrong: Any) -> None:
    sampler = Sampler(lambda: wrong, source="test", period_s=0.001)
    sampler.start()
    sampler.stop()
    assert sampler.problem is not None and sampler.energy_j() is None


def test_a_clock_that_fails_is_a_problem() -> None:
    ticks = iter([0.0])
    sampler = Sampler(
        lambda: {"power_w": 1.0}, source="test", period_s=0.001, clock=lambda: next(ticks)
    )
    sampler.start()
    sampler.stop()
    assert sampler.problem is not None and sampler.energy_j() is None


def hangs(after: int) -> tuple[Callable[[], dict[str, float]], threading.Event]:
    """A reader that does not return once it was called ``after`` times, until the event is set."""
    calls, free = iter(range(10**9)), threading.Event()

    def read() -> dict[str, float]:
        if next(calls) >= after:
            free.wait(60)
        return {"energy_j": time.monotonic() * WATTS}

    return read, free


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_sensor_that_hangs_holds_nothing_up(after: int) -> None:
    read, free = hangs(after)
    sampler = Sampler(read, source="test", period_s=0.001, patience_s=0.2)
    begin = time.monotonic()
    for _ in range(3):  # the later windows do not wait at all
        sampler.start()
        sampler.stop()
    sampler.close()
    assert time.monotonic() - begin < 2
    assert sampler.problem == "test: no answer in 0.2 s"
    assert sampler.energy_j() is None and sampler.seconds() < 1
    count = len(sampler.samples())
    free.set()
    time.sleep(0.05)
    assert len(sampler.samples()) == count  # what comes too late is not recorded


@pytest.mark.parametrize("before", [True, False])
def test_a_slow_last_reading_does_not_stretch_the_window(before: bool) -> None:
    """A window of a quarter of a second whose last reading takes one: when it was read is unknown.

    Cut out by the reading's end, 100 W would be 60 W where the counter is read first.
    """
    slow = threading.Event()

    def read() -> dict[str, float]:
        now = time.monotonic()
        if slow.is_set():
            time.sleep(1.0)
        return {"energy_j": (now if before else time.monotonic()) * WATTS}

    sampler = Sampler(read, source="test", period_s=0.02)
    begin = time.monotonic()
    sampler.start()
    time.sleep(0.25)
    slow.set()
    seconds = time.monotonic() - begin
    sampler.stop()
    sampler.close()
    assert sampler.seconds() == pytest.approx(seconds, abs=0.1)
    assert sampler.energy_j() is None and sampler.power_w() is None
    assert "took times too different" in str(sampler.why_unknown())


@pytest.mark.parametrize("watts", [None, WATTS])
def test_a_slow_sensor_is_waited_for_once_and_its_energy_is_right(watts: float | None) -> None:
    """Eight windows of 50 ms, and a reading takes 300 ms: windows are cut out of the readings."""

    def read() -> dict[str, float]:
        now = time.monotonic()
        time.sleep(0.3)
        return {"energy_j": now * WATTS} if watts is None else {"power_w": watts}

    sampler = Sampler(read, source="test", period_s=0.02)
    with prepared(sampler):
        begin = time.monotonic()
        for _ in range(8):
            sampler.start()
            time.sleep(0.05)
            sampler.stop()
            time.sleep(0.02)
        seconds = time.monotonic() - begin
    assert seconds < 8 * 0.07 + PROMPT_S + 0.2
    assert reading(sampler).problem is None  # type: ignore[union-attr]
    assert sampler.seconds() == pytest.approx(8 * 0.05, abs=0.2)
    assert sampler.energy_j() == pytest.approx(WATTS * sampler.seconds(), rel=0.05)


def test_a_sensor_that_hangs_later_is_waited_for_at_the_end_only() -> None:
    read, free = hangs(2)
    sampler = Sampler(read, source="test", period_s=0.001, patience_s=0.6)
    with prepared(sampler):
        begin = time.monotonic()
        for _ in range(20):
            sampler.start()
            sampler.stop()
        assert time.monotonic() - begin < PROMPT_S + 0.3
    assert sampler.problem is None
    found = reading(sampler)
    assert found is not None and found.problem == "test: no answer in 0.6 s"
    free.set()


def test_readings_between_windows_are_of_none() -> None:
    now = [0.0]
    sampler = Sampler(
        lambda: {"power_w": 5.0, "temperature_c": now[0]}, source="test", period_s=3600,
        clock=lambda: now[0],
    )  # fmt: skip
    sampler.prepare()
    for begin, end in ((10.0, 12.0), (50.0, 51.0)):
        now[0] = begin
        sampler.start()
        now[0] = end
        sampler.stop()
        now[0] += 20
        sampler.take()
    assert [s["t"] for s in sampler.samples()] == [10, 12, 50, 51]
    assert (sampler.energy_j(), sampler.seconds()) == (15, 3)
    assert sampler.highest("temperature_c") == 51


def test_a_run_that_fails_ends_its_sampling() -> None:
    counts = []
    sampler = Sampler(lambda: counts.append(1) or {"power_w": 5.0}, source="test", period_s=0.001)  # type: ignore[func-returns-value]
    with pytest.raises(ZeroDivisionError), prepared(sampler):
        sampler.start()
        raise ZeroDivisionError
    time.sleep(0.05)
    count = len(counts)
    time.sleep(0.05)
    assert len(counts) == count


@pytest.mark.parametrize(
    "answer", [math.nan, -5.0, "12", None, 0.0, math.inf, KeyError("no"), OSError("gone")]
)
def test_another_packages_telemetry_is_not_trusted(answer: Any) -> None:
    class Own:
        source = "own"

        def energy_j(self) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        power_w = energy_j

    found = reading(Own())  # type: ignore[arg-type]
    assert found is not None and (found.energy_j, found.power_w) == (None, None)
    assert (found.problem is not None) == isinstance(answer, Exception)
