# SPDX-License-Identifier: Apache-2.0
"""Count the kernels that CUDA launches for one operation on lists of tensors.

The limits are those of aten/src/ATen/native/cuda/MultiTensorApply.cuh: a launch takes so many
tensors, by the number of lists ("depth"), and so many blocks of one chunk of 65,536 elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CHUNK = 65_536
CAT_TENSORS = 128
"""Tensors that one launch of torch.cat takes (Shape.cu)."""
NORM_TENSORS = 400
"""Tensors whose partial norms one launch adds up (ForeachReduceOp.cu)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The capacity of one launch's arguments, by depth 1 to 5."""

    tensors: tuple[int, int, int, int, int]
    scalar_list_tensors: tuple[int, int, int, int, int]
    """The same if each tensor has a separate number."""
    blocks: int


LIMITS = {
    4: Limits((110, 64, 48, 36, 30), (96, 64, 48, 36, 30), 320),
    32: Limits((770, 448, 336, 252, 210), (672, 448, 336, 252, 210), 2240),
}
"""By kB of arguments: 32 in newer releases of torch (2.13 for one) built for CUDA 13, else 4."""


def multi_tensor(
    numels: Sequence[int], depth: int, limits: Limits = LIMITS[4], *, scalar_list: bool = False
) -> int:
    """Return the launches for lists of ``numels`` elements per tensor, of ``depth`` lists.

    A launch is sent when its tensors or its blocks are full; a tensor whose chunks do not fit takes
    a place in the next launch as well.
    """
    most = (limits.scalar_list_tensors if scalar_list else limits.tensors)[depth - 1]
    launched = tensors = blocks = 0
    for numel in numels:
        chunks = -(-numel // CHUNK)
        if chunks == 0:
            continue
        tensors += 1
        # The launches that this tensor's chunks fill, all but the last chunk's.
        full, blocks = divmod(blocks + chunks, limits.blocks)
        launched += full
        if full:
            tensors = 1 if blocks else 0
        if tensors == most:
            launched, tensors, blocks = launched + 1, 0, 0
    return launched + (1 if blocks else 0)
