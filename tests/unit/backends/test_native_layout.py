# SPDX-License-Identifier: Apache-2.0
"""Native attention over kept blocks equals dense attention with minus infinity elsewhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertbench.backends.cpu_ref.functions import Attention, keep_mask
from bertbench.backends.cpu_ref.layout import (
    DENSE,
    Layout,
    candidates,
    saved_cells,
    why_no_layout,
)
from bertbench.backends.fused import NO_DROPOUT, Dropout, draw_dropout
from bertbench.common.data.batch import Tokens
from bertbench.common.native import NativeUnavailable

try:
    from bertbench.backends.cpu_ref.kernels import NativeOps, load

    load()
except NativeUnavailable as error:
    pytest.skip(f"no native kernels: {error}", allow_module_level=True)


def tokens(lengths: list[int]) -> Tokens:
    zeros = torch.zeros(sum(lengths), dtype=torch.long)
    return Tokens(
        input_ids=zeros,
        segment_ids=zeros,
        position_ids=torch.cat([torch.arange(n) for n in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        lengths=tuple(lengths),
    )


def dense(qkv: Tensor, lengths: list[int], heads: int, masks: Any, drop: Dropout) -> Tensor:
    """Attention by its definition: [T, 3H] -> [T, H]; a query without keys gives zeros."""
    hidden, first, out = qkv.shape[1] // 3, 0, []
    for part in qkv.split(lengths):
        n = len(part)
        q, k, v = part.view(n, 3, heads, -1).permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) / math.sqrt(hidden // heads)
        allowed = torch.from_numpy(masks[:, :n, :n]).expand(heads, n, n)
        weights = torch.softmax(scores.masked_fill(~allowed, -math.inf), -1).nan_to_num()
        kept = keep_mask(drop, n * heads, n, first * heads).view(n, heads, n).transpose(0, 1)
        out.append(((weights * kept * drop.scale) @ v).transpose(0, 1).reshape(n, hidden))
        first += n
    return torch.cat(out)


def both_passes(output: Tensor, qkv: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    return output.detach().double(), torch.autograd.grad(output, qkv, dy)[0].double()


def masks_of(kind: str, n: int, count: int, seed: int) -> Any:
    """Masks of one kind, bool [count, n, n]."""
    rng, i = np.random.default_rng(seed), np.arange(n)
    distance = abs(i[:, None] - i)
    if kind == "scattered":
        mask = (rng.random((count, n, n)) < 0.1) | (distance == 0)
    elif kind == "without_keys":  # for some queries
        mask = rng.random((count, n, n)) < 0.02
    elif kind == "window":
        mask = np.stack([(distance <= w) | (i == 0) for w in rng.integers(0, 20, count)])
    else:
        mask = np.stack([i[:, None] // 32 == i // 32 for _ in range(count)])
    return mask


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["scattered", "without_keys", "window", "blocks"]),
    longest=st.sampled_from([1, 15, 16, 17, 64, 100, 145]),
    block=st.sampled_from([16, 32, 48, 64]),
    heads=st.sampled_from([1, 3]),
    size=st.sampled_from([16, 32]),
    shared=st.booleans(),
    dropout=st.sampled_from([0.0, 0.3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_it_equals_masked_dense_attention(
    kind: str, longest: int, block: int, heads: int, size: int, shared: bool, dropout: float,
    dtype: torch.dtype, seed: int, data: st.DataObject,
) -> None:  # fmt: skip
    lengths = data.draw(st.lists(st.integers(1, longest), min_size=1, max_size=3))
    masks = masks_of(kind, longest, 1 if shared else heads, seed)
    torch.manual_seed(seed)
    drop = draw_dropout(dropout)
    qkv = torch.randn(sum(lengths), 3 * heads * size).to(dtype).requires_grad_()
    dy = torch.randn(sum(lengths), heads * size).to(dtype)
    layout = Layout.of(masks, heads=heads, block=block)
    assert why_no_layout(layout, np.array([longest])) is None
    own = both_passes(Attention.apply(qkv, tokens(lengths), heads, drop, True, layout), qkv, dy)
    exact = qkv.detach().double().requires_grad_()
    right = both_passes(dense(exact, lengths, heads, masks, drop), exact, dy.double())
    limit = 1e-5 if dtype == torch.float32 else 3e-2
    for mine, wanted in zip(own, right, strict=True):
        assert (mine - wanted).abs().max() <= limit * max(1.0, float(wanted.abs().max()))


def test_a_full_mask_is_dense_attention_and_keeps_as_much() -> None:
    layout = Layout.of(np.ones((1, 50, 50), bool), heads=2, block=48)
    qkv = torch.randn(80, 3 * 32, requires_grad=True)
    dy, ragged = torch.randn(80, 32), tokens([50, 30])
    full = both_passes(Attention.apply(qkv, ragged, 2, NO_DROPOUT, True, layout), qkv, dy)
    plain = both_passes(Attention.apply(qkv, ragged, 2, NO_DROPOUT, True), qkv, dy)
    assert all(map(torch.equal, full, plain)) and layout.bits is None
    lengths = np.array([50, 30])
    assert (saved_cells(lengths, 2, layout) == saved_cells(lengths, 2)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_of_the_blocks_changes_no_bit(dtype: torch.dtype) -> None:
    """So that a choice by measured cost does not change what a run learns."""
    torch.manual_seed(0)
    qkv = torch.randn(300, 3 * 64).to(dtype).requires_grad_()
    dy, ragged = torch.randn(300, 64).to(dtype), tokens([170, 130])
    masks, drop = (
        masks_of("scattered", 170, 2, 0) & masks_of("window", 170, 2, 0),
        Dropout(6554, 1.1, 5),
    )
    found = [
        both_passes(Attention.apply(qkv, ragged, 2, drop, True, layout), qkv, dy)
        for layout in candidates(masks, heads=2).values()
    ]
    assert len(found) == 3
    for one in found[1:]:
        assert all(map(torch.equal, one, found[0]))


def test_operations_compute_a_mask_by_the_route_they_are_given() -> None:
    ops, mask = NativeOps(torch.float32), torch.from_numpy(masks_of("blocks", 64, 1, 0))
    qkv, once = torch.randn(64, 3 * 32), tokens([64])
    routes = ops.masked_routes(mask, 2)
    before = ops.masked_attention(qkv, once, mask, num_heads=2, dropout=0.0)
    for route in routes.values():
        ops.use_route(mask, route)
        assert torch.equal(ops.masked_attention(qkv, once, mask, num_heads=2, dropout=0.0), before)
    ops.use_route(mask, Layout.of(np.ones((1, 64, 64), bool), heads=2, block=16))
    dense_ = ops.attention(qkv, once, num_heads=2, dropout=0.0)
    assert torch.equal(ops.masked_attention(qkv, once, mask, num_heads=2, dropout=0.0), dense_)


def test_memory_grows_with_the_kept_keys() -> None:
    def cells(n: int) -> int:
        masks = masks_of("blocks", n, 1, 0)
        return int(saved_cells(np.array([n]), 1, Layout.of(masks, heads=1, block=32))[0, 0])

    assert cells(512) == 512 * 32 and cells(1024) == 2 * cells(512)


@pytest.mark.parametrize(
    "change",
    [
        {"queries": 24},
        {"longest": 16},
        {"edges": 4},
        {"tiles": torch.tensor([[0, 1, 3]])},
        {"tiles": torch.tensor([[1, 1, 2]])},
        {"runs": torch.tensor([[0, 40], [32, 64]], dtype=torch.int32)},
        {"runs": torch.tensor([[-16, 32], [32, 64]], dtype=torch.int32)},
        {"runs": torch.tensor([[0, 32], [32, 80]], dtype=torch.int32)},
        {"runs": torch.tensor([[32, 32], [32, 64]], dtype=torch.int32)},
        {"tiles": torch.tensor([[0, 2, 2]])},  # two runs that touch
        {"which": torch.tensor([0, 1])},
        {"bits": torch.zeros(1, 64, 3, dtype=torch.int16)},
    ],
)
def test_a_layout_that_would_read_elsewhere_is_refused(change: dict[str, Any]) -> None:
    good = Layout.of(masks_of("blocks", 64, 1, 0), heads=2, block=32)
    qkv = torch.randn(64, 3 * 32)
    Attention.apply(qkv, tokens([64]), 2, NO_DROPOUT, False, good)
    with pytest.raises((ValueError, LookupError)):
        Attention.apply(qkv, tokens([64]), 2, NO_DROPOUT, False, good._replace(**change))


def test_longer_sequences_than_the_mask_are_refused() -> None:
    layout = Layout.of(masks_of("blocks", 64, 1, 0), heads=1, block=32)
    with pytest.raises(ValueError, match="masks of 64 positions"):
        Attention.apply(torch.randn(65, 48), tokens([65]), 1, NO_DROPOUT, False, layout)
    assert layout != DENSE
