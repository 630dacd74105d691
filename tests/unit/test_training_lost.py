# SPDX-License-Identifier: Apache-2.0
"""Runs that trained nothing, or broke their weights, do not end as ok."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bertbench.benchmarks import resolve
from bertbench.common.errors import BadInput, DivergedError
from bertbench.common.training.checkpoint import Checkpoints
from bertbench.common.training.loop import train
from bertbench.common.training.task import OptimizerOptions
from tests.unit.test_training import ALONE, PLAN, CpuRef, Half, ToyTask, run

FP16 = replace(PLAN, precision="fp16", init_loss_scale=64.0, eval_every_samples=0, log_freq=5)


def overflowing(steps, wrong=math.inf):
    """A task whose gradients, not its losses, are ``wrong`` in these steps."""
    task = ToyTask()
    plain = task.loss

    def loss(model, batch, step):
        value, sums = plain(model, batch, step)
        return (value * wrong if step.position["step"] in steps else value), sums

    task.loss = loss
    return task


def half(task, plan):
    return train(task, backend=Half(), world=ALONE, plan=plan, observers=[])


@pytest.mark.parametrize(
    ("lost", "steps", "which"),
    [
        (range(1, 100), 1, "all 1 steps"),
        (range(1, 100), 7, "all 7 steps"),
        (range(3, 100), 30, "the last 23 steps"),  # found at a report: the scale is below 1e-4
        (range(3, 100), 12, "the last 10 steps"),
    ],
)
@pytest.mark.parametrize("wrong", [math.inf, -math.inf])
def test_a_run_whose_steps_were_skipped_is_no_success(lost, steps, which, wrong):
    with pytest.raises(DivergedError, match=f"{which} were skipped.*--precision bf16"):
        half(overflowing(lost, wrong), replace(FP16, max_steps=steps))


@pytest.mark.parametrize("lost", [(1, 2, 3, 4, 5, 6), (12,), range(4, 13), (1, 3, 5, 7, 9, 11)])
def test_overflows_that_scaling_recovers_from_are_none(lost):
    out = half(overflowing(lost), FP16)
    assert out.status == "ok" and out.progress.skipped_steps == len(list(lost))


def test_a_target_that_is_reached_counts_whatever_was_skipped():
    plan = replace(FP16, target_value=0.01, eval_start_samples=8, eval_every_samples=8)
    assert half(overflowing(range(1, 100)), plan).status == "ok"


@pytest.mark.parametrize("wrong", [math.inf, math.nan, -math.inf])
@pytest.mark.parametrize("step", [12, 7])
def test_a_gradient_that_nothing_inspects_is_found(wrong, step):
    """Without clipping there is no norm: the last step's gradient shows in the weights only."""
    plan = replace(PLAN, max_grad_norm=None, eval_every_samples=0, log_freq=100)
    with pytest.raises(DivergedError, match="not finite"):
        run(overflowing([step], wrong), plan)


def test_a_rate_that_breaks_the_weights_in_the_last_step_is_found():
    task = overflowing([12], 1e6)
    task.learning_rate = lambda step: 3e38 if step == 11 else 0.1
    task.optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    with pytest.raises(DivergedError, match="step 12: the weights are not finite"):
        run(task, replace(PLAN, eval_every_samples=0, max_grad_norm=1e9))


def test_broken_weights_are_not_saved(tmp_path):
    plan = replace(PLAN, max_grad_norm=None, checkpoint_every_samples=8, eval_every_samples=0)
    with pytest.raises(DivergedError, match="step 3: the weights"):
        train(overflowing([3]), backend=CpuRef(), world=ALONE, plan=plan, observers=[],
              checkpoints=Checkpoints(tmp_path, 9))  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


@pytest.mark.parametrize("scale", ["inf", "-inf", "nan", "0", "-65536", "1e300", "0.5", "1e400"])
def test_a_loss_scale_that_scales_nothing_is_refused(scale):
    with pytest.raises(BadInput, match="init_loss_scale"):
        resolve("mini", ["--precision", "fp16", f"--init_loss_scale={scale}"])


@pytest.mark.parametrize(
    "flag",
    [
        "warmup_proportion=nan", "warmup_proportion=inf", "warmup_proportion=-0.1",
        "warmup_steps=-1", "lr_power=nan", "lr_power=-1", "lr_power=inf", "opt_epsilon=0",
        "opt_epsilon=nan", "opt_epsilon=-1e-6", "weight_decay_rate=nan", "weight_decay_rate=-0.01",
        "weight_decay_rate=inf", "opt_lamb_beta_1=nan", "learning_rate=nan", "learning_rate=inf",
    ],
)  # fmt: skip
def test_numbers_that_no_step_can_be_taken_with_are_refused(flag):
    with pytest.raises(BadInput, match=flag.partition("=")[0]):
        resolve("mini", [f"--{flag}"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": math.nan}, {"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)},
        {"betas": (math.nan, 0.9)}, {"eps": 0.0}, {"eps": math.nan}, {"eps": math.inf},
        {"weight_decay_rate": -0.01}, {"weight_decay_rate": math.inf},
    ],
)  # fmt: skip
def test_an_optimizer_of_such_numbers_is_refused_for_any_benchmark(wrong):
    right = {"name": "lamb", "learning_rate": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6}
    OptimizerOptions(**right, weight_decay_rate=0.01)
    with pytest.raises(BadInput, match="the optimizer's"):
        OptimizerOptions(**({**right, "weight_decay_rate": 0.01} | wrong))
