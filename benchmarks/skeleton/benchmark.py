# SPDX-License-Identifier: Apache-2.0
"""The benchmark mybench: its recipes, and how a run of one is built.

This file does not import torch, so that `bertbench list` stays instant.
"""

from __future__ import annotations

from dataclasses import dataclass

from bertbench import BadInput, Benchmark, BertConfig, Impl, Preset, Recipe, RunOptions, Settings


@dataclass(frozen=True, kw_only=True)
class MybenchRecipe(Recipe):
    """Everything that may change the result; every field is a flag and part of the hash."""

    model: BertConfig
    max_seq_length: int = 64
    """Longest sequence, in tokens."""
    learning_rate: float = 1e-3
    """Peak rate, reached by a linear warm-up and decayed linearly to 0."""
    warmup_proportion: float = 0.1
    """Warm-up as a share of the steps."""
    max_steps: int = 100
    """Optimizer steps."""
    eval_samples: int = 512
    """Held-out samples."""
    target_accuracy: float | None = 0.9
    """The accuracy that makes a run ok; None: no target."""


@dataclass(frozen=True, kw_only=True)
class MybenchOptions(RunOptions):
    """Options besides those of every run: files (their content is hashed), and outputs."""


PRESETS = {
    "mybench_tiny": Preset(
        name="mybench_tiny",
        benchmark="mybench",
        summary="2 x 64: does a sequence contain the mark? Synthetic, in seconds",
        recipe=MybenchRecipe(
            global_batch=32,
            model=BertConfig(
                vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=128, max_position_embeddings=64,
            ),
        ),
        impl=Impl(max_micro_batch=32, eval_batch_size=64),
        run=MybenchOptions(),
        data="made by itself",
        duration="seconds on 2 CPU cores",
    )
}  # fmt: skip


class Mybench(Benchmark):
    """Classification of sequences."""

    name = "mybench"
    presets = PRESETS
    example = ("mybench_tiny", "--max_steps", "6", "--target_accuracy", "None")

    def check(self, settings: Settings):
        """Raise BadInput for what no run can honour; --dry_run calls this as well."""
        if settings.recipe.max_seq_length > settings.recipe.model.max_position_embeddings:
            raise BadInput("--max_seq_length exceeds --max_position_embeddings: lower it")

    def prepare(self, settings: Settings):
        from mybench_bertbench.task import MybenchSource

        return MybenchSource(description="made-up sequences, half of them with the mark")

    def build(self, settings, backend, world, source):
        from mybench_bertbench.task import MybenchTask

        return MybenchTask(settings, backend, world, source)
