# SPDX-License-Identifier: Apache-2.0
"""The measured model shapes, and a typical micro-batch of each."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertbench.common.data.batch import PretrainingBatch
from bertbench.common.data.hdf5 import Limits
from bertbench.common.data.shards import find_shards
from bertbench.common.data.steps import Division
from bertbench.common.data.stream import TrainStream
from bertbench.common.data.synthetic import SyntheticStream
from bertbench.common.model.config import BertConfig

CANDIDATES = 64
"""Number of micro-batches from which the typical one is chosen."""


@dataclass(frozen=True)
class Shape:
    """One row of the table, and its goals."""

    name: str
    layers: int
    hidden: int
    length: int
    batch: int
    vocab: int = 30522
    over_peer: float = 0.0
    of_replay: float = 0.0

    @property
    def config(self) -> BertConfig:
        return BertConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            intermediate_size=4 * self.hidden,
        )


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("base-512", 12, 768, 512, 8, over_peer=3.0, of_replay=0.85),
        Shape("base-128", 12, 768, 128, 16, over_peer=1.6, of_replay=0.85),
        Shape("4x512-512", 4, 512, 512, 8, over_peer=4.5, of_replay=0.80),
        Shape("mini", 4, 256, 128, 16, vocab=2048, over_peer=2.7, of_replay=0.65),
        Shape("4x256-128", 4, 256, 128, 32, over_peer=2.7, of_replay=0.65),
        Shape("4x256-512", 4, 256, 512, 8, over_peer=5.0, of_replay=0.65),
    )
}


def typical_batch(shape: Shape, data: Path | None) -> tuple[PretrainingBatch, str]:
    """Return the micro-batch of 64 nearest to the mean in tokens and attention's work.

    And its source: the data set under ``data``, or random tokens with the published lengths of
    Wikipedia's samples (common/data/synthetic.py).
    """
    predictions = 76 if shape.length > 128 else 20
    limits = Limits(
        max_seq_length=shape.length, max_predictions=predictions, vocab_size=shape.vocab
    )
    sizes: Division = {
        "seed": 1,
        "global_batch": shape.batch,
        "micro_batch": shape.batch,
        "world": 1,
        "rank": 0,
    }
    if data is None:
        stream = SyntheticStream(limits=limits, **sizes)
        source = "random tokens, published lengths of Wikipedia (arXiv 2107.02027)"
    else:
        files = find_shards(data, "train")
        stream = TrainStream(files, limits=limits, **sizes)
        source = f"lengths of {data}"
    steps = itertools.islice(iter(stream), CANDIDATES)
    batches = [step.micro_batches[0] for step in steps]
    lengths = [np.array(batch.tokens.lengths, float) for batch in batches]
    tokens = np.array([n.sum() for n in lengths])
    squares = np.array([(n**2).sum() for n in lengths])
    distance = np.hypot(tokens / tokens.mean() - 1, squares / squares.mean() - 1)
    return batches[int(distance.argmin())], source
