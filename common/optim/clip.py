# SPDX-License-Identifier: Apache-2.0
"""Clipping by global norm: g / max(1, |g| / max_norm), as MLPerf's LAMB has it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from common.optim.norms import tensor_norms


def grad_norm(params: Iterable[Tensor]) -> Tensor:
    """L2 norm of all gradients together, a float32 scalar on their device; not synchronised."""
    grads = [p.grad for p in params if p.grad is not None]
    return tensor_norms([tensor_norms(grads)])[0]


@torch.no_grad()
def clip_(params: Iterable[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale all gradients in place so that a global norm of ``norm`` becomes at most ``max_norm``.

    A norm that is not finite makes every gradient not finite: the loop must look before.
    """
    grads = [p.grad for p in params if p.grad is not None]
    torch._foreach_mul_(grads, max_norm / norm.clamp(min=max_norm))
