# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning here and in Hugging Face Transformers: same weights, batches and optimizer."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.steps import peer_config
from bertbench import benchmarks
from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.benchmarks.bert_squad.model import SpanBatch
from bertbench.benchmarks.glue.model import LabelledBatch
from bertbench.common.config.recipe import Settings
from bertbench.common.distributed.world import World
from bertbench.common.model.weights import export_state_dict
from bertbench.common.optim.factory import build_optimizer
from bertbench.common.optim.lamb import parameter_groups
from bertbench.common.training.task import Plan

PEERS = {"bert_squad": "BertForQuestionAnswering", "glue": "BertForSequenceClassification"}
"""Hugging Face's class for each of our benchmarks."""
ATTENTIONS = ("sdpa", "eager")
PART = 4
"""Sequences that the peer computes at once; of 2, 4, 8 and 16 the fastest on one core (SQuAD)."""


class Own:
    """Our recipe on cpu_ref, as the runner builds it."""

    def __init__(self, recipe: str, flags: Sequence[str]) -> None:
        self.settings: Settings = benchmarks.resolve(recipe, flags)
        benchmark = benchmarks.load(self.settings.preset.benchmark)
        self.backend, self.world = CpuRef(), World()
        source = benchmark.prepare(self.settings)
        self.task: Any = benchmark.build(self.settings, self.backend, self.world, source)
        self.plan: Plan = self.task.plan(self.settings)


class Peer:
    """Hugging Face's model of the same benchmark with the current weights of ``own``.

    bf16 uses autocast. The loss is the model's; SQuAD's softmax includes the padding. Decay, betas,
    epsilon, clipping and the optimizer's kernel are ``own``'s.
    """

    def __init__(self, own: Own, attention: str) -> None:
        import transformers

        self.task, self.plan = own.task, own.plan
        assert self.plan.clipping == "global", "the peer clips all gradients together"
        recipe = self.task.recipe
        config, weights = peer_config(recipe.model, attention), export_state_dict(self.task.model)
        if "classifier.weight" in weights:
            config.num_labels = len(weights["classifier.weight"])
        build = getattr(transformers, PEERS[own.settings.preset.benchmark])
        self.model: nn.Module = build(config)
        self.model.load_state_dict(weights)
        self.model.train()
        self.optimizer = build_optimizer(
            "adamw" if recipe.bias_correction else "bert_adam",
            parameter_groups(self.model, recipe.weight_decay_rate),
            lr=recipe.learning_rate,
            betas=(recipe.adam_beta_1, recipe.adam_beta_2),
            eps=recipe.adam_epsilon,
        )
        self._parameters = list(self.model.parameters())

    def train_step(self, inputs: Sequence[dict[str, Tensor]], step: int) -> Tensor:
        """Do one optimizer step over micro-batches [B, S]; return the global batch's mean loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.task.learning_rate(step)
        samples = sum(len(each["input_ids"]) for each in inputs)
        total = torch.zeros(())
        for each in inputs:
            with self.autocast():
                loss = self.model(**each).loss * (len(each["input_ids"]) / samples)
            loss.backward()
            total += loss.detach()
        if self.plan.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self.plan.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def answer(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the logits of the classes, [B, C], or of every position, [B, longest, 2]."""
        found = self.model(**inputs)
        if "logits" in found:
            return found.logits.float()
        return torch.stack((found.start_logits, found.end_logits), -1).float()

    def autocast(self) -> Any:
        """Return the context of forward passes; it keeps casts of weights until it ends."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.plan.precision == "bf16")


def padded(batch: SpanBatch | LabelledBatch, length: int | None = None) -> dict[str, Tensor]:
    """Return the batch for Hugging Face's model, with its answers or labels if any.

    [B, longest], as a data collator pads dynamically; or [B, ``length``].
    """
    tokens = batch.tokens
    room = tokens.max_length if length is None else length
    rows = rows_of(batch)

    def pad(x: Tensor) -> Tensor:
        grid = x.new_zeros(batch.num_samples, room)
        grid[rows, tokens.position_ids] = x
        return grid

    inputs = {
        "input_ids": pad(tokens.input_ids),
        "attention_mask": pad(torch.ones_like(tokens.input_ids)),
        "token_type_ids": pad(tokens.segment_ids),
    }
    if isinstance(batch, LabelledBatch):
        return inputs if batch.labels is None else inputs | {"labels": batch.labels}
    if batch.start is not None and batch.end is not None:
        inputs |= {"start_positions": batch.start, "end_positions": batch.end}
    return inputs


def unpadded(logits: Tensor, batch: SpanBatch) -> Tensor:
    """Return logits [B, longest, 2] of ``padded`` as [T, 2], like our model's."""
    return logits[rows_of(batch), batch.tokens.position_ids]


def rows_of(batch: SpanBatch | LabelledBatch) -> Tensor:
    """Return each token's sequence, int64 [T]."""
    return torch.repeat_interleave(torch.tensor(batch.tokens.lengths))


def parts(inputs: dict[str, Tensor]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield rows, and ``inputs`` [B, S] of them, by length: PART at a time, cut to the longest."""
    lengths = inputs["attention_mask"].sum(1)
    for rows in lengths.argsort(stable=True).split(PART):
        room = int(lengths[rows].max())
        yield rows, {n: x[rows, :room] if x.dim() == 2 else x[rows] for n, x in inputs.items()}


def real_share(batches: Sequence[SpanBatch | LabelledBatch], length: int | None = None) -> float:
    """Return the share of real tokens after padding each batch to its longest, or ``length``."""
    room = sum(b.num_samples * (length or b.tokens.max_length) for b in batches)
    return sum(b.num_tokens for b in batches) / room


@contextmanager
def undemanding() -> Iterator[None]:
    """Allow nondeterministic kernels for the peer; cpu_ref forbids them in the whole process."""
    demanded = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(demanded)


def environment(own: Own) -> dict[str, Any]:
    """Return the environment of the figures."""
    import transformers

    device = own.backend.describe()
    return {
        "device": device.name,
        **device.extras,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "precision": own.plan.precision,
        "kernels": dict(own.task.ops.kernels),
    }


def flag(name: str, value: object) -> list[str]:
    """Return a flag of ``bertbench run``, or an empty list without a value."""
    return [] if value is None else [f"--{name}", str(value)]
