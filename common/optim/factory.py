# SPDX-License-Identifier: Apache-2.0
"""Builds an optimizer from its name in a recipe."""

from __future__ import annotations

from typing import Any

import torch

from bertbench.common.errors import BadInput
from bertbench.common.optim.adam import BertAdam
from bertbench.common.optim.lamb import Lamb, LambKernel

OPTIMIZERS = ("lamb", "adamw", "bert_adam")


def build_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    lamb_kernel: LambKernel | None = None,
    fused: bool = True,
) -> torch.optim.Optimizer:
    """Return ``lamb``, ``adamw`` or ``bert_adam`` (no bias correction) over ``parameter_groups``.

    ``lamb_kernel`` is the backend's LAMB or None. ``fused`` requests torch's one-kernel AdamW,
    which torch refuses on devices without it. Raises BadInput for another name.
    """
    if name == "lamb":
        return Lamb(groups, lr=lr, betas=betas, eps=eps, kernel=lamb_kernel)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)
    if name == "bert_adam":
        return BertAdam(groups, lr=lr, betas=betas, eps=eps, fused=fused)
    raise BadInput(f"unknown optimizer {name!r}; choose from {', '.join(OPTIMIZERS)}")
