# SPDX-License-Identifier: Apache-2.0
"""The operations a BERT is made of, in plain PyTorch.

This is the reference. A backend that has faster kernels subclasses ``Ops`` and returns an instance
from ``Backend.ops``; tests hold every override equal to this one. The model calls only these.

Shapes: T real tokens, H hidden, N heads, D = H / N, F intermediate, M masked positions,
V vocabulary, B sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bertbench.common.data.batch import Tokens


class Ops:
    """Plain PyTorch; runs on any device and under any autocast."""

    name = "plain"

    @property
    def kernels(self) -> Mapping[str, str]:
        """The implementation of each operation, for the record of the run."""
        return {"attention": "unfused-per-sequence", "other": "torch"}

    @property
    def in_layers(self) -> Ops:
        """The operations of the encoder's layers, where a precision sets them apart."""
        return self

    def keep_out_of_graphs(self) -> None:
        """Exclude from compilation what must not be traced; called once, before torch.compile.

        Here that is attention: it loops over lengths that differ in each batch.
        """
        for name in ("attention", "masked_attention"):
            setattr(self, name, torch.compiler.disable(getattr(self, name)))

    def embed(
        self,
        tokens: Tokens,
        word: Tensor,
        position: Tensor,
        token_type: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        *,
        eps: float,
        dropout: float,
    ) -> Tensor:
        """Return Dropout(LayerNorm(word + position + token type)), [T, H].

        The tables are word [V, H], position [P, H] and token_type [2, H]; the norm's are [H].
        """
        x = self.embed_sum(tokens, word, position, token_type, dropout=0.0)
        return F.dropout(self.norm(x, norm_weight, norm_bias, eps=eps), dropout)

    def embed_sum(
        self, tokens: Tokens, word: Tensor, position: Tensor, token_type: Tensor, *, dropout: float
    ) -> Tensor:
        """Return Dropout(word + position + token type), [T, H]; pre-LN has no LayerNorm here."""
        x = (
            F.embedding(tokens.input_ids, word)
            + F.embedding(tokens.position_ids, position)
            + F.embedding(tokens.segment_ids, token_type)
        )
        return F.dropout(x, dropout)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return x @ weight.T + bias: [T, in], [out, in], [out] -> [T, out]."""
        return F.linear(x, weight, bias)

    def linear_gelu(self, x: Tensor, weight: Tensor, bias: Tensor, *, approximate: str) -> Tensor:
        """Return GELU(x @ weight.T + bias): [T, in], [out, in], [out] -> [T, out].

        ``approximate`` is torch's: "none" (erf) or "tanh".
        """
        return F.gelu(self.linear(x, weight, bias), approximate=approximate)

    def attention(self, qkv: Tensor, tokens: Tokens, *, num_heads: int, dropout: float) -> Tensor:
        """Return self-attention within each sequence: [T, 3H] (q, k, v side by side) -> [T, H]."""
        # Unfused: this is the reference for fused kernels. Before torch 2.15 three dimensions rule
        # those out on every device, even where a vendor's kernel choice ignores sdpa_kernel.
        with sdpa_kernel(SDPBackend.MATH):
            return _per_sequence(qkv, tokens, None, num_heads, dropout, fused=False)

    @property
    def masked_kernel(self) -> str:
        """The implementation of ``masked_attention``, for the record of the run."""
        return "unfused-per-sequence"

    def masked_attention(
        self, qkv: Tensor, tokens: Tokens, mask: Tensor, *, num_heads: int, dropout: float
    ) -> Tensor:
        """Return attention in which keys count where ``mask`` is True: [T, 3H] -> [T, H].

        ``mask`` is bool [1 or N, L, L] for at most L tokens: a sequence of n has its corner [n, n].
        """
        with sdpa_kernel(SDPBackend.MATH):
            return _per_sequence(qkv, tokens, mask, num_heads, dropout, fused=False)

    def masked_routes(self, mask: Tensor, num_heads: int) -> Mapping[str, Any]:
        """Return the ways in which ``masked_attention`` can compute ``mask``, bool [1 or N, L, L].

        By name, as ``use_route`` takes them; all give the same results up to rounding.
        """
        return {self.masked_kernel: None}

    def use_route(self, mask: Tensor, route: Any) -> None:
        """Compute ``mask``, bool [1 or N, L, L], from now on by this one of its routes."""

    def dropout_add(self, x: Tensor, residual: Tensor, *, dropout: float) -> Tensor:
        """Return Dropout(x) + residual, [T, H]: the pre-LN sublayer's end."""
        return F.dropout(x, dropout) + residual

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
        """Return LayerNorm over the last dimension: [T, H], [H], [H] -> [T, H]."""
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def dropout_add_norm(
        self,
        x: Tensor,
        residual: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        *,
        eps: float,
        dropout: float,
    ) -> Tensor:
        """Return LayerNorm(Dropout(x) + residual), [T, H]: the post-LN sublayer's end."""
        x = self.dropout_add(x, residual, dropout=dropout)
        return self.norm(x, norm_weight, norm_bias, eps=eps)

    def gather(self, x: Tensor, indices: Tensor) -> Tensor:
        """Return rows ``indices`` [n] of x [T, H]: [n, H]; the indices are distinct."""
        return x.index_select(0, indices)

    def masked_cross_entropy(
        self, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the decoder's cross-entropy over the vocabulary and its correct predictions.

        x [M, H], weight [V, H], bias [V], labels [M] -> sum of the losses, float32 [], and number
        predicted right, int64 [].
        """
        logits = self.linear(x, weight, bias)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        return loss, (logits.detach().argmax(-1) == labels).sum()


def _per_sequence(
    qkv: Tensor, tokens: Tokens, mask: Tensor | None, num_heads: int, dropout: float, *, fused: bool
) -> Tensor:
    """Return torch's attention of each sequence: [T, 3H], bool [1 or N, L, L] -> [T, H]."""
    hidden = qkv.shape[1] // 3
    out = []
    for part in qkv.split(tokens.lengths):
        n = len(part)
        q, k, v = part.view(n, 3, num_heads, hidden // num_heads).permute(1, 2, 0, 3)
        allowed = None if mask is None else mask[:, :n, :n]
        if fused:  # [1, N, n, D] is what fused kernels take, and [N, n, D] what they do not
            q, k, v, allowed = q[None], k[None], v[None], None if allowed is None else allowed[None]
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        out.append((context[0] if fused else context).transpose(0, 1).reshape(n, hidden))
    return torch.cat(out)


class ComputeTypeOps(Ops):
    """``Ops`` with a residual stream in the compute type and the device's fused SDPA.

    Under autocast LayerNorm takes and returns float32, so that each sublayer adds, normalises and
    saves for its backward pass twice the bytes. Here the embeddings' sum and each LayerNorm return
    ``dtype``, as in NVIDIA's MLPerf submissions; torch's kernel still computes the statistics in
    float32.
    """

    name = "sdpa"

    def __init__(
        self,
        dtype: torch.dtype | None,
        *,
        fused: bool = True,
        passed_over: Mapping[str, str] | None = None,
    ) -> None:
        """Set ``dtype``, bfloat16 or float16; None keeps the residual stream of ``Ops``.

        Without ``fused``, attention is that of ``Ops``. ``passed_over`` holds the reasons why
        faster kernels failed, for the record.
        """
        self.name = self.name if fused else "plain"
        self._dtype, self._fused, self._passed_over = dtype, fused, dict(passed_over or {})

    @property
    def kernels(self) -> Mapping[str, str]:
        found = dict(super().kernels)
        if self._fused:
            found["attention"] = "fused-sdpa-per-sequence"
        if self._dtype is not None:
            found["norm"] = f"torch-{str(self._dtype)[6:]}"
        if self._passed_over:
            reasons = (f"{kernel}: {why}" for kernel, why in self._passed_over.items())
            found["attention_passed_over"] = "; ".join(reasons)
        return found

    def attention(self, qkv: Tensor, tokens: Tokens, *, num_heads: int, dropout: float) -> Tensor:
        """Return self-attention within each sequence: [T, 3H] -> [T, H]."""
        if not self._fused:
            return super().attention(qkv, tokens, num_heads=num_heads, dropout=dropout)
        return _per_sequence(qkv, tokens, None, num_heads, dropout, fused=True)

    @property
    def masked_kernel(self) -> str:
        return "fused-sdpa-per-sequence" if self._fused else super().masked_kernel

    def masked_attention(
        self, qkv: Tensor, tokens: Tokens, mask: Tensor, *, num_heads: int, dropout: float
    ) -> Tensor:
        """Return attention where ``mask``, bool [1 or N, L, L], is True: [T, 3H] -> [T, H]."""
        if not self._fused:
            return super().masked_attention(qkv, tokens, mask, num_heads=num_heads, dropout=dropout)
        return _per_sequence(qkv, tokens, mask, num_heads, dropout, fused=True)

    def embed_sum(
        self, tokens: Tokens, word: Tensor, position: Tensor, token_type: Tensor, *, dropout: float
    ) -> Tensor:
        """Return Dropout(word + position + token type) in the compute type, [T, H]."""
        x = super().embed_sum(tokens, word, position, token_type, dropout=0.0)
        return F.dropout(x if self._dtype is None else x.to(self._dtype), dropout)

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
        """Return LayerNorm in the compute type: [T, H], [H], [H] -> [T, H]."""
        if self._dtype is None:
            return super().norm(x, weight, bias, eps=eps)
        x, weight, bias = (t.to(self._dtype) for t in (x, weight, bias))
        with torch.autocast(x.device.type, enabled=False):  # which would make it float32
            return super().norm(x, weight, bias, eps=eps)
