# SPDX-License-Identifier: Apache-2.0
"""BERT with one linear layer over the pooled state. Shapes as in common/model/ops.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from bertbench.common.data.batch import Batch
from bertbench.common.measure.flops import BACKWARD, encoder_flops
from bertbench.common.model.bert import BertEncoder, initialize, linear
from bertbench.common.model.config import BertConfig
from bertbench.common.model.heads import Pooler
from bertbench.common.model.ops import Ops


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledBatch(Batch):
    """One micro-batch of one or two texts a sequence."""

    labels: Tensor | None = None
    """int64 [B], the classes, or float32 [B], the numbers; None without."""


class BertForSequenceClassification(nn.Module):
    """An encoder, its pooler and a linear layer of C outputs; initialised.

    As in BERT's run_classifier.py the pooled state has the hidden states' dropout.
    """

    def __init__(self, config: BertConfig, outputs: int, ops: Ops) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.encoder = BertEncoder(config, ops)
        self.pooler = Pooler(config, ops)
        self.classifier = linear(config.hidden_size, outputs)
        initialize(self, config.initializer_range)

    def forward(self, batch: LabelledBatch) -> Tensor:
        """Return each sequence's scores of the classes, or its number, float32 [B, C]."""
        pooled = self.pooler(self.encoder(batch.tokens), batch.tokens)
        pooled = F.dropout(pooled, self.config.hidden_dropout, self.training).float()
        # In float32 whatever the encoder's precision, so that no two classes tie by rounding; a
        # sum of products, since a matrix product would follow autocast. C is 3 at most.
        weight, bias = self.classifier.weight, self.classifier.bias
        return (pooled[:, None] * weight).sum(-1) + bias


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss summed over B, []: cross-entropy of classes, squared error of numbers.

    ``logits`` are [B, C], ``labels`` int64 [B], or float32 [B] where C is 1.
    """
    if labels.is_floating_point():
        return F.mse_loss(logits[:, 0], labels, reduction="sum")
    return F.cross_entropy(logits, labels, reduction="sum")


def label_flops(config: BertConfig, lengths: Sequence[int], outputs: int) -> int:
    """Return the FLOPs of one training pass of sequences of ``lengths``, pooler and head too."""
    head = 2 * config.hidden_size * (config.hidden_size + outputs)
    return (1 + BACKWARD) * (encoder_flops(config, lengths) + len(lengths) * head)
