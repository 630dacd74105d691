# SPDX-License-Identifier: Apache-2.0
"""The recipes of the two phases. Pure data: importing this does not import torch."""

from __future__ import annotations

from bertbench.benchmarks.bert_pretraining.recipes import (
    LARGE,
    PretrainingOptions,
    PretrainingRecipe,
)
from bertbench.common.config.recipe import Impl, Preset
from bertbench.common.model.config import BERT_BASE, BertConfig


def nvidia(phase: int, model: BertConfig) -> PretrainingRecipe:
    """One of the two phases of NVIDIA's DeepLearningExamples (scripts/run_pretraining.sh, 8 GPUs).

    SparseBERT's script is the same. Only max_steps ends the run; nothing is evaluated.
    """
    first = phase == 1
    return PretrainingRecipe(
        model=model,
        max_seq_length=128 if first else 512,
        max_predictions_per_seq=20 if first else 80,
        global_batch=65_536 if first else 32_768,
        learning_rate=6e-3 if first else 4e-3,
        max_steps=7_038 if first else 1_563,
        max_samples_termination=2**53,
        warmup_proportion=0.2843 if first else 0.128,
        lr_power=0.5,
        eval_iter_start_samples=0,
        eval_iter_samples=0,
        target_mlm_accuracy=None,
    )


def _phase(size: str, model: BertConfig, phase: int) -> Preset:
    first = phase == 1
    return Preset(
        name=f"nvidia_{size}_phase{phase}",
        benchmark="bert_pretraining",
        summary=f"DeepLearningExamples' BERT-{size}, length {128 if first else 512}",
        recipe=nvidia(phase, model),
        impl=Impl(max_micro_batch=64 if first else 8, init_loss_scale=2.0**20),
        run=PretrainingOptions(log_freq=1),
        data="NVIDIA's *training*.hdf5 of this length, given by --input_dir"
        + ("" if first else ", and phase 1's weights by --init_checkpoint"),
        duration="days on eight accelerators",
    )


# SparseBERT's base (2020) has the exact GELU; DeepLearningExamples at its head tanh.
_SIZES = (("base", BERT_BASE), ("large", LARGE))
PRESETS = {p.name: p for p in (_phase(*size, n) for size in _SIZES for n in (1, 2))}
