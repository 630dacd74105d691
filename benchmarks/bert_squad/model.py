# SPDX-License-Identifier: Apache-2.0
"""BERT that marks the answer's first and last token. Shapes as in common/model/ops.py.

There is no pooler: its output is unused, and the reference keeps it out of the optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertbench.common.data.batch import Batch
from bertbench.common.model.bert import BertEncoder, initialize, linear
from bertbench.common.model.config import BertConfig
from bertbench.common.model.ops import Ops


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanBatch(Batch):
    """One micro-batch of features, each a question and a window of its paragraph."""

    rows: Tensor
    """int64 [T], each token's sequence."""
    start: Tensor | None = None
    """int64 [B], position in its sequence of the answer's first token; None without answers."""
    end: Tensor | None = None
    """int64 [B], of its last token, inclusive."""


class BertForQuestionAnswering(nn.Module):
    """An encoder and one linear layer of two outputs; initialised."""

    def __init__(self, config: BertConfig, ops: Ops) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.encoder = BertEncoder(config, ops)
        self.qa_outputs = linear(config.hidden_size, 2)
        initialize(self, config.initializer_range)

    def forward(self, batch: SpanBatch) -> Tensor:
        """Return scores of each token as the answer's first and last, float32 [T, 2]."""
        # In float32 whatever the encoder's precision: answers are ranked by these few sums, and in
        # 16 bits many would tie. Written out, since a matrix product would follow autocast.
        hidden = self.encoder(batch.tokens).float()
        columns = [(hidden * weight).sum(-1) for weight in self.qa_outputs.weight]
        return torch.stack(columns, dim=-1) + self.qa_outputs.bias


def span_loss(logits: Tensor, batch: SpanBatch) -> Tensor:
    """Return the mean of the two cross-entropies over each sequence's tokens, summed over B.

    ``logits`` is [T, 2], the result []. The references' softmax also includes padding.
    """
    assert batch.start is not None and batch.end is not None
    grid = _padded(logits, batch, float("-inf"))
    first = F.cross_entropy(grid[..., 0], batch.start, reduction="sum")
    last = F.cross_entropy(grid[..., 1], batch.end, reduction="sum")
    return (first + last) / 2


def answer_divergence(
    logits: Tensor, teacher: Tensor, batch: SpanBatch, temperature: float
) -> Tensor:
    """Return the mean divergence of the two distributions from a teacher's, summed over B.

    ``logits`` and ``teacher`` are [T, 2], the result []: the Kullback-Leibler divergence of the
    softmax of scores / temperature, times temperature squared, so that its gradient keeps its size
    (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network").
    """
    given, wanted = (
        F.log_softmax(_padded(x.float() / temperature, batch, -1e30), dim=1)
        for x in (logits, teacher)
    )
    return F.kl_div(given, wanted, reduction="sum", log_target=True) * temperature**2 / 2


def _padded(logits: Tensor, batch: SpanBatch, fill: float) -> Tensor:
    tokens = batch.tokens
    shape = (len(tokens.lengths), tokens.max_length, 2)
    return logits.new_full(shape, fill).index_put((batch.rows, tokens.position_ids), logits)
