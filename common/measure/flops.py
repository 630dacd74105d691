# SPDX-License-Identifier: Apache-2.0
"""Model FLOPs: the arithmetic that training requires, independent of the implementation.

They count the matrix products of real tokens (a multiplication and an addition are two), forward
and twice that for the backward pass. Padding, recomputation, dropout, norms, softmax and the
optimizer do not count: a faster implementation must not score lower. Megatron-LM and PaLM define
MFU in the same way, but count full-length sequences.

They are dense-equivalent: an attention mask changes nothing. The effective FLOPs are without the
scores that it leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence

from bertbench.common.model.config import BertConfig

BACKWARD = 2
"""Backward products per forward product: gradients of input and of weight."""


def span_flops(config: BertConfig, lengths: Sequence[int]) -> int:
    """Return the FLOPs of one training pass of a span model (encoder, two outputs per token)."""
    head = 2 * config.hidden_size * 2 * sum(lengths)
    return (1 + BACKWARD) * (encoder_flops(config, lengths) + head)


def pretraining_flops(config: BertConfig, lengths: Sequence[int], masked: int) -> int:
    """Return the FLOPs of one training pass (forward and backward) over a micro-batch.

    Args:
        lengths: tokens of each sequence, without padding.
        masked: masked positions of all sequences; only these enter the MLM head.
    """
    head = 2 * config.hidden_size * (config.hidden_size + config.vocab_size)
    pooled = 2 * config.hidden_size * (config.hidden_size + 2)
    forward = encoder_flops(config, lengths) + masked * head + len(lengths) * pooled
    return (1 + BACKWARD) * forward


def encoder_flops(config: BertConfig, lengths: Sequence[int]) -> int:
    """Return the FLOPs of a forward pass of the layers: linear in tokens, quadratic in lengths."""
    hidden, inner = config.hidden_size, config.intermediate_size
    linear = 2 * hidden * (4 * hidden + 2 * inner)
    attention = 4 * hidden * sum(length * length for length in lengths)
    return config.num_hidden_layers * (linear * sum(lengths) + attention)


def scores_flops(config: BertConfig, scores: int) -> int:
    """Return the FLOPs of one training pass for attention scores, each of one head.

    Forward they are a query times a key, and the score times a value.
    """
    size = config.hidden_size // config.num_attention_heads
    return (1 + BACKWARD) * 4 * size * scores
