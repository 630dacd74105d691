# SPDX-License-Identifier: Apache-2.0
"""The words of scripts/run_pretraining.sh with a mask search: shards to the weights of phase 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bertbench.common.masks.mask import AttentionMask


def test_both_phases_search_and_phase_2_goes_on_from_phase_1(
    prepared: Path, tmp_path: Path
) -> None:
    (shards,) = prepared.glob("*shards*")
    words = "8 1e-3 fp32 1 0.2 4 2 false true true 2 7 tiny true true 4 1e-3 0.2 2 2".split()
    sizes = """
        --hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --intermediate_size 32
        --vocab_size 128 --max_seq_length 32 --max_position_embeddings 32
        --max_predictions_per_seq 5 --eval_iter_samples 0
    """.split()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bertbench.benchmarks.bert_pretraining.launch", "--positional"),
            *(*words, str(shards), str(shards), str(tmp_path), "None", "--lamb", "1e-3"),
            *(*sizes, "--backend", "cpu_ref", "--num_threads", "1"),
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for manifest in tmp_path.glob("results/*/sparse_bert/*/manifest.json"):
        content = json.loads(manifest.read_text())
        preset = json.loads(manifest.with_name("config.json").read_text())["preset"]
        found[preset] = manifest.parent, content
    assert set(found) == {"sparse_bert_phase1", "sparse_bert_phase2"}
    (_, first), (record, second) = found["sparse_bert_phase1"], found["sparse_bert_phase2"]
    assert (first["status"], second["status"]) == ("ok", "ok")
    assert second["extras"]["init_checkpoint"]["missing"] == []
    assert AttentionMask.load(record / "mask.json").longest == 32
    assert len(list(tmp_path.glob("results/tiny.pyt_bert_pretraining_phase*_fp32_gbs*.log"))) == 2
