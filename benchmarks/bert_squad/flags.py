# SPDX-License-Identifier: Apache-2.0
"""The command line of this benchmark: our fields and the reference scripts' flags."""

from __future__ import annotations

from collections.abc import Sequence

from bertbench.benchmarks.bert_squad.recipes import SquadOptions, SquadRecipe
from bertbench.benchmarks.bert_squad.reference_flags import REFERENCE
from bertbench.benchmarks.finetuning import take_model
from bertbench.common.config.recipe import Impl
from bertbench.common.config.reference_flags import (
    BATCHES,
    Flags,
    Remarks,
    Values,
    derive_batches,
    fields,
)

OWN = fields(SquadRecipe, Impl, SquadOptions)
FLAGS = Flags(OWN, REFERENCE, BATCHES)
PARTS = ("do_train", "do_predict", "do_eval")


def translate(
    argv: Sequence[str], recipe: SquadRecipe | None = None, world: int | None = None
) -> tuple[list[str], list[str]]:
    """Translate flags for ``recipe`` and ``world`` processes; see ``Flags.translate``.

    ``world`` defaults to the launcher's WORLD_SIZE.
    """

    def derive(values: Values, notes: Remarks) -> None:
        derive_parts(values, notes)
        if recipe is not None:
            take_model(values, notes, recipe.model)
            if recipe.starts_from != "checkpoint" and "init_checkpoint" in values:
                values.setdefault("starts_from", "checkpoint")
            _clipping(values, notes, recipe)
        batch = recipe.global_batch if recipe is not None else None
        derive_batches(values, notes, global_batch=batch, world=world)

    return FLAGS.translate(argv, derive)


def derive_parts(values: Values, notes: Remarks) -> None:
    """Switch off the parts that are not named, as the references do; none named means all."""
    named = [part for part in PARTS if values.get(part) == "True"]
    if named:
        if any(part not in values for part in PARTS):
            notes["only this is done, as in the references"] = [f"--{part}" for part in named]
        for part in PARTS:
            values.setdefault(part, "False")
    if values.get("do_predict") == "False":
        if values.get("do_eval") == "True":
            values["do_predict"] = "True"
            notes["scoring needs answers: --do_predict is on, too"] = ["--do_eval"]
        else:
            values["do_eval"] = "False"


def _clipping(values: Values, notes: Remarks, recipe: SquadRecipe) -> None:
    """Clip in mixed precision, as Enflame's run_squad.py does; its FP32 recipes do not clip."""
    mixed = values.get("precision", "fp32") not in ("fp32", "tf32")
    if recipe.gradient_clipping == "none" and mixed and "gradient_clipping" not in values:
        values["gradient_clipping"] = "global"
        notes["gradients are clipped, which Enflame's script does in mixed precision only"] = [
            "--precision"
        ]
