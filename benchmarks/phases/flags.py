# SPDX-License-Identifier: Apache-2.0
"""The flags of DeepLearningExamples' run_pretraining.py that MLPerf's lacks or counts otherwise.

SparseBERT's copy adds --lamb. Importing this file does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bertbench.benchmarks.finetuning import take_model
from bertbench.common.config.reference_flags import (
    Meaning,
    Notes,
    Refuses,
    Remarks,
    Sets,
    Values,
    as_whole,
    each,
)
from bertbench.common.errors import BadInput

if TYPE_CHECKING:
    from bertbench.benchmarks.bert_pretraining.recipes import PretrainingRecipe

PHASES = "each phase counts its own steps; phase 2 takes phase 1's weights with --init_checkpoint"
PROFILE = "start the command under the vendor's profiler"


def _count(text: str) -> str:
    """Read a number of steps from 1."""
    if int(as_whole(text)) < 1:
        raise BadInput(f"{text} is not a number of steps: give one from 1, or --skip_checkpoint")
    return as_whole(text)


JSON_SUMMARY = (
    "NVIDIA's logger's lines are not written: losses, rates and sequences per second are in the "
    "record's steps.jsonl and manifest.json"
)
PHASE_FLAGS: dict[str, Meaning] = {
    **each(
        "resume_from_checkpoint resume_phase2",
        Sets("resume", "last", "goes on from this recipe's newest checkpoint, not from weights"),
    ),
    "config_file": Sets("config_file", str),
    "num_steps_per_checkpoint": Sets("num_steps_per_checkpoint", _count),
    "steps_this_run": Sets("steps_this_run", as_whole),
    "phase2": Notes(PHASES),
    "phase1_end_step": Notes(PHASES, takes_value=True),
    "num_train_epochs": Notes("--max_steps ends a run, as in the reference", takes_value=True),
    "vocab_file": Notes("samples hold the numbers of tokens", takes_value=True),
    "num_workers": Notes("one process reads the files", takes_value=True),
    "disable_progress_bar": Notes("only a terminal shows the bar; the record does not have it"),
    "json_summary": Notes(JSON_SUMMARY, takes_value=True),
    "lamb": Refuses("is of the mask search: run a sparse_bert recipe", takes_value=True),
    "resume_step": Refuses(
        "name the checkpoint itself: --resume RUN/checkpoints/step_XXXXXXXX",
        takes_value=True,
        off=("-1",),
    ),
    "profile": Refuses(PROFILE),
    "profile_start": Refuses(PROFILE, takes_value=True, off=("0",)),
}


def derive_model(values: Values, notes: Remarks, recipe: PretrainingRecipe) -> None:
    """Take the model from --config_file; --bert_config_path has to agree with the recipe's."""
    if "config_file" in values:
        values["bert_config_path"] = values.pop("config_file")
        take_model(values, notes, recipe.model)


def derive_limits(values: Values, notes: Remarks, recipe: PretrainingRecipe) -> None:
    """Convert numbers of steps to samples. As in the reference, the last step is saved, too."""
    if values.get("warmup_proportion", "0").strip("0.") and recipe.warmup_steps:
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
