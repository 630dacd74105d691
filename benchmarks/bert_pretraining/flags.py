# SPDX-License-Identifier: Apache-2.0
"""The command line of this benchmark: our fields and the reference scripts' flags."""

from __future__ import annotations

from collections.abc import Sequence

from bertbench.benchmarks.bert_pretraining.recipes import PretrainingOptions, PretrainingRecipe
from bertbench.benchmarks.bert_pretraining.reference_flags import REFERENCE, WARMUP
from bertbench.benchmarks.phases.flags import derive_limits, derive_model
from bertbench.common.config.recipe import Impl
from bertbench.common.config.reference_flags import (
    BATCHES,
    Flags,
    Remarks,
    Values,
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
MEANINGS = {**REFERENCE, "warmup": WARMUP}
FLAGS = Flags(OWN, MEANINGS, DERIVED)


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
            derive_model(values, notes, recipe)
            derive_limits(values, notes, recipe)

    own = fields(type(recipe) if recipe else PretrainingRecipe, Impl, PretrainingOptions)
    meanings = {name: m for name, m in MEANINGS.items() if name in OWN or name not in own}
    return Flags(own, meanings, DERIVED).translate(argv, derive)


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
