# SPDX-License-Identifier: Apache-2.0
"""LAMB as one kernel call per parameter group; equals common/optim/lamb.py up to rounding."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from bertbench.backends.cpu_ref.library import library

CHUNK = 1 << 14
"""CHUNK of lamb.h: elements per partial norm."""


def native_lamb(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    segments: list[int],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """One step in place on ``params`` and moments: float32 and contiguous, as Lamb makes them."""
    grads = [g.contiguous() for g in grads]
    for tensors in (params, grads, exp_avgs, exp_avg_sqs):
        assert all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    sizes = [p.numel() // n for p, n in zip(params, segments, strict=True) for _ in range(n)]
    count = len(sizes)

    def pointers(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
        starts = [
            t.data_ptr() + i * (t.numel() // n) * 4
            for t, n in zip(tensors, segments, strict=True)
            for i in range(n)
        ]
        return (ctypes.c_void_p * count)(*starts)

    partial = torch.empty(-(-max(sizes) // CHUNK), 2, dtype=torch.float64)
    library()["lamb"](
        count, (ctypes.c_int64 * count)(*sizes), pointers(params), pointers(grads),
        pointers(exp_avgs), pointers(exp_avg_sqs), partial.data_ptr(), lr, beta1, beta2, eps,
        weight_decay, step,
    )  # fmt: skip
    torch.autograd.graph.increment_version([*params, *exp_avgs, *exp_avg_sqs])
