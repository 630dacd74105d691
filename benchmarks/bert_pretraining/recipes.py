# SPDX-License-Identifier: Apache-2.0
"""The named recipes of BERT pretraining. Pure data: importing this does not import torch.

Hyperparameters of the ``mlperf_large`` family are those of the published submissions (MLPerf
Training v1.0 to v5.0, mlcommons/training_results_*) and of DeepSparkHub's script; each line names
its source. The reference convergence points are in mlperf-logging, rcp_checker/.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bertbench.common.config.recipe import DataOptions, Impl, Preset, Recipe
from bertbench.common.model.config import BERT_BASE, BERT_LARGE, BertConfig

MLPERF_TARGET = 0.72
"""MLPerf's quality target: masked-token accuracy over the 10,000 held-out samples."""


@dataclass(frozen=True, kw_only=True)
class PretrainingRecipe(Recipe):
    """Masked-language-model and next-sentence pretraining."""

    model: BertConfig
    """The encoder; vocabulary as built, padding rows included."""
    max_seq_length: int = 512
    """Longest sequence; longer samples are refused."""
    max_predictions_per_seq: int = 76
    """Most masked tokens in one sequence."""
    optimizer: Literal["lamb", "adamw"] = "lamb"
    """LAMB as MLPerf defines it, or AdamW."""
    global_batch: int
    """Sequences per optimizer step, over all devices."""
    learning_rate: float
    """Peak rate, decayed polynomially to 0 at max_steps."""
    weight_decay_rate: float = 0.01
    """Not applied to biases and LayerNorm."""
    opt_lamb_beta_1: float = 0.9
    opt_lamb_beta_2: float = 0.999
    opt_epsilon: float = 1e-6
    max_grad_norm: float = 1.0
    """Global-norm clipping."""
    clip_after_allreduce: bool = True
    """False clips each rank's gradient before they are averaged (the v1.0 submissions)."""
    max_steps: int
    """Length of the learning-rate schedule, and the last step."""
    max_samples_termination: int = 4_500_000
    """Stop as not converged after this many samples."""
    warmup_steps: int = 0
    start_warmup_step: int = 0
    """Negative: the warm-up has already progressed this far at step 0."""
    warmup_proportion: float = 0.0
    """Warm-up as a share of max_steps, where warmup_steps is 0."""
    lr_power: float = 1.0
    """Exponent of the polynomial decay; 1 is linear."""
    eval_iter_start_samples: int
    """First evaluation, in samples."""
    eval_iter_samples: int
    """Samples between evaluations; 0 = never."""
    num_eval_examples: int = 10_000
    """Held-out samples, the first of the evaluation file."""
    target_mlm_accuracy: float | None = MLPERF_TARGET
    """Stop when the held-out masked-token accuracy reaches this; None = run to the limit."""
    initial_mlm_accuracy: float | None = None
    """Accuracy of the starting checkpoint, for --verify_checkpoint."""
    quickstart_dupe_factor: int = 5
    """Copies of each document with different masks in the quick-start data set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_seq_length > self.model.max_position_embeddings:
            raise ValueError(
                f"max_seq_length {self.max_seq_length} exceeds the model's "
                f"max_position_embeddings {self.model.max_position_embeddings}"
            )
        target = self.target_mlm_accuracy
        if target is not None and self.eval_iter_samples < 1:
            raise ValueError(
                f"the target_mlm_accuracy {target} is never looked at: give --eval_iter_samples, "
                f"or --target_mlm_accuracy None"
            )


def mlperf_eval_interval(global_batch: int) -> int:
    """Samples between evaluations: MLPerf training rules, floor to a multiple of 25,000."""
    return math.floor(0.05 * (230.23 * global_batch + 3_000_000) / 25_000) * 25_000


@dataclass(frozen=True, kw_only=True)
class PretrainingOptions(DataOptions):
    """Data sets of pretraining and fields of MLPerf's log, besides the options of every run."""

    input_dir: Path | None = None
    """Folder of the training shards, when not under --data."""
    eval_dir: Path | None = None
    """Folder of the evaluation file, when not under --data."""
    text: Path | None = None
    """Text for the quick-start data set, instead of the one that is downloaded."""
    verify_checkpoint: bool = False
    """Evaluate before training and compare with the accuracy the recipe expects."""
    submission_org: str = "bertbench"
    """MLPerf log: submitter."""
    submission_platform: str | None = None
    """MLPerf log: platform; default: the system's name."""
    submission_status: Literal["cloud", "onprem", "preview", "research"] = "onprem"
    """MLPerf log: availability of the system."""
    division: Literal["auto", "closed", "open"] = "auto"
    """MLPerf division; auto is closed only where the recipe keeps MLPerf's rules."""


LARGE = replace(BERT_LARGE, gelu="tanh")
BASE = replace(BERT_BASE, gelu="tanh")
MINI = BertConfig(
    vocab_size=2048,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=1024,
    max_position_embeddings=128,
    gelu="tanh",
)


def mlperf_large(
    *, global_batch: int, learning_rate: float, max_steps: int,
    betas: tuple[float, float] = (0.9, 0.999), weight_decay_rate: float = 0.01,
    clip_after_allreduce: bool = True,
) -> PretrainingRecipe:  # fmt: skip
    """MLPerf's BERT-large phase 2 from model.ckpt-28252; no warm-up, linear decay."""
    interval = mlperf_eval_interval(global_batch)
    return PretrainingRecipe(
        model=LARGE,
        global_batch=global_batch,
        learning_rate=learning_rate,
        weight_decay_rate=weight_decay_rate,
        opt_lamb_beta_1=betas[0],
        opt_lamb_beta_2=betas[1],
        max_steps=max_steps,
        clip_after_allreduce=clip_after_allreduce,
        eval_iter_start_samples=interval,
        eval_iter_samples=interval,
        initial_mlm_accuracy=0.34085,  # mlcommons/training, bert README
    )


def base() -> PretrainingRecipe:
    """BERT-base from random weights at length 512, on any prepared data."""
    return PretrainingRecipe(
        model=BASE,
        global_batch=256,
        learning_rate=1e-3,
        max_steps=20_000,
        warmup_steps=1_000,
        max_samples_termination=5_120_000,
        eval_iter_start_samples=100_000,
        eval_iter_samples=100_000,
        target_mlm_accuracy=None,
    )


def small() -> PretrainingRecipe:
    """A 6 x 512 BERT on a prepared corpus of some 30 M tokens: an hour of one accelerator."""
    model = replace(BASE, hidden_size=512, num_hidden_layers=6, num_attention_heads=8)
    return replace(
        base(),
        model=replace(model, intermediate_size=2048),
        learning_rate=2e-3,
        max_steps=12_000,
        warmup_steps=600,
        max_samples_termination=3_072_000,
    )


def mini() -> PretrainingRecipe:
    """A 4 x 256 BERT from random weights on the quick-start corpus, in minutes on two cores.

    Rate and length of the schedule were chosen so that every seed tried reaches the target with
    a third of the schedule to spare; README.md has the runs.
    """
    return PretrainingRecipe(
        model=MINI,
        max_seq_length=128,
        max_predictions_per_seq=20,
        global_batch=16,
        learning_rate=4e-3,
        max_steps=1_200,
        warmup_steps=100,
        eval_iter_start_samples=6_400,
        eval_iter_samples=1_600,
        num_eval_examples=1_000,
        target_mlm_accuracy=0.12,  # 3 times what always saying the most frequent token gives
    )


_MLPERF_DATA = "MLPerf's Wikipedia data set and checkpoint, given by --data"
_PREPARED = "any folder made by `bertbench data prepare`, given by --data"


def _large(name: str, summary: str, recipe: PretrainingRecipe, micro_batch: int) -> Preset:
    return Preset(
        name=name,
        benchmark="bert_pretraining",
        summary=summary,
        recipe=recipe,
        impl=Impl(max_micro_batch=micro_batch, eval_batch_size=128),
        run=PretrainingOptions(),
        data=_MLPERF_DATA,
        duration="8 x H100: about 6 min; 8 x A100: about 20 min (published results)",
    )


def _from_scratch() -> list[Preset]:
    return [
        Preset(
            name="mini",
            benchmark="bert_pretraining",
            summary="4 x 256 from scratch on Wikipedia summaries, to its own target, on a laptop",
            recipe=mini(),
            impl=Impl(max_micro_batch=16, eval_batch_size=64),
            run=PretrainingOptions(log_freq=20, num_samples_per_checkpoint=6_400),
            data="downloaded (5 MB) and prepared by itself, or --text PATH",
            duration="minutes on 2 CPU cores",
        ),
        Preset(
            name="small",
            benchmark="bert_pretraining",
            summary="6 x 512 from scratch at length 512 on a prepared corpus",
            recipe=small(),
            impl=Impl(max_micro_batch=64, eval_batch_size=128),
            run=PretrainingOptions(),
            data=_PREPARED,
            duration="sized for an hour on one accelerator",
        ),
        Preset(
            name="base",
            benchmark="bert_pretraining",
            summary="BERT-base from scratch at length 512",
            recipe=base(),
            impl=Impl(max_micro_batch=32, eval_batch_size=64),
            run=PretrainingOptions(),
            data=_PREPARED,
            duration="hours on eight accelerators",
        ),
    ]


def _from_mlperfs_checkpoint() -> list[Preset]:
    return [
        _large(
            "mlperf_large_256",
            "MLPerf BERT-large, batch 256: 8 devices of 32-40 GB (partners, v1.0 to v3.1)",
            mlperf_large(global_batch=256, learning_rate=3.5e-4, max_steps=13_700),
            32,
        ),
        _large(
            "mlperf_large_448",
            "MLPerf BERT-large, batch 448 (NVIDIA v2.0 and v2.1, one DGX A100)",
            mlperf_large(global_batch=448, learning_rate=4.25e-4, max_steps=6_700),
            56,
        ),
        _large(
            "mlperf_large_768",
            "MLPerf BERT-large, batch 768 (NVIDIA v2.1 to v5.0, one DGX H100/B200)",
            mlperf_large(
                global_batch=768,
                learning_rate=9.6e-4,
                max_steps=3_680,
                betas=(0.60466, 0.85437),
                weight_decay_rate=0.1,
            ),
            96,
        ),
        _large(
            "deepspark_416",
            "DeepSparkHub's BERT-large, batch 416: the script behind its published table (2022)",
            mlperf_large(
                global_batch=416,
                learning_rate=4.6e-4,
                max_steps=7_400,
                clip_after_allreduce=False,
            ),
            26,
        ),
        _large(
            "deepspark_648",
            "DeepSparkHub's BERT-large, batch 648: the script at its head",
            mlperf_large(
                global_batch=648,
                learning_rate=3.6e-4,
                max_steps=7_400,
                clip_after_allreduce=False,
            ),
            27,
        ),
    ]


PRESETS = {preset.name: preset for preset in (*_from_scratch(), *_from_mlperfs_checkpoint())}
