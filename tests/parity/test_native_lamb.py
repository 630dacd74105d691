# SPDX-License-Identifier: Apache-2.0
"""cpu_ref's fused LAMB against the plain update of common/optim/lamb.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bertbench.common.native import NativeUnavailable
from bertbench.common.optim.lamb import LambKernel, LambStep, lamb_update

try:
    from bertbench.backends.cpu_ref.kernels import load
    from bertbench.backends.cpu_ref.lamb import native_lamb

    load()
except NativeUnavailable as error:
    pytest.skip(f"no native kernels: {error}", allow_module_level=True)

SHAPES = [(300, 64), (192, 64), (700, 129), (7, 3), (5,), (16,)]
SEGMENTS = [1, 3, 1, 1, 1, 1]


def run(
    update: LambKernel, weight_decay: float, steps: int = 20, clip: float | None = None
) -> list[list[Tensor]]:
    torch.manual_seed(0)
    params = [torch.randn(shape) for shape in SHAPES]
    params[3].zero_()  # |p| = 0: the ratio is 1
    state = [[torch.zeros(shape) for shape in SHAPES] for _ in range(2)]
    for step in range(1, steps + 1):
        grads = [torch.randn(shape) for shape in SHAPES]
        grads[4].zero_()  # u = 0 without decay
        numbers = (0.01, 0.9, 0.999, 1e-6, weight_decay, step)
        factor = None if clip is None else torch.tensor(clip)
        update(LambStep(params, grads, *state, SEGMENTS, *numbers, clip_factor=factor))
    return [params, *state]


@pytest.mark.parametrize(("weight_decay", "clip"), [(0.01, None), (0.0, None), (0.01, 0.2)])
def test_equals_the_plain_update(weight_decay: float, clip: float | None) -> None:
    for got, want in zip(
        run(native_lamb, weight_decay, clip=clip), run(lamb_update, weight_decay, clip=clip),
        strict=True,
    ):  # fmt: skip
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def test_result_does_not_depend_on_threads() -> None:
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(run(native_lamb, 0.01, steps=3))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_autograd_sees_that_parameters_changed() -> None:
    weight = torch.ones(4, 4, requires_grad=True)
    y = (weight * weight).sum()
    with torch.no_grad():
        moments = [torch.zeros(4, 4)], [torch.zeros(4, 4)]
        numbers = (0.1, 0.9, 0.999, 1e-6, 0.01, 1)
        native_lamb(LambStep([weight], [torch.ones(4, 4)], *moments, [1], *numbers))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
