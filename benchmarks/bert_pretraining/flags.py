# SPDX-License-Identifier: Apache-2.0
"""The command line of this benchmark: our fields and the reference scripts' flags."""

from __future__ import annotations

from collections.abc import Sequence

from bertbench.benchmarks.bert_pretraining.recipes import PretrainingOptions, PretrainingRecipe
from bertbench.benchmarks.bert_pretraining.reference_flags import REFERENCE, WARMUP
from bertbench.benchmarks.finetuning import take_model
from bertbench.common.config.recipe import Impl
from bertbench.common.config.reference_flags import (
    BATCHES,
    Flags,
    Remarks,
    Values,
    as_float,
    as_whole,
    derive_batches,
    fields,
)

OWN = fields(PretrainingRecipe, Impl, PretrainingOptions)
DERIVED = {
    **BATCHES,
    "average_packing_rate": "",
    "packed_samples": "",
    "config_file": "bert_config_path",
    "num_steps_per_checkpoint": "num_samples_per_checkpoint",
    "steps_this_run": "max_samples_termination",
}
"""The references' quantities, and our field that replaces each."""
FLAGS = Flags(OWN, {**REFERENCE, "warmup": WARMUP}, DERIVED)


def translate(
    argv: Sequence[str], recipe: PretrainingRecipe | None = None, world: int | None = None
) -> tuple[list[str], list[str]]:
    """Translate flags for ``recipe`` and ``world`` processes; see ``Flags.translate``.

    ``recipe`` has the global batch that --gradient_accumulation_steps alone divides; ``world``
    defaults to the launcher's WORLD_SIZE.
    """

    def derive(values: Values, notes: Remarks) -> None:
        derive_batches(
            values,
            notes,
            global_batch=recipe.global_batch if recipe is not None else None,
            world=world,
            rows=_sequences_in_a_row(values, notes),
        )
        if recipe is not None:
            _derive_model(values, notes, recipe)
            _derive_limits(values, notes, recipe)

    return FLAGS.translate(argv, derive)


def _derive_model(values: Values, notes: Remarks, recipe: PretrainingRecipe) -> None:
    """Take the model from --config_file; --bert_config_path has to agree with the recipe's."""
    if "config_file" in values:
        values["bert_config_path"] = values.pop("config_file")
        take_model(values, notes, recipe.model)


def _derive_limits(values: Values, notes: Remarks, recipe: PretrainingRecipe) -> None:
    """Convert numbers of steps to samples. As in the reference, the last step is saved, too."""
    if as_float(values.get("warmup_proportion", "0")) > 0 and recipe.warmup_steps:
        values.setdefault("warmup_steps", "0")  # which would win
    batch = int(as_whole(values.get("global_batch", str(recipe.global_batch))))
    last = int(as_whole(values.get("max_steps", str(recipe.max_steps))))
    this_run = int(values.pop("steps_this_run", -1))
    if this_run > 0:
        last = min(last, this_run)
        values["max_samples_termination"] = str(batch * this_run)
        notes["the run ends after them, its schedule at --max_steps"] = ["--steps_this_run"]
    every = min(int(values.pop("num_steps_per_checkpoint", 0)), last)
    if every:
        first = every + last % every
        values["num_samples_per_checkpoint"] = str(batch * every)
        values.setdefault("min_samples_to_start_checkpoints", str(batch * first))
        text = f"at step {first} and then every {every} steps, so that the last one is saved"
        notes[text] = ["--num_steps_per_checkpoint"]


def _sequences_in_a_row(values: Values, notes: Remarks) -> int:
    """Return the sequences that the reference counts for each row of a packed file."""
    rate = values.pop("average_packing_rate", None)
    if values.pop("packed_samples", None) is not None:
        return 2 if rate is None else int(rate)  # the reference's default is 2
    if rate is not None:
        notes.setdefault("only used with --packed_samples, as in the reference", []).append(
            "--average_packing_rate"
        )
    return 1
