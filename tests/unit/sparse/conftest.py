# SPDX-License-Identifier: Apache-2.0
"""A tiny model, and a data set for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sparse_text import make_text

from bertbench.common.prepare.from_text import PrepareOptions, prepare
from bertbench.common.prepare.masking import MaskingOptions


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared data set with held-out samples."""
    folder = tmp_path_factory.mktemp("sparse")
    masking = MaskingOptions(max_seq_length=32, max_predictions_per_seq=5, dupe_factor=2)
    options = PrepareOptions(
        text=(make_text(folder / "text.txt"),),
        output=folder / "data",
        train_vocab=90,
        masking=masking,
        eval_fraction=0.3,
        processes=1,
    )
    prepare(options)
    return folder / "data"


@pytest.fixture
def tiny() -> list[str]:
    """Flags of a run that takes seconds."""
    return """
        --hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --intermediate_size 32
        --vocab_size 128 --max_seq_length 32 --max_position_embeddings 32 --global_batch 8
        --max_predictions_per_seq 5 --warmup_steps 2 --max_steps 12 --eval_iter_start_samples 96
        --eval_iter_samples 96 --num_eval_examples 30 --target_mlm_accuracy None --backend cpu_ref
        --num_threads 1 --precision fp32
    """.split()
