# SPDX-License-Identifier: Apache-2.0
"""Runs of the real command line on a tiny model and a text that the test makes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from bertbench.common.prepare.from_text import PrepareOptions, prepare
from bertbench.common.prepare.masking import MaskingOptions

ROOT = Path(__file__).parents[2]
TINY = """
    --hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2 --intermediate_size 64
    --vocab_size 256 --max_seq_length 64 --max_position_embeddings 64
    --max_predictions_per_seq 10 --global_batch 8 --micro_batch 2 --warmup_steps 2
    --max_steps 12 --log_freq 1 --eval_iter_start_samples 32 --eval_iter_samples 32
    --num_eval_examples 40 --target_mlm_accuracy None --backend cpu_ref --num_threads 1
""".split()


def make_text(path: Path) -> Path:
    """Sentences with enough regularity to be learnt: one a line, documents apart."""
    rng = random.Random(0)
    nouns = ["cat", "dog", "bird", "fish", "tree", "house", "river", "stone", "cloud", "road"]
    verbs = ["sees", "likes", "finds", "follows", "leaves"]
    lines = []
    for _ in range(120):
        for _ in range(rng.randint(4, 9)):
            lines.append(f"the {rng.choice(nouns)} {rng.choice(verbs)} the {rng.choice(nouns)} .")
        lines.append("")
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared data set in two shards, with held-out samples."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(
        PrepareOptions(
            text=(make_text(folder / "text.txt"),),
            output=folder / "data",
            train_vocab=120,
            masking=MaskingOptions(max_seq_length=64, max_predictions_per_seq=10, dupe_factor=2),
            num_shards=2,
            eval_fraction=0.3,
            processes=1,
        )
    )
    return folder / "data"


class Runs:
    """Starts the command line; results go to a folder of the test's own."""

    def __init__(self, data: Path, out: Path) -> None:
        self.data, self.out = data, out

    def command(self, *flags: str, ranks: int = 1) -> list[str]:
        launcher = [sys.executable, "-m"]
        if ranks > 1:
            launcher += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
        return [
            *launcher, "bertbench", "run", "mini", *TINY, "--data", str(self.data),
            "--output_dir", str(self.out), *flags,
        ]  # fmt: skip

    def start(self, *flags: str, ranks: int = 1) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*flags, ranks=ranks), cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, *flags: str, ranks: int = 1, code: int = 0) -> Path:
        """Run to the end and return the record's folder."""
        before = set(self.records())
        process = self.start(*flags, ranks=ranks)
        text, _ = process.communicate(timeout=240)
        assert process.returncode == code, text
        (new,) = set(self.records()) - before
        return new

    def records(self) -> list[Path]:
        return sorted(p.parent for p in self.out.glob("*/*/*/manifest.json"))


@pytest.fixture
def runs(prepared: Path, tmp_path: Path) -> Runs:
    return Runs(prepared, tmp_path / "results")


def lines(record: Path, kind: str) -> list[dict]:
    """The lines of steps.jsonl of one kind."""
    text = (record / "steps.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, text) if entry["kind"] == kind]


def manifest(record: Path) -> dict:
    return json.loads((record / "manifest.json").read_text())
