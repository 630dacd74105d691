# SPDX-License-Identifier: Apache-2.0
"""The heads of BERT, and BERT with its two pretraining heads. Shapes as in common/model/ops.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertbench.common.data.batch import PretrainingBatch, Tokens
from bertbench.common.model.bert import BertEncoder, initialize, linear
from bertbench.common.model.config import BertConfig
from bertbench.common.model.ops import Ops


@dataclass(frozen=True, slots=True)
class PretrainingSums:
    """Sums over a micro-batch: the loop divides by the counts of the whole global batch."""

    mlm_loss: Tensor
    """float32 scalar, cross-entropy summed over the M masked positions."""
    mlm_correct: Tensor
    """int64 scalar, masked positions predicted right."""
    nsp_loss: Tensor
    """float32 scalar, cross-entropy summed over the B sequences."""
    nsp_correct: Tensor
    """int64 scalar, sequences predicted right."""


class Pooler(nn.Module):
    """tanh(linear(hidden state of each sequence's first token, [CLS])): [T, H] -> [B, H]."""

    def __init__(self, config: BertConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.dense = linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Return each sequence's pooled state: [T, H] -> [B, H]."""
        first = self.ops.gather(hidden, tokens.cu_seqlens[:-1].long())
        return torch.tanh(self.ops.linear(first, self.dense.weight, self.dense.bias))


class MaskedTokenHead(nn.Module):
    """Transform of the MLM head and the decoder's bias; the decoder is the word embedding."""

    def __init__(self, config: BertConfig, ops: Ops) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.transform = linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder_bias = nn.Parameter(torch.empty(config.vocab_size))

    def forward(self, x: Tensor) -> Tensor:
        """Return the decoder's input for the rows to predict: [M, H] -> [M, H]."""
        x = self.ops.linear_gelu(
            x, self.transform.weight, self.transform.bias, approximate=self.config.approximate
        )
        return self.ops.norm(x, self.norm.weight, self.norm.bias, eps=self.norm.eps)


class BertForPreTraining(nn.Module):
    """BERT with masked-language-model and next-sentence heads, initialised."""

    def __init__(self, config: BertConfig, ops: Ops) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.encoder = BertEncoder(config, ops)
        self.pooler = Pooler(config, ops)
        self.masked_token = MaskedTokenHead(config, ops)
        self.next_sentence = linear(config.hidden_size, 2)
        initialize(self, config.initializer_range)

    def forward(self, batch: PretrainingBatch) -> PretrainingSums:
        """Return both losses and counts of a micro-batch. Only masked positions are decoded."""
        hidden = self.encoder(batch.tokens)
        features = self.masked_token(self.ops.gather(hidden, batch.masked_indices))
        mlm_loss, mlm_correct = self.ops.masked_cross_entropy(
            features, *self._decoder, batch.masked_labels
        )
        logits = self.next_sentence_logits(hidden, batch.tokens)
        labels = batch.next_sentence_labels
        return PretrainingSums(
            mlm_loss=mlm_loss,
            mlm_correct=mlm_correct,
            nsp_loss=F.cross_entropy(logits.float(), labels, reduction="sum"),
            nsp_correct=(logits.detach().argmax(-1) == labels).sum(),
        )

    def masked_token_logits(self, hidden: Tensor) -> Tensor:
        """Return scores over the vocabulary for rows of the encoder's output: [M, H] -> [M, V]."""
        return self.ops.linear(self.masked_token(hidden), *self._decoder)

    def next_sentence_logits(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Return scores of true next and random next: [T, H] -> [B, 2]."""
        pooled = self.pooler(hidden, tokens)
        return self.ops.linear(pooled, self.next_sentence.weight, self.next_sentence.bias)

    @property
    def _decoder(self) -> tuple[Tensor, Tensor]:
        return self.encoder.embeddings.word.weight, self.masked_token.decoder_bias
