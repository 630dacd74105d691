# SPDX-License-Identifier: Apache-2.0
"""The division of a global batch: it changes speed and memory only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bertbench.common.config.recipe import Impl
from bertbench.common.errors import BadInput

AUTO: Final = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Micro-batches per rank and step."""

    micro_batch: int
    accumulation: int
    world_size: int


def split(global_batch: int, micro: int | None, largest: int, world_size: int) -> Split:
    """Return the division for ``micro``, or for the largest divisor up to ``largest``.

    Raises BadInput where the batch does not divide.
    """
    per_rank, rest = divmod(global_batch, world_size)
    if rest or not per_rank:
        raise BadInput(
            f"the recipe's global batch {global_batch} cannot be shared by {world_size} "
            f"processes: use a number of processes that divides it (NPROC=...), or --global_batch"
        )
    fitting = divisors(per_rank)
    if micro is None:
        micro = max(m for m in fitting if m <= max(largest, 1))
    if micro not in fitting:
        raise BadInput(
            f"--micro_batch {micro} does not divide the {per_rank} sequences that each of "
            f"{world_size} processes trains per step; possible: {', '.join(map(str, fitting))}"
        )
    return Split(micro_batch=micro, accumulation=per_rank // micro, world_size=world_size)


def requested(global_batch: int, impl: Impl, world_size: int) -> Split:
    """Return the division that the settings ask for; ``auto`` starts from the default.

    Raises BadInput where the batch does not divide.
    """
    micro = None if impl.micro_batch == AUTO else impl.micro_batch
    return split(global_batch, micro, impl.max_micro_batch, world_size)


def divisors(n: int) -> Sequence[int]:
    """Return the divisors of n, ascending."""
    small = [m for m in range(1, math.isqrt(n) + 1) if n % m == 0]
    return [*small, *(n // m for m in reversed(small) if m * m != n)]
