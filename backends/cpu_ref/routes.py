# SPDX-License-Identifier: Apache-2.0
"""The ways in which the native kernels can compute one mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bertbench.backends.cpu_ref import layout
from bertbench.backends.cpu_ref.functions import Attention
from bertbench.backends.cpu_ref.layout import BLOCKS, Layout
from bertbench.backends.cpu_ref.offsets import OffsetAttention, Offsets
from bertbench.backends.cpu_ref.residues import Residues
from bertbench.backends.fused import Dropout
from bertbench.common.data.batch import Tokens

Route = Layout | Residues | Offsets


def candidates(masks: NDArray[np.bool_], *, heads: int) -> dict[str, Route]:
    """Return the routes of ``masks``, bool [1 or heads, N, N], of which one is the fastest.

    All give the same results up to rounding and which probabilities dropout removes.
    """
    found: dict[str, Route | None] = {**layout.candidates(masks, heads=heads)}
    found["offsets"] = Offsets.of(masks, heads=heads)
    for block in BLOCKS:
        found[f"residues-{block}"] = Residues.of(masks, heads=heads, block=block)
    return {name: route for name, route in found.items() if route is not None}


def attend(
    qkv: Tensor, tokens: Tokens, heads: int, drop: Dropout, save: bool, route: Route
) -> Tensor:
    """Return attention by ``route``: [T, 3H] -> [T, H]; ``save`` keeps what backward needs.

    Raises ValueError for a sequence that is longer than the route's masks.
    """
    if isinstance(route, Offsets):
        return OffsetAttention.apply(qkv, tokens, heads, drop, save, route)
    if isinstance(route, Residues):
        route = route.layout(tuple(tokens.lengths))
    return Attention.apply(qkv, tokens, heads, drop, save, route)
