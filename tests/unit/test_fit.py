# SPDX-License-Identifier: Apache-2.0
"""Rehearsals leave no trace, and find what fits a memory that the test limits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_pretraining.data import PretrainingSource
from bertbench.benchmarks.bert_pretraining.task import PretrainingTask
from bertbench.common.cli import main as cli
from bertbench.common.distributed.world import World
from bertbench.common.errors import Unsupported
from bertbench.common.training import rehearsal
from bertbench.common.training.events import Observer
from bertbench.common.training.loop import train
from bertbench.common.training.rehearsal import (
    DoesNotFit,
    Rehearsal,
    Sizes,
    advice,
    find_micro_batch,
    rehearse,
)

TINY = """
    --hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2 --intermediate_size 64
    --vocab_size 256 --max_seq_length 64 --max_position_embeddings 64
    --max_predictions_per_seq 10 --global_batch 12 --micro_batch 4 --warmup_steps 2
    --max_steps 5 --log_freq 1 --target_mlm_accuracy None --synthetic --precision fp32
    --kernels plain
""".split()
ALONE = World()


class Limited(CpuRef):
    """Plays a device with a memory: too large an allocation is an error there."""

    @property
    def capabilities(self):
        return replace(super().capabilities, memory_limit=True)


@pytest.fixture
def backend() -> Limited:
    return Limited()


def make(backend: CpuRef, *flags: str) -> tuple[PretrainingTask, Any]:
    settings = resolve("mini", [*TINY, *flags])
    source = PretrainingSource(recipe=settings.recipe, description="made up")
    task = PretrainingTask(settings, backend, ALONE, source)
    return task, task.plan(settings)


class Losses(Observer):
    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_step(self, event) -> None:
        self.seen.append((event.loss, event.grad_norm))


def curve(task, backend, plan) -> list[tuple[float, float]]:
    losses = Losses()
    train(task, backend=backend, world=ALONE, plan=plan, observers=[losses])
    assert len(losses.seen) == 5
    return losses.seen


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
def test_a_rehearsal_changes_nothing(backend, optimizer: str) -> None:
    plain = curve(*_with(backend, optimizer))
    task, _, plan = _with(backend, optimizer)
    before = {name: t.clone() for name, t in task.model.state_dict().items()}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in task.optimizer.param_groups]
    random = backend.rng_state()
    with Rehearsal(task, backend, ALONE, plan) as rehearsal:
        rehearsal.train(4, 2)
        rehearsal.evaluate(6)
        moved = any(not torch.equal(before[n], t) for n, t in task.model.state_dict().items())
        assert moved and task.optimizer.state and groups != task.optimizer.param_groups
    assert not task.optimizer.state and task.model.training
    assert all(p.grad is None for p in task.model.parameters())
    after = [{k: v for k, v in g.items() if k != "params"} for g in task.optimizer.param_groups]
    assert after == groups
    for name, tensor in task.model.state_dict().items():
        assert torch.equal(before[name], tensor)
    for name, state in backend.rng_state().items():
        assert torch.equal(random[name], state)
    assert curve(task, backend, plan) == plain


def _with(backend, optimizer: str):
    task, plan = make(backend, "--optimizer", optimizer)
    return task, backend, plan


def test_everything_is_put_back_after_an_unexpected_error_too(backend) -> None:
    task, plan = make(backend)
    before = {name: t.clone() for name, t in task.model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), Rehearsal(task, backend, ALONE, plan) as rehearsal:
        rehearsal.train(4)
        raise ZeroDivisionError
    for name, tensor in task.model.state_dict().items():
        assert torch.equal(before[name], tensor)


def test_a_made_up_step_is_the_largest_there_can_be(backend) -> None:
    task, _ = make(backend)
    random = torch.get_rng_state()
    step = task.made_up_step(3, 2)
    assert [m.tokens.lengths for m in step.micro_batches] == [(64, 64, 64)] * 2
    assert len(step.micro_batches[0].masked_labels) == 30
    assert (step.num_samples, step.num_masked) == (6, 60)
    typical = task.made_up_step(3, 1, typical=True).micro_batches[0]
    assert 30 < typical.tokens.lengths[0] < 64 and len(typical.masked_labels) < 30
    again = task.made_up_step(3, 2).micro_batches[0]
    assert torch.equal(again.tokens.input_ids, step.micro_batches[0].tokens.input_ids)
    assert torch.equal(torch.get_rng_state(), random)


def limit(task: PretrainingTask, *, tokens: int, eval_tokens: int | None = None) -> list[Any]:
    """Let more than so many tokens at a time run out of memory; notes what was in it then."""
    seen: list[Any] = []
    loss, eval_sums = task.loss, task.eval_sums

    def limited_loss(model, batch, step):
        grads = any(p.grad is not None for p in model.parameters())
        seen.append((batch.num_samples, bool(task.optimizer.state), grads))
        if batch.num_tokens > tokens:
            raise torch.OutOfMemoryError("no memory for\nso much")
        return loss(model, batch, step)

    def limited_eval(model, batch):
        if eval_tokens is not None and batch.num_tokens > eval_tokens:
            raise torch.OutOfMemoryError("no memory to evaluate")
        return eval_sums(model, batch)

    task.loss, task.eval_sums = limited_loss, limited_eval
    return seen


@pytest.mark.parametrize(
    ("sequences", "chosen"), [(1, 1), (2, 2), (3, 3), (5, 4), (6, 6), (11, 6), (12, 12), (99, 12)]
)
def test_auto_finds_the_largest_divisor_that_fits(backend, sequences: int, chosen: int) -> None:
    task, plan = make(backend, "--micro_batch", "auto")
    seen = limit(task, tokens=64 * sequences)
    found = find_micro_batch(task, backend, ALONE, plan, task.share)
    assert found.chosen == chosen and found.per_rank == [chosen]
    assert found.tried[str(chosen)] == "fits"
    refused = [int(size) for size, why in found.tried.items() if why == "no memory for"]
    assert all(size > sequences for size in refused)
    assert len(found.tried) <= 4
    # All but the very first try have the optimizer's state beside them; second passes gradients.
    assert all(state for _, state, _ in seen[1:])
    assert (chosen == 12) or (chosen, True, True) in seen
    task.use_micro_batch(found.chosen)
    assert task.split.accumulation == 12 // chosen
    assert task.facts().micro_batch == chosen


class TwoRanks:
    """Rank 0 of two, whose neighbour answers with what the test gives it."""

    rank, size = 0, 2

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def gather(self, value: Any) -> list[Any]:
        return [value, self.answers.pop(0)]


def test_the_rank_with_the_least_memory_decides(backend) -> None:
    task, plan = make(backend)
    limit(task, tokens=64 * 99)
    found = find_micro_batch(task, backend, TwoRanks(3), plan, 12)
    assert (found.chosen, found.per_rank) == (3, [12, 3])
    with pytest.raises(DoesNotFit, match="not one sequence"):
        find_micro_batch(task, backend, TwoRanks(0), plan, 12)


def test_with_several_ranks_the_gradients_that_travel_have_their_place(backend) -> None:
    task, plan = make(backend)
    size = sum(p.numel() for p in task.model.parameters())
    with Rehearsal(task, backend, ALONE, plan) as alone:
        alone.train(1)
        assert not alone._buckets
    with Rehearsal(task, backend, TwoRanks(), plan) as two:
        two.train(1)
        assert sum(t.numel() for t in two._buckets) == size
    assert not two._buckets


def test_nothing_fits(backend) -> None:
    task, plan = make(backend)
    limit(task, tokens=10)
    with pytest.raises(DoesNotFit, match=r"not one sequence .*\(no memory for\)"):
        find_micro_batch(task, backend, ALONE, plan, 12)
    assert not task.optimizer.state


def test_auto_is_refused_where_memory_that_runs_out_is_no_error(capsys) -> None:
    task, plan = make(CpuRef())
    with pytest.raises(Unsupported, match=r"sizes cannot be tried\. Give --micro_batch N"):
        find_micro_batch(task, CpuRef(), ALONE, plan, 12)
    flags = ["run", "mini", *TINY, "--backend", "cpu_ref", "--micro_batch", "auto", "--dry_run"]
    assert cli.main(flags) == 2
    assert "--micro_batch auto: on cpu_ref" in capsys.readouterr().err


SIZES = Sizes(micro_batch=4, accumulation=3, eval_batch=8)


def test_what_fits_is_silent(backend) -> None:
    task, plan = make(backend)
    limit(task, tokens=64 * 4, eval_tokens=64 * 8)
    assert rehearse(task, backend, ALONE, plan, SIZES).notes == ()


def test_typical_lengths_that_fit_are_a_note(backend) -> None:
    task, plan = make(backend)
    limit(task, tokens=64 * 4 - 1, eval_tokens=64 * 8 - 1)
    first, second = rehearse(task, backend, ALONE, plan, SIZES).notes
    assert "in training" in first and "--micro_batch: it is 4, the next smaller is 3" in first
    assert "in evaluation" in second and "--eval_batch_size: it is 8, try 4" in second


@pytest.mark.parametrize(
    ("tokens", "eval_tokens", "why"),
    [
        (64, None, r"of training: no memory for\. Lower --micro_batch: it is 4, .*auto"),
        (64 * 4, 64, r"of evaluation: no memory to evaluate\. Lower --eval_batch_size: it is 8"),
        (10, None, r"no memory for\. One sequence at a time does not fit"),
    ],
)
def test_what_cannot_fit_ends_before_the_data(backend, tokens, eval_tokens, why) -> None:
    task, plan = make(backend)
    limit(task, tokens=tokens, eval_tokens=eval_tokens)
    with pytest.raises(DoesNotFit, match=why):
        rehearse(task, backend, ALONE, plan, SIZES)


def test_every_rank_hears_of_it(backend) -> None:
    task, plan = make(backend)
    with pytest.raises(DoesNotFit, match="rank 1: too little"):
        rehearse(task, backend, TwoRanks("too little"), plan, SIZES)


def test_without_evaluation_none_is_rehearsed(backend) -> None:
    task, plan = make(backend)
    limit(task, tokens=64 * 4, eval_tokens=0)
    assert task.eval_batch_size is None  # synthetic data holds nothing out
    assert rehearse(task, backend, ALONE, plan, replace(SIZES, eval_batch=None)).notes == ()


def test_fallbacks_are_those_of_the_whole_rehearsal(backend) -> None:
    class Falls(Limited):
        @contextlib.contextmanager
        def fallbacks(self) -> Iterator[dict[str, int]]:
            counted: dict[str, int] = {}
            yield counted
            counted["aten::erf"] = 7

    task, plan = make(backend)
    assert rehearse(task, Falls(), ALONE, plan, SIZES).fallbacks == {"aten::erf": 7}
    assert rehearse(task, backend, ALONE, plan, SIZES).fallbacks is None


@pytest.mark.parametrize(
    ("sizes", "evaluating", "text"),
    [
        (SIZES, False, "it is 4, the next smaller is 3 (4 accumulated; the global batch stays)"),
        (replace(SIZES, micro_batch=1), False, "One sequence at a time does not fit"),
        (replace(SIZES, eval_batch=1), True, "--eval_batch_size is 1 already"),
    ],
)
def test_advice_has_numbers(sizes: Sizes, evaluating: bool, text: str) -> None:
    assert text in advice(sizes, evaluating=evaluating)


def test_divisors() -> None:
    found: Sequence[int] = rehearsal.divisors(12)
    assert list(found) == [1, 2, 3, 4, 6, 12]
