# SPDX-License-Identifier: Apache-2.0
"""Triton's kernels on fake tensors: each launch is counted in the place of its run."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from bertbench.backends.fused import Dropout, draw_dropout
from bertbench.backends.triton import kernels, lamb, ops
from bertbench.common.optim.lamb import LambStep
from tracing.tally import Tally


def _size(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _embed(a: dict[str, Any]) -> int:
    rows, cols = a["out"].shape
    moved = _size(a["ids"], a["positions"], a["types"], a["out"]) + 3 * rows * cols * 4
    return moved + (_size(a["xhat"], a["rstd_out"], a["gamma"], a["beta"]) if a["NORM"] else 0)


def _eight(a: dict[str, Any]) -> int:
    return _size(a["values"], a["scales"]) if a["EIGHT"] else 0


def _norm(a: dict[str, Any]) -> int:
    moved = _size(a["x"], a["out"]) + (_size(a["residual"]) if a["RESIDUAL"] else 0) + _eight(a)
    return moved + (_size(a["xhat"], a["rstd_out"], a["gamma"], a["beta"]) if a["NORM"] else 0)


def _norm_backward(a: dict[str, Any]) -> int:
    moved = _size(a["dy"], a["xhat"], a["rstd_in"], a["gamma"], a["dz_out"], a["partial"])
    return moved + (_size(a["dx_out"]) if a["DROP"] == kernels.INNER.value else 0) + _eight(a)


def _sums_into(a: dict[str, Any]) -> int:
    different = {id(out): out for out in (a["first"], a["second"], a["third"])}
    added = _size(*list(different.values())[:2]) if a["ADD"] else 0
    known = _size(a["known"]) if a["KNOWN"] else 0
    return _size(a["partial"], *different.values()) + added + known


def _cross_entropy(a: dict[str, Any]) -> int:
    moved = _size(a["logits"], a["labels"], a["loss"], a["hit"])
    return moved + (_size(a["logits"]) if a["GRADIENT"] else 0)


TRAFFIC: dict[str, Callable[[dict[str, Any]], int]] = {
    "embed_forward": _embed,
    "norm_forward": _norm,
    "norm_backward": _norm_backward,
    "eight": lambda a: _size(a["x"], a["values"], a["scales"]),
    "gelu_forward": lambda a: _size(a["u"], a["out"]) + _eight(a),
    "gelu_backward": lambda a: _size(a["dy"], a["u"], a["du"], a["partial"]) + _eight(a),
    "column_sums": lambda a: _size(a["x"], a["partial"]),
    "join": lambda a: 2 * _size(a["out"]) + _size(a["partial"]) + _eight(a),
    "sums_into": _sums_into,
    "cross_entropy": _cross_entropy,
}
"""Kernel -> the bytes that it reads and writes, of its arguments by name."""
MOMENTS, APPLY = 28, 12
"""Bytes a parameter: p, g, m, v read and m, v, update written; p, update read and p written."""


class _Launches:
    """In a kernel's place: ``kernel[grid](arguments)`` counts one launch."""

    def __init__(self, name: str, kernel: Any, tally: Tally, traffic: Callable[..., int]) -> None:
        self._name, self._tally, self._traffic = name, tally, traffic
        self._signature = inspect.signature(kernel.fn)

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*given: Any, num_warps: int = 4, **named: Any) -> None:
            bound = self._signature.bind(*given, **named)
            self._tally.launched(f"triton {self._name}", self._traffic(dict(bound.arguments)))

        return launch


def _drawn(probability: float) -> Dropout:
    with unset_fake_temporarily():  # a seed is a number of the host
        return draw_dropout(probability)


@contextlib.contextmanager
def counted(tally: Tally) -> Iterator[None]:
    """Count the launches of Triton's kernels in ``tally``, within this context."""
    with contextlib.ExitStack() as stack:
        for name, traffic in TRAFFIC.items():
            stand_in = _Launches(name, getattr(kernels, name), tally, traffic)
            stack.enter_context(mock.patch.object(kernels, name, stand_in))
        sizes: list[int] = []
        for name, each in (("_moments", MOMENTS), ("_apply", APPLY)):
            stand_in = _Launches(
                f"lamb{name}", getattr(lamb, name), tally, lambda _, each=each: each * sizes[-1]
            )
            stack.enter_context(mock.patch.object(lamb, name, stand_in))
        stack.enter_context(mock.patch.object(FakeTensor, "data_ptr", lambda _: 0, create=True))
        stack.enter_context(mock.patch.object(ops, "draw_dropout", _drawn))
        update = lamb.triton_lamb

        def sized(step: LambStep) -> None:
            sizes.append(sum(p.numel() for p in step.params))
            update(step)

        stack.enter_context(mock.patch.object(lamb, "triton_lamb", sized))
        yield
