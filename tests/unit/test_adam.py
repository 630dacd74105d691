# SPDX-License-Identifier: Apache-2.0
"""BertAdam against its formula written out in float64."""

from __future__ import annotations

import pytest
import torch

from bertbench.common.optim.adam import BertAdam


@pytest.mark.parametrize("fused", [False, True])
def test_equals_the_formula_under_a_schedule(fused: bool) -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(50))
    q = p.detach().double()
    groups = [{"params": [p], "weight_decay": 0.01}]
    optimizer = BertAdam(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-6, fused=fused)
    m = v = torch.zeros(50).double()
    for t in range(20):
        g = torch.randn(50)
        p.grad = g.clone()
        lr = 1e-2 * (1 - t / 20)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        g = g.double()
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        q = q - lr * (m / (v.sqrt() + 1e-6) + 0.01 * q)
    torch.testing.assert_close(p.double(), q, rtol=1e-5, atol=1e-6)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["eps"], group["weight_decay"]) == (lr, 1e-6, 0.01)


def test_goes_on_from_its_state() -> None:
    def run(optimizer: BertAdam, p: torch.nn.Parameter, steps: range) -> None:
        for t in steps:
            p.grad = torch.full_like(p, 1.0 + t)
            optimizer.step()

    def fresh() -> tuple[torch.nn.Parameter, BertAdam]:
        p = torch.nn.Parameter(torch.ones(3))
        return p, BertAdam([p], lr=1e-2)

    whole, optimizer = fresh()
    run(optimizer, whole, range(6))
    first, optimizer = fresh()
    run(optimizer, first, range(3))
    second, other = fresh()
    second.data.copy_(first.data)
    other.load_state_dict(optimizer.state_dict())
    run(other, second, range(3, 6))
    assert torch.equal(whole, second)


def test_an_overflow_that_is_skipped_does_not_count_as_an_update() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = BertAdam([p], lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for gradient in (float("inf"), 1.0):
        p.grad = torch.full((3,), gradient) * scaler.get_scale()
        scaler.scale(torch.zeros(()))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.param_groups[0]["updates"] == 1
    expected = 1 - 1e-2 * (0.1 / (0.001**0.5 + 1e-8) + 0.01)
    assert p.detach().tolist() == pytest.approx([expected] * 3, rel=1e-5)
