# SPDX-License-Identifier: Apache-2.0
"""The launcher scripts, from another folder than their own, up to what they would run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "train_bert_pretraining_amp_dist.sh"
VARIABLES = ("DATA", "NPROC", "NNODES", "INIT_LOSS_SCALE")

pytestmark = pytest.mark.skipif(
    not (ROOT / ".venv" / ".bertbench").is_file(), reason="no .venv made by init.sh"
)


def launch(script: Path, cwd: Path, *flags: str, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    done = subprocess.run(
        ["bash", str(script), *flags],
        env=environment | variables, cwd=cwd, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_data_it_would_run_mini(tmp_path: Path) -> None:
    said = launch(ROOT / NAME, tmp_path, "--dry-run")
    assert "DATA is not set: training mini" in said
    assert "would_run     mini" in said


def test_with_data_it_would_run_deepsparks_recipe(tmp_path: Path) -> None:
    files = ("2048_shards_uncompressed/part.hdf5", "eval_set_uncompressed/part.hdf5")
    files += ("model.ckpt-28252.pt",)
    for name in files:  # a dry run looks for them and reads none
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    script = ROOT / "benchmarks" / "bert_pretraining" / NAME
    flags = ("--backend", "cpu_ref", "--train_batch_size", "52", "--fused_mha", "--dry-run")
    said = launch(script, tmp_path, *flags, DATA=str(tmp_path), NPROC="8")
    assert "would_run     deepspark_416" in said
    assert "world_size    8" in said
    assert "52 per device x 8 processes = global batch 416" in said
    there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert there == set(files), "a dry run wrote something"
