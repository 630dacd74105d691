# SPDX-License-Identifier: Apache-2.0
"""Model FLOPs against torch's own counter and against published figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bertbench.benchmarks.bert_pretraining.recipes import BASE, LARGE
from bertbench.common.masks.attach import RecipeMask
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.masks.patterns import parse
from bertbench.common.measure.flops import (
    encoder_flops,
    pretraining_flops,
    scores_flops,
    span_flops,
)
from bertbench.common.model.config import BertConfig
from bertbench.common.model.heads import BertForPreTraining
from bertbench.common.model.ops import Ops

CONFIG = BertConfig(
    vocab_size=96, hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
    intermediate_size=80, max_position_embeddings=64,
)  # fmt: skip


@pytest.mark.parametrize("lengths", [[17], [64, 3, 30, 30, 9]])
def test_the_formula_counts_what_torch_counts(make_batch, lengths) -> None:
    torch.manual_seed(0)
    model = BertForPreTraining(CONFIG, Ops()).train()
    batch = make_batch(lengths, vocab_size=CONFIG.vocab_size, masked=2)
    counter = FlopCounterMode(display=False)
    # Torch's counter knows the products of the plain attention; fused ones recompute.
    with sdpa_kernel(SDPBackend.MATH), counter:
        out = model(batch)
        (out.mlm_loss + out.nsp_loss).backward()
    expected = pretraining_flops(CONFIG, lengths, len(batch.masked_labels))
    assert counter.get_total_flops() == expected


def test_padding_is_not_counted_and_attention_is_per_sequence() -> None:
    together, apart = encoder_flops(CONFIG, [40]), encoder_flops(CONFIG, [20, 20])
    # 4 H per layer for each pair of tokens that sees each other.
    assert together - apart == 3 * 4 * 32 * (40 * 40 - 2 * 20 * 20)


@pytest.mark.parametrize(
    ("config", "length", "tera"),
    # 6 x 12 H^2 L T + 12 T^2 H L, without heads.
    [(LARGE, 384, 0.739), (BASE, 384, 0.212)],
)
def test_the_encoder_agrees_with_published_figures(config, length, tera) -> None:
    assert 3 * encoder_flops(config, [length]) / 1e12 == pytest.approx(tera, abs=0.0006)


def test_bert_large_at_512() -> None:
    """1.95 GFLOP per real token of Wikipedia-like lengths, 1.01 to 1.02 TFLOP padded to 512."""
    padded = pretraining_flops(LARGE, [512], 76)
    assert padded / 1e12 == pytest.approx(1.02, abs=0.02)


def test_span_model_at_the_published_sizes() -> None:
    # 6 x 12 h^2 L T + 12 T^2 h L, for the published tables: TFLOP per sequence of 384
    assert span_flops(LARGE, [384]) / 1e12 == pytest.approx(0.739, abs=5e-4)
    assert span_flops(BASE, [384, 384]) / 2e12 == pytest.approx(0.212, abs=5e-4)


def test_effective_flops_leave_out_what_the_mask_does() -> None:
    """Layer 0: all heads star; layer 1: dense, and bits with only the diagonal; layer 2: dense."""
    mask = AttentionMask(((parse("star"),), (parse("dense"), np.eye(64, dtype=bool)),
                          (parse("dense"),)))  # fmt: skip
    lengths = [64, 5, 5, 1]
    found = RecipeMask(mask, 64).left_out(lengths, layers=3, heads=2)
    # Star keeps each token's neighbours and itself, 3 n - 2, and the row and column of token 0,
    # of which 2 (n - 2) are not among them.
    star = {64: 64 * 64 - (3 * 64 - 2) - 2 * 62, 5: 25 - 13 - 6, 1: 0}
    assert found == sum(2 * star[n] + n * n - n for n in lengths)
    dense = encoder_flops(CONFIG, lengths)
    quadratic = dense - 3 * 2 * 32 * (4 * 32 + 2 * 80) * sum(lengths)
    every = RecipeMask(AttentionMask(((np.eye(64, dtype=bool),),)), 64)
    kept = quadratic - scores_flops(CONFIG, every.left_out(lengths, layers=3, heads=2)) / 3
    assert kept == 3 * 4 * 32 * sum(lengths)  # the diagonal: one key each


def test_shared_masks_count_for_each_layer_and_head() -> None:
    one = RecipeMask(AttentionMask(((parse("logsparse"),),)), 40)
    single = one.left_out([40, 7], layers=1, heads=1)
    assert single == sum(n * n - AttentionMask.of("logsparse").nnz(n) for n in (40, 7))
    assert one.left_out([40, 7], layers=3, heads=2) == 6 * single
    assert RecipeMask(AttentionMask.of("dense"), 40).left_out([40, 7], layers=3, heads=2) == 0
