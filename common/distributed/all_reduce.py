# SPDX-License-Identifier: Apache-2.0
"""The all-reduce of a step's gradients beside DDP's: tried, done after clipping, and measured.

It is measured alone. Within a step the backward pass overlaps with a part of it, which differs by
vendor and cannot be measured from outside. Without overlap the time is measurable on any device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bertbench.backends.reduction import REDUCE_DTYPES
from bertbench.common.errors import Unsupported

if TYPE_CHECKING:
    from bertbench.backends.base import Backend
    from bertbench.common.distributed.world import World


BUCKET_BYTES = 25 << 20
"""As DistributedDataParallel's default ``bucket_cap_mb``, which counts float32 gradients."""
REPEATS = 5
ADVICE = "Leave --reduce_dtype out to reduce gradients in float32."


def try_reduction(backend: Backend, world: World, reduce_dtype: str) -> list[str]:
    """Try DDP's reduction in ``reduce_dtype``; return notes for the record.

    Raises Unsupported where it fails, or is not the mean of the gradients rounded to that type.
    float32 is not tried: every run of several ranks needs it. Every rank must call this.
    """
    if reduce_dtype == "fp32":
        return []
    if world.size == 1:
        return [f"--reduce_dtype {reduce_dtype} has no effect: one process reduces no gradients"]
    # Of the first value only rank 0 has a part, of the second only the last: sums are exact in any
    # order. The first one is not a number of bfloat16.
    parts = torch.tensor([1 + 2.0**-10, 3.0])
    mine = parts * torch.tensor([world.rank == 0, world.rank == world.size - 1])
    layer = nn.Linear(2, 1, bias=False).to(backend.device)
    refused = f"{backend.name}: --reduce_dtype {reduce_dtype} is not possible here"
    try:
        model = backend.wrap_ddp(layer, reduce_dtype)  # kept: without it nothing is reduced
        model(mine[None].to(backend.device)).sum().backward()
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, dist.DistError) or "onnection" in str(error):
            raise  # another rank is gone
        raise Unsupported(f"{refused}: {str(error).strip().splitlines()[0]}. {ADVICE}") from error
    assert layer.weight.grad is not None
    found = layer.weight.grad[0].cpu() * world.size
    wanted = parts.to(REDUCE_DTYPES[reduce_dtype]).to(parts.dtype)
    if not torch.allclose(found, wanted, rtol=1e-5):
        raise Unsupported(
            f"{refused}: the sum of a trial's gradients is {found.tolist()}, not "
            f"{wanted.tolist()}. {ADVICE}"
        )
    return []


def average_(parameters: Iterable[Tensor], world: World, reduce_dtype: str) -> None:
    """Average gradients of ``parameters`` [any shape] over ranks: DDP's mean, after clipping."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    flat = world.sum_(flat.to(REDUCE_DTYPES[reduce_dtype])).to(flat.dtype).div_(world.size)
    means = flat.split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def gradient_bytes(parameters: Iterable[Tensor], reduce_dtype: str) -> int:
    """Return the bytes of a step's gradients of ``parameters`` [any shape], as they are reduced."""
    elements = sum(p.numel() for p in parameters if p.requires_grad)
    return elements * REDUCE_DTYPES[reduce_dtype].itemsize


def gradient_all_reduce_s(
    parameters: Iterable[Tensor],
    *,
    world: World,
    device: torch.device,
    synchronize: Callable[[], None],
    reduce_dtype: str = "fp32",
    clock: Callable[[], float] = time.perf_counter,
) -> float | None:
    """Return the seconds to sum gradients of ``parameters`` [any shape] over all ranks.

    In DDP's buckets, in ``reduce_dtype``; median of ``REPEATS`` after one untimed. Each repeat
    starts on all ranks together, is synchronised at both ends and counts the slowest rank. None for
    one rank. Every rank must call it.
    """
    if world.size == 1:
        return None
    total = sum(p.numel() for p in parameters if p.requires_grad)
    full, rest = divmod(total, BUCKET_BYTES // 4)
    dtype = REDUCE_DTYPES[reduce_dtype]
    bucket = torch.zeros(BUCKET_BYTES // 4 if full else rest, device=device, dtype=dtype)
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
