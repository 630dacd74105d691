# SPDX-License-Identifier: Apache-2.0
"""MLPerf's rules for a recipe, and the values that its log must have.

Source: mlcommons/training_policies training_rules.adoc (BERT, until v5.0) and the compliance
checker's closed_bert.yaml.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bertbench.benchmarks.bert_pretraining.recipes import (
    LARGE,
    MLPERF_TARGET,
    PretrainingRecipe,
    mlperf_eval_interval,
)


def why_not_closed(recipe: PretrainingRecipe) -> list[str]:
    """Return the rules of the closed division that a recipe breaks.

    Batch size, learning rate, schedule, betas and weight decay are free in the closed division.
    """
    interval = mlperf_eval_interval(recipe.global_batch)
    rules = {
        "the model must be MLPerf's BERT-large (dropout and initialisation included)": (
            replace(recipe.model, vocab_size=LARGE.vocab_size) == LARGE
            and recipe.model.vocab_size >= 30522
        ),
        "sequences are 512 long with at most 76 predictions": (
            recipe.max_seq_length == 512 and recipe.max_predictions_per_seq == 76
        ),
        "attention is dense": recipe.attention_mask is None,
        "the optimizer is LAMB": recipe.optimizer == "lamb",
        f"the target is {MLPERF_TARGET}": recipe.target_mlm_accuracy == MLPERF_TARGET,
        "10,000 samples are evaluated": recipe.num_eval_examples == 10_000,
        f"evaluation is every {interval} samples, the first within {interval}": (
            recipe.eval_iter_samples == interval and 0 <= recipe.eval_iter_start_samples <= interval
        ),
        "training starts from MLPerf's checkpoint": recipe.initial_mlm_accuracy is not None,
    }
    return [rule for rule, kept in rules.items() if not kept]


def log_values(recipe: PretrainingRecipe, accumulation: int, warmup_steps: int) -> dict[str, Any]:
    """Return the MLPerf log's keys that come from the recipe, with the values used."""
    return {
        "global_batch_size": recipe.global_batch,
        "gradient_accumulation_steps": accumulation,
        "max_sequence_length": recipe.max_seq_length,
        "max_predictions_per_seq": recipe.max_predictions_per_seq,
        "opt_base_learning_rate": recipe.learning_rate,
        "opt_epsilon": recipe.opt_epsilon,
        "opt_lamb_epsilon": recipe.opt_epsilon,
        "opt_lamb_beta_1": recipe.opt_lamb_beta_1,
        "opt_lamb_beta_2": recipe.opt_lamb_beta_2,
        "opt_lamb_weight_decay_rate": recipe.weight_decay_rate,
        "opt_lamb_learning_rate_decay_poly_power": recipe.lr_power,
        "opt_gradient_clip_norm": recipe.max_grad_norm,
        "opt_learning_rate_training_steps": recipe.max_steps,
        "opt_learning_rate_warmup_steps": warmup_steps,
        "num_warmup_steps": warmup_steps,
        "start_warmup_step": recipe.start_warmup_step,
        "opt_name": recipe.optimizer,
    }
