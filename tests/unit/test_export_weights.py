# SPDX-License-Identifier: Apache-2.0
"""bertbench export-weights: what others read is what was trained; nothing half-written."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bertbench.benchmarks.bert_squad.model import BertForQuestionAnswering, SpanBatch
from bertbench.common.cli.main import main
from bertbench.common.files import file_sha256
from bertbench.common.masks.attach import to_tensors
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.masks.patterns import parse
from bertbench.common.model.config import BertConfig
from bertbench.common.model.heads import BertForPreTraining
from bertbench.common.model.ops import Ops
from bertbench.common.model.weights import load_pretrained
from bertbench.common.training.checkpoint import Checkpoints

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(45))]
CONFIG = BertConfig(
    vocab_size=56,  # 50 tokens and 6 rows of padding
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=24,
    gelu="tanh",
    hidden_dropout=0.2,
    attention_dropout=0.0,
)
KINDS = {"bert_squad": BertForQuestionAnswering, "bert_pretraining": BertForPreTraining}


def trained(
    kind: str, folder: Path, config: BertConfig = CONFIG, seed: int = 0, **recipe: object
) -> nn.Module:
    """A run's folder as the runner leaves it, as far as weights and shape go; its model."""
    torch.manual_seed(seed)
    model = KINDS[kind](config, Ops())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    saved = Checkpoints(folder / "checkpoints")
    saved.save(7, {"model": {n: torch.zeros_like(t) for n, t in model.state_dict().items()}}, {})
    saved.save(12, {"model": model.state_dict()}, {})
    told = {"benchmark": kind, "recipe": {"model": asdict(config), **recipe}}
    (folder / "config.json").write_text(json.dumps(told))
    return model


def export(capsys: pytest.CaptureFixture[str], run: Path, *flags: str) -> dict:
    assert main(["export-weights", str(run), *flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    return tmp_path / "vocab.txt"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("naming", ["huggingface", "nvidia"])
def test_what_was_written_gives_the_weights_back(tmp_path, capsys, kind, naming):
    model = trained(kind, tmp_path / "run")
    made = export(capsys, tmp_path / "run", "--output", str(tmp_path / "out"), "--naming", naming)
    files = {"huggingface": ("model.safetensors", "config.json"),
             "nvidia": ("pytorch_model.bin", "bert_config.json")}[naming]  # fmt: skip
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(files)
    assert (made["step"], made["vocab_size"]) == (12, 56)
    assert made["parameters"] == sum(p.numel() for p in model.parameters())

    again = KINDS[kind](CONFIG, Ops())
    report = load_pretrained(again, tmp_path / "out" / files[0], require="all")
    assert (report.missing, report.unexpected, report.notes) == ((), (), ())
    assert all(map(torch.equal, again.parameters(), model.parameters()))
    gelu = None if naming == "huggingface" else "tanh"  # NVIDIA's "gelu" is whichever it computes
    assert BertConfig.from_json(tmp_path / "out" / files[1], gelu=gelu) == replace(
        CONFIG, initializer_range=0.02
    )
    told = json.loads((tmp_path / "out" / files[1]).read_text())
    assert told["bertbench"] == {"run": "run", "step": 12}


def test_a_mask_goes_along(tmp_path, capsys):
    model = trained("bert_pretraining", tmp_path / "run")
    bits = np.tril(np.ones((24, 24), dtype=bool))
    mask = AttentionMask(((bits, parse("star")),))
    groups = {"model": model.state_dict(), "attention_mask": to_tensors(mask)}
    Checkpoints(tmp_path / "run" / "checkpoints").save(13, groups, {})
    out = tmp_path / "out"
    made = export(capsys, tmp_path / "run", "--output", str(out))
    assert made["attention_mask"] == mask.text
    named = json.loads((out / "config.json").read_text())["bertbench"]["attention_mask"]
    assert AttentionMask.of(str(out / named)).hash == mask.hash
    again = KINDS["bert_pretraining"](CONFIG, Ops())
    assert not load_pretrained(again, out / "model.safetensors", require="all").unexpected


def test_a_vocabulary_goes_along_and_padding_rows_do_not(tmp_path, capsys, vocab):
    model = trained("bert_pretraining", tmp_path / "run", lowercase=False)
    out = tmp_path / "out"
    made = export(capsys, tmp_path / "run", "--output", str(out), "--vocab_file", str(vocab))
    assert made["vocab_size"] == 50
    assert (out / "vocab.txt").read_text() == vocab.read_text()
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 50
    assert json.loads((out / "tokenizer_config.json").read_text())["do_lower_case"] is False
    words = load_file(out / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(words, model.encoder.embeddings.word.weight[:50])


def with_options(run: Path, **options: object) -> None:
    """Give the run's configuration these options, as far as the vocabulary is among them."""
    told = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(told | {"run": options}))


def test_the_runs_own_vocabulary_goes_along(tmp_path, capsys, vocab):
    """The one beside its checkpoints, else the one that its flag named."""
    run, beside = tmp_path / "run", tmp_path / "run" / "checkpoints" / "vocab.txt"
    trained("bert_pretraining", run)
    with_options(run, vocab_file=str(vocab))
    made = export(capsys, run, "--output", str(tmp_path / "named"))
    assert (made["vocab_size"], made["vocab_file"]) == (50, str(vocab))
    beside.write_text(vocab.read_text().replace("word3", "beside"))
    made = export(capsys, run, "--output", str(tmp_path / "out"))
    assert made["vocab_file"] == str(beside)
    assert (tmp_path / "out" / "vocab.txt").read_text() == beside.read_text()


@pytest.mark.parametrize("content", [None, "\n".join(TOKENS[:20]), ""])
def test_a_vocabulary_that_is_gone_or_anothers_stays_out(tmp_path, capsys, vocab, content):
    run = tmp_path / "run"
    trained("bert_pretraining", run)
    with_options(run, vocab_file=str(vocab))
    vocab.unlink() if content is None else vocab.write_text(content)
    made = export(capsys, run, "--output", str(tmp_path / "out"))
    assert (made["vocab_size"], made["vocab_file"]) == (56, None)
    assert not (tmp_path / "out" / "vocab.txt").exists()


@pytest.mark.parametrize(("end", "said"), [(12, False), (20, True), (None, False), ("x", False)])
def test_says_that_the_weights_are_older_than_the_runs_end(tmp_path, capsys, end, said):
    run = tmp_path / "run"
    trained("bert_pretraining", run)
    (run / "manifest.json").write_text(json.dumps({"step": end, "files": None}))
    made = export(capsys, run, "--output", str(tmp_path / "a"))
    assert made["run_step"] == (end if isinstance(end, int) else None)
    assert main(["export-weights", str(run), "--output", str(tmp_path / "b")]) == 0
    older = "older than the run's end: step 12 of 20"
    assert (older in capsys.readouterr().out) == said


@pytest.mark.parametrize("cased", [False, True])
def test_a_recipe_that_does_not_tell_the_case_has_its_vocabularys(tmp_path, capsys, vocab, cased):
    trained("bert_pretraining", tmp_path / "run")
    vocab.write_text(vocab.read_text().replace("word7", "Word7" if cased else "word7"))
    out = tmp_path / "out"
    export(capsys, tmp_path / "run", "--output", str(out), "--vocab_file", str(vocab))
    assert json.loads((out / "tokenizer_config.json").read_text())["do_lower_case"] is not cased


def test_an_older_checkpoint_by_its_name(tmp_path, capsys):
    trained("bert_squad", tmp_path / "run")
    older = tmp_path / "run" / "checkpoints" / "step_00000007"
    made = export(capsys, older, "--output", str(tmp_path / "a" / "new" / "out"))
    assert made["step"] == 7 and (tmp_path / "a" / "new" / "out" / "config.json").is_file()


@pytest.mark.parametrize("name", [".", "checkpoints", "checkpoints/step_00000012"])
def test_names_from_where_one_stands(tmp_path, capsys, monkeypatch, name):
    trained("bert_squad", tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    export(capsys, Path(name), "--output", str(tmp_path / "out"))
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["bertbench"] == {"run": "run", "step": 12}


def test_says_how_to_use_it(tmp_path, capsys):
    trained("bert_squad", tmp_path / "run")
    out = tmp_path / "out"
    assert main(["export-weights", str(tmp_path / "run"), "--output", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"BertForQuestionAnswering.from_pretrained('{out}')" in text
    assert "--vocab_file" in text


def _spoil_config(run: Path) -> None:
    (run / "config.json").write_text('{"recipe": {"model": {"vocab_size": 3}}}')


def _change_config(run: Path) -> None:
    """A sealed record, one digit of whose configuration is changed afterwards."""
    file = run / "config.json"
    entry = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    (run / "manifest.json").write_text(json.dumps({"files": {"config.json": entry}}))
    text = file.read_text()
    heads = '"num_attention_heads": 2'
    assert heads in text
    file.write_text(text.replace(heads, '"num_attention_heads": 4'))


def _spoil_weights(run: Path) -> None:
    file = run / "checkpoints" / "step_00000012" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "the model's shape is unknown"),
        (_spoil_config, "not a run's configuration"),
        (_change_config, "differs from its checksum"),
        (_spoil_weights, "sha256 differs"),
        (lambda run: (run / "checkpoints").rename(run / "elsewhere"), "no checkpoint in"),
        (lambda run: (run.parent / "out").write_text("mine"), "exists: name a new folder"),
        (lambda run: (run.parent / "vocab.txt").write_text("\n".join(TOKENS[:40])), "40 tokens"),
    ],
    ids=[
        "no config",
        "other config",
        "changed config",
        "damaged",
        "no checkpoint",
        "taken",
        "other vocabulary",
    ],
)
def test_refuses_and_leaves_nothing(tmp_path, capsys, vocab, spoil, message):
    run, out = tmp_path / "run", tmp_path / "out"
    trained("bert_squad", run)
    spoil(run)
    before = sorted(tmp_path.iterdir())
    flags = ["--output", str(out), "--vocab_file", str(vocab)]
    assert main(["export-weights", str(run), *flags]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_that_saved_no_checkpoint_names_the_flag(tmp_path, capsys):
    for run, known in ((tmp_path / "run", True), (tmp_path / "empty", False)):
        run.mkdir()
        if known:
            (run / "config.json").write_text("{}")
        assert main(["export-weights", str(run), "--output", str(tmp_path / "out")]) == 2
        assert ("lower --num_samples_per_checkpoint" in capsys.readouterr().err) == known


def test_a_place_where_nothing_can_be_is_refused(tmp_path, capsys):
    trained("bert_squad", tmp_path / "run")
    assert main(["export-weights", str(tmp_path / "run"), "--output", "/dev/null/x"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_write_that_fails_leaves_nothing(tmp_path, capsys, monkeypatch):
    trained("bert_squad", tmp_path / "run")

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("bertbench.common.exchange.export_weights.save_file", full)
    assert main(["export-weights", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 2
    assert "No space" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_pre_norm_model_has_no_nvidia_names(tmp_path, capsys):
    trained("bert_pretraining", tmp_path / "run", replace(CONFIG, norm_position="pre"))
    flags = ["--output", str(tmp_path / "out"), "--naming", "nvidia"]
    assert main(["export-weights", str(tmp_path / "run"), *flags]) == 2
    assert "pre-LN" in capsys.readouterr().err


@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_loads_it_and_computes_the_same(
    tmp_path, capsys, make_batch, kind, norm_position
):
    transformers = pytest.importorskip("transformers", reason="transformers ([compare]) is absent")
    model = trained(kind, tmp_path / "run", replace(CONFIG, norm_position=norm_position)).eval()
    out = str(tmp_path / "out")
    made = export(capsys, tmp_path / "run", "--output", out)
    peer, told = getattr(transformers, made["architecture"]).from_pretrained(
        out, output_loading_info=True, attn_implementation="eager"
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]

    batch = make_batch((11,), vocab_size=56)
    ids, kinds = batch.tokens.input_ids[None], batch.tokens.segment_ids[None]
    with torch.no_grad():
        theirs = peer.eval()(input_ids=ids, token_type_ids=kinds)
        if kind == "bert_squad":
            ours = model(SpanBatch(tokens=batch.tokens, rows=torch.zeros(11, dtype=torch.int64)))
            expected = torch.stack([theirs.start_logits[0], theirs.end_logits[0]], dim=1)
        else:
            ours = model.masked_token_logits(model.encoder(batch.tokens))
            expected = theirs.prediction_logits[0]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
