# SPDX-License-Identifier: Apache-2.0
"""Contract: device memory, running out of it, and random state."""

from __future__ import annotations

import gc
import itertools
import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bertbench.backends.base import Backend
from bertbench.benchmarks.bert_pretraining.task import PretrainingTask
from bertbench.common.cli.main import main
from tests.contract.helpers import kernels_for
from tests.contract.tiny_task import TINY, tiny_task, unchanged_switches

MIB = 2**20


def test_peak_memory_grows_by_a_known_allocation(backend: Backend) -> None:
    """Once the peak grows, each further block grows it by its size; ``definition`` says of what.

    A process's peak cannot be reset, so blocks are held until they exceed all that went before.
    """
    backend.reset_peak_memory()
    before = backend.peak_memory()
    if before is None:
        assert not backend.capabilities.memory_stats, "claims memory_stats, but gives no peak"
        pytest.skip(f"{backend.name} reports no peak memory")
    size, held = 32 * MIB, []
    gc.collect()
    reusable = 0 if backend.capabilities.memory_stats else before.peak_memory_bytes
    limit = 8 + min(reusable, psutil.virtual_memory().available // 2) // size

    def peak_with_one_more() -> int:
        held.append(torch.ones(size // 4, device=backend.device))
        backend.synchronize()
        peak = backend.peak_memory()
        assert peak is not None
        return peak.peak_memory_bytes

    now = peak_with_one_more()
    while now <= before.peak_memory_bytes + size // 2 and len(held) < limit:
        now = peak_with_one_more()
    peaks = [now, *(peak_with_one_more() for _ in range(5))]
    grown = [after - before for before, after in itertools.pairwise(peaks)]
    assert 0.8 * size <= sorted(grown)[2] <= 1.5 * size, (
        f"{size} more bytes on the device, five times, moved the peak by {grown}: count bytes of "
        "this device"
    )
    if backend.capabilities.memory_stats:
        held.clear()
        backend.reset_peak_memory()
        after = backend.peak_memory()
        assert after is not None and after.peak_memory_bytes < now, (
            "reset_peak_memory() must start a new window"
        )


def too_much(backend: Backend) -> Tensor:
    """Twice the device's memory."""
    total = backend.describe().memory_bytes or 2**44
    return torch.empty(2 * total, dtype=torch.uint8, device=backend.device)


def test_too_large_an_allocation_is_an_oom_error(backend: Backend) -> None:
    """Out of memory is one of ``oom_errors``, and the device goes on working."""
    assert backend.oom_errors, "name the exceptions that mean: out of device memory"
    if not backend.capabilities.memory_limit:
        pytest.skip(f"{backend.name} does not claim memory_limit: the host would kill the process")
    with pytest.raises(backend.oom_errors):
        too_much(backend)
    assert float(torch.ones(4, device=backend.device).sum()) == 4.0


def test_a_run_out_of_memory_ends_as_oom(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one sequence fits and eight do not, the record's status is ``oom``.

    Its reason names the setting to lower.
    """
    original = PretrainingTask.loss

    def loss(self: Any, model: Any, batch: Any, step: Any) -> Any:
        if batch.num_samples > 1 and backend.capabilities.memory_limit:
            too_much(backend)
        if batch.num_samples > 1:
            raise backend.oom_errors[0]("out of memory")
        return original(self, model, batch, step)

    monkeypatch.setattr(PretrainingTask, "loss", loss)
    threads = torch.get_num_threads()
    try:
        with unchanged_switches():
            code = main(["run", "mini", *TINY, "--backend", backend.name, "--system", "contract",
                         "--output_dir", str(tmp_path)])  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    (file,) = tmp_path.glob("*/*/*/manifest.json")
    manifest = json.loads(file.read_text())
    assert code == 1 and manifest["status"] == "oom", (
        f"status {manifest['status']!r} ({manifest['reason']}): put the device's exception into "
        "oom_errors"
    )
    assert "--micro_batch" in manifest["reason"]
    assert manifest["simulated"] is backend.describe().simulated


def test_random_state_makes_the_round_trip(backend: Backend) -> None:
    """Restoring ``rng_state()`` repeats host and device randomness, fused kernels' included."""
    precision = backend.capabilities.precisions[0]
    dropout = ("--hidden_dropout", "0.5", "--attention_dropout", "0.5")

    def draw(task: PretrainingTask, batch: Any) -> list[Any]:
        with backend.precision(precision):
            _, sums = task.loss(task.model, batch.micro_batches[0].to(backend.device), batch)
        mask = F.dropout(torch.ones(64, device=backend.device), 0.5)
        return [torch.rand(4).tolist(), mask.tolist(), sums.tolist()]

    for kernels in kernels_for(backend, precision):
        task, _ = tiny_task(backend, "--precision", precision, "--kernels", kernels, *dropout)
        batch = next(task.train_batches(None))
        draw(task, batch)  # whatever draws once, at first use
        state = backend.rng_state()
        for name, part in state.items():
            assert part.dtype == torch.uint8 and part.device.type == "cpu", (
                f"rng_state()[{name!r}] must be a byte tensor on the host: it goes into checkpoints"
            )
        kept = {name: part.clone() for name, part in state.items()}
        first, second = draw(task, batch), draw(task, batch)
        assert all(a != b for a, b in zip(first, second, strict=True)), "nothing random was drawn"
        backend.set_rng_state(kept)
        again = draw(task, batch)
        for what, a, b in zip(("host", "dropout", "model"), first, again, strict=True):
            assert a == b, (
                f"{kernels}: after set_rng_state(rng_state()) the {what}'s randomness differs: "
                "save and restore the device's generator, too"
            )


def test_seed_decides_the_devices_randomness(backend: Backend) -> None:
    """The same seed gives the same dropout mask on the device, another seed another."""
    masks = []
    for seed in (1, 2, 1):
        backend.seed(seed)
        masks.append(F.dropout(torch.ones(64, device=backend.device), 0.5).tolist())
    assert masks[0] == masks[2] != masks[1], "seed() must seed the device's generator"
