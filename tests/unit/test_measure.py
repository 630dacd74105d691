# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of rates, energy and metrics, on a clock that the test turns."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bertbench.backends.cpu_ref.telemetry import open_rapl, rapl_problem
from bertbench.common.distributed.all_reduce import BUCKET_BYTES, REPEATS, gradient_all_reduce_s
from bertbench.common.measure import system as described
from bertbench.common.measure.code import code_hash, git_state
from bertbench.common.measure.energy import energy
from bertbench.common.measure.metric import SHARED, metric
from bertbench.common.measure.system import describe_system
from bertbench.common.measure.telemetry import Sampler
from bertbench.common.measure.throughput import RankWindows, RateMeter, Window, merge_ranks
from bertbench.common.training.progress import Outcome, Progress
from bertbench.common.training.summary import reading, summarise


class Async:
    """A device whose work takes time only once somebody synchronises."""

    def __init__(self, step_s: float) -> None:
        self.now = self.queued = 0.0
        self.step_s, self.syncs = step_s, 0

    def step(self) -> None:
        self.queued += self.step_s

    def synchronize(self) -> None:
        self.now += self.queued
        self.queued = 0.0
        self.syncs += 1

    def clock(self) -> float:
        return self.now


@pytest.fixture
def device() -> Async:
    return Async(0.1)


def run(meter: RateMeter, device: Async, steps: int) -> None:
    for _ in range(steps):
        device.step()
        meter.add(samples=2, real_tokens=5, padded_tokens=8, model_flops=70)


def test_rate_is_timed_samples_over_timed_seconds(device: Async) -> None:
    for _ in range(40):
        device.step()  # warm-up still in the queue when the meter starts
    meter = RateMeter(synchronize=device.synchronize, clock=device.clock)
    meter.start()
    run(meter, device, 100)
    window = meter.stop()
    assert (window.steps, window.samples) == (100, 200)
    assert window.model_flops_per_second == pytest.approx(700)
    assert window.seconds == pytest.approx(10)
    assert window.sequences_per_second == pytest.approx(20)
    assert window.real_tokens_per_second == pytest.approx(50)
    assert window.padded_tokens_per_second == pytest.approx(80)
    assert device.syncs == 2  # before the clock starts, and after the last step


def test_pauses_do_not_count(device: Async) -> None:
    meter = RateMeter(synchronize=device.synchronize, clock=device.clock)
    meter.start()
    run(meter, device, 3)
    meter.pause()
    assert not meter.running
    for _ in range(1000):
        device.step()  # an evaluation
    meter.resume()
    run(meter, device, 1)
    assert meter.stop() == Window(
        steps=4,
        samples=8,
        real_tokens=20,
        padded_tokens=32,
        model_flops=280,
        seconds=pytest.approx(0.4),
    )


def test_laps_partition_the_run(device: Async) -> None:
    meter = RateMeter(synchronize=device.synchronize, clock=device.clock)
    meter.start()
    run(meter, device, 5)
    first = meter.lap()
    run(meter, device, 2)
    meter.pause()
    device.step()
    while_paused = meter.lap()
    meter.resume()
    empty = meter.lap()
    run(meter, device, 1)
    total = meter.stop()
    assert (first.steps, first.seconds) == (5, pytest.approx(0.5))
    assert (while_paused.steps, while_paused.seconds) == (2, pytest.approx(0.2))
    assert (empty.steps, empty.seconds) == (0, 0.0)
    assert empty.sequences_per_second is None
    assert (total.steps, total.seconds) == (8, pytest.approx(0.8))


def test_a_warm_up_counts_in_laps_but_not_in_the_total(device: Async) -> None:
    told: list[str] = []

    class Sensor:
        def start(self) -> None:
            told.append(f"start {device.clock():.1f}")

        def stop(self) -> None:
            told.append(f"stop {device.clock():.1f}")

    meter = RateMeter(synchronize=device.synchronize, clock=device.clock, telemetry=Sensor())
    meter.start(warming=True)
    run(meter, device, 2)
    meter.pause()
    device.step()
    meter.resume()
    run(meter, device, 1)
    assert meter.lap().steps == 3
    meter.warmed()
    run(meter, device, 4)
    total = meter.stop()
    assert (total.steps, total.samples, total.seconds) == (4, 8, pytest.approx(0.4))
    assert told == ["start 0.4", "stop 0.8"]
    with pytest.raises(AssertionError):
        meter.warmed()


def test_nothing_but_a_warm_up_gives_no_rate(device: Async) -> None:
    meter = RateMeter(synchronize=device.synchronize, clock=device.clock)
    meter.start(warming=True)
    run(meter, device, 3)
    assert meter.stop() == Window()


def test_a_meter_is_used_once_and_only_while_it_runs(device: Async) -> None:
    meter = RateMeter(synchronize=device.synchronize, clock=device.clock)
    with pytest.raises(AssertionError):
        meter.add(samples=1)
    meter.start()
    with pytest.raises(AssertionError):
        meter.start()
    with pytest.raises(AssertionError):
        meter.resume()
    meter.pause()
    with pytest.raises(AssertionError):
        meter.add(samples=1)


def test_what_follows_the_last_report_is_not_training(device: Async) -> None:
    meter = RateMeter(synchronize=device.synchronize, clock=device.clock)
    meter.start()
    run(meter, device, 10)
    window = meter.lap()
    device.now += 5  # a slow disk writes the report
    assert meter.stop() == window and window.seconds == pytest.approx(1)


def test_ranks_add_and_the_slowest_counts() -> None:
    def w(seconds: float) -> Window:
        return Window(
            steps=100, samples=200, real_tokens=7, padded_tokens=9, model_flops=600, seconds=seconds
        )

    assert merge_ranks([w(10), w(10)]).sequences_per_second == 40  # averaging would give 20
    assert merge_ranks([w(10), w(20)]).sequences_per_second == 20
    assert merge_ranks([w(10), w(20)]).steps == 100
    assert merge_ranks([w(10), w(20)]).model_flops_per_second == 60
    assert merge_ranks(iter([w(10), w(20)]), counts_are_global=True) == w(20)


def test_windows_of_ranks_add_up_to_the_slowest_ranks_seconds() -> None:
    """In turn, one rank takes 3 s; the other takes 1 s and waits 2 s in its next window."""
    clocks = [Async(0), Async(0)]
    meters = [RateMeter(synchronize=c.synchronize, clock=c.clock) for c in clocks]
    for meter in meters:
        meter.start()
    merged, windows, overlapping = RankWindows(), [], 0.0
    for slow in (1, 0, 1, 0, 1):
        laps = []
        for rank, (clock, meter) in enumerate(zip(clocks, meters, strict=True)):
            clock.now += 3 if rank == slow else 1
            meter.add(samples=2)
            laps.append(meter.lap())
        windows.append(merged.merge(laps))
        overlapping += merge_ranks(laps).seconds
        for clock in clocks:  # they meet
            clock.now = max(c.now for c in clocks)
    total = merge_ranks([meter.stop() for meter in meters])
    assert [w.seconds for w in windows] == [3.0] * 5
    assert sum(w.seconds for w in windows) == total.seconds == 15 < overlapping
    assert sum(w.samples for w in windows) == total.samples == 20


# -- energy ----------------------------------------------------------------------------------


def test_power_is_integrated_as_mlperf_does() -> None:
    samples = [{"t": 0.0, "power_w": 999.0}, {"t": 2.0, "power_w": 100.0}]
    samples += [{"t": 2.5, "power_w": 40.0}]
    assert energy(samples) == 2 * 100 + 0.5 * 40


def test_the_counter_is_preferred() -> None:
    samples = [{"t": 0.0, "power_w": 1.0, "energy_j": 50.0}]
    samples += [{"t": 9.0, "power_w": 1.0, "energy_j": 80.0}]
    assert energy(samples) == 30


@pytest.mark.parametrize(
    "samples",
    [[], [{"t": 0.0, "power_w": 5.0}], [{"t": 0.0, "temp_c": 5.0}, {"t": 1.0, "power_w": 3.0}]],
)
def test_unknown_energy_is_none(samples: list[dict[str, float]]) -> None:
    assert energy(samples) is None


class Sensor:
    """A clock and a constant power, and a counter if asked."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def read(self) -> dict[str, float]:
        return {"power_w": 10.0}


def test_windows_add_up_and_the_gap_does_not_count() -> None:
    sensor = Sensor()
    sampler = Sampler(sensor.read, source="test", period_s=3600, clock=sensor.clock)
    assert sampler.energy_j() is None
    sampler.start()
    sensor.now += 2
    sampler.take()
    sensor.now += 1
    sampler.stop()
    sensor.now += 1000
    sampler.start()
    sensor.now += 5
    sampler.stop()
    sampler.stop()
    assert sampler.seconds() == 8
    assert sampler.energy_j() == 80
    assert sampler.power_w() == 10
    assert [s["t"] for s in sampler.samples()] == [100, 102, 103, 1103, 1108]


def test_the_thread_reads_by_itself() -> None:
    values: Iterator[float] = iter(range(1000))
    many = threading.Event()

    def read() -> dict[str, float]:
        value = next(values)
        if value == 5:
            many.set()
        return {"energy_j": float(value)}

    sampler = Sampler(read, source="test", period_s=0.001)
    sampler.start()
    assert many.wait(30)
    sampler.stop()
    assert sampler.energy_j() == len(sampler.samples()) - 1


def test_a_failing_sensor_gives_a_reason_and_no_energy() -> None:
    def read() -> dict[str, float]:
        raise OSError("device lost")

    sampler = Sampler(read, source="test", period_s=0.001)
    sampler.start()
    sampler.stop()
    assert sampler.problem == "test: device lost"
    assert sampler.energy_j() is None
    assert sampler.power_w() is None


def told(*readings: dict[str, float], start: float = 0.0) -> Sampler:
    """A sampler after one window, a second between readings."""
    now = iter(start + i for i in range(len(readings)))
    left = iter(readings)
    sampler = Sampler(lambda: next(left), source="test", period_s=3600, clock=lambda: next(now))
    sampler.start()
    for _ in readings[2:]:
        sampler.take()
    sampler.stop()
    return sampler


def test_throttling_is_told_in_seconds_up_to_the_readings_that_say_so() -> None:
    hot = {"throttled": 1.0, "temperature_c": 91.0}
    cold = {"throttled": 0.0, "temperature_c": 60.0}
    sampler = told(hot, cold, hot, hot, cold)
    assert sampler.throttled_s() == 2  # the first reading ends no interval
    assert sampler.highest("temperature_c") == 91
    assert told(cold, cold, cold).throttled_s() == 0
    silent = told({"power_w": 1.0}, {"power_w": 1.0})
    assert silent.throttled_s() is None and silent.highest("temperature_c") is None


def test_time_between_windows_is_not_throttled() -> None:
    now = [0.0]
    sampler = Sampler(
        lambda: {"throttled": 1.0}, source="test", period_s=3600, clock=lambda: now[0]
    )
    for _ in range(2):
        sampler.start()
        now[0] += 3
        sampler.stop()
        now[0] += 1000
    assert sampler.throttled_s() == 6


def summary(*telemetry: Any) -> dict[str, float]:
    """Metrics of a run whose ranks have these samplers."""
    window = Window(
        steps=1, samples=8, real_tokens=80, model_flops=400, effective_flops=300, seconds=2.0
    )
    outcome = Outcome(status="ok", reason="", progress=Progress(), train_window=window, run_s=4.0)
    metrics = summarise(
        outcome,
        whole=True,
        init_s=None,
        e2e_s=5.0,
        memory=[None],
        sensors=[reading(t) for t in telemetry],
    )
    return {m.name: m.value for m in metrics}


def test_ranks_add_their_energy_and_the_hottest_counts() -> None:
    one = told({"power_w": 10.0, "temperature_c": 50.0}, {"power_w": 10.0, "throttled": 1.0})
    two = told({"power_w": 20.0, "temperature_c": 70.0}, {"power_w": 20.0, "throttled": 0.0})
    found = summary(one, two)
    assert (found["energy_j"], found["power_w"]) == (30, 30)
    assert (found["throttled_s"], found["temperature_max_c"]) == (1, 70)
    assert found["model_flops_per_second"] == 200
    assert found["effective_flops_per_second"] == 150
    # One counter for the processes of a machine: those without a sensor lack nothing.
    assert summary(one, None)["power_w"] == 10


def test_a_sensor_that_failed_on_one_rank_makes_the_sum_unknown() -> None:
    def fails() -> dict[str, float]:
        raise RuntimeError("lost")

    lost = Sampler(fails, source="test", period_s=3600)
    lost.start()
    lost.stop()
    good = told({"power_w": 10.0, "throttled": 0.0}, {"power_w": 10.0, "throttled": 0.0})
    found = summary(good, lost)
    assert "power_w" not in found and "energy_j" not in found
    assert found["throttled_s"] == 0
    answer = reading(lost)
    assert answer is not None and answer.problem == "test: lost"
    assert reading(None) is None


def test_telemetry_of_another_kind_gives_what_it_has() -> None:
    class Own:
        source = "own"

        def energy_j(self) -> float | None:
            return 6.0

        def power_w(self) -> float | None:
            return 3.0

    found = summary(Own())
    assert (found["energy_j"], found["power_w"]) == (6, 3)
    assert "throttled_s" not in found


# -- RAPL ------------------------------------------------------------------------------------


def rapl_folder(root: Path, domains: dict[str, tuple[str, int, int]]) -> Path:
    for folder, (name, value, largest) in domains.items():
        (root / folder).mkdir(parents=True)
        (root / folder / "name").write_text(f"{name}\n")
        (root / folder / "energy_uj").write_text(f"{value}\n")
        (root / folder / "max_energy_range_uj").write_text(f"{largest}\n")
    return root


def test_rapl_adds_sockets_and_memory_and_survives_a_wrap(tmp_path: Path) -> None:
    root = rapl_folder(
        tmp_path,
        {
            "intel-rapl:0": ("package-0", 900_000_000, 1_000_000_000),
            "intel-rapl:0:0": ("core", 5, 10),
            "intel-rapl:0:1": ("dram", 0, 1_000_000_000),
            "intel-rapl:1": ("psys", 0, 10),
            "intel-rapl-mmio:0": ("package-0", 0, 10),
        },
    )
    sensor = Sensor()
    sampler = open_rapl(3600, root, sensor.clock)
    assert sampler is not None
    assert rapl_problem(root) is None
    assert "package-0 + dram" in sampler.source
    sampler.start()
    sensor.now += 2
    (root / "intel-rapl:0" / "energy_uj").write_text("960000000")
    (root / "intel-rapl:0:1" / "energy_uj").write_text("20000000")
    sampler.take()
    sensor.now += 2
    (root / "intel-rapl:0" / "energy_uj").write_text("10000000")  # wrapped: 50 J more
    sampler.stop()
    assert sampler.energy_j() == pytest.approx(130)
    assert sampler.power_w() == pytest.approx(32.5)
    assert [s.get("power_w") for s in sampler.samples()] == [None, 40, 25]


def test_rapl_absent_says_why(tmp_path: Path) -> None:
    assert open_rapl(root=tmp_path / "none") is None
    assert "virtual machine" in (rapl_problem(tmp_path / "none") or "")
    assert "no RAPL package" in (rapl_problem(tmp_path) or "")


def test_rapl_partly_unreadable_is_not_used(tmp_path: Path) -> None:
    root = rapl_folder(
        tmp_path, {"intel-rapl:0": ("package-0", 1, 10), "intel-rapl:1": ("package-1", 1, 10)}
    )
    (root / "intel-rapl:1" / "energy_uj").unlink()
    assert open_rapl(root=root) is None
    assert "intel-rapl:1" in (rapl_problem(root) or "")


# -- metrics, system, code -------------------------------------------------------------------


def test_metrics_carry_their_definition() -> None:
    power = metric("power_w", 152.0, note="source: test")
    assert (power.unit, power.direction, power.n) == ("W", "lower", 1)
    assert power.definition.endswith("; source: test")
    assert metric("init_s", 3.0, clock="device-event").clock == "device-event"
    assert set(power.as_dict()) >= {"name", "value", "ci_low", "ci_high", "scope"}
    for name in SHARED:
        assert metric(name, 1.0).definition
    with pytest.raises(TypeError, match="leave an unmeasured metric out"):
        metric("power_w", None)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        metric("fps", 1.0)


def test_system_is_described_without_private_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    system = describe_system()
    assert system["processor"]["threads"] >= 1
    assert system["memory_bytes"] > 0
    assert system["environment"]["OMP_NUM_THREADS"] == "1"
    text = str(system)
    for private in ("hunter2", os.uname().nodename, str(Path.home()), str(Path.cwd())):
        assert private not in text


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ({"model name": "AMD EPYC 7763 64-Core Processor"}, "AMD EPYC 7763 64-Core Processor"),
        ({"model name": "AMD EPYC"}, "AMD EPYC (family 25, model 1)"),
        (  # A frequency is no model's number.
            {"model name": "Intel(R) Xeon(R) Processor @ 2.50GHz"},
            "Intel(R) Xeon(R) Processor @ 2.50GHz (family 25, model 1)",
        ),
    ],
)
def test_processors_of_one_name_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: dict[str, str], name: str
) -> None:
    known = {"cpu family": "25", "model": "1"}
    monkeypatch.setattr(described, "_cpuinfo", lambda: cpuinfo | known)
    assert described.processor_name() == name
    monkeypatch.setattr(described, "_cpuinfo", lambda: cpuinfo)
    assert described.processor_name() == cpuinfo["model name"]  # nothing to tell them apart by


def test_code_hash_follows_the_sources_only(tmp_path: Path) -> None:
    for folder in ("common", "backends/x", "tests"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "common" / "a.py").write_text("a")
    first = code_hash(tmp_path)
    (tmp_path / "tests" / "t.py").write_text("t")
    (tmp_path / "common" / "README.md").write_text("words")
    assert code_hash(tmp_path) == first
    (tmp_path / "backends" / "x" / "k.c").write_text("int k;")
    second = code_hash(tmp_path)
    (tmp_path / "backends" / "x" / "k.c").rename(tmp_path / "backends" / "x" / "l.c")
    assert len({first, second, code_hash(tmp_path)}) == 3


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    (tmp_path / "f").write_text("1")
    for arguments in (["init", "-q"], ["add", "f"], ["commit", "-qm", "m"]):
        subprocess.run([*git, *arguments], check=True)
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "f").write_text("2")
    assert git_state(tmp_path)["dirty"] is True


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR"])
def test_the_commit_is_not_that_of_a_hooks_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for folder in ("ours", "theirs"):
        git = ["git", "-C", str(tmp_path / folder), "-c", "user.name=t", "-c", "user.email=t@t"]
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "f").write_text(folder)
        for arguments in (["init", "-q"], ["add", "f"], ["commit", "-qm", folder]):
            subprocess.run([*git, *arguments], check=True)
    known = git_state(tmp_path / "ours")
    places = {"GIT_WORK_TREE": "theirs", "GIT_INDEX_FILE": "theirs/.git/index"}
    monkeypatch.setenv(name, str(tmp_path / places.get(name, "theirs/.git")))
    assert git_state(tmp_path / "ours") == known and known["dirty"] is False


@pytest.mark.parametrize("ignored", ["no", "-c safe.directory"])
def test_a_checkout_of_another_user_keeps_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignored: str
) -> None:
    """Also for git before 2.38, which ignores ``-c safe.directory``."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "m"]):
        subprocess.run([*git, *arguments], check=True)
    known = git_state(tmp_path)
    program = tmp_path.with_name(f"{tmp_path.name}-bin") / "git"
    program.parent.mkdir()
    program.write_text(
        f"""#!/usr/bin/env bash
        words=()
        while [ $# -gt 0 ]; do
            case "$1 ${{2:-}}" in "{ignored}"*) shift ;; *) words+=("$1") ;; esac
            shift
        done
        GIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec {shutil.which("git")} "${{words[@]}}"
        """
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    refused = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert "dubious ownership" in refused.stderr
    assert git_state(tmp_path) == known and len(known["commit"]) == 40
    link = tmp_path.with_name(f"{tmp_path.name}-link")
    link.symlink_to(tmp_path)
    assert git_state(link) == known


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a checkout to another user")
def test_a_checkout_that_root_gave_away_keeps_its_commit(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "m"]):
        subprocess.run([*git, *arguments], check=True)
    known = git_state(tmp_path)
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 12345, 12345)
    assert git_state(tmp_path) == known and len(known["commit"]) == 40


class _Slow:
    """Two ranks; the other one is ``later`` seconds slower; each element takes a microsecond."""

    size = 2

    def __init__(self, device: Async, later: Iterator[float]) -> None:
        self.device, self.later = device, later
        self.sizes: list[int] = []
        self.dtypes: set[torch.dtype] = set()

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tensor.numel())
        self.dtypes.add(tensor.dtype)
        self.device.queued += tensor.numel() * 1e-6
        return tensor

    def gather(self, value: Any) -> list[Any]:
        return [value, None if value is None else value + next(self.later)]


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_gradients_alone_take_the_slowest_rank_and_the_median(
    name: str, dtype: torch.dtype
) -> None:
    device = Async(0.0)
    device.queued = 7.0  # from before: none of this
    world = _Slow(device, iter([100.0, 3.0, 1.0, 2.0, 5.0, 4.0]))
    whole = BUCKET_BYTES // 4
    frozen = torch.empty(999)
    parameters = [torch.empty(whole, requires_grad=True), torch.empty(5, requires_grad=True)]
    found = gradient_all_reduce_s(
        [*parameters, frozen], world=world, device=torch.device("cpu"),
        synchronize=device.synchronize, reduce_dtype=name, clock=lambda: device.now,
    )  # fmt: skip
    assert world.dtypes == {dtype}
    assert world.sizes == [whole, 5] * (1 + REPEATS)
    assert found == pytest.approx(3.0 + (whole + 5) * 1e-6)


def test_one_rank_sends_nothing() -> None:
    world = _Slow(Async(0.0), iter(()))
    world.size = 1
    parameters = [torch.empty(3, requires_grad=True)]
    device = torch.device("cpu")
    assert gradient_all_reduce_s(
        parameters, world=world, device=device, synchronize=lambda: None
    ) is None  # fmt: skip
