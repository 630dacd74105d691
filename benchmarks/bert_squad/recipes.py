# SPDX-License-Identifier: Apache-2.0
"""The named recipes of SQuAD fine-tuning. Pure data: importing this does not import torch.

The published scripts are three forks of one: NVIDIA's (DeepLearningExamples at its head, and as of
2021) and Enflame's (ModelZoo at afc077c). They share hyperparameters and differ in the numerics
that ``nvidia``, ``nvidia_2021`` and ``enflame`` set; each line names its source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bertbench.benchmarks.finetuning import MINILM
from bertbench.common.config.recipe import DataOptions, Impl, Preset, Recipe
from bertbench.common.model.config import BERT_BASE, BERT_LARGE, BertConfig


@dataclass(frozen=True, kw_only=True)
class SquadRecipe(Recipe):
    """Extractive question answering on SQuAD v1.1 or v2.0. Defaults: the forks' common values."""

    model: BertConfig
    """The encoder; vocabulary as built, padding rows included."""
    starts_from: Literal["checkpoint", "minilm", "random"] = "checkpoint"
    """Weights before training: --init_checkpoint; those of all-MiniLM-L6-v2, fetched; random."""
    max_seq_length: int = 384
    """Longest sequence, in wordpieces; longer paragraphs become several windows (features)."""
    doc_stride: int = 128
    """Wordpieces by which one window of a paragraph begins after the other."""
    max_query_length: int = 64
    """Wordpieces of a question that are kept."""
    lowercase: bool = True
    """Lower case without accents, which an uncased vocabulary needs (--do_lower_case)."""
    v2: bool = False
    """Whether questions may be without answer, as in SQuAD v2.0 (--version_2_with_negative)."""
    global_batch: int
    """Features per optimizer step, over all devices."""
    num_train_epochs: float = 2.0
    max_steps: int | None = None
    """Stop after this many optimizer steps; None = after num_train_epochs. The schedule's length
    always follows from the epochs, as in the references."""
    learning_rate: float = 3e-5
    """Peak rate, reached by a linear warm-up and decayed to 0."""
    schedule: Literal["linear", "cosine"] = "linear"
    """The decay's form, from the warm-up's end to that of the schedule."""
    warmup_proportion: float = 0.1
    """Warm-up as a share of the schedule."""
    schedule_length: Literal["features", "examples"] = "features"
    """What an epoch's steps are counted by. The references count questions (examples) although
    they train on windows (features): their last steps have a rate of 0."""
    weight_decay_rate: float = 0.01
    """Decoupled; not applied to biases and LayerNorm."""
    adam_beta_1: float = 0.9
    adam_beta_2: float = 0.999
    adam_epsilon: float = 1e-6
    bias_correction: bool = False
    """Adam's; the references have none."""
    gradient_clipping: Literal["global", "per_parameter", "none"] = "global"
    """Whose norm is limited to max_grad_norm: all gradients' together or each tensor's."""
    max_grad_norm: float = 1.0
    weight_sparsity: Literal["2:4"] | None = None
    """Of the encoder's linear layers: two of each four inputs of a row keep their weight, the
    largest in magnitude before the first step; None: dense."""
    pruning: Literal["magnitude", "least_squares"] = "magnitude"
    """What becomes of weights that stay. magnitude: nothing; least_squares: they make up for the
    others on samples of the training data, layer by layer."""
    quantization: Literal["int8"] | None = None
    """Train through INT8 rounding, calibrated before the first step; None: none."""
    calibration: Literal["percentile", "mse"] = "percentile"
    """Where INT8's range ends. percentile: of weights at the largest magnitude, of activations at
    calibration_percentile, as published; mse: where the squared rounding error is least."""
    calibration_percentile: float = 99.99
    """Of activations' magnitudes; 100: the largest."""
    distillation: float = 0.0
    """Share of the loss that is the divergence from the answers of the starting weights, as they
    were before they were pruned and quantised (Hinton et al. 2015); the labels have the rest."""
    distillation_temperature: float = 2.0
    """What both models' scores are divided by in it."""
    n_best_size: int = 20
    """Start and end positions that are combined, and answers that are kept."""
    max_answer_length: int = 30
    """In wordpieces."""
    null_score_diff_threshold: float = 0.0
    """With v2: "" is the answer where its score exceeds the best text's by more than this."""
    target_f1: float | None = None
    """The F1 (in percent, of v1.1) that makes a run ok; None = no target."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_seq_length > self.model.max_position_embeddings:
            raise ValueError(
                f"max_seq_length {self.max_seq_length} exceeds the model's "
                f"max_position_embeddings {self.model.max_position_embeddings}"
            )
        if self.pruning != "magnitude" and self.weight_sparsity is None:
            raise ValueError(f"pruning {self.pruning} prunes nothing without --weight_sparsity 2:4")


@dataclass(frozen=True, kw_only=True)
class SquadOptions(DataOptions):
    """The files, parts of the work and outputs of a SQuAD run, besides the common options."""

    train_file: Path | None = None
    """SQuAD file to train on; default: train-v1.1.json (v2: train-v2.0.json) under --data."""
    predict_file: Path | None = None
    """SQuAD file to answer; default: dev-v1.1.json (v2: dev-v2.0.json) under --data."""
    vocab_file: Path | None = None
    """One wordpiece a line; default: under --data or beside the checkpoint, else
    bert-base-uncased's, fetched and verified."""
    eval_script: Path | None = None
    """A scoring program of yours (dataset and predictions as arguments, JSON as its last line),
    run beside our own scoring; its values are recorded apart."""
    eval_script_minutes: float = 10.0
    """The longest that it may take; it is ended then."""
    do_train: bool = True
    """Fine-tune; without it the starting weights answer."""
    do_predict: bool = True
    """Answer the predict_file's questions."""
    do_eval: bool = True
    """Score the answers."""
    skip_steps: int = 0
    """Optimizer steps, and as many batches of the inference, that are done before rates and
    energy are counted: out of the numerator and out of the time."""
    cache_dir: Path | None = None
    """Folder of the feature cache; default: in the user's cache."""
    skip_cache: bool = False
    """Make features anew and keep none."""
    write_nbest: bool = True
    """Write nbest_predictions.json, too: about 50 MB for the dev set of v1.1."""
    json_summary: Path | None = None
    """A second copy of the DLLogger lines, which the record always has."""


F1_NOISE = 0.16
"""Standard deviation of F1 over ten seeds: "Training stability test" of NVIDIA's BERT README."""


def target(published: float) -> float:
    """A published F1 less three standard deviations: a right run misses it once in 700 times."""
    return round(published - 3 * F1_NOISE, 1)


def large(
    *,
    published_f1: float,
    gelu: Literal["erf", "tanh"],
    global_batch: int,
    learning_rate: float = 3e-5,  # the default of all forks' scripts/run_squad*.sh
    warmup_proportion: float = 0.1,  # likewise
    gradient_clipping: Literal["global", "per_parameter", "none"],
) -> SquadRecipe:
    """BERT-large with what all forks share."""
    return SquadRecipe(
        model=replace(BERT_LARGE, gelu=gelu),
        global_batch=global_batch,
        learning_rate=learning_rate,
        warmup_proportion=warmup_proportion,
        schedule_length="examples",  # run_squad.py: len(train_examples) / batch
        gradient_clipping=gradient_clipping,
        target_f1=target(published_f1),
    )


def nvidia(
    *, global_batch: int, learning_rate: float = 3e-5, warmup_proportion: float = 0.1
) -> SquadRecipe:
    """DeepLearningExamples at its head (729963dd).

    modeling.py: gelu(approximate="tanh"). run_squad.py clips the global norm to 1 on every path;
    BertAdam's clipping of each tensor behind that changes nothing any more. F1: mean of ten seeds,
    "Training stability test" of its README.
    """
    return large(
        published_f1=90.68,
        gelu="tanh",
        global_batch=global_batch,
        learning_rate=learning_rate,
        warmup_proportion=warmup_proportion,
        gradient_clipping="global",
    )


def nvidia_2021(*, global_batch: int, learning_rate: float = 3e-5) -> SquadRecipe:
    """DeepLearningExamples as of 78ec6802 (August 2021): the exact GELU. F1: of five seeds."""
    return large(
        published_f1=91.08,
        gelu="erf",
        global_batch=global_batch,
        learning_rate=learning_rate,
        gradient_clipping="global",
    )


def enflame(*, global_batch: int, published_f1: float = 91.0) -> SquadRecipe:
    """ModelZoo at afc077c. Its float32 path comments clipping out; its AMP path clips globally,
    which flags.py sees to. F1: its README, 8 cards and 1.
    """
    return large(
        published_f1=published_f1,
        gelu="erf",
        global_batch=global_batch,
        gradient_clipping="none",
    )


def base() -> SquadRecipe:
    """BERT-base with ModelZoo's run_dist_bert_base.sh (53f1190): 8 x 48, 3e-5, 2 epochs.

    It starts the same run_squad.py as Enflame's large ones.
    """
    recipe = enflame(global_batch=8 * 48)
    return replace(recipe, model=BERT_BASE, target_f1=None)


def sparse_int8() -> SquadRecipe:
    """The fine-tuning of the sparse INT8 BERT of MLPerf Inference v0.7 (mlcommons/
    inference_results_v0.7, open/NVIDIA/code/bert/tensorrt_sparse).

    Its README: one fine-tuning with quantisation, 2 epochs of 8 x 2, linear warm-up to 4e-5 over
    the first 10 %, cosine to 0. Its bert_config.json: the shape, without padding rows. Its engine
    computes GELU's tanh form and is pre-LN. Adam's details are not published: the corrected bias is
    that of Hugging Face's AdamW, which NVIDIA's dense INT8 model was trained with ("MLPerf INT8
    BERT Finetuning", mlcommons/inference). The target is MLPerf's for bert-99, 99 % of 90.874; the
    submitted model, whose weights were pruned before a second pretraining, has 91.174.
    """
    return SquadRecipe(
        model=replace(BERT_LARGE, vocab_size=30522, gelu="tanh", norm_position="pre"),
        global_batch=8 * 2,
        learning_rate=4e-5,
        schedule="cosine",
        bias_correction=True,
        weight_sparsity="2:4",
        quantization="int8",
        target_f1=89.965,
    )


def mini() -> SquadRecipe:
    """all-MiniLM-L6-v2 (6 x 384) on any SQuAD file, in minutes on a few cores."""
    return SquadRecipe(
        model=MINILM,
        starts_from="minilm",
        global_batch=16,
        learning_rate=1e-4,
        bias_correction=True,  # torch's AdamW, as any other implementation would have it
    )


_SQUAD = (
    "--data ROOT with squad/train-v1.1.json, squad/dev-v1.1.json and checkpoint/*.pt, or "
    "--train_file, --predict_file and --init_checkpoint"
)


def _large(
    name: str, summary: str, recipe: SquadRecipe, per_device: int, duration: str = "not measured"
) -> Preset:
    return Preset(
        name=name,
        benchmark="bert_squad",
        summary=summary,
        recipe=recipe,
        # Full precision is what the reference scripts compute in where neither --fp16 nor --amp
        # is given. Batches for prediction: 8, as in all of them.
        impl=Impl(precision="fp32", max_micro_batch=per_device, eval_batch_size=8),
        run=SquadOptions(),
        data=_SQUAD,
        duration=duration,
    )


_PUBLISHED = "8 x A100-80G: 4 min in mixed precision, 6 min in TF32 (published)"


def _smaller() -> list[Preset]:
    return [
        Preset(
            name="squad_mini",
            benchmark="bert_squad",
            summary="MiniLM (6 x 384, real weights) on any SQuAD file, on a laptop",
            recipe=mini(),
            impl=Impl(max_micro_batch=16, eval_batch_size=32),
            run=SquadOptions(log_freq=20),
            data="a SQuAD file to train on and one to answer: --train_file, --predict_file",
            duration="minutes for some thousand questions on 2 CPU cores",
        ),
        Preset(
            name="squad_base",
            benchmark="bert_squad",
            summary="BERT-base, batch 384 (Enflame's run_dist_bert_base.sh: 8 cards x 48)",
            recipe=base(),
            impl=Impl(precision="fp32", max_micro_batch=48, eval_batch_size=48),
            run=SquadOptions(),
            data=_SQUAD,
            duration="not measured",
        ),
    ]


def _larger() -> list[Preset]:
    return [
        _large(
            "squad_large",
            "BERT-large, batch 256 (NVIDIA's squad_config.sh: 8 cards x 32)",
            # scripts/configs/squad_config.sh, dgxa100-80g_8gpu_*
            nvidia(global_batch=8 * 32, learning_rate=4.6e-5, warmup_proportion=0.2),
            32,
            _PUBLISHED,
        ),
        # README's tables for fewer cards: 32 each, with run_squad.sh's rate and warm-up.
        _large(
            "squad_large_4", "BERT-large, NVIDIA: 4 cards x 32", nvidia(global_batch=4 * 32), 32
        ),
        _large("squad_large_1", "BERT-large, NVIDIA: 1 card x 32", nvidia(global_batch=32), 32),
        _large(
            "squad_large_nvidia_2021",
            "BERT-large, batch 32 (NVIDIA's run_squad.sh of 2021: 8 cards x 4, exact GELU)",
            nvidia_2021(global_batch=8 * 4),
            4,
        ),
        # scripts/run_squad_8gcu.sh and run_squad_1gcu.sh
        _large(
            "squad_large_enflame",
            "BERT-large, batch 64 (Enflame's script: 8 cards x 8, no clipping)",
            enflame(global_batch=8 * 8),
            8,
            "8 x T20 in TF32: 78.1 sequences/s (published)",
        ),
        _large(
            "squad_large_enflame_1",
            "BERT-large, batch 8 (Enflame's script: 1 card x 8, no clipping)",
            enflame(global_batch=8, published_f1=91.2),
            8,
            "1 x T20 in TF32: 12.6 sequences/s (published)",
        ),
        _large(
            "squad_large_sparse_int8",
            "BERT-large, pre-LN, 2:4 sparse, INT8 (NVIDIA, MLPerf Inference v0.7: 8 cards x 2)",
            sparse_int8(),
            2,
        ),
    ]


PRESETS = {preset.name: preset for preset in (*_smaller(), *_larger())}
