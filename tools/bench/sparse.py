# SPDX-License-Identifier: Apache-2.0
"""The variants that bench_sparse.py compares: attention of one layer, and a model's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.steps import Step, own_step
from bertbench.backends.attention_costs import AttentionShape, measure
from bertbench.backends.cpu_ref.kernels import NativeOps
from bertbench.backends.cpu_ref.layout import DENSE
from bertbench.backends.cpu_ref.routes import Route, attend, candidates
from bertbench.backends.fused import NO_DROPOUT
from bertbench.common.data.batch import PretrainingBatch, Tokens
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.masks.patterns import parse
from bertbench.common.model.config import BertConfig
from bertbench.common.model.ops import ComputeTypeOps, Ops

HEADS, SIZE = 12, 64


def _model(layers: int, hidden: int, heads: int, vocabulary: int = 30522) -> BertConfig:
    # Without dropout, with which torch's SDPA has no fused kernel on CPUs.
    return BertConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=4 * hidden, max_position_embeddings=4096,
        hidden_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip


MODELS = {
    "mini": _model(4, 256, 4, 4096),
    "minilm": _model(6, 384, 12),
    "base": _model(12, 768, 12),
}
"""The smaller the model, the larger the share of attention in a step at the same length."""


def mask_of(pattern: str, length: int) -> Any:
    """Return the mask of a pattern's text for all heads, bool [1, length, length]."""
    return AttentionMask([[parse(pattern)]]).layer(0, length)


def one_sequence(length: int) -> Tokens:
    """Return one sequence of ``length`` tokens."""
    ids = torch.arange(length)
    return Tokens(
        input_ids=ids, segment_ids=ids * 0, position_ids=ids,
        cu_seqlens=torch.tensor([0, length], dtype=torch.int32), lengths=(length,),
    )  # fmt: skip


class Layer:
    """Attention of one sequence, 12 heads of 64: q, k and v side by side as a model has them."""

    def __init__(self, length: int, dtype: torch.dtype) -> None:
        self.length, self.tokens = length, one_sequence(length)
        generator = torch.Generator().manual_seed(0)
        qkv = torch.randn(length, 3 * HEADS * SIZE, generator=generator)
        self.qkv = qkv.to(dtype).requires_grad_()
        self.dy = torch.randn(length, HEADS * SIZE, generator=generator).to(dtype)

    def _apart(self) -> Tensor:
        """Return q, k and v: [3, 1, heads, length, size]."""
        return self.qkv.view(1, self.length, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)

    def sdpa(self) -> Tensor:
        """Return dense attention by torch's fused kernel, [length, heads * size]."""
        out = F.scaled_dot_product_attention(*self._apart())
        return out.transpose(1, 2).reshape(self.length, HEADS * SIZE)

    def native(self, route: Route = DENSE, save: bool = True) -> Tensor:
        """Return attention by our kernel; ``save`` keeps what the backward pass needs."""
        return attend(self.qkv, self.tokens, HEADS, NO_DROPOUT, save, route)

    def both_passes(self, forward: Callable[[], Tensor]) -> Step:
        """Return forward and backward pass as one step."""
        return lambda: torch.autograd.grad(forward(), self.qkv, self.dy)

    def routes(self, pattern: str) -> dict[str, Route]:
        """Return the routes of a pattern's mask between which a run chooses."""
        return candidates(mask_of(pattern, self.length), heads=HEADS)

    def flex(self, pattern: str, block: int) -> Step:
        """Return FlexAttention's compiled forward pass; raises what torch raises where it fails.

        Its block mask is made once, and q, k and v lie apart in memory, which suits it best.
        """
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        bits = torch.from_numpy(mask_of(pattern, self.length)[0])
        blocks = create_block_mask(
            lambda b, h, q, k: bits[q, k], None, None, self.length, self.length,
            device="cpu", BLOCK_SIZE=block,
        )  # fmt: skip
        compiled = torch.compile(flex_attention, dynamic=False)
        q, k, v = (part.contiguous() for part in self._apart().detach())

        def run() -> Tensor:
            with torch.no_grad():
                out = compiled(q, k, v, block_mask=blocks)
            assert isinstance(out, Tensor)
            return out

        mine = self.native(self.routes(pattern)[f"blocks-{block}"], save=False)
        theirs = run().transpose(1, 2).reshape(mine.shape)
        assert (mine - theirs).abs().max() < (1e-4 if mine.dtype == torch.float32 else 3e-2)
        return run


def saved_bytes(forward: Callable[[], Tensor]) -> int:
    """Return the bytes of the tensors that one forward pass saves for the backward pass."""
    sizes = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(sizes)


def model_steps(
    model: BertConfig, length: int, patterns: list[str], dtype: torch.dtype
) -> Mapping[str, Step]:
    """Return one optimizer step on one sequence: dense by two kernels, and for each pattern."""
    tokens = one_sequence(length)
    masked = torch.arange(0, length, 7)
    batch = PretrainingBatch(
        tokens=tokens, masked_indices=masked, masked_labels=masked + 1,
        next_sentence_labels=torch.zeros(1, dtype=torch.int64),
    )  # fmt: skip
    stream = None if dtype == torch.float32 else dtype
    variants: dict[str, tuple[Ops, str | None]] = {
        "sdpa": (ComputeTypeOps(stream), None),
        "native": (NativeOps(dtype), None),
    }
    variants |= {pattern: (NativeOps(dtype), pattern) for pattern in patterns}
    return {
        name: own_step(model, batch, ops, dtype, mask=_fastest(model, ops, pattern, length, dtype))
        for name, (ops, pattern) in variants.items()
    }


def _fastest(
    model: BertConfig, ops: Ops, pattern: str | None, length: int, dtype: torch.dtype
) -> Tensor | None:
    """Return a pattern's mask after ``ops`` took its fastest kernel, as a run takes it."""
    if pattern is None:
        return None
    mask = torch.from_numpy(mask_of(pattern, length))
    shape = AttentionShape(
        heads=model.num_attention_heads, size=model.hidden_size // model.num_attention_heads,
        dropout=0.0, dtype=dtype, device=mask.device,
    )  # fmt: skip
    chosen = measure(ops, [mask], shape).chosen[0]
    ops.use_route(mask, ops.masked_routes(mask, shape.heads)[chosen])
    return mask
