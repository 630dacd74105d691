# SPDX-License-Identifier: Apache-2.0
"""The command line of this benchmark: our fields and the reference scripts' flags, as our fields.

common/config/reference_flags.py reads them; the references' are in reference_flags.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from bertbench.benchmarks.bert_pretraining.recipes import PretrainingOptions, PretrainingRecipe
from bertbench.benchmarks.bert_pretraining.reference_flags import REFERENCE, WARMUP
from bertbench.common.config.recipe import Impl
from bertbench.common.config.reference_flags import (
    BATCHES,
    Flags,
    Remarks,
    Values,
    derive_batches,
    fields,
    world_size,
)

OWN = fields(PretrainingRecipe, Impl, PretrainingOptions)
DERIVED = {**BATCHES, "average_packing_rate": "", "packed_samples": ""}
"""Quantities from which fields of ours are computed: naming the field directly undoes them."""
FLAGS = Flags(OWN, {**REFERENCE, "warmup": WARMUP}, DERIVED)


def translate(
    argv: Sequence[str], recipe: PretrainingRecipe | None = None, world: int | None = None
) -> tuple[list[str], list[str]]:
    """Flags of ours or of a reference script -> (flags of ours, notes for the user).

    Args:
        argv: what follows the recipe's name on the command line.
        recipe: the preset that the flags change; its global batch is what
            ``--gradient_accumulation_steps`` alone divides.
        world: processes over all nodes, which ``--train_batch_size`` is multiplied by; default:
            the launcher's WORLD_SIZE, else 1.

    Raises:
        BadInput: an unknown or ambiguous flag, a missing or impossible value; says what was meant.
        Unsupported: a flag that cannot be honoured; says why and what to do instead.
    """
    values, notes = FLAGS.read(argv)
    if "help" in values:
        return ["--help"], []
    derive_batches(
        values,
        notes,
        global_batch=recipe.global_batch if recipe is not None else None,
        world=world_size() if world is None else world,
        rows=_sequences_in_a_row(values, notes),
    )
    return FLAGS.write(values, notes)


def _sequences_in_a_row(values: Values, notes: Remarks) -> int:
    """How many sequences the reference counts for each row of a packed file."""
    rate = values.pop("average_packing_rate", None)
    if values.pop("packed_samples", None) is not None:
        return 2 if rate is None else int(rate)  # the reference's default is 2
    if rate is not None:
        notes.setdefault("used beside --packed_samples only, as in the reference", []).append(
            "--average_packing_rate"
        )
    return 1
