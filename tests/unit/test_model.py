# SPDX-License-Identifier: Apache-2.0
"""The model by itself: batching, dropout, initialisation, names and counts, pre-LN."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import bertbench.common.model.heads
from bertbench.common.data.batch import PretrainingBatch, Tokens
from bertbench.common.errors import BadInput
from bertbench.common.model.config import BertConfig
from bertbench.common.model.heads import BertForPreTraining, PretrainingSums
from bertbench.common.model.ops import Ops
from bertbench.common.model.weights import export_state_dict

CONFIG = BertConfig(
    vocab_size=120,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=40,
)


def build(config: BertConfig, seed: int = 0) -> BertForPreTraining:
    """A model whose biases and norms are not at their trivial initial values."""
    torch.manual_seed(seed)
    model = BertForPreTraining(config, Ops())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def sequences(batch: PretrainingBatch) -> list[PretrainingBatch]:
    """The same examples, each in a batch of its own."""
    tokens, out = batch.tokens, []
    starts = tokens.cu_seqlens.tolist()
    for b, (start, end) in enumerate(itertools.pairwise(starts)):
        inside = (batch.masked_indices >= start) & (batch.masked_indices < end)
        out.append(
            PretrainingBatch(
                tokens=Tokens(
                    input_ids=tokens.input_ids[start:end],
                    segment_ids=tokens.segment_ids[start:end],
                    position_ids=tokens.position_ids[start:end],
                    cu_seqlens=torch.tensor([0, end - start], dtype=torch.int32),
                    lengths=(end - start,),
                ),
                masked_indices=batch.masked_indices[inside] - start,
                masked_labels=batch.masked_labels[inside],
                next_sentence_labels=batch.next_sentence_labels[b : b + 1],
            )
        )
    return out


def totals(model: BertForPreTraining, batches: list[PretrainingBatch]) -> dict[str, Tensor]:
    """Sums over ``batches`` and the gradients of loss sums over them, accumulated."""
    model.zero_grad()
    result: dict[str, Tensor] = {}
    for batch in batches:
        sums = model(batch)
        (sums.mlm_loss + sums.nsp_loss).backward()
        for name in PretrainingSums.__slots__:
            result[name] = result.get(name, 0) + getattr(sums, name).detach()
    return result | {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_batching_changes_nothing(make_batch, norm_position):
    model = build(replace(CONFIG, norm_position=norm_position)).eval()
    batch = make_batch((11, 40, 2, 23, 7), vocab_size=120)
    together, apart = totals(model, [batch]), totals(model, sequences(batch))
    assert together["mlm_correct"] == apart["mlm_correct"]
    for name, value in together.items():
        torch.testing.assert_close(
            apart[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_sums_are_of_the_stated_types(make_batch):
    model = build(CONFIG)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = model(make_batch((11, 7), vocab_size=120))
    assert sums.mlm_loss.dtype == sums.nsp_loss.dtype == torch.float32
    assert sums.mlm_correct.dtype == sums.nsp_correct.dtype == torch.int64
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_dropout_acts_in_training_only(make_batch):
    config = replace(CONFIG, hidden_dropout=0.5, attention_dropout=0.5)
    model, batch = build(config), make_batch((30, 20), vocab_size=120)
    assert model(batch).mlm_loss != model(batch).mlm_loss
    model.eval()
    assert model(batch).mlm_loss == model(batch).mlm_loss
    without = build(replace(config, hidden_dropout=0.0, attention_dropout=0.0))
    assert without(batch).mlm_loss == model(batch).mlm_loss


@pytest.mark.parametrize("kind", ["hidden_dropout", "attention_dropout"])
def test_both_dropouts_are_wired(make_batch, kind):
    config = replace(CONFIG, hidden_dropout=0.0, attention_dropout=0.0)
    batch = make_batch((30, 20), vocab_size=120)
    model = build(replace(config, **{kind: 0.5}))
    assert model(batch).mlm_loss != model(batch).mlm_loss


def test_initialisation():
    torch.manual_seed(0)
    wide = replace(CONFIG, hidden_size=256, intermediate_size=512, norm_position="pre")
    model = BertForPreTraining(wide, Ops())
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert (p == (1.0 if "norm.weight" in name else 0.0)).all(), name
        else:
            spread = 5 * 0.02 / math.sqrt(p.numel())
            assert abs(p.mean()) < spread, name
            assert abs(p.std() - 0.02) < spread, name
    torch.manual_seed(0)
    again = BertForPreTraining(wide, Ops())
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_decoder_is_the_word_embedding():
    names = dict(build(CONFIG).named_parameters())
    assert [n for n, p in names.items() if p.shape == (120, 48)] == [
        "encoder.embeddings.word.weight"
    ]


def test_bert_large_has_mlperfs_size_and_names(monkeypatch):
    """336,226,108 parameters and the 399 names of MLPerf's checkpoint for 24 layers."""
    monkeypatch.setattr(bertbench.common.model.heads, "initialize", lambda *_: None)
    large = BertConfig(
        vocab_size=30522,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    )
    model = BertForPreTraining(large, Ops())
    assert sum(p.numel() for p in model.parameters()) == 336_226_108
    layer = [
        f"bert.encoder.layer.{n}.{module}.{kind}"
        for n in range(24)
        for module in (
            *("attention.self.query", "attention.self.key", "attention.self.value"),
            *("attention.output.dense", "attention.output.LayerNorm"),
            *("intermediate.dense", "output.dense", "output.LayerNorm"),
        )
        for kind in ("weight", "bias")
    ]
    other = [
        *(f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position")),
        "bert.embeddings.token_type_embeddings.weight",
        *("cls.predictions.bias", "cls.predictions.decoder.weight"),
        *(
            f"{module}.{kind}"
            for module in (
                *("bert.embeddings.LayerNorm", "bert.pooler.dense", "cls.seq_relationship"),
                *("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
            )
            for kind in ("weight", "bias")
        ),
    ]
    assert len(layer + other) == 399
    assert export_state_dict(model).keys() == set(layer + other)


# -- pre-LN, written out a second time ----------------------------------------------------------
def literal_pre_norm(p: dict[str, Tensor], ids: Tensor, segments: Tensor) -> Tensor:
    """One sequence through Megatron's BERT, step by step in float64: hidden states [L, H]."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return centred / scale * p[f"{name}.weight"] + p[f"{name}.bias"]

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    residual = torch.stack(
        [
            p["encoder.embeddings.word.weight"][i]
            + p["encoder.embeddings.position.weight"][n]
            + p["encoder.embeddings.token_type.weight"][s]
            for n, (i, s) in enumerate(zip(ids, segments, strict=True))
        ]
    )
    hidden, heads = CONFIG.hidden_size, CONFIG.num_attention_heads
    size = hidden // heads
    for n in range(CONFIG.num_hidden_layers):
        layer = f"encoder.layers.{n}"
        qkv = dense(norm(residual, f"{layer}.attention_norm"), f"{layer}.qkv")
        context = []
        for h in range(heads):
            q, k, v = (qkv[:, m * hidden + h * size :][:, :size] for m in range(3))
            scores = (q @ k.T / math.sqrt(size)).exp()
            context.append(scores / scores.sum(-1, keepdim=True) @ v)
        residual = residual + dense(torch.cat(context, 1), f"{layer}.attention_output")
        inner = dense(norm(residual, f"{layer}.output_norm"), f"{layer}.intermediate")
        cubic = math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)
        residual = residual + dense(0.5 * inner * (1 + cubic.tanh()), f"{layer}.output")
    return norm(residual, "encoder.final_norm")


def test_pre_norm_against_a_literal_implementation(make_batch):
    model = build(replace(CONFIG, norm_position="pre", gelu="tanh")).eval()
    tokens = make_batch((11, 25, 3), vocab_size=120).tokens
    probe = torch.randn(tokens.num_tokens, CONFIG.hidden_size)
    ours = model.encoder(tokens)
    (ours * probe).sum().backward()

    double = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    expected = torch.cat(
        [
            literal_pre_norm(double, ids, segments)
            for ids, segments in zip(
                tokens.input_ids.split(tokens.lengths),
                tokens.segment_ids.split(tokens.lengths),
                strict=True,
            )
        ]
    )
    (expected * probe).sum().backward()
    assert (ours.double() - expected).norm() < 1e-5 * expected.norm()
    for name, p in model.encoder.named_parameters(prefix="encoder"):
        want = double[name].grad
        assert (p.grad.double() - want).norm() < 1e-5 * want.norm(), name


# -- configuration -------------------------------------------------------------------------------
MLPERF_JSON = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "max_position_embeddings": 512,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}


def test_config_from_json(tmp_path):
    path = tmp_path / "bert_config.json"
    path.write_text(json.dumps(MLPERF_JSON))
    large = BertConfig(
        vocab_size=30522,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    )
    assert BertConfig.from_json(path) == large
    padded = BertConfig.from_json(path, gelu="tanh", pad_vocab_to=8)
    assert padded == replace(large, gelu="tanh", vocab_size=30528)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "1024"}, "hidden_size is '1024'"),
        ({"hidden_size": 1000}, "hidden_size 1000 is not a multiple of num_attention_heads 16"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_act": ["gelu"]}, "hidden_act is"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout is 1.0"),
        ({"layer_norm_eps": True}, "layer_norm_eps is True"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be positive"),
    ],
)
def test_wrong_config_names_file_and_field(tmp_path, change, says):
    path = tmp_path / "bert_config.json"
    path.write_text(json.dumps(MLPERF_JSON | change))
    with pytest.raises(BadInput) as caught:
        BertConfig.from_json(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("told", "ours", "says"),
    [
        ({"hidden_act": "gelu"}, {"gelu": "erf"}, None),
        ({"hidden_act": "gelu"}, {"gelu": "tanh"}, None),  # the references' name for either
        ({"hidden_act": "gelu_new"}, {"gelu": "tanh"}, None),
        ({"hidden_act": "gelu_new"}, {"gelu": "erf"}, "Pass --gelu tanh"),
        ({"layer_norm_eps": 1e-5}, {}, "Pass --layer_norm_eps 1e-05"),
        ({"layer_norm_eps": 1e-5}, {"layer_norm_eps": 1e-5}, None),
        ({"num_hidden_layers": 23}, {}, "pass --num_hidden_layers 23"),
        ({"vocab_size": 30528}, {}, None),
        ({"vocab_size": 28996}, {}, "pass --vocab_size"),
    ],
)
def test_a_config_that_stands_for_other_numbers_is_refused(tmp_path, told, ours, says):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MLPERF_JSON | told))
    model = replace(BertConfig.from_json(path), vocab_size=30528, num_hidden_layers=24)
    model = replace(model, **{"gelu": "erf", "layer_norm_eps": 1e-12, **ours})
    if says is None:
        model.check_agrees(path)
    else:
        with pytest.raises(BadInput, match=says):
            model.check_agrees(path)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_config_that_is_no_json_object(tmp_path, text):
    path = tmp_path / "bert_config.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"bert_config\.json"):
        BertConfig.from_json(path)
