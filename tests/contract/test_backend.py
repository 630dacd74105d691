# SPDX-License-Identifier: Apache-2.0
"""The definition of done of an adapter: ``pytest tests/contract --backend NAME``.

Each test says what it demands and, when it fails, what the adapter must do. A skip says why there
was nothing to test. How to write an adapter: docs/adding-a-backend.md.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import itertools
import json
import math
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertbench import backends
from bertbench.backends import selfcheck
from bertbench.backends.base import PRECISIONS, Backend
from bertbench.backends.timers import HostTimer
from bertbench.benchmarks.bert_pretraining.task import PretrainingTask
from bertbench.common.cli.main import main
from bertbench.common.errors import Unsupported
from bertbench.common.model.heads import BertForPreTraining
from bertbench.common.model.ops import Ops
from bertbench.common.optim.factory import build_optimizer
from bertbench.common.optim.lamb import parameter_groups
from bertbench.common.optim.norms import tensor_norms
from bertbench.common.training.distributed import World
from bertbench.common.training.events import Observer
from bertbench.common.training.loop import train
from tests.contract.tiny_task import (
    TINY,
    HostReads,
    exact_precision,
    ten_steps,
    tiny_task,
    unchanged_switches,
)

ROOT = Path(__file__).parents[2]
MIB = 2**20
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

LOSS_TOLERANCE = {"fp32": 1e-5, "tf32": 2**-11, "fp16": 2**-11, "bf16": 2**-8}
"""Relative, of each of ten losses against cpu_ref in fp32 with plain kernels.

A loss is a mean over hundreds of numbers, so one rounding of its inputs to 10 explicit bits (tf32,
fp16) or to 7 (bf16) bounds it: half a unit in the last place is 2^-11 and 2^-8. On two CPUs bf16
stayed below 4e-4. fp32 differs only in the order of sums: 2^-24 each, some dozens of them in a
row, amplified by ten steps; 1e-7 was seen. The erf form of GELU in place of the tanh form moves
the losses by more than 1e-5."""

TRIES = 10
"""Of what compares two readings of clocks: a busy host may come between them, a wrong clock is
wrong in each."""

GRADIENT_TOLERANCE = {"fp32": 1e-5, "tf32": 4e-3, "fp16": 4e-3, "bf16": 3e-2}
"""Norm of the difference over the norm of a parameter's gradient (at least a hundredth of the
whole gradient's): a few roundings of 2^-11 or 2^-8 in a row."""


def claimed(backend: Backend, precision: str) -> None:
    """Skip what the adapter does not claim; the refusal has a test of its own."""
    have = backend.capabilities.precisions
    if precision not in have:
        why = backend.capabilities.notes.get(precision, "no reason in its notes")
        pytest.skip(f"{backend.name} does not claim {precision}: {why}")


def kernels_for(backend: Backend, precision: str) -> list[str]:
    """The claimed kernels that compute in ``precision``; plain ones must in all that is claimed."""
    found = []
    for kernels in backend.capabilities.kernels:
        try:
            backend.ops(kernels, precision)
        except Unsupported:
            assert kernels != "plain", f"plain kernels refuse {precision}, which is claimed"
        else:
            found.append(kernels)
    return found


# -- what it is -----------------------------------------------------------------------------------
def test_probe_says_that_it_can_run(backend_class: type[Backend]) -> None:
    """``probe`` answers ok with a reason that ``doctor`` can print in one line."""
    probe = backend_class.probe()
    assert probe.ok is True
    assert probe.reason and "\n" not in probe.reason, "give one line: doctor prints it"
    count = backend_class.device_count()
    assert isinstance(count, int) and count >= 1, "probe is ok, so device_count() must be >= 1"


def test_describe_is_typed_and_unknown_is_none(backend: Backend) -> None:
    """``describe`` and ``peak_memory`` say None where they do not know: never 0, -1 or ''."""
    info = backend.describe()
    assert info.backend == backend.name and info.name, "describe() needs backend and name"
    assert info.index == (backend.device.index or 0), "index is the local device's"
    assert isinstance(info.simulated, bool)
    assert info.memory_bytes is None or info.memory_bytes > MIB, (
        f"memory_bytes is {info.memory_bytes}: give bytes, or None where the device does not tell"
    )
    for name in ("driver", "runtime"):
        value = getattr(info, name)
        assert value is None or (isinstance(value, str) and value.strip()), (
            f"{name} is {value!r}: give its version as text, or None"
        )
    assert all(isinstance(x, str) for pair in info.extras.items() for x in pair)
    held = torch.ones(MIB, device=backend.device)
    peak = backend.peak_memory()
    assert peak is None or (peak.peak_memory_bytes >= held.nbytes and peak.definition), (
        f"peak_memory() is {peak} while {held.nbytes} bytes are held: count them and say what was "
        "counted, or give None where the device does not tell"
    )


def test_capabilities_are_from_the_vocabulary(backend: Backend) -> None:
    """``capabilities`` names known precisions, has plain kernels, and explains what is missing."""
    have = backend.capabilities
    assert set(have.precisions) <= set(PRECISIONS), (
        f"precisions are {have.precisions}; choose from {PRECISIONS}"
    )
    assert {"fp32", "tf32"} & set(have.precisions), "float32 products are one of fp32 and tf32"
    assert "plain" in have.kernels, "plain kernels run anywhere: keep them beside the fused ones"
    assert have.collective is None or (have.collective and isinstance(have.collective, str))
    assert all(isinstance(x, str) and x for pair in have.notes.items() for x in pair)


def test_local_rank_chooses_the_device(backend_class: type[Backend], backend: Backend) -> None:
    """Process number n works on device n: tensors land there, and it is the current device."""
    for rank in range(min(backend_class.device_count(), 2)):
        one = backend_class(rank)
        assert one.device.type == backend_class.device_type
        index = one.device.index
        assert index in (rank, None if one.device_type == "cpu" else rank), (
            f"local rank {rank} got device {index}: build torch.device(type, local_rank)"
        )
        here = torch.ones(1, device=one.device_type).device
        assert here == torch.ones(1, device=one.device).device, (
            f"tensors without an index land on {here}: call set_device({one.device}) in __init__"
        )
    backend_class(0)  # back to the first for the tests that follow


def test_a_rank_beyond_the_devices_is_refused(backend_class: type[Backend]) -> None:
    """More processes than devices is Unsupported, and says how many devices there are."""
    if backend_class.device_type == "cpu":
        pytest.skip("host processes share the processor: there is no device number to be beyond")
    count = backend_class.device_count()
    with pytest.raises(Unsupported, match=rf"\b{count}\b") as refused:
        backend_class(count)
    assert "NPROC" in str(refused.value), "the message must name the fix: NPROC"


def test_visible_devices_are_respected(backend_class: type[Backend]) -> None:
    """With one entry in the vendor's variable there is one device, and the record holds it."""
    variable = backend_class.visible_devices_env
    if variable is None:
        pytest.skip(f"{backend_class.name} names no visible_devices_env")
    entry = os.environ.get(variable, "0").split(",")[0]
    script = (
        "from bertbench import backends; import json; "
        f"b = backends.load({backend_class.name!r}); one = b(0); "
        "print(json.dumps([b.device_count(), dict(one.describe().extras)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {variable: entry}, cwd=ROOT,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    count, extras = json.loads(done.stdout.splitlines()[-1])
    assert count == 1, f"{variable}={entry} leaves one device, but device_count() is {count}"
    assert variable in extras, f"describe().extras must record {variable}"
    if entry.isdecimal():  # a device's UUID need not be published
        assert extras[variable] == entry, f"describe().extras must record {variable} as it is"


# -- precision ------------------------------------------------------------------------------------
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_claimed_precision_is_really_used(backend: Backend, precision: str) -> None:
    """Products have the dtype and keep the digits that the name promises; nothing lingers."""
    claimed(backend, precision)
    x = torch.ones(64, 64, device=backend.device)
    with backend.precision(precision):
        got = F.linear(x, x).dtype
    wanted = DTYPES.get(precision, torch.float32)
    assert got == wanted, f"precision({precision!r}) computes in {got}: refuse it, or make it so"
    try:
        found = backend.verify_precision(precision)
    except Unsupported as error:
        pytest.fail(f"claims {precision}, but its own check says: {error}", pytrace=False)
    assert all(isinstance(value, str) for value in found.values())
    assert "product_mantissa_bits" in found and selfcheck.why_not(precision, found) is None
    after = selfcheck.examine(backend.device)  # where backward passes run
    assert after["product_dtype"] == "float32", "autocast stays on after precision() is left"
    if precision in ("fp32", "tf32"):
        wrong = selfcheck.why_not(precision, after)
        assert wrong is None, f"outside precision({precision!r}), in the backward pass, {wrong}"


def test_fp32_comes_back_after_tf32(backend: Backend) -> None:
    """Leaving TF32 for fp32 turns its switch off again: both are asked for, both are given."""
    claimed(backend, "tf32")
    claimed(backend, "fp32")
    for precision in ("tf32", "fp32", "tf32"):
        backend.verify_precision(precision)


@pytest.mark.parametrize("precision", [*PRECISIONS, "fp8"])
def test_an_unclaimed_precision_is_refused(backend: Backend, precision: str) -> None:
    """What the device lacks is Unsupported; the message lists what it has and names the flag."""
    have = backend.capabilities.precisions
    if precision in have:
        pytest.skip(f"{backend.name} claims {precision}: nothing to refuse")
    for use in (backend.resolve_precision, backend.precision, backend.verify_precision):
        with pytest.raises(Unsupported) as refused:
            use(precision)
        text = str(refused.value)
        assert all(name in text for name in have), f"{text!r} must list {', '.join(have)}"
        assert "--precision" in text, f"{text!r} must name the fix: --precision"


def test_amp_is_the_best_claimed_half_precision(backend: Backend) -> None:
    """``amp`` is the first of bf16 and fp16 that is claimed; with neither it is refused.

    ``auto``, what recipes ask for, is the same where there is one, and never refused.
    """
    halves = [p for p in backend.capabilities.precisions if p in DTYPES]
    automatic = backend.resolve_precision("auto")
    assert automatic == (halves or list(backend.capabilities.precisions))[0]
    if halves:
        assert backend.resolve_precision("amp") == halves[0]
    else:
        with pytest.raises(Unsupported, match="--precision"):
            backend.resolve_precision("amp")


def test_loss_scaling_is_for_fp16_only(backend: Backend) -> None:
    """bf16 has fp32's range: a scaler there only costs time and hides overflow."""
    for precision in backend.capabilities.precisions:
        enabled = backend.grad_scaler(precision).is_enabled()
        assert enabled == (precision == "fp16"), f"grad_scaler({precision!r}): enabled={enabled}"


def test_loss_scale_backs_off_on_infinity(backend: Backend) -> None:
    """An infinite gradient leaves the weights as they are and halves the scale."""
    claimed(backend, "fp16")
    weight = nn.Parameter(torch.ones(4, device=backend.device))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = backend.grad_scaler("fp16", 1024.0)
    for gradient, scale, value in ((math.inf, 512.0, 1.0), (1.0, 512.0, 0.0)):
        scaler.scale((weight * gradient).sum()).backward()
        backend.optimizer_step(optimizer, scaler)
        optimizer.zero_grad()
        assert scaler.get_scale() == scale, f"after a gradient of {gradient}"
        assert weight.tolist() == [value] * 4, f"after a gradient of {gradient}"


# -- refusals -------------------------------------------------------------------------------------
def test_unknown_kernels_compiler_and_collective_are_refused(backend: Backend) -> None:
    """Each refusal is Unsupported and lists what exists."""
    have = backend.capabilities
    with pytest.raises(Unsupported) as refused:
        backend.ops("no_such", have.precisions[0])
    assert all(name in str(refused.value) for name in have.kernels), "list the kernels there are"
    with pytest.raises(Unsupported) as refused:
        backend.compile(nn.Linear(2, 2), "no_such")
    listed = have.compilers or ("none",)
    assert all(name in str(refused.value) for name in listed), "list the compilers there are"
    with pytest.raises(Unsupported) as refused:
        backend.resolve_collective("no_such")
    assert str(have.collective) in str(refused.value), "name the collective there is"
    assert backend.resolve_collective(None) == have.collective


# -- time -----------------------------------------------------------------------------------------
class Work:
    """Matrix products in a row, so large that the device and not its launching takes the time."""

    def __init__(self, backend: Backend, unit_s: float = 0.004) -> None:
        self.device, self.repeats = backend.device, 1
        size, took = 64, 0.0
        while took < 0.0005 and size < 4096:
            size *= 2
            self.matrix = torch.eye(size, device=self.device)
            self(1)
            took = min(self.wall(1) for _ in range(3))
        self.repeats = max(1, math.ceil(unit_s / took))

    def __call__(self, units: int) -> Tensor:
        x = self.matrix
        for _ in range(units * self.repeats):
            x = x @ self.matrix
        return x

    def wall(self, units: int) -> float:
        """Seconds until the result's number has arrived at the host: no clock of the adapter."""
        self.settle()
        begin = time.perf_counter()
        float(self(units)[0, 0])
        return time.perf_counter() - begin

    def settle(self) -> None:
        float(self.matrix[0, 0])


@pytest.fixture
def work(backend: Backend) -> Work:
    return Work(backend)


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

    Time in which the device waits for the host counts, too: a step is as long as it is.
    """
    for idle_s in (0.0, 0.1):
        tries = []
        for _ in range(TRIES):
            timer = backend.timer() if clock == "the adapter's" else HostTimer(backend.synchronize)
            work.settle()
            begin = time.perf_counter()
            timer.start()
            time.sleep(idle_s)
            result = work(8)
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


# -- memory ---------------------------------------------------------------------------------------
def test_peak_memory_grows_by_a_known_allocation(backend: Backend) -> None:
    """Once the peak grows, each further block grows it by its size; ``definition`` says of what.

    A process's peak cannot be reset, so blocks are held until they exceed all that went before.
    """
    backend.reset_peak_memory()
    before = backend.peak_memory()
    if before is None:
        assert not backend.capabilities.memory_stats, "claims memory_stats, but gives no peak"
        pytest.skip(f"{backend.name} tells no peak memory")
    size, held = 32 * MIB, []
    gc.collect()
    reusable = 0 if backend.capabilities.memory_stats else before.peak_memory_bytes
    limit = 8 + min(reusable, psutil.virtual_memory().available // 2) // size

    def peak_with_one_more() -> int:
        held.append(torch.ones(size // 4, device=backend.device))
        backend.synchronize()
        peak = backend.peak_memory()
        assert peak is not None
        return peak.peak_memory_bytes

    now = peak_with_one_more()
    while now <= before.peak_memory_bytes + size // 2 and len(held) < limit:
        now = peak_with_one_more()
    peaks = [now, *(peak_with_one_more() for _ in range(5))]
    grown = [after - before for before, after in itertools.pairwise(peaks)]
    assert 0.8 * size <= sorted(grown)[2] <= 1.5 * size, (
        f"{size} more bytes on the device, five times, moved the peak by {grown}: count bytes of "
        "this device"
    )
    if backend.capabilities.memory_stats:
        held.clear()
        backend.reset_peak_memory()
        after = backend.peak_memory()
        assert after is not None and after.peak_memory_bytes < now, (
            "reset_peak_memory() must start a new window"
        )


def too_much(backend: Backend) -> Tensor:
    """Twice the device's memory."""
    total = backend.describe().memory_bytes or 2**44
    return torch.empty(2 * total, dtype=torch.uint8, device=backend.device)


def test_too_large_an_allocation_is_an_oom_error(backend: Backend) -> None:
    """Out of memory is one of ``oom_errors``, and the device goes on working."""
    assert backend.oom_errors, "name the exceptions that mean: out of device memory"
    if not backend.capabilities.memory_limit:
        pytest.skip(f"{backend.name} does not claim memory_limit: the host would kill the process")
    with pytest.raises(backend.oom_errors):
        too_much(backend)
    assert float(torch.ones(4, device=backend.device).sum()) == 4.0


def test_a_run_out_of_memory_ends_as_oom(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one sequence fits and eight do not, the record's status is ``oom``.

    Its reason names the setting to lower.
    """
    original = PretrainingTask.loss

    def loss(self: Any, model: Any, batch: Any, step: Any) -> Any:
        if batch.num_samples > 1 and backend.capabilities.memory_limit:
            too_much(backend)
        if batch.num_samples > 1:
            raise backend.oom_errors[0]("out of memory")
        return original(self, model, batch, step)

    monkeypatch.setattr(PretrainingTask, "loss", loss)
    threads = torch.get_num_threads()
    try:
        with unchanged_switches():
            code = main(["run", "mini", *TINY, "--backend", backend.name, "--system", "contract",
                         "--output_dir", str(tmp_path)])  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    (file,) = tmp_path.glob("*/*/*/manifest.json")
    manifest = json.loads(file.read_text())
    assert code == 1 and manifest["status"] == "oom", (
        f"status {manifest['status']!r} ({manifest['reason']}): put the device's exception into "
        "oom_errors"
    )
    assert "--micro_batch" in manifest["reason"]
    assert manifest["simulated"] is backend.describe().simulated


# -- randomness -----------------------------------------------------------------------------------
def test_random_state_makes_the_round_trip(backend: Backend) -> None:
    """Restoring ``rng_state()`` repeats host and device randomness, fused kernels' included."""
    precision = backend.capabilities.precisions[0]
    dropout = ("--hidden_dropout", "0.5", "--attention_dropout", "0.5")

    def draw(task: PretrainingTask, batch: Any) -> list[Any]:
        with backend.precision(precision):
            _, sums = task.loss(task.model, batch.micro_batches[0].to(backend.device), batch)
        mask = F.dropout(torch.ones(64, device=backend.device), 0.5)
        return [torch.rand(4).tolist(), mask.tolist(), sums.tolist()]

    for kernels in kernels_for(backend, precision):
        task, _ = tiny_task(backend, "--precision", precision, "--kernels", kernels, *dropout)
        batch = next(task.train_batches(None))
        draw(task, batch)  # whatever draws once, at first use
        state = backend.rng_state()
        for name, part in state.items():
            assert part.dtype == torch.uint8 and part.device.type == "cpu", (
                f"rng_state()[{name!r}] must be a byte tensor on the host: it goes into checkpoints"
            )
        kept = {name: part.clone() for name, part in state.items()}
        first, second = draw(task, batch), draw(task, batch)
        assert all(a != b for a, b in zip(first, second, strict=True)), "nothing random was drawn"
        backend.set_rng_state(kept)
        again = draw(task, batch)
        for what, a, b in zip(("host", "dropout", "model"), first, again, strict=True):
            assert a == b, (
                f"{kernels}: after set_rng_state(rng_state()) the {what}'s randomness differs: "
                "save and restore the device's generator, too"
            )


def test_seed_decides_the_devices_randomness(backend: Backend) -> None:
    """The same seed gives the same dropout mask on the device, another seed another."""
    masks = []
    for seed in (1, 2, 1):
        backend.seed(seed)
        masks.append(F.dropout(torch.ones(64, device=backend.device), 0.5).tolist())
    assert masks[0] == masks[2] != masks[1], "seed() must seed the device's generator"


# -- the maths ------------------------------------------------------------------------------------
@pytest.mark.parametrize("gelu", ["tanh", "erf"])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_kernels_equal_plain_forward_and_backward(backend: Backend, gelu: str, norm: str) -> None:
    """Each claimed kernel, in each claimed precision, gives the reference's losses and gradients.

    ``Ops`` in fp32 on the CPU is the reference. A device whose exact GELU is
    another form must say which in ``verify_precision``, and is then compared with that one.
    """
    exact = exact_precision(backend)
    task, _ = tiny_task(backend, "--precision", exact, "--kernels", "plain")
    config = dataclasses.replace(task.recipe.model, gelu=gelu, norm_position=norm)
    form = backend.verify_precision(exact)["gelu"] if gelu == "erf" else gelu
    assert form in ("erf", "tanh"), f"F.gelu of 1.0 is {form}: no GELU that the reference knows"
    batch = next(task.train_batches(None)).micro_batches[0]
    torch.manual_seed(0)
    plain = BertForPreTraining(dataclasses.replace(config, gelu=form), Ops())

    def losses_and_gradients(model: nn.Module, on: Any, precision: Any) -> tuple[float, float]:
        with precision:
            out = model(on)
        (out.mlm_loss / 80 + out.nsp_loss / 8).backward()
        return out.mlm_loss.item(), out.nsp_loss.item()

    want = losses_and_gradients(plain, batch, contextlib.nullcontext())
    wanted = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    whole = float(torch.stack([g.norm() for g in wanted.values()]).norm())
    for precision in backend.capabilities.precisions:
        for kernels in kernels_for(backend, precision):
            what = f"{kernels} in {precision}"
            model = BertForPreTraining(config, backend.ops(kernels, precision))
            model.load_state_dict(plain.state_dict())
            model.to(backend.device)
            got = losses_and_gradients(
                model, batch.to(backend.device), backend.precision(precision)
            )
            assert got == pytest.approx(want, rel=LOSS_TOLERANCE[precision] * 2), what
            for name, p in model.named_parameters():
                if name not in wanted:
                    continue
                assert p.grad is not None, f"{what}: no gradient for {name}"
                difference = float((p.grad.float().cpu() - wanted[name]).norm())
                error = difference / max(float(wanted[name].norm()), whole / 100)
                assert error <= GRADIENT_TOLERANCE[precision], (
                    f"{what}: the gradient of {name} is off by {error:.1e} of its norm"
                )


def test_the_recorded_type_of_norms_is_the_one_they_have(backend: Backend) -> None:
    """Where ``kernels`` says that LayerNorm is in 16 bits, it is so under the device's autocast."""
    for precision, dtype in DTYPES.items():
        if precision not in backend.capabilities.precisions:
            continue
        for kernels in kernels_for(backend, precision):
            ops = backend.ops(kernels, precision)
            said = ops.kernels.get("norm")
            x = torch.ones(4, 64, device=backend.device, dtype=dtype)
            gain = torch.ones(64, device=backend.device)
            with backend.precision(precision):
                got = ops.norm(x, gain, gain, eps=1e-12).dtype
            assert said is None or got == dtype, f"{kernels}: {said}, but LayerNorm gives {got}"


def test_norms_of_large_tensors_are_exact(backend: Backend) -> None:
    """Sums of millions of squares lose digits unless they are added up in parts (norms.py)."""
    generator = torch.Generator().manual_seed(0)
    sizes = (30522, 1024), (4096, 1024), (1024,)
    tensors = [torch.randn(size, generator=generator) for size in sizes]
    got = tensor_norms([t.to(backend.device) for t in tensors])
    for tensor, norm in zip(tensors, got.tolist(), strict=True):
        assert norm == pytest.approx(float(tensor.double().norm()), rel=2e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_ten_steps_equal_the_reference(backend: Backend, reference: Any, precision: str) -> None:
    """Ten optimizer steps through the suite's loop give cpu_ref's losses, every one of them."""
    claimed(backend, precision)
    want = reference.curve.losses
    assert want[-1] < 0.9 * want[0], "the reference itself does not learn: wrong flags"
    for kernels in kernels_for(backend, precision):
        flags = ("--precision", precision, "--kernels", kernels)
        curve = ten_steps(backend, reference.weights, *flags)
        assert curve.steps[-1].skipped_steps == 0, "no step may overflow at a loss scale of 256"
        for step, (got, loss) in enumerate(zip(curve.losses, want, strict=True), 1):
            off = abs(got / loss - 1)
            assert off <= LOSS_TOLERANCE[precision], (
                f"{kernels} kernels in {precision}: loss {got:.6f} at step {step} is off by "
                f"{off:.1e} from cpu_ref's {loss:.6f}; allowed {LOSS_TOLERANCE[precision]:.1e}"
            )


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_optimizers_equal_plain_ones(backend: Backend, name: str) -> None:
    """Three updates through ``optimizer_step``, by each LAMB kernel, equal the CPU's plain ones."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(40, 48), nn.LayerNorm(48), nn.Linear(48, 8))
    start[0].segments = 3  # type: ignore[assignment]  # as fused query, key and value
    gradients = [[torch.randn_like(p) for p in start.parameters()] for _ in range(3)]

    def three_updates(
        model: nn.Module, kernel: Any, step: Callable[[Any], None], fused: bool
    ) -> list[Tensor]:
        groups = parameter_groups(model, 0.01)
        optimizer = build_optimizer(name, groups, lr=0.1, lamb_kernel=kernel, fused=fused)
        for update in gradients:
            for p, gradient in zip(model.parameters(), update, strict=True):
                p.grad = gradient.to(p.device)
            step(optimizer)
        return [p.detach().cpu() for p in model.parameters()]

    want = three_updates(copy.deepcopy(start), None, lambda optimizer: optimizer.step(), False)
    scaler = backend.grad_scaler(exact_precision(backend))
    for kernels in backend.capabilities.kernels:
        got = three_updates(
            copy.deepcopy(start).to(backend.device), backend.lamb_kernel(kernels),
            lambda optimizer: backend.optimizer_step(optimizer, scaler), backend.fused_adamw,
        )  # fmt: skip
        for a, b in zip(got, want, strict=True):
            off = float((a - b).abs().max() / b.abs().max())
            assert off < 1e-5, f"{name} with {kernels} kernels: weights are off by {off:.1e}"


def test_compilers_compute_the_same(backend: Backend) -> None:
    """A model compiled by each claimed compiler gives the gradients that it gives uncompiled."""
    if not backend.capabilities.compilers:
        pytest.skip(f"{backend.name} claims no compiler")
    exact = exact_precision(backend)

    def gradients(*flags: str) -> dict[str, Tensor]:
        task, _ = tiny_task(backend, "--precision", exact, *flags)
        step = next(task.train_batches(None))
        with backend.precision(exact):
            loss, _ = task.loss(task.model, step.micro_batches[0].to(backend.device), step)
        loss.backward()
        return {n: p.grad.cpu() for n, p in task.model.named_parameters() if p.grad is not None}

    want = gradients()
    whole = float(torch.stack([g.norm() for g in want.values()]).norm())
    for compiler in backend.capabilities.compilers:
        got = gradients("--compile", compiler)
        assert got.keys() == want.keys(), "compile in place: checkpoints must fit either way"
        for name, gradient in got.items():
            error = float((gradient - want[name]).norm()) / max(
                float(want[name].norm()), whole / 100
            )
            assert error <= GRADIENT_TOLERANCE[exact], (
                f"{compiler}: the gradient of {name} is off by {error:.1e} of its norm"
            )


# -- several devices ------------------------------------------------------------------------------
def two_ranks(rank: int, name: str, port: int) -> None:
    """What each of two processes does; a failed assertion ends the test."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    world = World.from_env()
    backend = backends.load(name)(rank)
    with world.joined(backend, None):
        on_device = torch.full((3,), rank + 1.0, device=backend.device)
        assert world.sum_(on_device).tolist() == [3.0] * 3, "all-reduce of device tensors"
        on_host = torch.full((3,), rank + 1.0)
        assert world.sum_(on_host).tolist() == [3.0] * 3, "all-reduce of host tensors"
        assert world.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}], "gathered objects"
        assert world.max_async(rank).result() == 1, "a vote"

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
        x = torch.randn(8, 16)
        alone = copy.deepcopy(model)
        alone(x).square().mean().backward()
        both = backend.wrap_ddp(model.to(backend.device))
        half = x[4 * rank :][:4].to(backend.device)
        precision = exact_precision(backend)
        with backend.precision(precision):
            both(half).square().mean().backward()
        for p, q in zip(both.parameters(), alone.parameters(), strict=True):
            assert p.grad is not None and q.grad is not None
            off = float((p.grad.cpu() - q.grad).norm() / q.grad.norm())
            assert off <= GRADIENT_TOLERANCE[precision], f"DDP's gradient is off by {off:.1e}"


def test_two_ranks_reduce_and_average_gradients(backend: Backend) -> None:
    """The device's collective adds over two processes; DDP's gradients are the whole batch's."""
    if backend.capabilities.collective is None:
        why = backend.capabilities.notes.get("collective", "no reason in its notes")
        pytest.skip(f"{backend.name} has no collective: {why}")
    if backend.device_type != "cpu" and backend.device_count() < 2:
        pytest.skip(f"{backend.name} has {backend.device_count()} device here; this needs two")
    processes = torch.multiprocessing.spawn(
        two_ranks, args=(backend.name, free_port()), nprocs=2, join=False
    )
    deadline = time.monotonic() + 120
    try:
        while not processes.join(timeout=max(0.1, deadline - time.monotonic()), grace_period=5):
            if time.monotonic() > deadline:
                pytest.fail("two ranks did not finish in 120 s: the collective hangs")
    except torch.multiprocessing.ProcessRaisedException as error:
        pytest.fail(f"one of two processes failed:\n{error}", pytrace=False)
    finally:
        for process in processes.processes:
            process.kill()


def free_port() -> int:
    """One below those that the system hands out, so that no other program is given it meanwhile."""
    for port in random.sample(range(20000, 30000), 100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("100 ports between 20000 and 30000 are taken")


# -- observation ----------------------------------------------------------------------------------
RANGES = {
    "power_w": (0.1, 5000.0), "energy_j": (0.0, 1e15), "temperature_c": (-50.0, 150.0),
    "utilization_percent": (0.0, 100.0), "sm_clock_mhz": (1.0, 1e4),
    "memory_clock_mhz": (1.0, 1e5), "memory_used_bytes": (0.0, 2.0**45), "throttled": (0.0, 1.0),
}  # fmt: skip
"""What one device can plausibly read; outside of it, the unit is wrong."""


def test_telemetry_has_plausible_units_or_a_reason(backend: Backend, work: Work) -> None:
    """Watts, joules, bytes, degrees and MHz of one device; or None, with the reason in notes."""
    telemetry = backend.telemetry(period_s=0.05)
    if telemetry is None:
        assert backend.capabilities.notes.get("power"), (
            "telemetry() is None: say why in capabilities.notes['power']"
        )
        assert not backend.capabilities.telemetry, "claims telemetry, but has none"
        return
    assert telemetry.source
    begin = time.monotonic()
    telemetry.start()
    while time.monotonic() - begin < 0.5:
        work(1)
        backend.synchronize()
    telemetry.stop()
    wall = time.monotonic() - begin
    samples = telemetry.samples()
    assert len(samples) >= 3, (
        f"{len(samples)} readings in {wall:.2f} s of {telemetry.source}: "
        f"{getattr(telemetry, 'problem', None) or 'sample every period_s'}"
    )
    for sample in samples:
        for key, value in sample.items():
            low, high = RANGES.get(key, (-math.inf, math.inf))
            assert low <= value <= high, (
                f"{key} reads {value}: convert its unit (the key names it); leave a sensor that "
                "gives nothing out of the reading"
            )
    times = [sample["t"] for sample in samples]
    assert times == sorted(times) and 0.5 * wall < times[-1] - times[0] < 1.5 * wall
    if all("energy_j" in sample for sample in samples):
        counter = [sample["energy_j"] for sample in samples]
        assert counter == sorted(counter), "energy_j is a counter: it only grows"
    joules, watts = telemetry.energy_j(), telemetry.power_w()
    if joules is None or watts is None:
        assert not any(key in sample for sample in samples for key in ("energy_j", "power_w"))
        return
    assert joules > 0 and 0.5 * wall < joules / watts < 1.5 * wall, (
        f"{joules} J at {watts} W are {joules / watts:.2f} s, not the {wall:.2f} s measured"
    )


def test_fallbacks_are_told_or_unknown(backend: Backend) -> None:
    """``fallbacks()`` gives operation -> times that the host computed, or None: cannot be told."""
    x = torch.ones(16, 16, device=backend.device)
    with backend.fallbacks() as found:
        F.gelu(F.linear(x, x)).sum()
        backend.synchronize()
    if found is not None:
        assert isinstance(found, dict)
        assert all(isinstance(op, str) and count > 0 for op, count in found.items()), found
