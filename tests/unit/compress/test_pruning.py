# SPDX-License-Identifier: Apache-2.0
"""2:4 masks beside a literal implementation of ASP's rule."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from bertbench.common.compress.pruning import is_prunable, most_nonzeros, two_of_four

IN_ASP_ORDER = list(set(permutations((1.0, 1.0, 0.0, 0.0))))


def literal(row: list[float]) -> list[bool]:
    """Of each four: the pattern with the largest sum of magnitudes, the first of equal ones."""
    kept: list[bool] = []
    for begin in range(0, len(row), 4):
        four = [abs(x) for x in row[begin : begin + 4]]
        sums = [sum(a * x for a, x in zip(p, four, strict=True)) for p in IN_ASP_ORDER]
        kept += [bool(bit) for bit in IN_ASP_ORDER[sums.index(max(sums))]]
    return kept


@pytest.mark.parametrize("ties", [False, True])
def test_equals_a_literal_implementation(ties: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    if ties:  # 0 to 3, exact in float32: most groups have equal magnitudes
        weight = torch.randint(-3, 4, (500, 32), generator=generator).float()
    else:
        weight = torch.randn(500, 32, generator=generator)
    assert two_of_four(weight).tolist() == [literal(row) for row in weight.double().tolist()]


def test_keeps_two_of_four_and_the_largest() -> None:
    weight = torch.randn(64, 48)
    mask = two_of_four(weight)
    assert (mask.view(-1, 4).sum(1) == 2).all()
    kept, dropped = (weight.abs().view(-1, 4)[m.view(-1, 4)] for m in (mask, ~mask))
    assert (kept.view(-1, 2).amin(1) >= dropped.view(-1, 2).amax(1)).all()
    assert torch.equal(two_of_four(weight * mask), mask)
    assert two_of_four(weight.bfloat16()).shape == weight.shape


def test_equals_modelopt() -> None:
    """NVIDIA's own successor of ASP, where it is installed."""
    magnitude = pytest.importorskip(
        "modelopt.torch.sparsity.weight_sparsity.magnitude", reason="nvidia-modelopt is absent"
    )
    weight = torch.randn(256, 128)
    assert torch.equal(
        two_of_four(weight), magnitude.create_asp_mask(weight, "2:4 sparsity").bool()
    )


def test_refuses_rows_without_fours() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        two_of_four(torch.randn(8, 6))


@pytest.mark.parametrize(
    ("shape", "prunable"),
    [((8, 16), True), ((2, 16), False), ((8, 24), False), ((12, 16), False), ((16,), False)],
)
def test_shapes_are_those_of_asp(shape: tuple[int, ...], prunable: bool) -> None:
    assert is_prunable(torch.zeros(shape)) is prunable


def test_most_nonzeros_counts_the_worst_group() -> None:
    weight = torch.zeros(2, 8)
    assert most_nonzeros(weight) == 0
    weight[0, [0, 1, 4]] = 1
    assert most_nonzeros(weight) == 2
    weight[1, 4:7] = 1
    assert most_nonzeros(weight) == 3
    assert most_nonzeros(torch.ones(2, 6)) == 4
