# SPDX-License-Identifier: Apache-2.0
"""What each flag of the reference SQuAD scripts means in this benchmark.

The references are run_squad.py of NVIDIA's DeepLearningExamples (729963dd, and as of 2021) and of
Enflame's ModelZoo (afc077c and 53f1190). Flags that are fields of ours are not listed.
"""

from __future__ import annotations

from bertbench.common.config.reference_flags import (
    Meaning,
    Notes,
    Refuses,
    Sets,
    as_float,
    as_whole,
    log_freq,
)


def _limit(text: str) -> str:
    """Theirs: not positive (-1.0) is no limit. Ours: None."""
    return "None" if text.lower() == "none" or as_float(text) <= 0 else as_whole(text)


def _device(text: str) -> str:
    """Theirs: kinds of device. Ours: names of backends, and of families of them."""
    name = text.lower()
    return "cpu_ref" if name == "cpu" else name


RANKS = "rank and device come from the launcher's environment"
FUSED = "the backend decides what is fused; choose with --kernels (see `bertbench doctor`)"

REFERENCE: dict[str, Meaning] = {
    # -- same quantity, other name or other spelling of its values
    "device": Sets("backend", _device),
    "no_cuda": Sets("backend", "cpu_ref"),
    "fp16": Sets("precision", "fp16"),
    "amp": Sets(
        "precision",
        "amp",
        note="mixed precision in the device's better 16-bit format; theirs was always float16, "
        "which is --fp16",
    ),
    "train_batch_size": Sets("train_batch_size", as_whole),
    "gradient_accumulation_steps": Sets("gradient_accumulation_steps", as_whole),
    "predict_batch_size": Sets("eval_batch_size", as_whole),
    "max_steps": Sets("max_steps", _limit),
    "skip_steps": Sets("skip_steps", as_whole),
    "log_freq": Sets("log_freq", log_freq),
    "print_freq": Sets("log_freq", log_freq),
    "do_lower_case": Sets("lowercase", "True"),
    "version_2_with_negative": Sets("v2", "True"),
    "config_file": Sets("bert_config_path", str),
    "weight_decay": Sets("weight_decay_rate", str),
    # -- asked for by the references, always so or never needed here
    "bert_model": Notes(
        "it only names cache files in the references; ours are named by what is in them",
        takes_value=True,
    ),
    "local_rank": Notes(RANKS, takes_value=True),
    "use_env": Notes(RANKS),
    "use_apex": Notes(FUSED),
    "workers": Notes("features lie in memory; no process loads them", takes_value=True),
    "drop_last": Notes("batches are always full: they run across the ends of epochs"),
    "profile": Notes("declared and never used in the reference"),
    "verbose_logging": Notes("how each answer was found is in nbest_predictions.json"),
    "disable_progress_bar": Notes("the bar is only shown on a terminal, and is not in the record"),
    # -- would change the numbers or their meaning
    "loss_scale": Refuses(
        "a fixed loss scale is not offered: fp16 scales dynamically from --init_loss_scale, other "
        "precisions need none",
        takes_value=True,
        off=("0", "0.", "0.0"),
    ),
}
"""What the references' flags mean here; those not listed are fields of ours under their name."""
