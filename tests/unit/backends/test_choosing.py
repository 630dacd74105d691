# SPDX-License-Identifier: Apache-2.0
"""The choice of auto's kernels by their measured time, on a clock that the test sets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from bertbench.backends.choosing import ROUNDS, WARM_UP, agree, time_kernels
from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.benchmarks.bert_pretraining.data import PretrainingSource
from bertbench.benchmarks.bert_pretraining.task import PretrainingTask
from bertbench.common.choices.opening import chosen
from bertbench.common.data.batch import Tokens
from bertbench.common.distributed.world import World
from bertbench.common.training.facts import RunFacts
from tests.unit.backends.test_backend_simulated import needs_compiler, run
from tests.unit.backends.timed_kernels import Timed, alone, tiny


def measured(backend: Timed, *flags: str, gather: Any = alone) -> Any:
    return time_kernels(tiny(*flags), backend, gather, micro_batch=4)


def test_the_fastest_of_each_part_is_taken_and_all_times_are_recorded() -> None:
    backend = Timed()
    assert measured(backend) == {
        "attention": {
            "chosen": "second",
            "milliseconds": pytest.approx({"first": 3.0, "second": 2.0}),
            "passed_over": {},
        },
        "layer": {
            "chosen": "fused",
            "milliseconds": pytest.approx({"torch": 2.0, "fused": 1.0}),
            "passed_over": {},
        },
        "lamb": {
            "chosen": "fused",
            "milliseconds": pytest.approx({"torch": 8.0, "fused": 6.0}),  # two groups
            "passed_over": {},
        },
    }
    assert backend.ops("auto", "fp32").name == "fused around second"
    assert backend.auto_lamb == "fused"


def test_fused_kernels_that_are_slower_are_not_taken() -> None:
    backend = Timed(first=0.001, fused_lamb=0.01)
    found = measured(backend)
    assert [found[part]["chosen"] for part in found] == ["first", "torch", "torch"]
    assert backend.ops("auto", "fp32").name == "first"
    assert backend.auto_lamb == "torch"


def test_without_a_measurement_auto_takes_the_first_that_works() -> None:
    backend = Timed()
    assert backend.ops("auto", "fp32").name == "first"
    backend.attention_problems = {"fp32": {"first": "its output differs", "second": None}}
    assert backend.ops("auto", "fp32").name == "second"
    assert not backend.spent


def test_a_kernel_that_is_slow_on_each_new_length_loses() -> None:
    seen: set[tuple[int, ...]] = set()

    def plans(tokens: Tokens) -> float:
        new = tokens.lengths not in seen
        seen.add(tokens.lengths)
        return 1.0 if new else 1e-6

    backend = Timed(first=plans)
    assert measured(backend)["attention"]["chosen"] == "second"
    tried = [lengths for name, lengths in backend.spent if name == "second"][: WARM_UP + ROUNDS]
    assert len(set(tried)) == WARM_UP + ROUNDS
    assert all(len(lengths) == 4 and 1 <= min(lengths) <= max(lengths) <= 64 for lengths in tried)
    assert all(len(set(lengths)) > 1 for lengths in tried)  # ragged


def test_one_slow_pass_and_the_first_ones_do_not_decide() -> None:
    passes = iter([9.0] * WARM_UP + [0.001, 9.0] + [0.001] * ROUNDS * 9)
    backend = Timed(first=lambda tokens: next(passes))
    found = measured(backend)["attention"]
    assert found["chosen"] == "first"
    assert found["milliseconds"]["first"] == pytest.approx(1.0)


def fails(tokens: Tokens) -> float:
    raise RuntimeError("no kernel image\nis available")


def test_a_kernel_that_raises_is_passed_over_with_the_reason() -> None:
    backend = Timed(second=fails, fused=fails)
    found = measured(backend)
    assert found["attention"]["chosen"] == "first"
    assert found["attention"]["passed_over"] == {"second": "RuntimeError: no kernel image"}
    assert found["layer"]["passed_over"] == {"fused": "RuntimeError: no kernel image"}
    ops = backend.ops("auto", "fp32")
    assert ops.name == "first"
    passed_over = ops.kernels["attention_passed_over"]
    assert passed_over == "second: RuntimeError: no kernel image"


def test_a_kernel_that_failed_its_trial_is_not_timed() -> None:
    backend = Timed()
    backend.attention_problems = {"fp32": {"first": None, "second": "its gradient differs"}}
    found = measured(backend)["attention"]
    assert found["milliseconds"] == pytest.approx({"first": 3.0})
    assert found["passed_over"] == {"second": "its gradient differs"}
    assert "second" not in {name for name, _ in backend.spent}


def test_where_no_kernel_works_the_references_attention_is_left() -> None:
    backend = Timed(first=fails, second=fails, fused=1.0)
    assert measured(backend)["attention"]["chosen"] is None
    ops = backend.ops("auto", "fp32")
    assert (ops.name, ops.kernels["attention"]) == ("plain", "unfused-per-sequence")
    assert "first: RuntimeError: no kernel image" in ops.kernels["attention_passed_over"]


def test_the_random_state_stays_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    measured(Timed())
    assert torch.equal(torch.get_rng_state(), before)
    measured(Timed(first=fails, fused=fails))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "flags",
    [("--kernels", "first"), ("--kernels", "plain"), ("--dry_run",), ("--attention_mask", "star")],
)
def test_nothing_is_measured_where_auto_does_not_choose(flags: tuple[str, ...]) -> None:
    backend = Timed()
    assert measured(backend, *flags) is None
    assert not backend.spent and not backend.auto_ops


def test_backends_without_a_choice_measure_nothing() -> None:
    assert time_kernels(tiny(), CpuRef(), alone, micro_batch=4) is None
    single = type("Single", (Timed,), {"attention_kernels": ("first",)})()
    assert measured(single) is None
    assert single.ops("auto", "fp32").name == "first"


def test_a_compiler_fuses_the_layer_itself() -> None:
    backend = Timed()
    assert measured(backend, "--compile", "inductor")["layer"] is None
    assert backend.ops("auto", "fp32").name == "second"


# -- ranks -----------------------------------------------------------------------------------
def test_the_mean_over_the_ranks_decides() -> None:
    first = {"a": 1.0, "b": 3.0, "c": 0.1}, {}
    second = {"a": 9.0, "b": 3.0}, {"c": "RuntimeError: no memory"}
    assert agree([first, second]) == {
        "chosen": "b",
        "milliseconds": {"a": 5.0, "b": 3.0},
        "passed_over": {"c": "RuntimeError: no memory"},
    }


@pytest.mark.parametrize(("faster", "taken"), [(0.96, "a"), (0.94, "b")])
def test_what_comes_first_stays_where_two_are_alike(faster: float, taken: str) -> None:
    assert agree([({"a": 1.0, "b": faster}, {})])["chosen"] == taken


class Ranks:
    """Two ranks as threads: ``gather`` waits for both."""

    def __init__(self) -> None:
        self.given: list[Any] = [None, None]
        self.barrier = threading.Barrier(2)

    def gather(self, rank: int) -> Callable[[Any], list[Any]]:
        def wait(value: Any) -> list[Any]:
            self.given[rank] = value
            self.barrier.wait()
            values = list(self.given)
            self.barrier.wait()
            return values

        return wait


def test_ranks_with_other_times_choose_the_same() -> None:
    """Alone, the first would take all that the second would not; one of its kernels fails."""
    ranks = Ranks()
    backends = [
        Timed(first=0.001, second=0.002, fused=0.0001, fused_lamb=0.001),
        Timed(first=0.009, second=0.002, fused=fails, fused_lamb=0.009),
    ]
    settings = tiny()  # here, as tyro reads the flags on one thread at a time
    found: list[Any] = [None, None]

    def one(rank: int) -> None:
        try:
            gather = ranks.gather(rank)
            found[rank] = time_kernels(settings, backends[rank], gather, micro_batch=4)
        except BaseException:
            ranks.barrier.abort()  # the other must not wait for ever
            raise

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert [found[0][part]["chosen"] for part in found[0]] == ["second", "torch", "torch"]
    assert found[0]["attention"]["milliseconds"] == pytest.approx({"first": 5.0, "second": 2.0})
    assert {b.ops("auto", "fp32").name for b in backends} == {"second"}


# -- a run -----------------------------------------------------------------------------------
def task(backend: Timed, *flags: str) -> PretrainingTask:
    settings = tiny(*flags)
    source = PretrainingSource(recipe=settings.recipe, description="made up")  # type: ignore[arg-type]
    return PretrainingTask(settings, backend, World(), source)


def test_a_task_computes_with_the_choice_and_records_it() -> None:
    made = task(Timed())
    assert made.ops.name == "fused around second"
    facts = made.facts()
    assert facts.own["kernel_choice"]["attention"]["chosen"] == "second"
    assert facts.kernels["optimizer"] == "lamb-fused"
    lines = chosen(tiny(), Timed(), RunFacts(task=facts, device=cast("Any", None)), Path("record"))
    assert "  timed       attention: first 3 ms, second 2 ms" in lines
    assert "  timed       layer: torch 2 ms, fused 1 ms" in lines
    named = task(Timed(), "--kernels", "first")
    assert named.ops.name == "first"
    assert named.facts().own["kernel_choice"] is None


ON_DEVICE = """
from tests.unit.backends.timed_kernels import Timed, alone, tiny
from bertbench.backends.choosing import time_kernels

class Demo(Timed):
    device_type = "demo"

backend = Demo()
torch.manual_seed(3)
before = torch.get_rng_state(), demo.get_rng_state()
used = demo.memory_allocated()
found = time_kernels(tiny(), backend, alone, 4)
after = torch.get_rng_state(), demo.get_rng_state()
answer(
    chosen={part: choice["chosen"] for part, choice in found.items()},
    passed_over={part: choice["passed_over"] for part, choice in found.items()},
    same=all(torch.equal(a, b) for a, b in zip(before, after)),
    drawn=demo.counters()["launches"] > 0, kept=demo.memory_allocated() - used,
    ops=backend.ops("auto", "fp32").name,
)
"""


@needs_compiler
def test_it_measures_on_a_simulated_device_and_keeps_nothing_of_it() -> None:
    found = run(ON_DEVICE)
    assert found["chosen"] == {"attention": "second", "layer": "fused", "lamb": "fused"}
    assert not any(found["passed_over"].values())
    assert found["same"] and found["drawn"] and found["kept"] == 0
    assert found["ops"] == "fused around second"
