# SPDX-License-Identifier: Apache-2.0
"""The question-answering model against Hugging Face's, pre-LN and post-LN, in padded batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bertbench.benchmarks.bert_squad.model import BertForQuestionAnswering, span_loss
from bertbench.common.model.naming import huggingface_names
from bertbench.common.model.ops import Ops
from bertbench.common.model.weights import export_state_dict
from tests.unit.compress.conftest import batch, config

transformers = pytest.importorskip("transformers", reason="transformers ([compare]) is absent")

GIVEN = batch(41, 9, 48, 5, 17)
PADDED = 48
HIDDEN_ACT = {"erf": "gelu", "tanh": "gelu_new"}


def peer_of(model: BertForQuestionAnswering) -> nn.Module:
    """Hugging Face's model with the weights of ours, tensor by tensor."""
    c = model.config
    kind = "MegatronBert" if c.norm_position == "pre" else "Bert"
    described: Any = getattr(transformers, f"{kind}Config")(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, layer_norm_eps=c.layer_norm_eps,
        num_hidden_layers=c.num_hidden_layers, num_attention_heads=c.num_attention_heads,
        intermediate_size=c.intermediate_size, hidden_act=HIDDEN_ACT[c.gelu],
        max_position_embeddings=c.max_position_embeddings, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation="eager",
    )  # fmt: skip
    peer: nn.Module = getattr(transformers, f"{kind}ForQuestionAnswering")(described)
    weights = export_state_dict(model)
    found = peer.load_state_dict({n: t.clone() for n, t in weights.items()}, strict=False)
    # The positions' numbers are no weight; with all others the two have the same tensors.
    assert not found.unexpected_keys
    assert all(name.endswith("position_ids") for name in found.missing_keys)
    return peer.train()


def grid(flat: Tensor, fill: float) -> Tensor:
    """[T] as the rectangle [B, L] that Hugging Face takes."""
    made = torch.full((len(GIVEN.tokens.lengths), PADDED), fill, dtype=flat.dtype)
    made[GIVEN.rows, GIVEN.tokens.position_ids] = flat
    return made


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_logits_loss_and_gradients(norm_position: str, gelu: Any) -> None:
    torch.manual_seed(4)
    shape = {f: getattr(config(norm_position), f) for f in config().__slots__}
    changed = {"gelu": gelu, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    model = BertForQuestionAnswering(type(config())(**shape | changed), Ops()).train()
    with torch.no_grad():  # so that every bias, norm and score matters
        for p in model.parameters():
            p.mul_(6 if p.dim() > 1 else 1).add_(0.1 * torch.randn_like(p))
    peer = peer_of(model)

    ours = model(GIVEN)
    loss = span_loss(ours, GIVEN) / len(GIVEN.tokens.lengths)
    loss.backward()
    mask = grid(torch.ones_like(GIVEN.tokens.input_ids), 0)
    theirs = peer(
        # Padding is a token like any other but for the mask: it must not matter which.
        input_ids=grid(GIVEN.tokens.input_ids, 7),
        attention_mask=mask,
        token_type_ids=grid(GIVEN.tokens.segment_ids, 1),
    )
    logits = torch.stack([theirs.start_logits, theirs.end_logits], -1)
    assert mask.sum() < mask.numel() and float(ours.detach().abs().max()) > 0.5
    assert torch.allclose(logits[mask.bool()], ours, rtol=0, atol=1e-5)
    # The loss is over each sequence's tokens: their own one also sums over padding.
    hidden = logits.masked_fill(mask[..., None] == 0, float("-inf"))
    cross = nn.functional.cross_entropy
    expected = (cross(hidden[..., 0], GIVEN.start) + cross(hidden[..., 1], GIVEN.end)) / 2
    assert torch.allclose(expected, loss, rtol=0, atol=1e-5)
    expected.backward()
    gradients = {name: p.grad for name, p in peer.named_parameters()}
    for own, p in model.named_parameters():
        assert p.grad is not None
        joined = torch.cat([gradients.pop(n) for n in huggingface_names(own, norm_position)])
        assert float(joined.norm()) > 0, own
        assert torch.allclose(p.grad, joined, rtol=0, atol=1e-5), own
    assert not gradients
