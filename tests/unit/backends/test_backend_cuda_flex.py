# SPDX-License-Identifier: Apache-2.0
"""Attention by FlexAttention on the CPU: its tables, masks, dropout, and when it is chosen.

torch has no backward pass of FlexAttention for the CPU and refuses it by a check of the device;
without that check its reference implementation computes one here. The kernels that a GPU runs are
compared by tools/device_check.py and the contract tests.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as torchs

from bertbench.backends.cuda import flex
from bertbench.backends.cuda.blocks import BLOCK, Layout, MaskCounts, Tables
from bertbench.backends.cuda.flex import FlexOps
from bertbench.backends.selfcheck import attention_why_not
from bertbench.common.errors import BadInput
from bertbench.common.model.ops import Ops

HOST = torch.device("cpu")


def tokens(*lengths: int) -> Any:
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    return SimpleNamespace(lengths=lengths, max_length=max(lengths), cu_seqlens=starts)


def random_mask(masks: int, length: int, seed: int, *, block: int = BLOCK) -> Tensor:
    """Masks with full, empty and other blocks, and without empty rows."""
    generator = torch.Generator().manual_seed(seed)
    parts = -(-length // block)
    kind = torch.rand(masks, parts, parts, generator=generator)
    kind = kind.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :length, :length]
    mask = (kind < 0.3) | ((kind < 0.6) & (torch.rand(kind.shape, generator=generator) < 0.01))
    mask.diagonal(dim1=1, dim2=2).fill_(True)
    return mask


def dense(pair: tuple[Tensor, Tensor]) -> Tensor:
    """Number [1, G, R] and indices [1, G, R, P] of blocks as bool [G, R, R]."""
    number, indices = pair[0][0], pair[1][0]
    masks, blocks = number.shape
    found = torch.zeros(masks, blocks, blocks, dtype=torch.bool)
    for head in range(masks):
        for row in range(blocks):
            met = indices[head, row, : number[head, row]].tolist()
            assert len(set(met)) == len(met)
            found[head, row, met] = True
    assert bool(((indices >= 0) & (indices < blocks)).all())  # kernels read ahead
    return found


@pytest.fixture
def with_backward(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torchs, "_validate_device", lambda *_: None)
    monkeypatch.setattr(torchs, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    yield
    torch._dynamo.reset()


def eager() -> FlexOps:
    return FlexOps(None, compiler=lambda function: function)


# -- tables ---------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.one_of(st.integers(1, 300), st.sampled_from([128, 256])), min_size=1,
                     max_size=4),
    longer=st.integers(0, 200),
    masks=st.integers(1, 3),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_tables_are_those_of_create_block_mask(
    lengths: list[int], longer: int, masks: int, seed: int
) -> None:
    mask = random_mask(masks, max(lengths) + longer, seed)
    layout = Layout.of(tokens(*lengths))
    slots = layout.blocks * BLOCK
    theirs = torchs.create_block_mask(
        flex.mask_mod(layout, mask), 1, masks, slots, slots, device="cpu", BLOCK_SIZE=BLOCK
    )
    widths = theirs.kv_indices.shape[-1], theirs.full_kv_indices.shape[-1]
    assert widths == (layout.blocks,) * 2
    partial = dense((theirs.kv_num_blocks, theirs.kv_indices))
    full = dense((theirs.full_kv_num_blocks, theirs.full_kv_indices))
    counts = MaskCounts.of(mask)
    apart = Tables.of(counts, layout, separate=True)
    for ours, right in (
        (apart.keys, partial), (apart.queries, partial.mT), (apart.full_keys, full),
        (apart.full_queries, full.mT),
    ):  # fmt: skip
        assert torch.equal(dense(ours), right)  # type: ignore[arg-type]
    together = Tables.of(counts, layout, separate=False)
    assert together.full_keys == together.full_queries == (None, None)
    assert torch.equal(dense(together.keys), partial | full)
    assert torch.equal(dense(together.queries), (partial | full).mT)


def test_a_block_of_the_batch_is_a_block_of_the_mask() -> None:
    """However sequences follow each other, as many blocks are kept as in the mask itself."""
    mask = torch.ones(512, 512, dtype=torch.bool).tril(64).triu(-64)[None]
    counts = MaskCounts.of(mask)
    layout = Layout.of(tokens(5, 512, 70, 512))
    kept = dense(Tables.of(counts, layout, separate=False).keys)[0]
    assert layout.blocks == 1 + 4 + 1 + 4
    assert int(kept.sum()) == 1 + 10 + 1 + 10


def test_slots_hold_each_token_once_and_sequences_begin_at_blocks() -> None:
    layout = Layout.of(tokens(3, 128, 129))
    assert layout.blocks == 4
    assert layout.slots.tolist() == [*range(3), *range(128, 256), *range(256, 385)]
    for length, at, sequence in ((3, 0, 0), (128, 128, 1), (129, 256, 2)):
        assert layout.position[at : at + length].tolist() == list(range(length))
        assert set(layout.sequence[at : at + length].tolist()) == {sequence}
    assert set(layout.sequence[3:128].tolist()) == {-1}
    assert Layout.of(tokens(7)).blocks == 2  # never a size of 1, which would be other code


# -- numbers --------------------------------------------------------------------------------------
def results(
    ops: Ops, lengths: tuple[int, ...], mask: Tensor, *, heads: int = 2, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    qkv = torch.randn(sum(lengths), 3 * heads * 16, generator=generator).requires_grad_()
    weights = torch.randn(sum(lengths), heads * 16, generator=generator)
    out = ops.masked_attention(qkv, tokens(*lengths), mask, num_heads=heads, dropout=dropout)
    (out * weights).sum().backward()
    assert qkv.grad is not None
    return out.detach(), qkv.grad


@pytest.mark.parametrize("masks", [1, 2])
@pytest.mark.parametrize("lengths", [(1,), (5, 300, 129, 1), (256, 60)])
def test_outputs_and_gradients_are_the_references(
    with_backward: None, lengths: tuple[int, ...], masks: int
) -> None:
    mask = random_mask(masks, 320, 1)
    for ours, right in zip(
        results(eager(), lengths, mask), results(Ops(), lengths, mask), strict=True
    ):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)


def test_a_query_without_a_key_gets_zeros(with_backward: None) -> None:
    mask = random_mask(1, 200, 2)
    mask[0, 150] = False
    for dropout in (0.0, 0.3):
        out, gradient = results(eager(), (200, 140), mask, dropout=dropout)
        assert not out[150].any()
        assert bool(out.isfinite().all() and gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_passes_the_trial_with_dropout_in_it(with_backward: None, dtype: torch.dtype) -> None:
    assert attention_why_not(eager(), HOST, dtype, masked=True) is None


def test_the_trial_sees_a_block_that_is_not_computed(
    with_backward: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's reference ignores the tables; a kernel that follows them computes what they say."""
    right = flex.mask_mod

    def by_tables(layout: Layout, mask: Tensor, drop: Any = None) -> Any:
        mod = right(layout, mask, drop)
        lost = torch.ones(layout.blocks, layout.blocks, dtype=torch.bool)
        lost[2, 1] = False  # one kept block of the sequence of 300
        return lambda b, h, i, j: mod(b, h, i, j) & lost[i // BLOCK, j // BLOCK]

    monkeypatch.setattr(flex, "mask_mod", by_tables)
    # Blocks 1 to 3 are its, and the mask's block (1, 0) is empty by design: nothing is lost there.
    assert attention_why_not(eager(), HOST, torch.float32, masked=True) is None
    monkeypatch.setattr(
        flex, "mask_mod", lambda a, m, d=None: lambda b, h, i, j: right(a, m, d)(b, h, i, j)
        & ~((i // BLOCK == 1) & (j // BLOCK == 2))
    )  # fmt: skip
    why = attention_why_not(eager(), HOST, torch.float32, masked=True)
    assert why is not None
    assert "its output differs" in why


# -- dropout --------------------------------------------------------------------------------------
def test_dropout_drops_probabilities_and_scales_the_others(
    with_backward: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal, forward and backward, to dropping the same probabilities after the softmax."""
    drawn: list[flex.Dropout] = []
    draw = flex.Dropout.draw

    def keep(*args: Any) -> flex.Dropout:
        drawn.append(draw(*args))
        return drawn[-1]

    monkeypatch.setattr(flex.Dropout, "draw", keep)
    lengths, mask, rate = (150, 3), random_mask(2, 150, 5), 0.4
    ours = results(eager(), lengths, mask, dropout=rate)
    (drop,) = drawn
    slots = Layout.of(tokens(*lengths)).slots

    class Reference(Ops):
        def masked_attention(self, qkv: Tensor, batch: Any, mask: Tensor, **_: Any) -> Tensor:
            rows, begin = [], 0
            for n in batch.lengths:
                at = slots[begin : begin + n]
                q, k, v = qkv[begin : begin + n].view(n, 3, 2, 16).permute(1, 2, 0, 3)
                scores = (q @ k.mT / 4).masked_fill(~mask[:, :n, :n], float("-inf"))
                kept = flex.keeps(
                    drop.queries[:, at, None], drop.keys[at], drop.threshold[:, None, None]
                )
                out = scores.softmax(-1) * kept / (1 - rate) @ v
                rows.append(out.transpose(0, 1).reshape(n, 32))
                begin += n
            return torch.cat(rows)

    for mine, right in zip(ours, results(Reference(), lengths, mask), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropouts_rate_and_independence(rate: float) -> None:
    torch.manual_seed(0)
    drop = flex.Dropout.draw(rate, 3, 1000, HOST)
    dropped = ~flex.keeps(drop.queries[:, :, None], drop.keys, drop.threshold[:, None, None])
    share, deviation = dropped.float().mean(), (rate * (1 - rate) / dropped.numel()) ** 0.5
    assert abs(float(share) - rate) < 5 * deviation
    for along in (0, 1, 2):  # neighbours are independent: both are dropped with rate^2
        both = dropped.narrow(along, 1, dropped.shape[along] - 1) & dropped.narrow(
            along, 0, dropped.shape[along] - 1
        )
        expected, number = rate**2, both.numel()
        bound = 6 * (expected * (1 - expected) / number * 2) ** 0.5
        assert abs(float(both.float().mean()) - expected) < bound


def test_a_restored_generator_drops_the_same(with_backward: None) -> None:
    mask = random_mask(1, 140, 6)
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(results(eager(), (140,), mask, dropout=0.5)[0])
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


# -- code and caches ------------------------------------------------------------------------------
def test_other_batches_masks_and_dropout_need_no_other_code(with_backward: None) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    ops = FlexOps(
        None,
        compiler=functools.partial(
            torch.compile, backend=counter, dynamic=True, fullgraph=True
        ),
    )  # fmt: skip
    ops.keep_out_of_graphs()  # as --compile does: what is compiled in it stays so
    for seed, lengths in enumerate(((5, 300, 129, 1), (9,), (130,) * 5)):
        mask = random_mask(3, 380, seed)
        mine = results(ops, lengths, mask, heads=3)
        for ours, right in zip(mine, results(Ops(), lengths, mask, heads=3), strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)
        results(ops, lengths, mask, heads=3, dropout=0.1 * (seed + 1))
        # Without dropout, with it, and for its log-sum-exp.
        assert counter.frame_count == 3


def test_layouts_and_tables_are_made_once_and_forgotten_in_turn(
    with_backward: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    for owner in (Layout, MaskCounts, Tables):
        original = owner.of

        def of(*args: Any, original: Any = original, kind: type = owner, **more: Any) -> Any:
            made.append(kind.__name__)
            return original(*args, **more)

        monkeypatch.setattr(owner, "of", of)
    ops = eager()
    masks = [random_mask(1, 200, seed) for seed in (0, 1)]

    def run(*lengths: int) -> None:
        with torch.no_grad():
            for mask in masks:
                ops.masked_attention(
                    torch.randn(sum(lengths), 3 * 16), tokens(*lengths), mask, num_heads=1,
                    dropout=0.0,
                )  # fmt: skip

    run(100, 4)
    run(100, 4)
    assert sorted(made) == ["Layout", *["MaskCounts"] * 2, *["Tables"] * 2]
    for length in range(1, flex._BATCHES + 1):
        run(length)
    made.clear()
    run(flex._BATCHES)
    assert made == []
    run(100, 4)
    assert sorted(made) == ["Layout", *["Tables"] * 2]


def test_a_sequence_longer_than_the_mask_is_refused() -> None:
    with pytest.raises(BadInput, match="a sequence has 9 tokens, and the attention mask 8"):
        eager().masked_attention(
            torch.randn(9, 48), tokens(9), random_mask(1, 8, 0), num_heads=1, dropout=0.0
        )


def test_the_record_names_it() -> None:
    ops = eager()
    assert ops.masked_kernel == ops.kernels["attention"] == "flex-kept-blocks"
    assert FlexOps(torch.bfloat16, compiler=lambda f: f).kernels["norm"] == "torch-bfloat16"
