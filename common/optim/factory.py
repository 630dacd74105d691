# SPDX-License-Identifier: Apache-2.0
"""Build an optimizer from a recipe's words."""

from __future__ import annotations

from typing import Any

import torch

from bertbench.common.errors import BadInput
from bertbench.common.optim.adam import BertAdam
from bertbench.common.optim.lamb import Lamb, LambUpdate

OPTIMIZERS = ("lamb", "adamw", "bert_adam")


def build_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    lamb_kernel: LambUpdate | None = None,
    fused: bool = True,
) -> torch.optim.Optimizer:
    """``lamb``, ``adamw`` or ``bert_adam`` (no bias correction) over ``parameter_groups``.

    ``lamb_kernel`` is the backend's LAMB or None; ``fused`` asks torch for its one-kernel AdamW,
    which torch itself refuses on devices that have none. Raises BadInput for another name.
    """
    if name == "lamb":
        return Lamb(groups, lr=lr, betas=betas, eps=eps, kernel=lamb_kernel)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)
    if name == "bert_adam":
        return BertAdam(groups, lr=lr, betas=betas, eps=eps, fused=fused)
    raise BadInput(f"unknown optimizer {name!r}; choose from {', '.join(OPTIMIZERS)}")
