# SPDX-License-Identifier: Apache-2.0
"""The model against Hugging Face's: logits, losses and every gradient, with real lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bertbench.common.data.batch import PretrainingBatch
from bertbench.common.model.config import BertConfig
from bertbench.common.model.heads import BertForPreTraining
from bertbench.common.model.naming import huggingface_names
from bertbench.common.model.ops import Ops
from bertbench.common.model.weights import export_state_dict, load_pretrained

transformers = pytest.importorskip("transformers", reason="transformers ([compare]) is absent")

HIDDEN_ACT = {"erf": "gelu", "tanh": "gelu_new"}
TINY = {
    "vocab_size": 120,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 40,
}
BASE = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
TINY_LENGTHS = (17, 2, 40, 9, 26)


def config_of(shape: dict[str, int], **other: Any) -> BertConfig:
    return BertConfig(**shape, hidden_dropout=0.0, attention_dropout=0.0, **other)


def peer_of(config: BertConfig, vocab_size: int) -> nn.Module:
    """Hugging Face's model of the same shape; biases and norms are not at trivial values."""
    megatron = config.norm_position == "pre"
    names = ("MegatronBertConfig", "MegatronBertForPreTraining")
    config_name, model_name = names if megatron else ("BertConfig", "BertForPreTraining")
    torch.manual_seed(1)
    peer = getattr(transformers, model_name)(
        getattr(transformers, config_name)(
            vocab_size=vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            hidden_act=HIDDEN_ACT[config.gelu],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=config.layer_norm_eps,
            attn_implementation="eager",
        )
    )
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return peer.train()


@dataclass
class Outcome:
    """What is compared: per masked position, per sequence, scalars, per parameter."""

    mlm_logits: Tensor
    nsp_logits: Tensor
    losses: Tensor
    gradients: dict[str, Tensor]


def run_peer(peer: nn.Module, batch: PretrainingBatch) -> Outcome:
    """The same sequences, padded into rectangles with a mask as Hugging Face wants them."""

    def pad(flat: Tensor, value: int) -> Tensor:
        parts = list(flat.split(batch.tokens.lengths))
        return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)

    labels = torch.full_like(batch.tokens.input_ids, -100)
    labels[batch.masked_indices] = batch.masked_labels
    padded_labels = pad(labels, -100)
    out = peer(
        input_ids=pad(batch.tokens.input_ids, 0),
        attention_mask=pad(torch.ones_like(batch.tokens.input_ids), 0),
        token_type_ids=pad(batch.tokens.segment_ids, 0),
        labels=padded_labels,
        next_sentence_label=batch.next_sentence_labels,
    )
    out.loss.backward()
    return Outcome(
        mlm_logits=out.prediction_logits[padded_labels != -100].detach(),
        nsp_logits=out.seq_relationship_logits.detach(),
        losses=out.loss.detach(),
        gradients={name: p.grad for name, p in peer.named_parameters()},
    )


def run_ours(model: BertForPreTraining, batch: PretrainingBatch) -> Outcome:
    sums = model(batch)
    loss = sums.mlm_loss / len(batch.masked_labels) + sums.nsp_loss / len(batch.tokens.lengths)
    loss.backward()
    with torch.no_grad():
        hidden = model.encoder(batch.tokens)
        mlm_logits = model.masked_token_logits(hidden[batch.masked_indices])
        nsp_logits = model.next_sentence_logits(hidden, batch.tokens)
    assert sums.mlm_correct == (mlm_logits.argmax(-1) == batch.masked_labels).sum()
    assert sums.nsp_correct == (nsp_logits.argmax(-1) == batch.next_sentence_labels).sum()
    return Outcome(
        mlm_logits, nsp_logits, loss.detach(), {n: p.grad for n, p in model.named_parameters()}
    )


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def assert_same(model: BertForPreTraining, ours: Outcome, theirs: Outcome, tol: float) -> None:
    vocab_size = theirs.mlm_logits.shape[1]
    errors = {
        "mlm_logits": relative_error(ours.mlm_logits[:, :vocab_size], theirs.mlm_logits),
        "nsp_logits": relative_error(ours.nsp_logits, theirs.nsp_logits),
        "loss": relative_error(ours.losses, theirs.losses),
    }
    for own, gradient in ours.gradients.items():
        # q, k and v together: the gradient of k's bias alone is zero but for rounding.
        names = huggingface_names(own, model.config.norm_position)
        expected = torch.cat([theirs.gradients[name] for name in names])
        errors[own] = relative_error(gradient[: len(expected)], expected)
    assert len(errors) == 3 + len(list(model.parameters()))
    assert {name: e for name, e in errors.items() if not e < tol} == {}


def compare(model: BertForPreTraining, peer: nn.Module, batch: PretrainingBatch, tol: float):
    theirs, ours = run_peer(peer, batch), run_ours(model, batch)
    assert_same(model, ours, theirs, tol)


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_tiny(make_batch, tmp_path, gelu, norm_position):
    config = config_of(TINY, gelu=gelu, norm_position=norm_position)
    model, peer = BertForPreTraining(config, Ops()), peer_of(config, 120)
    torch.save(peer.state_dict(), tmp_path / "peer.pt")
    report = load_pretrained(model, tmp_path / "peer.pt", require="all")
    assert (report.missing, report.unexpected, report.notes) == ((), (), ())
    compare(model, peer, make_batch(TINY_LENGTHS, vocab_size=120), 1e-5)

    # and back: the peer takes our export as its own complete state
    exported = export_state_dict(model)
    exported["cls.predictions.decoder.bias"] = exported["cls.predictions.bias"]
    torch.testing.assert_close(exported, dict(peer.state_dict()), rtol=0, atol=0)


def test_base(make_batch):
    config = config_of(BASE, gelu="tanh")
    model, peer = BertForPreTraining(config, Ops()), peer_of(config, 30522)
    # Straight into the model's memory: no need to write 440 MB to disk.
    for name, weight in export_state_dict(model).items():
        weight.copy_(peer.state_dict()[name])
    compare(model, peer, make_batch((53, 24), vocab_size=30522, masked=8), 1e-4)


def test_padded_vocabulary(make_batch, tmp_path):
    """116 words built as 120: padding rows score 0 and take part in the softmax, as in MLPerf."""
    config = config_of(TINY)
    peer = peer_of(config, 116)
    batch = make_batch(TINY_LENGTHS, vocab_size=116)
    torch.save({"model": peer.state_dict()}, tmp_path / "peer.pt")
    model = BertForPreTraining(config, Ops())
    report = load_pretrained(model, tmp_path / "peer.pt", require="all")
    assert len(report.notes) == 2
    theirs, ours = run_peer(peer, batch), run_ours(model, batch)

    assert relative_error(ours.mlm_logits[:, :116], theirs.mlm_logits) < 1e-5
    assert (ours.mlm_logits[:, 116:] == 0).all()
    # Every padding row adds exp(0) to the denominator of each softmax.
    wide = torch.cat([theirs.mlm_logits, torch.zeros(len(theirs.mlm_logits), 4)], 1)
    mlm = nn.functional.cross_entropy(wide, batch.masked_labels)
    nsp = nn.functional.cross_entropy(theirs.nsp_logits, batch.next_sentence_labels)
    assert relative_error(ours.losses, mlm + nsp) < 1e-5


def test_a_wrong_position_is_noticed(make_batch):
    """The comparison can fail: the last sequence starts at position 1 for the peer at 0."""
    config = config_of(TINY)
    model, peer = BertForPreTraining(config, Ops()), peer_of(config, 120)
    for name, weight in export_state_dict(model).items():
        weight.copy_(peer.state_dict()[name])
    batch = make_batch((17, 20), vocab_size=120)
    compare(model, peer, batch, 1e-5)
    model.zero_grad()
    peer.zero_grad()
    batch.tokens.position_ids[17:] += 1
    with pytest.raises(AssertionError, match="mlm_logits"):
        compare(model, peer, batch, 1e-5)
