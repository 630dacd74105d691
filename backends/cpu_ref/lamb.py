# SPDX-License-Identifier: Apache-2.0
"""LAMB as one kernel call per parameter group; equals common/optim/lamb.py up to rounding."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from bertbench.backends.cpu_ref.library import library
from bertbench.common.optim.lamb import LambStep

CHUNK = 1 << 14
"""CHUNK of lamb.h: elements per partial norm."""


def native_lamb(s: LambStep) -> None:
    """Apply one step; parameters and moments must be contiguous, as Lamb makes them.

    Raises ValueError, before memory is touched, where a gradient or moment has another shape or
    type than its parameter, or segments do not divide it.
    """
    grads = [g.contiguous() for g in s.grads]
    for p, n, *others in zip(s.params, s.segments, grads, s.exp_avgs, s.exp_avg_sqs, strict=True):
        for t in (p, *others):
            if (
                t.dtype != torch.float32
                or t.shape != p.shape
                or not (t.is_cpu and t.is_contiguous())
            ):
                raise ValueError(f"lamb: {t.dtype} {list(t.shape)} for {list(p.shape)} in float32")
        if n < 1 or (n > 1 and (p.ndim < 1 or len(p) % n)):
            raise ValueError(f"lamb: {n} segments do not divide {list(p.shape)}")
    if s.step < 1:
        raise ValueError(f"lamb: step {s.step} is not counted from 1")
    sizes = [p.numel() // n for p, n in zip(s.params, s.segments, strict=True) for _ in range(n)]
    count = len(sizes)

    def pointers(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
        starts = [
            t.data_ptr() + i * (t.numel() // n) * 4
            for t, n in zip(tensors, s.segments, strict=True)
            for i in range(n)
        ]
        return (ctypes.c_void_p * count)(*starts)

    partial = torch.empty(-(-max(sizes, default=0) // CHUNK), 2, dtype=torch.float64)
    library()["lamb"](
        count, (ctypes.c_int64 * count)(*sizes), pointers(s.params), pointers(grads),
        pointers(s.exp_avgs), pointers(s.exp_avg_sqs), partial.data_ptr(), s.lr, s.beta1, s.beta2,
        s.eps, s.weight_decay, s.step, 1.0 if s.clip_factor is None else float(s.clip_factor),
    )  # fmt: skip
    torch.autograd.graph.increment_version([*s.params, *s.exp_avgs, *s.exp_avg_sqs])
