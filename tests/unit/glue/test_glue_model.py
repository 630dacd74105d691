# SPDX-License-Identifier: Apache-2.0
"""The classifier equals Hugging Face's in logits and gradients, and its weights go both ways."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from bertbench.benchmarks.glue.features import made_up_features
from bertbench.benchmarks.glue.model import (
    BertForSequenceClassification,
    label_flops,
    label_loss,
)
from bertbench.benchmarks.glue.task import collate
from bertbench.common.cli.main import main
from bertbench.common.measure.flops import encoder_flops
from bertbench.common.model.config import BertConfig
from bertbench.common.model.naming import huggingface_names
from bertbench.common.model.ops import Ops
from bertbench.common.model.weights import export_state_dict, load_pretrained
from bertbench.common.training.checkpoint import Checkpoints

CONFIG = BertConfig(
    vocab_size=56,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=24,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
LENGTHS = (9, 4, 24, 5, 17)


def build(outputs=3, config=CONFIG, seed=0):
    torch.manual_seed(seed)
    model = BertForSequenceClassification(config, outputs, Ops())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def batch(outputs=3, rows=None):
    made = made_up_features(np.array(LENGTHS), 56, 0 if outputs == 1 else outputs, pair=True)
    return collate(made, np.arange(len(LENGTHS)) if rows is None else np.array(rows))


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="transformers ([compare]) is absent")


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_logits_loss_and_gradients_are_hugging_faces(transformers, outputs):
    """Ours without padding, theirs with it: the mean loss and every gradient are the same."""
    ours, part = build(outputs).train(), batch(outputs)
    peer = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            **CONFIG.as_huggingface(), num_labels=outputs, attn_implementation="eager"
        )
    ).train()
    missing, unexpected = peer.load_state_dict(export_state_dict(ours), strict=False)
    assert not unexpected and not [name for name in missing if "position_ids" not in name]

    tokens = part.tokens
    padded = {
        name: torch.nn.utils.rnn.pad_sequence(list(t.split(LENGTHS)), batch_first=True)
        for name, t in {
            "input_ids": tokens.input_ids,
            "token_type_ids": tokens.segment_ids,
            "attention_mask": torch.ones_like(tokens.input_ids),
        }.items()
    }
    theirs = peer(**padded, labels=part.labels)
    logits = ours(part)
    torch.testing.assert_close(logits, theirs.logits, rtol=1e-5, atol=1e-5)
    loss = label_loss(logits, part.labels) / len(LENGTHS)
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-5, atol=1e-6)

    loss.backward()
    theirs.loss.backward()
    named = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        names = huggingface_names(name, "post")
        for own, part_of in zip(names, parameter.grad.chunk(len(names)), strict=True):
            torch.testing.assert_close(part_of, named[own].grad, rtol=1e-4, atol=1e-5)


def test_a_sequence_does_not_see_its_neighbours():
    model = build().eval()
    together = model(batch())
    for row in range(len(LENGTHS)):
        torch.testing.assert_close(model(batch(rows=[row]))[0], together[row])


def test_the_pooled_state_is_dropped_out_in_training_only():
    model = build(config=replace(CONFIG, hidden_dropout=0.5))
    assert not torch.equal(model(batch()), model(batch()))
    assert torch.equal(model.eval()(batch()), model.eval()(batch()))


def test_flops_count_the_pooler_and_the_head_once_a_sequence():
    more = label_flops(CONFIG, LENGTHS, 3) - 3 * encoder_flops(CONFIG, LENGTHS)
    assert more == 3 * len(LENGTHS) * (2 * 16 * 16 + 2 * 16 * 3)


@pytest.mark.parametrize(
    ("outputs", "labels", "expected"),
    [
        (3, ["entailment", "neutral", "contradiction"], ["entailment", "neutral", "contradiction"]),
        (2, None, ["LABEL_0", "LABEL_1"]),
        (2, ["one"], ["LABEL_0", "LABEL_1"]),
        (1, [], ["score"]),
    ],
)
def test_exported_weights_load_in_transformers_with_the_classes_names(
    transformers, tmp_path, capsys, outputs, labels, expected
):
    run, out = tmp_path / "run", tmp_path / "out"
    model = build(outputs).eval()
    Checkpoints(run / "checkpoints").save(3, {"model": model.state_dict()}, {})
    recipe = {"benchmark": "glue", "recipe": {"model": asdict(CONFIG)}}
    (run / "config.json").write_text(json.dumps(recipe))
    if labels is not None:
        manifest = {"files": None, "extras": {"labels": labels}}
        (run / "manifest.json").write_text(json.dumps(manifest))
    assert main(["export-weights", str(run), "--output", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["architecture"] == "BertForSequenceClassification"
    peer, info = transformers.BertForSequenceClassification.from_pretrained(
        out, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert [peer.config.id2label[i] for i in range(outputs)] == expected
    part = batch(outputs, rows=[2])
    with torch.no_grad():
        theirs = peer.eval()(
            input_ids=part.tokens.input_ids[None], token_type_ids=part.tokens.segment_ids[None]
        )
    torch.testing.assert_close(model(part), theirs.logits, rtol=1e-5, atol=1e-4)

    again = build(outputs, seed=1)
    report = load_pretrained(again, out / "model.safetensors", require="all")
    assert not report.missing and not report.unexpected
    assert torch.equal(again.eval()(part), model(part))
