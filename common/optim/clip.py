# SPDX-License-Identifier: Apache-2.0
"""Clipping by norm: g / max(1, |g| / max_norm), of all gradients together or of each matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from bertbench.common.optim.norms import tensor_norms


def grad_norm(params: Iterable[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients together, float32 [] on their device, not synchronised.

    Parameters have any shape [...].
    """
    grads = [p.grad for p in params if p.grad is not None]
    return tensor_norms([tensor_norms(grads)])[0]


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """Return what bounds gradients of ``norm`` [] to ``max_norm``; 0 or NaN if it is not finite."""
    return max_norm / norm.clamp(min=max_norm)


@torch.no_grad()
def clip_(params: Iterable[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale all gradients [...] in place so that their global ``norm`` [] is at most ``max_norm``.

    A norm that is not finite makes every gradient not finite: the caller must check it first.
    """
    grads = [p.grad for p in params if p.grad is not None]
    torch._foreach_mul_(grads, clip_factor(norm, max_norm))


@torch.no_grad()
def clip_each_(groups: Iterable[Mapping[str, Any]], max_norm: float) -> None:
    """Scale each gradient in place so that its own norm is at most ``max_norm``.

    ``groups`` are an optimizer's. Where they have ``segments`` (``parameter_groups``), each of a
    parameter's stacked matrices is clipped by itself, as in BERTs that hold them apart.
    """
    pieces: list[Tensor] = []
    for group in groups:
        segments = group.get("segments") or [1] * len(group["params"])
        for p, number in zip(group["params"], segments, strict=True):
            if p.grad is not None:
                pieces += p.grad.chunk(number)
    scale = max_norm / tensor_norms(pieces).clamp(min=max_norm)
    torch._foreach_mul_(pieces, list(scale.unbind()))
