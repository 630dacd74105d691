# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules (MLPerf BERT: linear warm-up, polynomial decay)."""

from __future__ import annotations


def learning_rate(
    step: int,
    *,
    base: float,
    total_steps: int,
    warmup_steps: int = 0,
    start_warmup_step: int = 0,
    power: float = 1.0,
) -> float:
    """Return the rate of step ``step``, counted from 0.

    While ``step - start_warmup_step < warmup_steps`` it rises linearly from 0; with a negative
    ``start_warmup_step`` the warm-up has begun before step 0. After that it is
    ``base * (1 - step / total_steps) ** power``: decay counts from step 0, not from the end of the
    warm-up, and stays at 0 past ``total_steps``.
    """
    into_warmup = step - start_warmup_step
    if into_warmup < warmup_steps:
        return base * max(into_warmup, 0) / warmup_steps
    return base * (1.0 - min(step / total_steps, 1.0)) ** power


def warmup_linear(step: int, *, base: float, total_steps: int, warmup_proportion: float) -> float:
    """Return the rate of step ``step``, counted from 0, for fine-tuning (NVIDIA's run_squad.py).

    With progress x = step / total_steps: ``base * x / warmup_proportion`` while x is below it,
    then linearly down from ``base`` to 0 at the end, where it stays.
    """
    progress = step / total_steps
    if progress < warmup_proportion:
        return base * progress / warmup_proportion
    if warmup_proportion >= 1:
        return base
    return base * max((1 - progress) / (1 - warmup_proportion), 0.0)
