# SPDX-License-Identifier: Apache-2.0
"""The learning rate of published MLPerf recipes at steps worked out by hand."""

from __future__ import annotations

import pytest

from bertbench.common.optim.schedule import learning_rate, warmup_linear

# (base, total_steps, warmup_steps, start_warmup_step), then step -> rate
SINGLE_NODE = (3.5e-4, 7100, 0, 0)
EIGHT_NODES = (1.5e-3, 1271, 100, -25)
NODES_128 = (2e-3, 1141, 100, 0)
NODES_512 = (3.1e-3, 500, 300, -100)
H100_EIGHT_NODES = (2.58e-3, 700, 200330, -200000)
ONE_STEP = (1.1e-3, 3900, 1, 0)


@pytest.mark.parametrize(
    ("recipe", "step", "expected"),
    [
        (SINGLE_NODE, 0, 3.5e-4),
        (SINGLE_NODE, 1, 3.5e-4 * 7099 / 7100),
        (SINGLE_NODE, 3550, 1.75e-4),
        (SINGLE_NODE, 7100, 0.0),
        (SINGLE_NODE, 9000, 0.0),
        (EIGHT_NODES, 0, 1.5e-3 * 25 / 100),
        (EIGHT_NODES, 74, 1.5e-3 * 99 / 100),
        (EIGHT_NODES, 75, 1.5e-3 * (1 - 75 / 1271)),
        (NODES_128, 0, 0.0),
        (NODES_128, 50, 1e-3),
        (NODES_128, 99, 2e-3 * 0.99),
        (NODES_128, 100, 2e-3 * 1041 / 1141),
        (NODES_512, 0, 3.1e-3 / 3),
        (NODES_512, 200, 3.1e-3 * 0.6),
        (H100_EIGHT_NODES, 0, 2.58e-3 * 200000 / 200330),
        (H100_EIGHT_NODES, 329, 2.58e-3 * 200329 / 200330),
        (H100_EIGHT_NODES, 330, 2.58e-3 * 370 / 700),
        (ONE_STEP, 0, 0.0),
        (ONE_STEP, 1, 1.1e-3 * 3899 / 3900),
    ],
)
def test_published_recipes(recipe, step, expected):
    base, total, warmup, start = recipe
    rate = learning_rate(
        step, base=base, total_steps=total, warmup_steps=warmup, start_warmup_step=start
    )
    assert rate == pytest.approx(expected, rel=1e-12, abs=0)


def test_power():
    rate = learning_rate(1, base=2.0, total_steps=2, power=0.5)
    assert rate == pytest.approx(2.0 * 0.5**0.5)


def test_warmup_that_starts_later_is_never_negative():
    rates = [
        learning_rate(s, base=1.0, total_steps=100, warmup_steps=4, start_warmup_step=2)
        for s in range(7)
    ]
    assert rates == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 0.94])


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (5, 1.0), (10, 2.0), (55, 1.0), (99, 2 / 90), (100, 0.0), (140, 0.0)],
)
def test_fine_tuning_rises_and_falls_linearly_and_stays_at_zero(step, expected):
    rate = warmup_linear(step, base=2.0, total_steps=100, warmup_proportion=0.1)
    assert rate == pytest.approx(expected, abs=1e-12)
    assert f"{rate:g}"[0] != "-"


def test_fine_tuning_without_warm_up_or_with_nothing_else():
    assert warmup_linear(0, base=2.0, total_steps=4, warmup_proportion=0.0) == 2.0
    assert warmup_linear(2, base=2.0, total_steps=4, warmup_proportion=1.0) == 1.0
