# SPDX-License-Identifier: Apache-2.0
"""What backends with fused kernels share: dropout by a seed, and parameters in another type.

And the gather of distinct rows, whose backward pass needs no sum.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

T = TypeVar("T")


class Dropout(NamedTuple):
    """A kernel's dropout: it drops elements whose 16 random bits are below ``threshold``."""

    threshold: int
    scale: float
    seed: int


NO_DROPOUT = Dropout(0, 1.0, 0)


def draw_dropout(probability: float) -> Dropout:
    """Return dropout with a new seed and ``probability`` rounded to the nearest 1 / 65536.

    The seed is of torch's CPU generator: a restored one gives the same run again, and no device is
    waited for. Raises ValueError for a probability outside [0, 1).
    """
    if not 0 <= probability < 1:
        raise ValueError(f"dropout of {probability} is not from 0 to below 1")
    threshold = min(round(probability * 65536), 65535)
    if threshold == 0:
        return NO_DROPOUT
    seed = int(torch.empty((), dtype=torch.int64).random_())
    return Dropout(threshold, 65536 / (65536 - threshold), seed)


@dataclass(slots=True)
class _Shadow(Generic[T]):
    """A parameter's copy; ``version`` is None when it must be cast again."""

    parameter: weakref.ref[Tensor]
    cast: T
    version: int | None = None


class Shadows(Generic[T]):
    """Copies of parameters in another type, cast once per update of them.

    An update is any optimizer's step, or an in-place operation of torch (detected by the tensor's
    version counter, which writes through ``.data`` do not raise).
    """

    def __init__(self) -> None:
        self._shadows: dict[int, _Shadow[T]] = {}
        self._forget_after_updates()

    def cast(self, parameter: Tensor, known: T | None) -> T:
        """Return the copy of ``parameter``; ``known`` is the one before, to be overwritten."""
        raise NotImplementedError

    def __call__(self, parameter: Tensor) -> T:
        """Return the copy of ``parameter`` [...]."""
        shadows, key = self._shadows, id(parameter)
        known = shadows.get(key)
        if known is None or known.parameter() is not parameter:
            alive = weakref.ref(parameter, lambda _: shadows.pop(key, None))
            known = shadows[key] = _Shadow(alive, self.cast(parameter.detach(), None))
        elif known.version != parameter._version:
            known.cast = self.cast(parameter.detach(), known.cast)
        known.version = parameter._version
        return known.cast

    def _forget_after_updates(self) -> None:
        # torch's fused optimizers write parameters without raising their version.
        shadows = self._shadows

        def forget(*_: object) -> None:
            for shadow in shadows.values():
                shadow.version = None

        hook = register_optimizer_step_post_hook(forget)
        weakref.finalize(self, hook.remove)


class InComputeType(Shadows[Tensor]):
    """Parameters in the compute type: themselves, where they are of it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __call__(self, parameter: Tensor) -> Tensor:
        return parameter.detach() if parameter.dtype == self.dtype else super().__call__(parameter)

    def cast(self, parameter: Tensor, known: Tensor | None) -> Tensor:
        return parameter.to(self.dtype) if known is None else known.copy_(parameter)


class Gather(torch.autograd.Function):
    """Rows of x [T, H] by distinct indices [M]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor) -> Tensor:
        """Return [M, H] from x [T, H] and indices [M]."""
        ctx.save_for_backward(indices)
        ctx.rows = len(x)
        return x.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        return dy.new_zeros(ctx.rows, dy.shape[1]).index_copy_(0, indices, dy), None
