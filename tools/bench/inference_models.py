# SPDX-License-Identifier: Apache-2.0
"""Exported models with random weights, and sequences of SQuAD's lengths, for bench_inference.py."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bertbench.benchmarks.bert_inference.batches import Inputs
from bertbench.benchmarks.bert_inference.scoring import read_questions
from bertbench.benchmarks.bert_squad.data import LENGTHS, made_up_features
from bertbench.benchmarks.bert_squad.features import Features
from bertbench.benchmarks.bert_squad.model import BertForQuestionAnswering
from bertbench.benchmarks.bert_squad.stream import collate
from bertbench.benchmarks.finetuning import MINILM
from bertbench.common.compress.layers import compress
from bertbench.common.compress.start import calibrate
from bertbench.common.data.minilm import minilm_file
from bertbench.common.data.samples import ragged_index
from bertbench.common.distributed.world import World
from bertbench.common.exchange.export_onnx import write_onnx
from bertbench.common.measure.code import code_hash
from bertbench.common.model.config import BERT_BASE, BertConfig
from bertbench.common.model.ops import Ops
from bertbench.engines.exported import MODEL, VOCAB, Exported

SHAPES: dict[str, BertConfig] = {
    "base": BERT_BASE,
    "minilm": MINILM,
    "tiny": replace(
        MINILM, num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=128
    ),
}
LENGTH = 384
"""Tokens of the longest sequence, and of every one that is padded to full length."""
CALIBRATION = 4
"""Made-up sequences; the speed does not depend on the scales."""


def model_of(shape: str) -> BertForQuestionAnswering:
    """Return the shape's model with its random weights, the same ones at each call."""
    torch.manual_seed(1)
    return BertForQuestionAnswering(SHAPES[shape], Ops()).eval()


def export(shape: str, quantization: str | None, folder: Path) -> Exported:
    """Return the shape's model, exported as ``bertbench export-onnx`` does.

    Its folder is under ``folder``, and is written once for each state of the sources.
    """
    config = SHAPES[shape]
    place = folder / f"{shape}-{quantization or 'fp32'}-{code_hash()}"
    exported = Exported(
        folder=place, model=config, max_seq_length=LENGTH, doc_stride=128, max_query_length=64,
        lowercase=True, quantization="int8" if quantization else None, weight_sparsity=None,
        parameters=0, run=None, recipe_hash=None,
    )  # fmt: skip
    if not place.is_dir():
        model = model_of(shape)
        if quantization:
            compress(model, prune=False, quantize=True)
            features = made_up(CALIBRATION, config.vocab_size)
            batches = [collate(features, rows) for rows in [np.arange(CALIBRATION)]]
            calibrate(model, lambda: [model(batch) for batch in batches], World())
        work = place.with_suffix(".part")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_onnx(model, work / MODEL)
        work.rename(place)
    return exported


def made_up(number: int, vocab_size: int) -> Features:
    """Return random tokens with the lengths of SQuAD's dev set at 384/128/64."""
    quantiles = np.linspace(0, 1, len(LENGTHS))
    lengths = np.interp(np.random.default_rng(0).random(number), quantiles, LENGTHS)
    return made_up_features(lengths.astype(np.int64), vocab_size)


def sample(number: int, exported: Exported, predict: Path | None) -> Inputs:
    """Return ``number`` samples of a SQuAD file, at random, or made-up ones without a file.

    Raises BadInput where the file cannot be read.
    """
    if predict is None:
        chosen = made_up(number, exported.model.vocab_size)
        return Inputs(input_ids=chosen.input_ids, offsets=chosen.offsets, split=chosen.split)
    if not exported.vocab.is_file():
        shutil.copy(minilm_file(VOCAB), exported.vocab)
    every = read_questions(predict, exported).inputs
    rows = np.random.default_rng(0).permutation(len(every))[:number]
    index, offsets = ragged_index(every.offsets, rows)
    return Inputs(input_ids=every.input_ids[index], offsets=offsets, split=every.split[rows])
