# SPDX-License-Identifier: Apache-2.0
"""The range of each setting that is a number: by name, since a name means the same everywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bertbench.common.files import shown


@dataclass(frozen=True, slots=True)
class Range:
    """The values from ``low`` to ``high``."""

    low: float
    high: float
    above: bool = False
    """Whether ``low`` itself is left out."""
    below: bool = False
    """Whether ``high`` itself is left out."""
    hint: str = ""
    """What to do where the value stands for a wish that another flag grants."""

    def __contains__(self, value: float) -> bool:
        return (
            self.low <= value <= self.high
            and not (self.above and value == self.low)
            and not (self.below and value == self.high)
        )

    def __str__(self) -> str:
        if self.above:
            return f"above {self.low} and at most {self.high}{self.hint}"
        if self.below:
            return f"from {self.low} to below {self.high}{self.hint}"
        if self.high <= 1:
            return f"from {self.low} to {self.high}{self.hint}"
        return f"at least {self.low} and at most {self.high}{self.hint}"


ANY = Range(-(2**63), 2**63 - 1)
"""Of a setting without a range: what a record can hold and another program read."""
_FROM_0, _FROM_1 = Range(0, 2**31 - 1), Range(1, 2**31 - 1)
_SAMPLES = Range(0, 2**53)
_SHARE, _BETA = Range(0, 1), Range(0, 1, below=True)
_POSITIVE, _SMALL = Range(0, 1e30, above=True), Range(0, 1, above=True)
RANGES = {
    # sizes
    "vocab_size": Range(5, 2**24),  # the special tokens
    "hidden_size": Range(1, 2**16),
    "num_hidden_layers": Range(1, 2**12),
    "num_attention_heads": Range(1, 2**12),
    "intermediate_size": Range(1, 2**20),
    "max_position_embeddings": Range(1, 2**20),
    "type_vocab_size": Range(1, 2**10),
    "hidden_dropout": _BETA,
    "attention_dropout": _BETA,
    "initializer_range": Range(0, 1000, above=True),
    "layer_norm_eps": _SMALL,
    "max_seq_length": Range(1, 2**20),
    "max_predictions_per_seq": Range(1, 2**20),
    "doc_stride": _FROM_1,
    "max_query_length": _FROM_0,
    # batches and lengths
    "global_batch": _FROM_1,
    "micro_batch": _FROM_1,
    "max_micro_batch": _FROM_1,
    "eval_batch_size": _FROM_1,
    "num_threads": Range(1, 2**12),
    "num_train_epochs": Range(0, 10**6, above=True, hint="; to only predict: --no_do_train"),
    "max_steps": _FROM_1,
    "max_samples_termination": Range(1, 2**53),
    "skip_steps": _FROM_0,
    "log_freq": _FROM_1,
    "quickstart_dupe_factor": Range(1, 2**10),
    "n_best_size": _FROM_1,
    "max_answer_length": _FROM_1,
    # optimizer and schedule
    "learning_rate": Range(0, 10**6),
    "weight_decay_rate": Range(0, 1000),
    "opt_lamb_beta_1": _BETA,
    "opt_lamb_beta_2": _BETA,
    "adam_beta_1": _BETA,
    "adam_beta_2": _BETA,
    "opt_epsilon": _SMALL,
    "adam_epsilon": _SMALL,
    "max_grad_norm": _POSITIVE,
    "warmup_steps": _FROM_0,
    "start_warmup_step": Range(-(2**31), 2**31 - 1),
    "warmup_proportion": _SHARE,
    "lr_power": Range(0, 1000),
    "init_loss_scale": Range(1, 2**100),
    # evaluation and target
    "eval_iter_start_samples": _SAMPLES,
    "eval_iter_samples": _SAMPLES,
    "num_eval_examples": _FROM_1,
    "target_mlm_accuracy": _SMALL,
    "initial_mlm_accuracy": _SHARE,
    "target_f1": Range(0, 100, above=True),
    "target_score": Range(0, 100, above=True),
    # mask search
    "lamb": Range(0, 1e6),
    "target_sparsity": _BETA,
    "target_weight": _POSITIVE,
    "search_block": Range(1, 2**14),
    "search_window": Range(0, 2**14),
    "search_rate": _POSITIVE,
    "search_start": Range(0.001, 0.999),
    "search_ramp": _SHARE,
    "search_temperature": Range(0, 1e6, above=True, below=True),
    "search_end_temperature": Range(0, 1e6, above=True, below=True),
    # data and scores
    "eval_share": Range(0.001, 0.999),
    "calibration_percentile": Range(50, 100),
    "distillation": _SHARE,
    "distillation_temperature": Range(0.01, 1000),
    "null_score_diff_threshold": Range(-1e30, 1e30),
    # the run
    "seed": Range(0, 2**64 - 1),
    "keep_n_most_recent_checkpoints": _FROM_1,
    "num_samples_per_checkpoint": _SAMPLES,
    "min_samples_to_start_checkpoints": _SAMPLES,
    "eval_script_minutes": Range(0, 10**4, above=True),
    "max_minutes": Range(0, 10**7, above=True),
}


def check_ranges(settings: Any) -> None:
    """Raise ValueError, naming flag and range, for a number in a dataclass that is out of it."""
    for field in dataclasses.fields(settings):
        _check_all(field.name, getattr(settings, field.name))


def _check_all(name: str, value: Any) -> None:
    if dataclasses.is_dataclass(value):
        check_ranges(value)
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            _check_all(name, inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check(name, value, value)


def check_flags(words: Sequence[str]) -> None:
    """Raise ValueError as ``check_ranges`` for flags with values, before they are parsed."""
    for flag, text in pairwise(words):
        try:
            value = float(text)
        except ValueError:  # the parser's affair
            continue
        if flag[2:] in RANGES:
            _check(flag[2:], value, text)


def _check(name: str, value: float, written: object) -> None:
    allowed = RANGES.get(name, ANY)
    if value not in allowed:  # nor is NaN in any range
        raise ValueError(f"--{name} is {shown(written, 40)}: it must be {allowed}")
