# SPDX-License-Identifier: Apache-2.0
"""Weights in and out: every naming, every refusal, nothing half loaded, no code run."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.model.config import BertConfig
from bertbench.common.model.heads import BertForPreTraining
from bertbench.common.model.ops import Ops
from bertbench.common.model.weights import export_state_dict, load_pretrained

CONFIG = BertConfig(
    vocab_size=56,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=24,
)
State = dict[str, Tensor]


def build(config: BertConfig = CONFIG, seed: int = 0) -> BertForPreTraining:
    torch.manual_seed(seed)
    model = BertForPreTraining(config, Ops())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def same(a: BertForPreTraining, b: BertForPreTraining) -> bool:
    return all(map(torch.equal, a.parameters(), b.parameters()))


def rename(state: State, *rules: tuple[str, str]) -> State:
    def new(name: str) -> str:
        for old, replacement in rules:
            name = re.sub(old, replacement, name)
        return name

    return {new(name): tensor for name, tensor in state.items()}


def bare_encoder(state: State) -> State:
    """As saved from a BertModel: no heads, no prefix; with the buffer that old files have."""
    inner = {n.removeprefix("bert."): t for n, t in state.items() if n.startswith("bert.")}
    return inner | {"embeddings.position_ids": torch.arange(24)[None]}


TF_STYLE = ((r"LayerNorm\.weight", "LayerNorm.gamma"), (r"LayerNorm\.bias", "LayerNorm.beta"))
FUSED_MHA = (
    (r"attention\.self\.query\.", "attention.multi_head_attention.q_"),
    (r"attention\.self\.key\.", "attention.multi_head_attention.k_"),
    (r"attention\.self\.value\.", "attention.multi_head_attention.v_"),
    (r"attention\.output\.dense\.", "attention.multi_head_attention.out_proj_"),
    (r"attention\.output\.LayerNorm\.", "attention.layer_norm."),
    (r"^bert\.", "bert_model_segment.bert."),
    (r"^cls\.", "heads_only_segment.cls."),
)
NAMINGS: dict[str, Callable[[BertForPreTraining], State]] = {
    "huggingface": export_state_dict,
    "huggingface-without-tied": lambda m: {
        n: t for n, t in export_state_dict(m).items() if n != "cls.predictions.decoder.weight"
    },
    "huggingface-decoder-bias": lambda m: rename(
        export_state_dict(m), (r"^cls\.predictions\.bias$", "cls.predictions.decoder.bias")
    ),
    "nvidia": lambda m: export_state_dict(m, "nvidia"),
    "nvidia-mlperf-fused-mha": lambda m: rename(export_state_dict(m), *FUSED_MHA),
    "tensorflow-converted": lambda m: rename(export_state_dict(m), *TF_STYLE),
    "distributed": lambda m: rename(export_state_dict(m, "nvidia"), (r"^", "module.")),
    "own": lambda m: m.state_dict(),
    "own-compiled": lambda m: rename(m.state_dict(), (r"^", "_orig_mod.")),
}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("container", [".pt", ".pt with model key", ".safetensors"])
def test_every_naming_in_every_container(tmp_path, naming, container):
    source, model = build(seed=1), build(seed=2)
    state = NAMINGS[naming](source)
    path = tmp_path / f"weights{container.split()[0]}"
    if container == ".safetensors":
        save_file({name: t.clone() for name, t in state.items()}, path)
    else:
        extra = {"optimizer": {"state": {0: torch.ones(2)}}, "epoch": 3}
        torch.save({"model": state, **extra} if "model" in container else state, path)
    report = load_pretrained(model, path, require="all")
    assert same(model, source)
    assert report.matched == tuple(sorted(state))
    assert (report.missing, report.unexpected, report.notes) == ((), (), ())


def test_old_pt_format(tmp_path):
    """Files of torch before 1.6 are no zip archives and cannot be memory-mapped."""
    source, model = build(seed=1), build(seed=2)
    old = {"_use_new_zipfile_serialization": False}
    torch.save(export_state_dict(source), tmp_path / "old.pt", **old)
    load_pretrained(model, tmp_path / "old.pt", require="all")
    assert same(model, source)


def test_half_precision_file(tmp_path):
    source, model = build(seed=1), build(seed=2)
    state = {name: t.half() for name, t in export_state_dict(source).items()}
    torch.save(state, tmp_path / "half.pt")
    load_pretrained(model, tmp_path / "half.pt", require="all")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(
        torch.equal(p, q.half().float())
        for p, q in zip(model.parameters(), source.parameters(), strict=True)
    )


def test_bare_encoder_and_its_report(tmp_path):
    source, model, before = build(seed=1), build(seed=2), build(seed=2)
    torch.save(
        bare_encoder(export_state_dict(source)) | {"extra": torch.ones(2)}, tmp_path / "e.pt"
    )
    report = load_pretrained(model, tmp_path / "e.pt")
    assert same(model.encoder, source.encoder) and same(model.pooler, source.pooler)
    assert same(model.masked_token, before.masked_token)
    assert report.unexpected == ("embeddings.position_ids", "extra")
    assert set(report.missing) == {
        "cls.predictions.bias",
        *(f"cls.predictions.transform.dense.{kind}" for kind in ("weight", "bias")),
        *(f"cls.predictions.transform.LayerNorm.{kind}" for kind in ("weight", "bias")),
        *(f"cls.seq_relationship.{kind}" for kind in ("weight", "bias")),
    }
    with pytest.raises(BadInput, match="lacks 7 of the model's"):
        load_pretrained(model, tmp_path / "e.pt", require="all")


def test_vocabulary_padding_both_ways(tmp_path):
    narrow, wide = build(replace(CONFIG, vocab_size=50), seed=1), build(seed=2)
    torch.save(export_state_dict(narrow), tmp_path / "narrow.pt")
    report = load_pretrained(wide, tmp_path / "narrow.pt", require="all")
    word, bias = wide.encoder.embeddings.word.weight, wide.masked_token.decoder_bias
    assert torch.equal(word[:50], narrow.encoder.embeddings.word.weight)
    assert torch.equal(bias[:50], narrow.masked_token.decoder_bias)
    assert not word[50:].any() and not bias[50:].any()
    assert report.notes == (
        "bert.embeddings.word_embeddings.weight: 6 padding rows added as zeros",
        "cls.predictions.bias: 6 padding rows added as zeros",
    )

    torch.save({"model": export_state_dict(wide, "nvidia")}, tmp_path / "wide.pt")
    again = build(replace(CONFIG, vocab_size=50), seed=3)
    report = load_pretrained(again, tmp_path / "wide.pt", require="all")
    assert same(again, narrow)
    assert all("6 padding rows dropped" in note for note in report.notes)
    assert len(report.notes) == 2

    cut = export_state_dict(wide, vocab_size=50)
    assert all(torch.equal(cut[name], t) for name, t in export_state_dict(narrow).items())


@pytest.mark.parametrize("rows", [48, 72, 57, 40, 120, 65])
def test_another_vocabulary_is_refused(tmp_path, rows):
    torch.save(export_state_dict(build(replace(CONFIG, vocab_size=rows))), tmp_path / "v.pt")
    with pytest.raises(BadInput, match=rf"v\.pt: .*word_embeddings.*\[{rows}, 16\].*\[56, 16\]"):
        load_pretrained(build(), tmp_path / "v.pt")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": 32}, r"has shape \[.*the model needs \["),
        ({"intermediate_size": 64}, r"intermediate\.dense\.bias has shape \[64\]"),
        ({"max_position_embeddings": 48}, r"position_embeddings\.weight has shape \[48, 16\]"),
        ({"num_hidden_layers": 1}, "its encoder has 1 layers, the model has 2"),
        ({"num_hidden_layers": 3}, "its encoder has 3 layers, the model has 2"),
        ({"norm_position": "pre"}, "lacks 10 of the model's"),
    ],
)
def test_another_shape_is_refused_and_nothing_is_loaded(tmp_path, change, says):
    torch.save(export_state_dict(build(replace(CONFIG, **change), seed=1)), tmp_path / "other.pt")
    model = build()
    with pytest.raises(BadInput, match=rf"other\.pt: .*{says}"):
        load_pretrained(model, tmp_path / "other.pt")
    assert same(model, build())


def test_positions_are_extended_only_where_asked(tmp_path):
    torch.save(export_state_dict(build(seed=1)), tmp_path / "w.pt")
    longer = replace(CONFIG, max_position_embeddings=60)
    model = build(longer)
    with pytest.raises(BadInput, match=r"has 24 positions and the model 60. --extend_positions"):
        load_pretrained(model, tmp_path / "w.pt")
    assert same(model, build(longer))
    report = load_pretrained(model, tmp_path / "w.pt", extend_positions=True)
    name = "bert.embeddings.position_embeddings.weight"
    learnt = export_state_dict(build(seed=1))[name]
    found = export_state_dict(model)[name]
    assert torch.equal(found, torch.cat([learnt, learnt, learnt[:12]]))
    assert any("24 positions repeated to 60" in note for note in report.notes)
    with pytest.raises(BadInput, match="there are none to add"):
        load_pretrained(build(), tmp_path / "w.pt", extend_positions=True)
    shorter = build(replace(CONFIG, max_position_embeddings=8))
    with pytest.raises(BadInput, match="has shape"):
        load_pretrained(shorter, tmp_path / "w.pt")


def edited(edit: Callable[[State], None]) -> State:
    state = export_state_dict(build())
    edit(state)
    return state


REFUSED = {
    "a layer without its key": (
        edited(lambda s: s.pop("bert.encoder.layer.1.attention.self.key.weight")),
        r"lacks 1 of .*bert\.encoder\.layer\.1\.attention\.self\.key\.weight",
    ),
    "no encoder at all": ({"conv1.weight": torch.ones(3)}, r"it has 1, such as conv1\.weight"),
    "empty": ({}, "it has 0"),
    "integer weights": (
        {n: t.to(torch.int8) for n, t in export_state_dict(build()).items()},
        "it has 0",
    ),
    "weights without values": (
        {n: t.to("meta") for n, t in export_state_dict(build()).items()},
        "it has 0",
    ),
    "sparse weights": (
        {n: t.to_sparse() for n, t in export_state_dict(build()).items()},
        "it has 0",
    ),
    "untied decoder": (
        edited(lambda s: s.update({"cls.predictions.decoder.weight": torch.ones(56, 16)})),
        r"cls\.predictions\.decoder\.weight differs from the word embedding",
    ),
    "one parameter twice": (
        edited(lambda s: s.update({"bert.pooler.dense_act.bias": torch.ones(16)})),
        r"bert\.pooler\.dense\.bias and bert\.pooler\.dense_act\.bias .* differ",
    ),
    "names that a terminal would obey": ({"\x1b[2J\x07": torch.ones(3)}, r"such as \?\[2J\?\."),
    "a list": ([torch.ones(2)], "no dictionary of tensors"),
    "model key without tensors": ({"model": 3}, "no dictionary of tensors"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_unfit_contents_are_refused(tmp_path, what):
    contents, says = REFUSED[what]
    torch.save(contents, tmp_path / "bad.pt")
    model = build(seed=2)
    with pytest.raises(BadInput, match=rf"bad\.pt: .*{says}"):
        load_pretrained(model, tmp_path / "bad.pt")
    assert same(model, build(seed=2))


class Hostile:
    """Creates a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize(
    ("where", "zipped"),
    [("value", True), ("value", False), ("model", True), ("model", False), ("file", False)],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_file_is_not_run(tmp_path, where, zipped):
    proof, path = tmp_path / "code-was-run", tmp_path / "hostile.pt"
    hostile, state = Hostile(proof), export_state_dict(build())
    if where == "file":
        path.write_bytes(pickle.dumps({**state, "x": hostile}))
    else:
        contents = {**state, "x": hostile} if where == "value" else {"model": hostile}
        torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadInput, match=r"hostile\.pt: .*Nothing in it was executed"):
        load_pretrained(build(), path)
    assert not proof.exists()
    # the proof works: this is what an unguarded reader would do
    torch.load(path, weights_only=False) if where != "file" else pickle.loads(path.read_bytes())
    assert proof.exists()


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 1000, -1000, -1])
def test_a_cut_file_is_refused(tmp_path, name, keep):
    path, model = tmp_path / name, build(seed=2)
    state = {n: t.clone() for n, t in export_state_dict(build()).items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadInput, match=re.escape(name)):
        load_pretrained(model, path)
    assert same(model, build(seed=2))


@pytest.mark.parametrize("name", ["text.pt", "text.safetensors", "model.ckpt-28252.index"])
def test_a_foreign_file_is_refused(tmp_path, name):
    (tmp_path / name).write_text("weights? what weights?\n" * 50)
    with pytest.raises(BadInput, match=re.escape(name)):
        load_pretrained(build(), tmp_path / name)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(BadInput, match=r"none\.pt: does not exist"):
        load_pretrained(build(), tmp_path / "none.pt")
    with pytest.raises(BadInput, match="is a folder"):
        load_pretrained(build(), tmp_path)


@pytest.mark.parametrize(("tokens", "rows"), [(56, 64), (100, 128), (600, 640), (600, 1024)])
def test_a_vocabulary_padded_to_any_usual_multiple(tmp_path, tokens, rows):
    wide = build(replace(CONFIG, vocab_size=rows), seed=1)
    model = build(replace(CONFIG, vocab_size=tokens), seed=2)
    torch.save(export_state_dict(wide), tmp_path / "wide.pt")
    report = load_pretrained(model, tmp_path / "wide.pt", require="all")
    word = model.encoder.embeddings.word.weight
    assert torch.equal(word, wide.encoder.embeddings.word.weight[:tokens])
    assert all(f"{rows - tokens} padding rows dropped" in note for note in report.notes)


# -- where the weights are in a file -------------------------------------------------------------
@pytest.mark.parametrize(
    "keys",
    [
        ["state_dict"], ["model_state_dict"], ["module"], ["model", "module"],
        ["state_dict", "model", "module"],
    ],
    ids=".".join,
)  # fmt: skip
@pytest.mark.parametrize("epoch", [3, None])
def test_weights_under_known_keys(tmp_path, keys, epoch):
    source, model = build(seed=1), build(seed=2)
    content = export_state_dict(source)
    for key in reversed(keys):
        content = {"epoch": epoch, "rng": torch.ones(3), "args": {"lr": 1.0}, key: content}
    torch.save(content, tmp_path / "w.pt")
    report = load_pretrained(model, tmp_path / "w.pt", require="all")
    assert same(model, source)
    assert report.notes == (f"weights under {'.'.join(keys)!r}",)


def test_the_key_that_leads_to_weights_is_taken(tmp_path):
    source, model = build(seed=1), build(seed=2)
    torch.save(
        {"model": {"name": "bert"}, "state_dict": export_state_dict(source)}, tmp_path / "w.pt"
    )
    assert load_pretrained(model, tmp_path / "w.pt").notes == ("weights under 'state_dict'",)
    assert same(model.encoder, source.encoder)


@pytest.mark.parametrize(
    ("prefix", "note"),
    [
        ("model.", "names without 'model.'"),
        ("module.model.", "names without 'model.'"),
        ("student.net.", "names without 'student.net.'"),
        ("module._orig_mod.", None),
        ("_forward_module.", None),
        ("_fsdp_wrapped_module.module.", None),
    ],
)
def test_names_within_other_modules(tmp_path, prefix, note):
    for naming in (export_state_dict, lambda m: m.state_dict()):
        source, model = build(seed=1), build(seed=2)
        torch.save(rename(naming(source), (r"^", prefix)), tmp_path / "w.pt")
        report = load_pretrained(model, tmp_path / "w.pt", require="all")
        assert same(model, source)
        assert report.notes == (() if note is None else (note,))


def test_layers_wrapped_one_by_one(tmp_path):
    source, model = build(seed=1), build(seed=2)
    wrapped = (r"layer\.(\d)\.", r"layer.\1._fsdp_wrapped_module._checkpoint_wrapped_module.")
    torch.save(rename(export_state_dict(source), wrapped), tmp_path / "w.pt")
    load_pretrained(model, tmp_path / "w.pt", require="all")
    assert same(model, source)


# -- what is not a BERT --------------------------------------------------------------------------
def both() -> State:
    state = export_state_dict(build())
    return rename(state, (r"^", "query.")) | rename(state, (r"^", "passage."))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (
            edited(lambda s: s.update({
                f"bert.encoder.layer.{n}.attention.self.distance_embedding.weight": torch.ones(9, 8)
                for n in (0, 1)
            })),
            r"2 tensors of its encoder are not a BERT's, such as .*distance_embedding",
        ),
        (
            edited(lambda s: s.update({"bert.embeddings.projection.weight": torch.ones(16, 8)})),
            "embeddings.projection.weight: it is of another architecture",
        ),
        (
            edited(lambda s: s.update({
                "bert.encoder.layer.0.attention.self.query.lora_A.weight": torch.ones(2, 16)
            })),
            "adapters that must be merged",
        ),
        (rename(export_state_dict(build()), (r"^bert\.", "roberta.")), "family RoBERTa"),
        (rename(export_state_dict(build()), (r"^bert\.", "model.electra.")), "family ELECTRA"),
        (both(), r"holds 2 BERTs \(passage\., query\.\)"),
        (
            edited(lambda s: s["bert.encoder.layer.1.output.dense.weight"].fill_(float("nan"))),
            r"layer\.1\.output\.dense\.weight holds NaN or infinity",
        ),
        (
            edited(lambda s: s["bert.pooler.dense.bias"].view(-1)[3:4].fill_(float("inf"))),
            r"pooler\.dense\.bias holds NaN or infinity",
        ),
        (
            edited(lambda s: s.update({
                "bert.pooler.dense.bias": torch.full((16,), 1e300, dtype=torch.float64)
            })),
            r"pooler\.dense\.bias holds NaN or infinity",
        ),
    ],
)  # fmt: skip
def test_another_architecture_or_no_number_is_refused(tmp_path, state, says):
    torch.save(state, tmp_path / "w.pt")
    model = build(seed=2)
    with pytest.raises(BadInput, match=rf"w\.pt: .*{says}"):
        load_pretrained(model, tmp_path / "w.pt")
    assert same(model, build(seed=2))


def test_a_position_table_that_counts_from_two(tmp_path):
    """A bare RoBERTa has a BERT's names; this is all that its file says."""
    config = replace(CONFIG, max_position_embeddings=514)
    torch.save(bare_encoder(export_state_dict(build(config))), tmp_path / "w.pt")
    with pytest.raises(BadInput, match=r"w\.pt: .*514 rows, as a RoBERTa has"):
        load_pretrained(build(config), tmp_path / "w.pt")


DESCRIBED = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 56,
}  # fmt: skip


@pytest.mark.parametrize(
    ("beside", "says"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"architectures": ["CamembertModel"]}, "architectures is .*Camembert"),
        (DESCRIBED | {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        (DESCRIBED | {"is_decoder": True}, "is_decoder is True"),
        (DESCRIBED | {"embedding_size": 8}, "embedding_size is 8"),
        (DESCRIBED | {"num_hidden_groups": 1}, "num_hidden_groups is 1"),
        (DESCRIBED | {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        (DESCRIBED | {"type_vocab_size": 1}, "type_vocab_size is 1"),
        (DESCRIBED | {"num_attention_heads": 4}, "num_attention_heads is 4"),
        (DESCRIBED | {"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
        (DESCRIBED | {"model_type": "megatron-bert"}, "a pre-LN model"),
        (DESCRIBED | {"model_type": "bert", "architectures": ["MyModel"]}, None),
        (DESCRIBED | {"position_embedding_type": "absolute", "is_decoder": False}, None),
        ({"preset": "mini", "recipe": {}}, None),
        ([], None),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "bert_config.json"])
def test_a_configuration_beside_the_weights(tmp_path, beside, says, name):
    torch.save(export_state_dict(build(seed=1)), tmp_path / "w.pt")
    (tmp_path / name).write_text(json.dumps(beside))
    if says is None:
        load_pretrained(build(), tmp_path / "w.pt")
        return
    with pytest.raises(BadInput, match=rf"{name}: .*{says}"):
        load_pretrained(build(), tmp_path / "w.pt")


# -- files that are read by other software -------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("w.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("model.onnx", b"\x08\x07", "an ONNX graph"),
        ("w.h5", b"\x89HDF\r\n", "Keras"),
        ("w.pt", b"<!DOCTYPE html>", "a web page"),
        ("w.gguf", b"GGUF", "GGUF"),
        ("w.pt.gz", b"\x1f\x8b", "unpack it first"),
        ("bert_model.ckpt.index", b"\0", "a TensorFlow checkpoint: convert"),
        ("bert_model.ckpt.data-00000-of-00001", b"\0", "a TensorFlow checkpoint: convert"),
        ("model.safetensors.index.json", b"{}", "split over several files"),
        ("pytorch_model-00001-of-00002.bin", b"PK", "split over several files"),
        ("flax_model.msgpack", b"\0", "a Flax file"),
        ("config.json", b"{}", "no file of weights"),
    ],
)
def test_another_format_is_named_with_what_to_do(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=rf"{re.escape(name)}: .*{says}"):
        load_pretrained(build(), tmp_path / name)


def test_a_path_that_stands_for_several_files(tmp_path):
    (tmp_path / "bert_model.ckpt.index").write_bytes(b"")
    with pytest.raises(BadInput, match=r"bert_model\.ckpt: is a TensorFlow checkpoint: convert"):
        load_pretrained(build(), tmp_path / "bert_model.ckpt")
    (tmp_path / "w.pt").touch()
    with pytest.raises(BadInput, match=r"is a folder: name the .* inside it, such as w\.pt"):
        load_pretrained(build(), tmp_path)
    (tmp_path / "model.safetensors.index.json").write_bytes(b"{}")
    with pytest.raises(BadInput, match="a folder whose model is split over several files"):
        load_pretrained(build(), tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(BadInput, match="is not a plain file"):
        load_pretrained(build(), tmp_path / "pipe.pt")


def test_pre_norm_round_trip_and_no_nvidia_names(tmp_path):
    config = replace(CONFIG, norm_position="pre")
    source, model = build(config, seed=1), build(config, seed=2)
    torch.save(export_state_dict(source), tmp_path / "pre.pt")
    load_pretrained(model, tmp_path / "pre.pt", require="all")
    assert same(model, source)
    with pytest.raises(Unsupported, match="pre-LN"):
        export_state_dict(source, "nvidia")


def test_nvidia_names():
    names = export_state_dict(build(), "nvidia").keys()
    assert {n for n in names if "dense_act" in n} == {
        f"{module}.{kind}"
        for module in (
            "bert.encoder.layer.0.intermediate.dense_act",
            "bert.encoder.layer.1.intermediate.dense_act",
            "bert.pooler.dense_act",
            "cls.predictions.transform.dense_act",
        )
        for kind in ("weight", "bias")
    }
    assert {n.replace("dense_act", "dense") for n in names} == export_state_dict(build()).keys()
