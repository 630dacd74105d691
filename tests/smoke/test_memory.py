# SPDX-License-Identifier: Apache-2.0
"""Device memory that runs out: before the data by a rehearsal, in mid-run with advice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bertbench.backends.simulated import build
from bertbench.benchmarks.bert_pretraining.task import PretrainingTask
from bertbench.common.cli import main as cli
from bertbench.common.errors import Unsupported
from tests.smoke.conftest import lines, manifest

MEMORY = 4_000_000


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on a device with little memory."""
    try:
        build.library()
    except Unsupported as error:
        pytest.skip(str(error))
    monkeypatch.setenv("BERTBENCH_SIMULATE", "gcu")
    monkeypatch.setenv("BERTBENCH_SIMULATED_MEMORY_BYTES", str(MEMORY))


FLAGS = "--backend gcu --global_batch 48 --max_steps 3 --eval_iter_samples 0".split()
"""No evaluation, so that training alone decides."""


def test_auto_takes_what_fits_and_says_so(runs, simulated) -> None:
    record = runs.run(*FLAGS, "--micro_batch", "auto")
    found = manifest(record)
    extras, choice = found["extras"], found["extras"]["micro_batch_choice"]
    assert extras["simulated"] and extras["backend"] == "gcu"
    assert choice["chosen"] == extras["micro_batch"]
    assert extras["micro_batch"] * extras["gradient_accumulation_steps"] == 48
    assert choice["tried"][str(choice["chosen"])] == "fits"
    refused = [int(size) for size, why in choice["tried"].items() if why != "fits"]
    assert refused and min(refused) > choice["chosen"] > 1
    peak = next(m["value"] for m in found["metrics"] if m["name"] == "peak_memory_bytes")
    assert 0 < peak <= MEMORY
    assert not {m["name"] for m in found["metrics"]} & {"mfu", "mfu_calibrated"}
    assert any("not results" in note for note in found["notes"])


def test_too_large_a_micro_batch_ends_before_the_data(runs, simulated) -> None:
    record = runs.run(*FLAGS, "--micro_batch", "48", code=1)
    found = manifest(record)
    assert found["status"] == "oom" and not lines(record, "run_start")
    assert "rehearsal of training" in found["reason"]
    assert "--micro_batch: it is 48, the next smaller is 24" in found["reason"]


@pytest.mark.parametrize(
    ("method", "where", "advice"),
    [
        ("loss", "in training", "--micro_batch: it is 2, the next smaller is 1"),
        ("eval_sums", "in an evaluation", "--eval_batch_size: it is 40, try 20"),
    ],
)
def test_in_mid_run_it_says_what_to_lower(
    runs, monkeypatch: pytest.MonkeyPatch, method: str, where: str, advice: str
) -> None:
    real, calls = getattr(PretrainingTask, method), []

    def full(self, *args):
        calls.append(method)
        if len(calls) == (9 if method == "loss" else 1):
            raise torch.OutOfMemoryError("no memory for\nso much")
        return real(self, *args)

    monkeypatch.setattr(PretrainingTask, method, full)
    command = runs.command()
    assert cli.main(command[command.index("run") :]) == 1
    (record,) = runs.records()
    found = manifest(Path(record))
    assert found["status"] == "oom"
    assert found["reason"].startswith(f"out of device memory {where}: no memory for. ")
    assert advice in found["reason"]
