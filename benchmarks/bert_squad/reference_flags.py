# SPDX-License-Identifier: Apache-2.0
"""The meaning of each flag of the reference SQuAD scripts in this benchmark.

The references are run_squad.py of NVIDIA's DeepLearningExamples (729963dd, and as of 2021) and of
Enflame's ModelZoo (afc077c and 53f1190).
"""

from __future__ import annotations

from bertbench.common.config.reference_flags import (
    FUSED,
    Meaning,
    Notes,
    Sets,
    as_float,
    as_whole,
    log_freq,
)


def _limit(text: str) -> str:
    """Convert no limit (-1.0, or any number up to 0) to None."""
    return "None" if text.lower() == "none" or as_float(text) <= 0 else as_whole(text)


REFERENCE: dict[str, Meaning] = {
    # -- same quantity, other name or other spelling of its values
    "device": Sets("backend", str.lower),
    "no_cuda": Sets("backend", "cpu_ref"),
    "predict_batch_size": Sets("eval_batch_size", as_whole),
    "max_steps": Sets("max_steps", _limit),
    "skip_steps": Sets("skip_steps", as_whole),
    "print_freq": Sets("log_freq", log_freq),
    "do_lower_case": Sets("lowercase", "True"),
    "version_2_with_negative": Sets("v2", "True"),
    "config_file": Sets("bert_config_path", str),
    "weight_decay": Sets("weight_decay_rate", str),
    # -- always so, or never needed here
    "bert_model": Notes(
        "it only names cache files in the references; the content's hash names ours",
        takes_value=True,
    ),
    "use_apex": Notes(FUSED),
    "workers": Notes("features are in memory; no process loads them", takes_value=True),
    "drop_last": Notes("batches are always full: they run across the ends of epochs"),
    "profile": Notes("declared and never used in the reference"),
    "verbose_logging": Notes("how each answer was found is in nbest_predictions.json"),
    "disable_progress_bar": Notes("only a terminal shows the bar; the record does not have it"),
}
"""The references' flags; those not listed, nor in SHARED, are fields of the same name."""
