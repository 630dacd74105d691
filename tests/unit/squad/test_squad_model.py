# SPDX-License-Identifier: Apache-2.0
"""The span model: its loss, no leaks between sequences, and weights of every naming."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bertbench.benchmarks.bert_squad.data import made_up_features
from bertbench.benchmarks.bert_squad.model import (
    BertForQuestionAnswering,
    answer_divergence,
    span_loss,
)
from bertbench.benchmarks.bert_squad.stream import collate
from bertbench.common.errors import BadInput
from bertbench.common.model.config import BertConfig
from bertbench.common.model.ops import Ops
from bertbench.common.model.weights import export_state_dict, load_pretrained

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
LENGTHS = (9, 4, 24, 5)


def build(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    model = BertForQuestionAnswering(config, Ops())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def batch(rows=None):
    features = made_up_features(LENGTHS, 56)
    return collate(features, np.arange(len(LENGTHS)) if rows is None else np.array(rows))


def test_the_loss_is_the_mean_of_both_cross_entropies_over_own_tokens():
    model, part = build(), batch()
    logits = model(part)
    expected = 0.0
    for index, piece in enumerate(logits.double().split(LENGTHS)):
        for column, answer in ((0, part.start[index]), (1, part.end[index])):
            expected -= piece[:, column].log_softmax(0)[answer] / 2
    assert span_loss(logits, part).item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(span_loss(logits, part), logits)
    sums = torch.stack([piece.sum(0) for piece in gradient.split(LENGTHS)])
    assert sums.abs().max() < 1e-6  # of every sequence: a softmax minus one answer


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_divergence_is_that_of_both_distributions_over_own_tokens(temperature):
    part = batch()
    logits, teacher = 50 * build()(part), 50 * build(seed=1)(part)
    expected = 0.0
    pieces = (x.double().split(LENGTHS) for x in (teacher, logits))
    for both in zip(*pieces, strict=True):
        p, q = ((x / temperature).softmax(0) for x in both)
        expected += temperature**2 * (p * (p / q).log()).sum() / 2
    found = answer_divergence(logits, teacher, part, temperature)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5) and expected > 0.1
    assert answer_divergence(teacher, teacher, part, temperature).item() == 0


def test_a_sequence_does_not_see_its_neighbours():
    model = build()
    together = model(batch()).split(LENGTHS)
    for row, logits in enumerate(together):
        assert torch.allclose(model(batch([row])), logits, atol=1e-5)


def test_nvidia_and_hugging_face_names_give_identical_logits(tmp_path):
    model, found = build(), []
    for naming in ("huggingface", "nvidia"):
        file = tmp_path / f"{naming}.pt"
        torch.save({"model": export_state_dict(model, naming)}, file)
        other = build(seed=1)
        report = load_pretrained(other, file, require="all")
        assert not report.missing and not report.unexpected
        found.append(other(batch()))
    assert any("dense_act" in name for name in report.matched)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], model(batch()))


def test_logits_are_hugging_faces(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is absent")
    torch.manual_seed(0)
    peer = transformers.BertForQuestionAnswering(
        transformers.BertConfig(
            vocab_size=56,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=24,
            layer_norm_eps=1e-12,
        )
    ).eval()
    file = tmp_path / "peer.pt"
    torch.save(peer.state_dict(), file)
    model = build().eval()
    load_pretrained(model, file, require="all")
    part = batch()
    pieces = model(part).split(LENGTHS)
    ids, kinds = part.tokens.input_ids.split(LENGTHS), part.tokens.segment_ids.split(LENGTHS)
    for i, logits in enumerate(pieces):
        with torch.no_grad():
            out = peer(input_ids=ids[i][None], token_type_ids=kinds[i][None])
        theirs = torch.stack([out.start_logits[0], out.end_logits[0]], dim=1)
        assert torch.allclose(logits, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1}, "has 1 layers, the model has 2"),
        ({"num_hidden_layers": 3}, "has 3 layers, the model has 2"),
        ({"hidden_size": 8}, "has shape"),
        ({"vocab_size": 72}, "has shape"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, change, message):
    values = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__} | change
    file = tmp_path / "other.pt"
    torch.save(export_state_dict(build(BertConfig(**values))), file)
    model = build()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(BadInput, match=message):
        load_pretrained(model, file)
    assert all(map(torch.equal, before, model.parameters()))


def test_pretrained_weights_cannot_answer_without_training(tmp_path):
    file = tmp_path / "encoder.pt"
    state = export_state_dict(build())
    torch.save({n: t for n, t in state.items() if not n.startswith("qa_outputs")}, file)
    report = load_pretrained(build(), file)
    assert report.missing == ("qa_outputs.weight", "qa_outputs.bias")
    with pytest.raises(BadInput, match=r"lacks 2 .* qa_outputs"):
        load_pretrained(build(), file, require="all")
