# SPDX-License-Identifier: Apache-2.0
"""SQuAD here and in Hugging Face Transformers: the same weights, batches and optimizer."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_squad.data import find_source
from bertbench.benchmarks.bert_squad.model import SpanBatch
from bertbench.benchmarks.bert_squad.task import SquadTask
from bertbench.common.config.recipe import Settings
from bertbench.common.model.config import BertConfig
from bertbench.common.model.weights import export_state_dict
from bertbench.common.optim.factory import build_optimizer
from bertbench.common.optim.lamb import parameter_groups
from bertbench.common.training.distributed import World
from bertbench.common.training.task import Plan

RECIPE = "squad_mini"
ATTENTIONS = ("sdpa", "eager")


class Own:
    """Our recipe on cpu_ref, as the runner would build it."""

    def __init__(self, flags: Sequence[str]) -> None:
        self.settings: Settings = resolve(RECIPE, flags)
        self.backend, self.world = CpuRef(), World()
        self.task = SquadTask(self.settings, self.backend, self.world, find_source(self.settings))
        self.plan: Plan = self.task.plan(self.settings)


class Peer:
    """Hugging Face's BertForQuestionAnswering with the weights that ``own`` has at this moment.

    bf16 is autocast, fp32 is plain. Every batch is padded to the longest sequence in it. The loss
    is the model's own, whose softmax also runs over the padding. Decay, betas, epsilon, clipping
    and the optimizer's kernel are ``own``'s.
    """

    def __init__(self, own: Own, attention: str) -> None:
        from transformers import BertForQuestionAnswering

        self.task, self.plan = own.task, own.plan
        assert self.plan.clipping == "global", "the peer clips all gradients together"
        recipe = self.task.recipe
        self.model: nn.Module = BertForQuestionAnswering(peer_config(recipe.model, attention))
        self.model.load_state_dict(export_state_dict(self.task.model))
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
        """One optimizer step over micro-batches; the mean loss of the global batch."""
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
        """Logits of every position, padding too: [B, longest, 2]."""
        found = self.model(**inputs)
        return torch.stack((found.start_logits, found.end_logits), -1).float()

    def autocast(self) -> Any:
        """For forward passes; casts of weights are kept until it ends."""
        return torch.autocast("cpu", torch.bfloat16) if self._bf16 else nullcontext()

    @property
    def _bf16(self) -> bool:
        return self.plan.precision == "bf16"


def peer_config(config: BertConfig, attention: str) -> Any:
    """The same model in Hugging Face's words."""
    from transformers import BertConfig as PeerConfig

    return PeerConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        type_vocab_size=config.type_vocab_size,
        hidden_act={"erf": "gelu", "tanh": "gelu_new"}[config.gelu],
        hidden_dropout_prob=config.hidden_dropout,
        attention_probs_dropout_prob=config.attention_dropout,
        layer_norm_eps=config.layer_norm_eps,
        initializer_range=config.initializer_range,
        attn_implementation=attention,
    )


def padded(batch: SpanBatch, length: int | None = None) -> dict[str, Tensor]:
    """The batch as Hugging Face's model takes it, with answers where it has them.

    [B, longest], as a data collator pads dynamically; or [B, ``length``].
    """
    tokens = batch.tokens
    room = tokens.max_length if length is None else length

    def pad(x: Tensor) -> Tensor:
        grid = x.new_zeros(batch.num_samples, room)
        grid[batch.rows, tokens.position_ids] = x
        return grid

    inputs = {
        "input_ids": pad(tokens.input_ids),
        "attention_mask": pad(torch.ones_like(tokens.input_ids)),
        "token_type_ids": pad(tokens.segment_ids),
    }
    if batch.start is not None and batch.end is not None:
        inputs |= {"start_positions": batch.start, "end_positions": batch.end}
    return inputs


def unpadded(logits: Tensor, batch: SpanBatch) -> Tensor:
    """[B, longest, 2] of ``padded`` -> [T, 2], as our model gives them."""
    return logits[batch.rows, batch.tokens.position_ids]


def real_share(batches: Sequence[SpanBatch]) -> float:
    """Tokens that are not padding, once each batch is padded to the longest sequence in it."""
    room = sum(b.num_samples * b.tokens.max_length for b in batches)
    return sum(b.num_tokens for b in batches) / room


@contextmanager
def undemanding() -> Iterator[None]:
    """cpu_ref asks torch for deterministic kernels, in the whole process: not so for the peer."""
    demanded = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(demanded)


def environment(own: Own) -> dict[str, Any]:
    """What the figures depend on, besides the code."""
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


def load() -> float | None:
    """Processes that wanted a core during the last minute, this one included; None: unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


Turn = Callable[[], object]


def as_turn(run: Turn) -> Turn:
    """``run`` as the peer's turn."""

    def turn() -> object:
        with undemanding():
            return run()

    return turn


def flag(name: str, value: object) -> list[str]:
    """A flag of ``bertbench run``; none where there is no value."""
    return [] if value is None else [f"--{name}", str(value)]
