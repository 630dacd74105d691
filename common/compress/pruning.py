# SPDX-License-Identifier: Apache-2.0
"""2:4 structured sparsity: of each four consecutive input features a row keeps two weights.

The rule is that of NVIDIA's ASP (apex.contrib.sparsity, ``m4n2_1d``): the two largest magnitudes
stay. Where magnitudes tie, the pattern that comes first in ASP's list of six stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP, KEPT = 4, 2
ROWS, COLUMNS = 8, 16
"""A prunable weight's rows and columns are multiples of these: ASP's rule for float32 and float16,
which sparse tensor cores need."""
PATTERNS = torch.tensor(
    [[0, 1, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 1, 1]]
)
"""The six ways to keep two of four, in ASP's order: that of a set of permutations in CPython from
3.8 on, by which its ties fall."""


def is_prunable(weight: Tensor) -> bool:
    """Return whether ``weight`` [out, in] has a shape that 2:4 kernels take."""
    return weight.dim() == 2 and weight.shape[0] % ROWS == 0 and weight.shape[1] % COLUMNS == 0


def two_of_four(weight: Tensor) -> Tensor:
    """Return the mask of the kept entries of ``weight`` [out, in]: bool [out, in].

    Raises ValueError for a weight whose input features are no multiple of 4.
    """
    if weight.dim() != 2 or weight.shape[1] % GROUP:
        raise ValueError(f"2:4 sparsity needs rows of a multiple of 4, not {list(weight.shape)}")
    groups = weight.detach().abs().float().reshape(-1, GROUP)
    patterns = PATTERNS.to(groups.device)
    # Sums are those of ASP, so that ties of sums fall as there; argmax takes the first of equals.
    best = (groups @ patterns.float().T).argmax(1)
    return patterns.bool()[best].reshape(weight.shape)


def most_nonzeros(weight: Tensor) -> int:
    """Return the most nonzero entries in any group of four of ``weight`` [out, in].

    Rows that are no multiple of 4 are not 2:4, and count as 4.
    """
    if weight.dim() != 2 or weight.shape[1] % GROUP:
        return GROUP
    return int((weight.reshape(-1, GROUP) != 0).sum(1).max()) if weight.numel() else 0
