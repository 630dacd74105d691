# SPDX-License-Identifier: Apache-2.0
"""Data, model and loss of mybench: a sequence with the token MARK in it has label 1, others 0."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bertbench import (
    BertEncoder,
    Metric,
    OptimizerOptions,
    Plan,
    Source,
    Task,
    Tokens,
    encoder_flops,
    initialize,
    warmup_linear,
)

FIRST, MARK, WORDS = 1, 2, 3
"""Id of the first token of each sequence, of the mark, and of the first other word."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch: B sequences as T tokens without padding, and their labels, int64 [B]."""

    tokens: Tokens
    labels: torch.Tensor

    @property
    def num_samples(self) -> int:
        return len(self.tokens.lengths)

    @property
    def num_tokens(self) -> int:
        return self.tokens.num_tokens

    def to(self, device):
        return replace(self, tokens=self.tokens.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Step:
    """One optimizer step: this rank's micro-batches, the global samples, where to go on."""

    micro_batches: tuple[Batch, ...]
    num_samples: int
    position: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class MybenchSource(Source):
    """Samples are a function of their index, so that every rank and split sees the same."""

    @property
    def has_eval(self) -> bool:
        return True

    def hash(self) -> str:
        """Return the identity of the data; with files: a hash of their bytes."""
        return hashlib.sha256(b"mybench 1").hexdigest()

    def batch(self, seed: int, indices, recipe, longest: bool = False) -> Batch:
        """Return the samples ``indices`` of the stream ``seed``."""
        sequences, labels = [], []
        for index in indices:
            random = np.random.default_rng((seed, int(index)))
            top = recipe.max_seq_length
            length = top if longest else int(random.integers(4, top + 1))
            ids = random.integers(WORDS, recipe.model.vocab_size, length)
            ids[0], label = FIRST, int(random.integers(2))
            if label:
                ids[random.integers(1, length)] = MARK
            sequences.append(ids)
            labels.append(label)
        lengths = [len(ids) for ids in sequences]
        tokens = Tokens(
            input_ids=torch.from_numpy(np.concatenate(sequences)),
            segment_ids=torch.zeros(sum(lengths), dtype=torch.int64),
            position_ids=torch.cat([torch.arange(n) for n in lengths]),
            cu_seqlens=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
            lengths=tuple(lengths),
        )
        return Batch(tokens, torch.tensor(labels))


class Classifier(nn.Module):
    """An encoder and one linear layer over each sequence's first token."""

    def __init__(self, config, ops) -> None:
        super().__init__()
        self.encoder = BertEncoder(config, ops)
        self.head = nn.Linear(config.hidden_size, 2)
        initialize(self, config.initializer_range)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the scores of both labels: [B, 2]."""
        hidden = self.encoder(batch.tokens)
        return self.head(hidden[batch.tokens.cu_seqlens[:-1].long()].float()).float()


class MybenchTask(Task):
    """Model, data and accuracy on one rank."""

    sum_names = ("loss", "correct", "sequences")
    target_metric = "accuracy"

    def __init__(self, settings, backend, world, source) -> None:
        super().__init__(settings, backend, world, source)
        self.source = source
        self.eval_batch_size = settings.impl.eval_batch_size

    @property
    def gelu(self):
        return self.recipe.model.gelu

    def make_model(self, ops):
        return Classifier(self.recipe.model, ops)

    def optimizer_options(self):
        rate = self.recipe.learning_rate
        return OptimizerOptions(
            name="adamw", learning_rate=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay_rate=0.01
        )

    def plan(self, settings):
        r = self.recipe
        return Plan.of(
            settings,
            precision=self.precision,
            max_steps=r.max_steps,
            max_samples=r.max_steps * r.global_batch,
            target_value=r.target_accuracy,
            eval_start_samples=0,
            eval_every_samples=0,  # not while training
            eval_at_end=True,
            padded_length=r.max_seq_length,
        )

    def learning_rate(self, step):
        r = self.recipe
        return warmup_linear(
            step,
            base=r.learning_rate,
            total_steps=r.max_steps,
            warmup_proportion=r.warmup_proportion,
        )

    def train_batches(self, position):
        step = 0 if position is None else position["step"]
        size, share = self.split.micro_batch, self.share
        while True:
            first = step * self.recipe.global_batch + self.world.rank * share
            micro_batches = tuple(
                self.source.batch(self.seed, range(at, at + size), self.recipe)
                for at in range(first, first + share, size)
            )
            step += 1
            yield Step(micro_batches, self.recipe.global_batch, {"step": step})

    def loss(self, model, batch, step):
        scores = model(batch)
        loss = functional.cross_entropy(scores, batch.labels, reduction="sum")
        return loss / step.num_samples, self._sums(loss, scores, batch)

    def eval_batches(self):
        own = range(self.world.rank, self.recipe.eval_samples, self.world.size)
        size = self.eval_batch_size
        held_out = self.seed + 1
        return [
            self.source.batch(held_out, own[at : at + size], self.recipe)
            for at in range(0, len(own), size)
        ]

    def eval_sums(self, model, batch):
        scores = model(batch)
        loss = functional.cross_entropy(scores, batch.labels, reduction="sum")
        return self._sums(loss, scores, batch)

    def _sums(self, loss, scores, batch):
        correct = (scores.argmax(-1) == batch.labels).sum().float()
        return torch.stack([loss.detach(), correct, torch.full_like(correct, batch.num_samples)])

    def metrics(self, sums):
        n = sums["sequences"]
        return {"loss": sums["loss"] / n, "accuracy": sums["correct"] / n, "num_samples": n}

    def quality(self, event):
        return [
            Metric(
                name="accuracy", value=event.metrics["accuracy"], unit="1", direction="higher",
                clock="none", scope="global", definition="correct labels / held-out sequences",
            )
        ]  # fmt: skip

    def model_flops(self, batch):
        return 3 * encoder_flops(self.recipe.model, batch.tokens.lengths)

    def made_up_step(self, size, passes, *, typical=False):
        batch = self.source.batch(0, range(size), self.recipe, longest=not typical)
        return Step((batch,) * passes, size * passes, {})
