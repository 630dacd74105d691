# SPDX-License-Identifier: Apache-2.0
"""Whole SQuAD runs with 2:4 weights and INT8 rounding, from the command line to the export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bertbench.common.cli.main import main
from bertbench.common.compress.pruning import most_nonzeros
from tests.smoke.conftest import manifest
from tests.smoke.test_squad import EXACT, Runs, files, losses, values  # noqa: F401

BOTH = ("--weight_sparsity", "2:4", "--quantization", "int8", *EXACT)

SAVED = ("--num_samples_per_checkpoint", "72")


@pytest.fixture
def runs(files: Path, tmp_path: Path) -> Runs:  # noqa: F811
    return Runs(files, tmp_path / "results")


def state(record: Path) -> dict[str, torch.Tensor]:
    return load_file(max((record / "checkpoints").iterdir()) / "model.safetensors")


def test_compression_survives_ranks_a_resume_and_the_export(runs, tmp_path, capsys):
    whole = runs.run(*BOTH, *SAVED)
    found = manifest(whole)["extras"]["compression"]
    assert found["pruned_weights"] == found["quantized_weights"] == 8
    assert found["quantized_activations"] == 28 and found["pruned_weights_kept"] == 0.5
    assert manifest(whole)["extras"]["kernels"]["attention"] == "int8-rounded-per-sequence"
    assert found["calibration_samples"] == 128 and values(whole)["f1"] > 0
    saved = state(whole)
    pruned = [name for name in saved if name.endswith("_mask")]
    assert len(pruned) == 8
    for name in pruned:
        weight = saved[name.replace("_mask", ".weight")]
        assert most_nonzeros(weight) == 2 and torch.equal(weight != 0, saved[name])
    assert "2:4 sparsity: 8 weight matrices keep 50.0 %" in (whole / "console.log").read_text()

    two = runs.run(*BOTH, ranks=2)
    other = state(two)
    for name, tensor in saved.items():
        if name.endswith("_mask"):  # chosen from the same weights
            assert torch.equal(tensor, other[name])
        elif name.endswith("amax"):  # from the same samples, in other parts
            assert torch.allclose(tensor, other[name], rtol=1e-5)
    # Other dropout and roundings, whose effects grow.
    assert losses(two)[:8] == pytest.approx(losses(whole)[:8], rel=0.02)

    # Its own ranges and weights answer again: calibrated anew, other numbers would.
    last = max((whole / "checkpoints").iterdir()) / "model.safetensors"
    start = ("--starts_from", "checkpoint", "--init_checkpoint", str(last), "--no_do_train")
    answers = runs.run(*BOTH, *start)
    assert values(answers)["f1"] == values(whole)["f1"]
    text = (answers / "console.log").read_text()
    assert "INT8: 36 ranges are those of the starting weights" in text
    assert "are not part of this model" not in text

    earlier = min((whole / "checkpoints").iterdir())
    resumed = runs.run(*BOTH, *SAVED, "--resume", str(earlier))
    assert 0 < len(losses(resumed)) < len(losses(whole))
    again = state(resumed)
    assert all(torch.equal(tensor, again[name]) for name, tensor in saved.items())

    assert main(["export-weights", str(whole), "--output", str(tmp_path / "weights")]) == 0
    exported = load_file(tmp_path / "weights" / "model.safetensors")
    assert not [name for name in exported if "mask" in name or "quantizer" in name]
    assert most_nonzeros(exported["bert.encoder.layer.0.attention.self.query.weight"]) == 2
    capsys.readouterr()
    pytest.importorskip("onnxscript", reason="the extra [onnx] is absent")
    output = tmp_path / "export"
    words = ["export-onnx", str(whole), "--output", str(output), "--json"]
    assert main(words) == 2 and "--vocab_file" in capsys.readouterr().err
    assert main([*words, "--vocab_file", str(runs.data / "vocab.txt")]) == 0
    described = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert described["metrics"]["f1"] == values(whole)["f1"]
    assert (described["quantization"], described["weight_sparsity"]) == ("int8", "2:4")
    assert sorted(p.name for p in output.iterdir()) == ["export.json", "model.onnx", "vocab.txt"]
    assert [main(["sparsity", "check", str(place)]) for place in (whole, output)] == [0, 0]
    shown = capsys.readouterr().out  # the export has q, k and v apart
    assert [f"\n{n} of {n} weights are 2:4 sparse" in shown for n in (8, 12)] == [True, True]


def test_a_compressed_model_learns_from_the_model_that_it_was(runs, tmp_path, capsys):
    dense = runs.run(*EXACT)
    assert main(["export-weights", str(dense), "--output", str(tmp_path / "weights")]) == 0
    start = ("--starts_from", "checkpoint", "--init_checkpoint")
    start = (*start, str(tmp_path / "weights" / "model.safetensors"))
    still = ("--learning_rate", "0", "--hidden_dropout", "0", "--attention_dropout", "0")
    # Without pruning, rounding and dropout it starts as its teacher.
    same = runs.run(*start, *still, *EXACT, "--distillation", "1")
    assert max(losses(same)) < 1e-9
    how = (*start, *BOTH, *SAVED, "--distillation", "1", "--calibration_percentile", "100")
    pruned = runs.run(*how)
    assert manifest(pruned)["extras"]["compression"]["calibration_percentile"] == 100
    assert 0 < losses(pruned)[-1] < losses(pruned)[0]
    earlier = min((pruned / "checkpoints").iterdir())
    again = runs.run(*how, "--resume", str(earlier))
    assert losses(again) == losses(pruned)[-len(losses(again)) :]
    capsys.readouterr()
    assert main(runs.flags(*EXACT, "--distillation", "0.5")) == 2
    assert "give --init_checkpoint" in capsys.readouterr().err


def test_compression_without_training_is_refused(runs, capsys):
    runs.run(*BOTH, "--no-do_train", code=1)
    assert "need --do_train" in capsys.readouterr().out
