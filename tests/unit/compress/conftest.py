# SPDX-License-Identifier: Apache-2.0
"""A small question-answering model and batches for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bertbench.benchmarks.bert_squad.data import made_up_features
from bertbench.benchmarks.bert_squad.model import BertForQuestionAnswering, SpanBatch
from bertbench.benchmarks.bert_squad.stream import collate
from bertbench.common.model.config import BertConfig
from bertbench.common.model.ops import Ops


def config(norm_position: str = "post", layers: int = 2) -> BertConfig:
    return BertConfig(
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
        norm_position=norm_position,
    )


def batch(*lengths: int) -> SpanBatch:
    made = collate(made_up_features(list(lengths), 128), np.arange(len(lengths)))
    at = torch.arange(len(lengths))
    return replace(made, start=at + 1, end=at + 2)


@pytest.fixture(params=["post", "pre"])
def model(request) -> BertForQuestionAnswering:
    """Weights and biases larger than at the start of a training, so that all of them matter."""
    torch.manual_seed(3)
    made = BertForQuestionAnswering(config(request.param), Ops())
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(4 if p.dim() > 1 else 1).add_(0.03 * torch.randn_like(p))
    return made
