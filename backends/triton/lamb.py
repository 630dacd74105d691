# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="untyped-decorator,no-untyped-def"
"""LAMB as two kernels over all tensors of a group; equals common/optim/lamb.py up to rounding.

The first updates the moments and leaves the update in the gradient's place, with the squares of
both norms by chunks; the second scales it by the trust ratio and applies it. That moves 40 bytes
for each parameter, where torch's multi-tensor operations move 116.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bertbench.common.optim.lamb import LambStep, matrices

CHUNK, BLOCK = 1 << 16, 1 << 10
"""Elements of a program, and of its vectors."""


@triton.jit
def _moments(
    pointers, sizes, chunks, partial, most, rest1, beta2, rest2, eps, decay, correction1,
    correction2, clip,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    which = tl.load(chunks + 2 * program)
    number = tl.load(chunks + 2 * program + 1)
    size = tl.load(sizes + which)
    factor = 1.0
    if CLIP:
        factor = tl.load(clip)
    at = pointers + which * 4
    p = tl.load(at).to(tl.pointer_type(tl.float32))
    g = tl.load(at + 1).to(tl.pointer_type(tl.float32))
    m = tl.load(at + 2).to(tl.pointer_type(tl.float32))
    v = tl.load(at + 3).to(tl.pointer_type(tl.float32))
    squares_p = tl.zeros((BLOCK,), tl.float32)
    squares_u = tl.zeros((BLOCK,), tl.float32)
    for step in range(CHUNK // BLOCK):
        i = number.to(tl.int64) * CHUNK + step * BLOCK + tl.arange(0, BLOCK)
        inside = i < size
        gradient = factor * tl.load(g + i, mask=inside, other=0.0)
        first = tl.load(m + i, mask=inside, other=0.0)
        first += rest1 * (gradient - first)
        second = beta2 * tl.load(v + i, mask=inside, other=0.0)
        second += rest2 * gradient * gradient
        value = tl.load(p + i, mask=inside, other=0.0)
        update = (first / correction1) / (tl.sqrt(second / correction2) + eps) + decay * value
        update = tl.where(inside, update, 0.0)
        squares_p += value * value
        squares_u += update * update
        tl.store(m + i, first, mask=inside)
        tl.store(v + i, second, mask=inside)
        tl.store(g + i, update, mask=inside)
    to = partial + (which * most + number) * 2
    tl.store(to, tl.sum(squares_p, 0))
    tl.store(to + 1, tl.sum(squares_u, 0))


@triton.jit
def _apply(
    pointers, sizes, chunks, ratios, lr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    which = tl.load(chunks + 2 * program)
    number = tl.load(chunks + 2 * program + 1)
    size = tl.load(sizes + which)
    p = tl.load(pointers + which * 4).to(tl.pointer_type(tl.float32))
    u = tl.load(pointers + which * 4 + 1).to(tl.pointer_type(tl.float32))
    rate = lr * tl.load(ratios + which)
    for step in range(CHUNK // BLOCK):
        i = number.to(tl.int64) * CHUNK + step * BLOCK + tl.arange(0, BLOCK)
        inside = i < size
        value = tl.load(p + i, mask=inside, other=0.0)
        value -= rate * tl.load(u + i, mask=inside, other=0.0)
        tl.store(p + i, value, mask=inside)


def triton_lamb(s: LambStep) -> None:
    """Apply one step; parameters, gradients and moments are contiguous float32 of one device.

    Raises ValueError, before memory is touched, for a tensor that is not.
    """
    grads = [g.contiguous() for g in s.grads]
    for p, *others in zip(s.params, grads, s.exp_avgs, s.exp_avg_sqs, strict=True):
        for t in (p, *others):
            if t.dtype != torch.float32 or t.shape != p.shape or not t.is_contiguous():
                raise ValueError(f"lamb: {t.dtype} {list(t.shape)} for {list(p.shape)} in float32")
    parts = [matrices(x, s.segments) for x in (s.params, grads, s.exp_avgs, s.exp_avg_sqs)]
    sizes = [p.numel() for p in parts[0]]
    numbers = [(i, n) for i, size in enumerate(sizes) for n in range(-(-size // CHUNK))]
    if not numbers:
        return
    device = s.params[0].device

    def sent(values: Any, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

    pointers = sent(
        [[t.data_ptr() for t in four] for four in zip(*parts, strict=True)], torch.int64
    )
    chunks, counts = sent(numbers, torch.int32), sent(sizes, torch.int64)
    most = max(n for _, n in numbers) + 1
    partial = torch.zeros(len(sizes), most, 2, device=device)
    shape = {"CHUNK": CHUNK, "BLOCK": BLOCK}
    _moments[(len(numbers),)](
        pointers, counts, chunks, partial, most, 1 - s.beta1, s.beta2, 1 - s.beta2, s.eps,
        s.weight_decay, 1 - s.beta1**s.step, 1 - s.beta2**s.step,
        partial if s.clip_factor is None else s.clip_factor, **shape,
        CLIP=s.clip_factor is not None,
    )  # fmt: skip
    ratios = torch.ones(len(sizes), device=device)
    if s.weight_decay:
        p_norms, u_norms = partial.double().sum(1).sqrt().float().unbind(1)
        both = (p_norms > 0) & (u_norms > 0)
        ratios = torch.where(both, p_norms / u_norms, 1.0)
    _apply[(len(numbers),)](pointers, counts, chunks, ratios, s.lr, **shape)
    torch.autograd.graph.increment_version([*s.params, *s.exp_avgs, *s.exp_avg_sqs])
