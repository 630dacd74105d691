# SPDX-License-Identifier: Apache-2.0
"""The named recipes of GLUE fine-tuning. Pure data: importing this does not import torch.

Batch, rate, epochs, warm-up and length are those with which BERT's authors fine-tune on MRPC
(google-research/bert, README and run_classifier.py); Hugging Face's run_glue.py is documented with
the same batch, rate, epochs and length. NVIDIA's and SparseBERT's run_glue.sh have BERT-large in
mind (2.4e-5, 16 a GPU). None of them publishes a target, so no recipe has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bertbench.benchmarks.finetuning import MINILM
from bertbench.benchmarks.glue.tasks import TASKS
from bertbench.common.config.recipe import DataOptions, Impl, Preset, Recipe
from bertbench.common.model.config import BERT_BASE, BertConfig

TaskName = Literal["mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte"]


@dataclass(frozen=True, kw_only=True)
class GlueRecipe(Recipe):
    """Classification or regression of one or two texts on a GLUE task."""

    model: BertConfig
    """The encoder; vocabulary as built, padding rows included."""
    task: TaskName = "mnli"
    """The task: its columns, labels and scores (--task_name)."""
    starts_from: Literal["checkpoint", "minilm", "random"] = "checkpoint"
    """Weights before training: --init_checkpoint; those of all-MiniLM-L6-v2, fetched; random."""
    max_seq_length: int = 128
    """Longest sequence, in wordpieces; of a pair, the longer text is cut (run_classifier.py)."""
    lowercase: bool = True
    """Lower case without accents, which an uncased vocabulary needs (--do_lower_case)."""
    eval_share: float | None = None
    """Share of the training file that is held out for evaluation, without a dev file: by a
    hash of the first text, so that the pairs of one premise stay together."""
    malformed_lines: Literal["refuse", "skip"] = "refuse"
    """What becomes of lines with too few or too many fields; skipped ones are counted."""
    global_batch: int = 32
    """Sequences per optimizer step, over all devices (BERT's README: 32)."""
    num_train_epochs: float = 3.0
    """Passes over the training file (BERT's README: 3)."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; None = after num_train_epochs, from which the
    schedule's length always follows."""
    learning_rate: float = 2e-5
    """Peak rate, reached by a linear warm-up and decayed linearly to 0 (BERT's README: 2e-5)."""
    warmup_proportion: float = 0.1
    """Warm-up as a share of the schedule (run_classifier.py and NVIDIA's run_glue.py: 0.1)."""
    weight_decay_rate: float = 0.01
    """Decoupled; not applied to biases and LayerNorm (BERT: 0.01)."""
    adam_beta_1: float = 0.9
    adam_beta_2: float = 0.999
    adam_epsilon: float = 1e-6
    bias_correction: bool = True
    """Adam's, as in Hugging Face's run_glue.py. BERT and NVIDIA have none, which makes small tasks
    unstable (Mosbach et al. 2021)."""
    max_grad_norm: float = 1.0
    """Limit of the norm of all gradients together (BERT, NVIDIA and Hugging Face: 1)."""
    target_score: float | None = None
    """The task's score, in percent, that makes a run ok; None = no target."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_seq_length > self.model.max_position_embeddings:
            raise ValueError(
                f"max_seq_length {self.max_seq_length} exceeds the model's "
                f"max_position_embeddings {self.model.max_position_embeddings}"
            )
        if self.max_seq_length < 5:
            raise ValueError(
                f"max_seq_length {self.max_seq_length} leaves no room for two texts between [CLS] "
                f"and two [SEP]: give at least 5"
            )


@dataclass(frozen=True, kw_only=True)
class GlueOptions(DataOptions):
    """The files and parts of the work of a GLUE run, besides the common options."""

    train_file: Path | None = None
    """File to train on, as the task's train.tsv or JSON lines; default: under --data."""
    dev_file: Path | None = None
    """Labelled file to evaluate on (--validation_file); default: the task's under --data."""
    test_file: Path | None = None
    """File without labels for --do_predict; default: the task's under --data."""
    vocab_file: Path | None = None
    """One wordpiece a line; default: under --data or beside the checkpoint, else
    bert-base-uncased's, fetched and verified."""
    do_train: bool = True
    """Fine-tune; without it the starting weights are evaluated."""
    do_eval: bool = True
    """Evaluate on the dev set, or on each of the two of MNLI."""
    do_predict: bool = False
    """Label the test set, too, in the files that GLUE's server takes."""


_DATA = (
    "--data ROOT with {folder}/ as GLUE's archive has it, or --train_file and --dev_file; "
    "--init_checkpoint"
)
_SUMMARIES = {
    "mnli": "entailment of sentence pairs, matched and mismatched genres",
    "qqp": "equal questions of Quora",
    "qnli": "whether a sentence answers a question",
    "sst2": "sentiment of sentences",
    "cola": "linguistic acceptability of sentences",
    "stsb": "similarity of sentence pairs, from 0 to 5",
    "mrpc": "paraphrases of news sentences",
    "rte": "entailment of sentence pairs, 2,490 to train on",
}


def _base(task: TaskName) -> Preset:
    # QQP's official train.tsv has lines cut in two (nyu-mll/GLUE-baselines, issue 5), which
    # Hugging Face's loader drops as well.
    malformed: Literal["refuse", "skip"] = "skip" if task == "qqp" else "refuse"
    return Preset(
        name=f"glue_{task}",
        benchmark="glue",
        summary=f"BERT-base on {TASKS[task].folder}: {_SUMMARIES[task]}",
        recipe=GlueRecipe(model=BERT_BASE, task=task, malformed_lines=malformed),
        impl=Impl(max_micro_batch=32, eval_batch_size=32),
        run=GlueOptions(),
        data=_DATA.format(folder=TASKS[task].folder),
        duration="not measured",
    )


def _mini() -> Preset:
    return Preset(
        name="glue_mini",
        benchmark="glue",
        summary="MiniLM (6 x 384, real weights) on any GLUE task (--task), on a laptop",
        recipe=GlueRecipe(
            model=MINILM,
            starts_from="minilm",
            learning_rate=1e-4,  # a small model's: that of squad_mini
        ),
        impl=Impl(max_micro_batch=32, eval_batch_size=32),
        run=GlueOptions(log_freq=20),
        data="a GLUE folder (--data), or files of one task: --train_file, --dev_file",
        duration="minutes for some thousand examples on 2 CPU cores",
    )


_NAMES: tuple[TaskName, ...] = ("mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte")
PRESETS = {preset.name: preset for preset in (_mini(), *map(_base, _NAMES))}
