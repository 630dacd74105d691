# SPDX-License-Identifier: Apache-2.0
"""A dry run refuses what its run would refuse, as far as that needs no training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bertbench.common.cli.main import main

SIZES = """--hidden_size 16 --num_hidden_layers 2 --num_attention_heads 2 --intermediate_size 32
    --vocab_size 64 --max_seq_length 32 --max_position_embeddings 32 --global_batch 4
    --max_steps 1 --kernels plain --precision fp32 --backend cpu_ref --num_threads 1
    --skip_checkpoint --system box""".split()
PRETRAINING = ["mini", *SIZES, "--max_predictions_per_seq", "3"]
SQUAD = ["squad_mini", *SIZES, "--synthetic"]
RANDOM = [*SQUAD, "--starts_from", "random"]
SYNTHETIC = [*PRETRAINING, "--synthetic"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "junk").write_bytes(b"junk")
    (tmp_path / "empty").mkdir()
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pt")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        [*PRETRAINING, "--data", "@/gone"],
        [*PRETRAINING, "--data", "@/empty"],
        [*PRETRAINING, "--data", "@/junk"],
        [*PRETRAINING, "--input_dir", "@/gone", "--target_mlm_accuracy", "None"],
        [*PRETRAINING, "--text", "@/gone.txt"],
        [*SYNTHETIC, "--init_checkpoint", "@/gone.pt"],
        [*SYNTHETIC, "--init_checkpoint", "@/junk"],
        [*SYNTHETIC, "--init_checkpoint", "@/other.pt"],
        [*SYNTHETIC, "--init_checkpoint", "@/empty"],
        [*SYNTHETIC, "--bert_config_path", "@/gone.json"],
        [*SYNTHETIC, "--bert_config_path", "@/junk"],
        [*SYNTHETIC, "--peaks", "@/gone.toml"],
        [*SYNTHETIC, "--peaks", "@/junk"],
        [*SYNTHETIC, "--resume", "@/gone"],
        [*SYNTHETIC, "--resume", "@/empty/step_00000001"],
        [*SYNTHETIC, "--resume", "last"],
        [*SYNTHETIC, "--output_dir", "@/junk"],
        [*SYNTHETIC, "--output_dir", "@/junk/below"],
        [*SYNTHETIC, "--output_dir", "/proc/results"],
        [*SYNTHETIC, "--output_dir", "/dev/null"],
        [*SYNTHETIC, "--vocab_size", "3"],
        [*SYNTHETIC, "--system", "A B"],
        [*SYNTHETIC, "--num_attention_heads", "3"],
        [*SQUAD, "--starts_from", "given", "--init_checkpoint", "@/gone.pt"],
        [*RANDOM, "--init_checkpoint", "@/junk"],
        [*RANDOM, "--init_checkpoint", "@/other.pt"],
        [*RANDOM, "--config_file", "@/gone.json"],
        ["squad_mini", *SIZES, "--train_file", "@/gone", "--predict_file", "@/gone"],
        [*RANDOM, "--output_dir", "@/junk"],
    ],
)
def test_what_the_run_refuses_the_dry_run_refuses(
    place: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("@", str(place)) for word in words]
    out = [] if "--output_dir" in words else ["--output_dir", str(place / "out")]
    before = sorted(place.rglob("*"))
    messages = []
    for dry in (["--dry_run"], []):
        assert main(["run", *words, *out, *dry]) == 2
        captured = capsys.readouterr()
        assert "would_run" not in captured.out and "Traceback" not in captured.err
        messages.append(captured.err.split(":")[:2])
    assert messages[0] == messages[1] or "--output_dir" in words
    assert sorted(p for p in place.rglob("*") if place / "out" not in (p, *p.parents)) == before


@pytest.mark.parametrize("hidden", ["18", "1040"])
def test_sizes_that_the_kernels_refuse(
    place: Path, hidden: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bertbench.backends.cpu_ref.kernels")
    flags = ["--kernels", "native", "--hidden_size", hidden, "--output_dir", str(place / "out")]
    assert main(["run", *SYNTHETIC, *flags, "--dry_run"]) == 2
    assert "native" in capsys.readouterr().err


@pytest.mark.parametrize("words", [SYNTHETIC, RANDOM])
def test_a_dry_run_of_what_runs_writes_nothing(
    place: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    assert main(["run", *words, "--output_dir", str(place / "out"), "--dry_run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["would_run"] == words[0]
    assert not (place / "out").exists()
