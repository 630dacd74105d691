# SPDX-License-Identifier: Apache-2.0
"""Adam with decoupled weight decay and without bias correction, as BERT was fine-tuned with it.

For every parameter p with gradient g (google-research/bert, optimization.py)::

    m = beta1 m + (1 - beta1) g
    v = beta2 v + (1 - beta2) g^2
    p = p - lr * (m / (sqrt(v) + eps) + weight_decay p)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class BertAdam(torch.optim.AdamW):
    """The formula above in torch's own AdamW kernels, whichever of them a device has.

    AdamW at step t computes ``p (1 - lr w) - lr / c1 * m / (sqrt(v) / c2 + eps)`` with
    ``c1 = 1 - beta1^t`` and ``c2 = sqrt(1 - beta2^t)``. Given ``lr c1 / c2``, ``eps / c2`` and
    ``weight_decay c2 / c1`` instead, that is the formula above. The groups keep the true values.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A kernel that skips an overflowed step itself would not undo ``updates``. Where this is
        # False, a gradient scaler does not call ``step`` after an overflow.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        true = [(g["lr"], g["eps"], g["weight_decay"]) for g in self.param_groups]
        for group in self.param_groups:
            group["updates"] = group.get("updates", 0) + 1
            beta1, beta2 = group["betas"]
            c1 = 1 - beta1 ** group["updates"]
            c2 = (1 - beta2 ** group["updates"]) ** 0.5
            group["lr"] *= c1 / c2
            group["eps"] /= c2
            group["weight_decay"] *= c2 / c1
        try:
            return super().step(closure)
        finally:
            for group, (lr, eps, weight_decay) in zip(self.param_groups, true, strict=True):
                group["lr"], group["eps"], group["weight_decay"] = lr, eps, weight_decay
