# SPDX-License-Identifier: Apache-2.0
"""The operations a BERT is made of, in plain PyTorch.

This is the reference. A backend that has faster kernels subclasses ``Ops`` and returns an instance
from ``Backend.ops``; tests hold every override equal to what is here. The model calls nothing else.

Shapes: T real tokens, H hidden, N heads, D = H / N, F intermediate, M masked positions,
V vocabulary, B sequences.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.batch import Tokens


class Ops:
    """Plain PyTorch; runs on any device and under any autocast."""

    name = "plain"

    @property
    def kernels(self) -> Mapping[str, str]:
        """Which implementation each operation uses: goes into the record of the run."""
        return {"attention": "sdpa-per-sequence", "other": "torch"}

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
        """LayerNorm(word + position + token type), then dropout: [T, H]."""
        x = self.embed_sum(tokens, word, position, token_type, dropout=0.0)
        return F.dropout(self.norm(x, norm_weight, norm_bias, eps=eps), dropout)

    def embed_sum(
        self, tokens: Tokens, word: Tensor, position: Tensor, token_type: Tensor, *, dropout: float
    ) -> Tensor:
        """Dropout(word + position + token type): [T, H]; pre-LN has no LayerNorm here."""
        x = (
            F.embedding(tokens.input_ids, word)
            + F.embedding(tokens.position_ids, position)
            + F.embedding(tokens.segment_ids, token_type)
        )
        return F.dropout(x, dropout)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x @ weight.T + bias."""
        return F.linear(x, weight, bias)

    def linear_gelu(self, x: Tensor, weight: Tensor, bias: Tensor, *, approximate: str) -> Tensor:
        """GELU(x @ weight.T + bias); ``approximate`` is torch's: "none" (erf) or "tanh"."""
        return F.gelu(self.linear(x, weight, bias), approximate=approximate)

    def attention(self, qkv: Tensor, tokens: Tokens, *, num_heads: int, dropout: float) -> Tensor:
        """Self-attention within each sequence. [T, 3H] (q, k, v side by side) -> [T, H]."""
        hidden = qkv.shape[1] // 3
        out = []
        for part in qkv.split(tokens.lengths):
            q, k, v = part.view(len(part), 3, num_heads, hidden // num_heads).permute(1, 2, 0, 3)
            context = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
            out.append(context.transpose(0, 1).reshape(len(part), hidden))
        return torch.cat(out)

    def dropout_add(self, x: Tensor, residual: Tensor, *, dropout: float) -> Tensor:
        """Dropout(x) + residual: the pre-LN sublayer's end."""
        return F.dropout(x, dropout) + residual

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
        """LayerNorm over the last dimension."""
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
        """LayerNorm(Dropout(x) + residual): the post-LN sublayer's end."""
        x = self.dropout_add(x, residual, dropout=dropout)
        return self.norm(x, norm_weight, norm_bias, eps=eps)

    def gather(self, x: Tensor, indices: Tensor) -> Tensor:
        """Rows ``indices`` of x; the indices are distinct."""
        return x.index_select(0, indices)

    def masked_cross_entropy(
        self, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decoder and softmax cross-entropy over the vocabulary for M masked positions.

        x [M, H], weight [V, H], bias [V], labels [M] -> (sum of the losses in float32,
        number predicted right as int64), both scalars.
        """
        logits = self.linear(x, weight, bias)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        return loss, (logits.detach().argmax(-1) == labels).sum()
