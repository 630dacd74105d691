# SPDX-License-Identifier: Apache-2.0
"""The command line of this benchmark: our fields and the flags of the references' run_glue.py.

The references are NVIDIA's DeepLearningExamples (115867b5, which SparseBERT copies) and Hugging
Face's examples/pytorch/text-classification.
"""

from __future__ import annotations

from collections.abc import Sequence

from bertbench.benchmarks.finetuning import take_model
from bertbench.benchmarks.glue.recipes import GlueOptions, GlueRecipe
from bertbench.common.config.recipe import Impl
from bertbench.common.config.reference_flags import (
    BATCHES,
    Flags,
    Meaning,
    Notes,
    Refuses,
    Remarks,
    Sets,
    Values,
    as_float,
    as_whole,
    derive_batches,
    each,
    fields,
    log_freq,
)

PARTS = ("do_train", "do_eval", "do_predict")


def _task(text: str) -> str:
    """Convert a task's name to ours: lower case without signs."""
    return text.lower().replace("-", "").replace("_", "")


def _limit(text: str) -> str:
    """Convert no limit (-1, or any number up to 0) to None."""
    return "None" if text.lower() == "none" or as_float(text) <= 0 else as_whole(text)


REFERENCE: dict[str, Meaning] = {
    # -- same quantity, other name or other spelling of its values
    "task_name": Sets("task", _task),
    "data_dir": Sets("data", str),
    "validation_file": Sets("dev_file", str),
    "config_file": Sets("bert_config_path", str),
    "config_name": Sets("bert_config_path", str),
    "per_device_train_batch_size": Sets("train_batch_size", as_whole),
    "per_device_eval_batch_size": Sets("eval_batch_size", as_whole),
    "max_steps": Sets("max_steps", _limit),
    "warmup_ratio": Sets("warmup_proportion", str),
    "weight_decay": Sets("weight_decay_rate", str),
    "adam_beta1": Sets("adam_beta_1", str),
    "adam_beta2": Sets("adam_beta_2", str),
    "logging_steps": Sets("log_freq", log_freq),
    "do_lower_case": Sets("lowercase", "True"),
    "no_cuda": Sets("backend", "cpu_ref"),
    "use_cpu": Sets("backend", "cpu_ref"),
    "bf16": Sets("precision", "bf16"),
    # -- always so, or never needed here
    "bert_model": Notes(
        "it only names cache files and a tokenizer in the reference; --vocab_file is ours",
        takes_value=True,
    ),
    **each("overwrite_cache overwrite_output_dir", Notes("nothing is cached or overwritten")),
    "pad_to_max_length": Notes("nothing is padded"),
    # -- other maths or other numbers
    "model_name_or_path": Refuses(
        "models are not fetched by name: give the file of weights with --init_checkpoint",
        takes_value=True,
    ),
    **each(
        "max_train_samples max_eval_samples max_predict_samples",
        Refuses("whole files are used: cut the file", takes_value=True),
    ),
    **each("server_ip server_port", Refuses("no remote debugger", takes_value=True, off=("",))),
}
"""The references' flags; those not listed, nor in SHARED, are fields of the same name."""

FLAGS = Flags(fields(GlueRecipe, Impl, GlueOptions), REFERENCE, BATCHES)


def translate(
    argv: Sequence[str], recipe: GlueRecipe, world: int | None = None
) -> tuple[list[str], list[str]]:
    """Translate flags for ``recipe`` and ``world`` processes; see ``Flags.translate``.

    ``world`` defaults to the launcher's WORLD_SIZE.
    """

    def derive(values: Values, notes: Remarks) -> None:
        _derive_parts(values, notes)
        take_model(values, notes, recipe.model)
        if recipe.starts_from != "checkpoint" and "init_checkpoint" in values:
            values.setdefault("starts_from", "checkpoint")
        derive_batches(values, notes, global_batch=recipe.global_batch, world=world)

    return FLAGS.translate(argv, derive)


def _derive_parts(values: Values, notes: Remarks) -> None:
    """Switch off the parts that are not named, as the references do; none named: the defaults."""
    named = [part for part in PARTS if values.get(part) == "True"]
    if named and any(part not in values for part in PARTS):
        notes["only this is done, as in the references"] = [f"--{part}" for part in named]
        for part in PARTS:
            values.setdefault(part, "False")
