# SPDX-License-Identifier: Apache-2.0
"""Sums of columns: the gradients of biases, gamma and beta.

A kernel that has a gradient's rows in hand sums shares of them; another adds up the shares. Sums
that a kernel took for an earlier layer travel on the gradient (``SUMS``).

A gradient of a parameter that has one already, from an earlier micro-batch, is added to it where it
is computed (``adds_to``): autograd then gets None, and needs no kernel to add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from bertbench.backends.triton import kernels

_COLUMNS = 256
"""Columns of a program's vector."""
_PROGRAMS = 528
"""Shares of the rows where columns are summed: four on each of an H100's 132 multiprocessors."""
_SUMMED = 64
"""Columns, and shares at a time, of a program that adds up shares."""


class Summed(NamedTuple):
    """The gradient of a bias [N], and the earlier one that it already contains, if any."""

    total: Tensor
    earlier: Tensor | None
    version: int


class _Sums:
    """Column sums that a kernel took of a gradient, kept on it for its next reader.

    Autograd hands the same tensor on, unless it adds another gradient to it: that raises its
    version, or makes a new tensor, and the sums are taken anew.
    """

    _NAME = "_bertbench_column_sums"

    def put(self, gradient: Tensor, sums: Tensor | Summed) -> None:
        setattr(gradient, self._NAME, (gradient._version, sums))

    def pop(self, gradient: Tensor) -> Tensor | Summed | None:
        """Return the sums of ``gradient`` [T, N], partial ones as [P, 1, N]; None: not known."""
        version, sums = gradient.__dict__.pop(self._NAME, (None, None))
        return sums if version == gradient._version else None


SUMS = _Sums()


def column_sums(x: Tensor) -> Tensor:
    """Return the sums over shares of the rows of x [T, N], float32 [P, 1, N]."""
    rows, cols = x.shape
    programs, share = shares(rows)
    partial = torch.empty(programs, 1, cols, device=x.device)
    grid = (triton.cdiv(cols, _COLUMNS), programs)
    kernels.column_sums[grid](x, partial, rows, cols, share, BLOCK=_COLUMNS)
    return partial


def adds_to(parameter: Tensor | None) -> bool:
    """Return whether a gradient may be added to ``parameter``'s without autograd.

    Between ranks it must pass through autograd, where DDP takes it. torch.autograd.grad, which the
    suite does not call, would not get it.
    """
    if parameter is None or not (parameter.is_leaf and parameter.requires_grad):
        return False
    if (known := parameter.grad) is None:
        return False
    ranks = torch.distributed
    alone = not (ranks.is_available() and ranks.is_initialized()) or ranks.get_world_size() == 1
    return alone and known.dtype == torch.float32 and known.is_contiguous()


def sums_for(partial: Tensor, *parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the sums of ``partial`` [P, 1 or 2, N], a gradient [N] for each parameter.

    None where they were added to those that the parameters have.
    """
    outs, adds = _gradients(partial, parameters)
    _sum_into(partial, [*outs, *outs, *outs][:3], adds, None)
    return (None,) * len(outs) if adds else tuple(outs)


def norm_sums(
    partial: Tensor, gamma: Tensor, beta: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Summed]:
    """Return the gradients of gamma and beta as ``sums_for``, and of ``bias``, of [P, 3, N].

    The bias's is not written to ``bias``: autograd may add to the gradient that it is the sum of.
    """
    outs, adds = _gradients(partial, (gamma, beta))
    total = torch.empty_like(outs[0])
    earlier = bias.grad if bias is not None and adds_to(bias) else None
    _sum_into(partial, [*outs, total], adds, earlier)
    summed = Summed(total, earlier, 0 if earlier is None else earlier._version)
    return (None, None, summed) if adds else (outs[0], outs[1], summed)


def bias_grad(dy: Tensor, known: Tensor | Summed | None, bias: Tensor) -> Tensor | None:
    """Return the sums of dy [T, N] as ``sums_for``; ``known`` is what is known of them."""
    if isinstance(known, Summed):
        now = bias.grad if adds_to(bias) else None
        if known.earlier is now and (now is None or now._version == known.version):
            if now is None:
                return known.total
            bias.grad = known.total
            return None
        known = None
    return sums_for(column_sums(dy) if known is None else known, bias)[0]


def _gradients(partial: Tensor, parameters: Sequence[Tensor | None]) -> tuple[list[Tensor], bool]:
    """Return where the parameters' gradients [N] are written, and whether they are added there."""
    found = [p.grad for p in parameters if p is not None and adds_to(p) and p.grad is not None]
    if len(found) == len(parameters):
        return found, True
    return [torch.empty(partial.shape[2], device=partial.device) for _ in parameters], False


def _sum_into(partial: Tensor, outs: list[Tensor], adds: bool, known: Tensor | None) -> None:
    programs, number, cols = partial.shape
    kernels.sums_into[(triton.cdiv(cols, _SUMMED), number)](
        partial, *outs, partial if known is None else known, programs, partial.stride(0), cols,
        BLOCK=_SUMMED, ROWS=_SUMMED, ADD=adds, KNOWN=known is not None,
    )  # fmt: skip


def shares(rows: int) -> tuple[int, int]:
    """Return the number of programs that sum over ``rows``, and the rows of each."""
    share = max(1, -(-rows // _PROGRAMS))
    return max(1, -(-rows // share)), share
