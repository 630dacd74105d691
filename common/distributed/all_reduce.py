# SPDX-License-Identifier: Apache-2.0
"""Measure the gradients' all-reduce alone, without overlap.

Within a step the backward pass overlaps with a part of it, which differs by vendor and cannot be
measured from outside. Without overlap the time is measurable on any device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bertbench.common.distributed.world import World


BUCKET_BYTES = 25 << 20
"""As DistributedDataParallel's default ``bucket_cap_mb``."""
REPEATS = 5


def gradient_all_reduce_s(
    parameters: Iterable[Tensor],
    *,
    world: World,
    device: torch.device,
    synchronize: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> float | None:
    """Return the seconds to sum gradients of ``parameters`` [any shape] over all ranks.

    In float32 buckets; median of ``REPEATS`` after one untimed. Each repeat starts on all ranks
    together, is synchronised at both ends and counts the slowest rank. None for one rank. Every
    rank must call it.
    """
    if world.size == 1:
        return None
    total = sum(p.numel() for p in parameters if p.requires_grad)
    full, rest = divmod(total, BUCKET_BYTES // 4)
    bucket = torch.zeros(BUCKET_BYTES // 4 if full else rest, device=device)
    buckets = [bucket] * full + ([bucket[:rest]] if rest else [])
    seconds = []
    for _ in range(1 + REPEATS):
        synchronize()
        world.gather(None)
        begin = clock()
        for each in buckets:
            world.sum_(each)
        synchronize()
        seconds.append(max(world.gather(clock() - begin)))
    return statistics.median(seconds[1:])
