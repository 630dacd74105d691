# SPDX-License-Identifier: Apache-2.0
"""The routes of masked attention equal dense attention with minus infinity elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertbench.backends.cpu_ref.functions import keep_mask
from bertbench.backends.cpu_ref.layout import Layout, saved_cells
from bertbench.backends.cpu_ref.offsets import OffsetAttention, Offsets
from bertbench.backends.cpu_ref.residues import Residues
from bertbench.backends.cpu_ref.routes import Route, attend, candidates
from bertbench.backends.fused import NO_DROPOUT, Dropout, draw_dropout
from bertbench.common.data.batch import Tokens
from bertbench.common.masks.patterns import parse
from bertbench.common.native import NativeUnavailable

try:
    from bertbench.backends.cpu_ref.library import library

    library()
except NativeUnavailable as error:
    pytest.skip(f"no native kernels: {error}", allow_module_level=True)


def tokens(lengths: list[int]) -> Tokens:
    zeros = torch.zeros(sum(lengths), dtype=torch.long)
    return Tokens(
        input_ids=zeros, segment_ids=zeros, position_ids=zeros,
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(), lengths=tuple(lengths),
    )  # fmt: skip


def order_of(route: Route, lengths: list[int], sequence: int, head: int) -> Tensor:
    """The order in which a route's dropout counts the tokens of a sequence, int64 [n]."""
    n = lengths[sequence]
    if not isinstance(route, Residues):
        return torch.arange(n)
    layout = route.layout(tuple(lengths))
    assert layout.places is not None and layout.which is not None
    return layout.places[layout.which[sequence, head], :n].long()


def dense(
    qkv: Tensor, lengths: list[int], heads: int, masks: Any, drop: Dropout, route: Route
) -> Tensor:
    """Attention by its definition: [T, 3H] -> [T, H]; a query without keys gives zeros."""
    hidden, first, out = qkv.shape[1] // 3, 0, []
    for at, part in enumerate(qkv.split(lengths)):
        n = len(part)
        q, k, v = part.view(n, 3, heads, -1).permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) * (hidden // heads) ** -0.5
        allowed = torch.from_numpy(masks[:, :n, :n]).expand(heads, n, n)
        weights = torch.softmax(scores.masked_fill(~allowed, -torch.inf), -1).nan_to_num()
        drawn = keep_mask(drop, n * heads, n, first * heads).view(n, heads, n).transpose(0, 1)
        kept = torch.empty_like(drawn)
        for head in range(heads):
            order = order_of(route, lengths, at, head)
            kept[head][order[:, None], order] = drawn[head]
        out.append(((weights * kept * drop.scale) @ v).transpose(0, 1).reshape(n, hidden))
        first += n
    return torch.cat(out)


def both_passes(output: Tensor, qkv: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    return output.detach().double(), torch.autograd.grad(output, qkv, dy)[0].double()


def toeplitz(n: int, steps: list[set[int]]) -> Any:
    """Masks with the given distances key - query, bool [len(steps), n, n]."""
    at = np.arange(n)
    return np.stack([np.isin(at - at[:, None], sorted(own)) for own in steps])


def check(
    route: Route, masks: Any, lengths: list[int], heads: int, size: int, dropout: float,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    drop = draw_dropout(dropout)
    qkv = torch.randn(sum(lengths), 3 * heads * size).to(dtype).requires_grad_()
    dy = torch.randn(sum(lengths), heads * size).to(dtype)
    own = both_passes(attend(qkv, tokens(lengths), heads, drop, True, route), qkv, dy)
    exact = qkv.detach().double().requires_grad_()
    right = both_passes(dense(exact, lengths, heads, masks, drop, route), exact, dy.double())
    limit = 1e-5 if dtype == torch.float32 else 3e-2
    for mine, wanted in zip(own, right, strict=True):
        assert (mine - wanted).abs().max() <= limit * max(1.0, float(wanted.abs().max()))


shapes: Any = {
    "longest": st.sampled_from([1, 2, 15, 16, 17, 64, 100, 145]),
    "heads": st.sampled_from([1, 3]),
    "size": st.sampled_from([16, 32, 48, 64, 80]),
    "shared": st.booleans(),
    "dropout": st.sampled_from([0.0, 0.3]),
    "dtype": st.sampled_from([torch.float32, torch.bfloat16]),
    "seed": st.integers(0, 1000),
    "data": st.data(),
}


@settings(max_examples=80, deadline=None)
@given(symmetric=st.booleans(), **shapes)
def test_offsets_equal_masked_dense_attention(
    longest: int, heads: int, size: int, shared: bool, dropout: float, dtype: torch.dtype,
    seed: int, data: st.DataObject, symmetric: bool,
) -> None:  # fmt: skip
    lengths = data.draw(st.lists(st.integers(1, longest), min_size=1, max_size=3))
    distances = st.sets(st.integers(1 - longest, longest - 1), max_size=longest // 4)
    steps = [data.draw(distances) for _ in range(1 if shared else heads)]
    if symmetric:
        steps = [own | {-step for step in own} for own in steps]
    masks = toeplitz(longest, steps)
    route = Offsets.of(masks, heads=heads)
    assert route is not None
    torch.manual_seed(seed)
    check(route, masks, lengths, heads, size, dropout, dtype)


@settings(max_examples=60, deadline=None)
@given(block=st.sampled_from([16, 32, 48]), **shapes)
def test_residues_equal_masked_dense_attention(
    longest: int, heads: int, size: int, shared: bool, dropout: float, dtype: torch.dtype,
    seed: int, data: st.DataObject, block: int,
) -> None:  # fmt: skip
    lengths = data.draw(st.lists(st.integers(1, longest), min_size=1, max_size=3))
    count = 1 if shared else heads
    strides = [data.draw(st.sampled_from([1, 2, 3, 4, 7, 64])) for _ in range(count)]
    kinds = [data.draw(st.sampled_from(["strided", "fixed"])) for _ in range(count)]
    masks = np.stack([
        parse(f"{kind}:stride={stride}").bits(longest)
        for kind, stride in zip(kinds, strides, strict=True)
    ])  # fmt: skip
    masks &= np.random.default_rng(seed).random(masks.shape) < data.draw(st.sampled_from([0.9, 1]))
    which = np.arange(heads) % count
    route = Residues(masks, which, strides, block)
    torch.manual_seed(seed)
    check(route, masks, lengths, heads, size, dropout, dtype)


def test_dropout_of_offsets_is_that_of_kept_blocks() -> None:
    masks = parse("logsparse").bits(100)[None]
    route, blocks = Offsets.of(masks, heads=2), Layout.of(masks, heads=2, block=32)
    assert route is not None
    qkv, dy = torch.randn(160, 3 * 32, requires_grad=True), torch.randn(160, 32)
    drop, batch = draw_dropout(0.5), tokens([100, 60])
    one = both_passes(attend(qkv, batch, 2, drop, True, route), qkv, dy)
    two = both_passes(attend(qkv, batch, 2, drop, True, blocks), qkv, dy)
    for mine, wanted in zip(one, two, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pattern", "stride"), [("strided", 4), ("fixed", 4)])
def test_the_stride_is_found_in_the_mask(pattern: str, stride: int) -> None:
    masks = parse(pattern).bits(512)[None]
    route = Residues.of(masks, heads=2, block=16)
    assert route is not None and route.strides == [stride]
    before = saved_cells(np.array([512]), 2, Layout.of(masks, heads=2, block=16)).sum()
    after = saved_cells(np.array([512]), 2, route.layout((512,))).sum()
    assert after < 0.5 * before


def test_masks_of_another_form_have_no_route() -> None:
    scattered = np.random.default_rng(0).random((1, 64, 64)) < 0.5
    dense_toeplitz = parse("dense").bits(64)[None]
    for masks in (scattered, dense_toeplitz):
        assert Offsets.of(masks, heads=2) is None
    window = parse("longformer:window=3,globals=").bits(128)[None]
    assert Residues.of(window, heads=2, block=16) is None
    assert "offsets" in candidates(window, heads=2)


def test_longer_sequences_than_the_mask_are_refused() -> None:
    masks = parse("strided").bits(64)[None]
    for route in candidates(masks, heads=1).values():
        with pytest.raises(ValueError, match="masks of 64 positions"):
            attend(torch.randn(65, 48), tokens([65]), 1, NO_DROPOUT, False, route)


@pytest.mark.parametrize("places", [[0, 0, 1, 2], [0, 1, 2, 4], [-1, 0, 1, 2], [0, 1, 2]], ids=str)
def test_an_order_that_is_none_is_refused(places: list[int]) -> None:
    layout = Layout.of(np.ones((1, 4, 4), bool), heads=1, block=16)
    wrong = layout._replace(places=torch.tensor([places], dtype=torch.int32))
    with pytest.raises(ValueError, match="places"):
        attend(torch.randn(4, 48), tokens([4]), 1, NO_DROPOUT, False, wrong)


@pytest.mark.parametrize(
    "steps", [torch.arange(15), torch.arange(16).flip(0), torch.full((16,), 2**31 - 1)]
)
def test_steps_that_the_kernel_cannot_search_are_refused(steps: Tensor) -> None:
    kept = Offsets(torch.zeros(1, dtype=torch.int64), steps.int()[None], 4)
    with pytest.raises(ValueError, match="steps that do not ascend"):
        OffsetAttention.apply(torch.randn(4, 48), tokens([4]), 1, NO_DROPOUT, False, kept)
