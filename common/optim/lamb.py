# SPDX-License-Identifier: Apache-2.0
"""LAMB (You et al. 2020) as MLPerf's BERT runs it.

For every matrix p with gradient g at step t (1, 2, ...)::

    m = beta1 m + (1 - beta1) g            m' = m / (1 - beta1^t)
    v = beta2 v + (1 - beta2) g^2          v' = v / (1 - beta2^t)
    u = m' / (sqrt(v') + eps) + weight_decay p
    p = p - lr * ratio * u,    ratio = |p| / |u|  (1 if either norm is zero)

The ratio applies only where weight_decay is not zero, and is not clamped. The gradient is clipped
before, by a factor (common/optim/clip.py). A fused query-key-value matrix counts as three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bertbench.common.optim.norms import tensor_norms


@dataclass(frozen=True, slots=True)
class LambStep:
    """One LAMB step of one parameter group. The four lists are parallel, float32, any shapes."""

    params: list[Tensor]
    """Updated in place."""
    grads: list[Tensor]
    """A kernel may overwrite them."""
    exp_avgs: list[Tensor]
    """The formula's m, updated in place."""
    exp_avg_sqs: list[Tensor]
    """The formula's v, updated in place."""
    segments: list[int]
    """How many equal matrices are stacked along dimension 0 of each parameter."""
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step: int
    """Counted from 1."""
    clip_factor: Tensor | None = None
    """float32 [] on the gradients' device, what they are multiplied by first; None: 1."""


LambKernel = Callable[[LambStep], None]
"""Applies one step in place. ``lamb_update`` is the reference that every kernel must equal."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups for any optimizer: matrices with ``weight_decay``, vectors without.

    Every vector of a BERT is a bias or belongs to a LayerNorm. ``segments`` is as in ``LambStep``.
    """
    segments = {
        id(parameter): getattr(module, "segments", 1)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    }
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = []
    for decay, chosen in (
        (weight_decay, [(name, p) for name, p in named if p.ndim > 1]),
        (0.0, [(name, p) for name, p in named if p.ndim <= 1]),
    ):
        pieces = [segments[id(p)] for _, p in chosen]
        groups.append({"params": chosen, "weight_decay": decay, "segments": pieces})
    return groups


class Lamb(torch.optim.Optimizer):
    """LAMB over groups made by ``parameter_groups``; every group also counts its ``step``.

    ``kernel`` replaces ``lamb_update`` by a backend's fused kernel. The state of a parameter is
    ``exp_avg`` and ``exp_avg_sq``, float32 like the parameter.
    """

    clip_factor: Tensor | None = None
    """Multiplies the next step's gradients: as a factor, clipping costs no pass over them."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        kernel: LambKernel | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "step": 0}
        super().__init__(params, defaults)
        self._update = kernel or lamb_update
        for group in self.param_groups:
            group.setdefault("segments", [1] * len(group["params"]))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["step"] += 1
            live = [
                (p, pieces)
                for p, pieces in zip(group["params"], group["segments"], strict=True)
                if p.grad is not None
            ]
            if not live:
                continue
            for p, _ in live:
                if not self.state[p]:
                    self.state[p] = {n: torch.zeros_like(p) for n in ("exp_avg", "exp_avg_sq")}
            states = [self.state[p] for p, _ in live]
            self._update(LambStep(
                [p for p, _ in live], [p.grad for p, _ in live], [x["exp_avg"] for x in states],
                [x["exp_avg_sq"] for x in states], [pieces for _, pieces in live], lr=group["lr"],
                beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"],
                weight_decay=group["weight_decay"], step=group["step"],
                clip_factor=self.clip_factor,
            ))  # fmt: skip
        self.clip_factor = None
        return loss


def lamb_update(s: LambStep) -> None:
    """Apply the formula above with torch's multi-tensor operations."""
    if s.clip_factor is not None:
        torch._foreach_mul_(s.grads, s.clip_factor)
    torch._foreach_lerp_(s.exp_avgs, s.grads, 1 - s.beta1)
    torch._foreach_mul_(s.exp_avg_sqs, s.beta2)
    torch._foreach_addcmul_(s.exp_avg_sqs, s.grads, s.grads, 1 - s.beta2)
    # m' / (sqrt(v') + eps) with both bias corrections moved onto the denominator; in place, since
    # a second temporary of the model's size costs more time than the extra pass.
    correction1, correction2 = 1 - s.beta1**s.step, 1 - s.beta2**s.step
    updates = torch._foreach_sqrt(s.exp_avg_sqs)
    torch._foreach_mul_(updates, correction1 / correction2**0.5)
    torch._foreach_add_(updates, s.eps * correction1)
    torch._foreach_reciprocal_(updates)
    torch._foreach_mul_(updates, s.exp_avgs)
    if s.weight_decay:
        torch._foreach_add_(updates, s.params, alpha=s.weight_decay)
        _scale_by_trust_ratio(matrices(updates, s.segments), matrices(s.params, s.segments))
    torch._foreach_add_(s.params, updates, alpha=-s.lr)


def matrices(tensors: Sequence[Tensor], segments: list[int]) -> list[Tensor]:
    """Return views of the single matrices: [n * R, C] with n segments becomes n of [R, C]."""
    return [part for t, n in zip(tensors, segments, strict=True) for part in t.chunk(n)]


def _scale_by_trust_ratio(updates: list[Tensor], params: list[Tensor]) -> None:
    """Multiply each update by |p| / |u|, in place, without reading a norm back to the host."""
    p_norms, u_norms = tensor_norms(params), tensor_norms(updates)
    both = (p_norms > 0) & (u_norms > 0)
    ratios = torch.where(both, p_norms / u_norms, 1.0)
    torch._foreach_mul_(updates, list(ratios.unbind()))
