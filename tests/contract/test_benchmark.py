# SPDX-License-Identifier: Apache-2.0
"""What a benchmark must do: `pytest tests/contract --benchmark NAME`; by default those built in.

Each test runs the benchmark's ``example`` on cpu_ref, in this process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bertbench import benchmarks
from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.benchmarks.base import Benchmark
from bertbench.common.cli.main import main
from bertbench.common.distributed.world import World
from bertbench.common.results.validate import validate
from bertbench.common.training.task import Plan, Source, Task

PLAIN = ("--backend", "cpu_ref", "--precision", "fp32", "--num_threads", "1")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--benchmark")
        metafunc.parametrize("name", [chosen] if chosen else list(benchmarks.BUILT_IN))


@pytest.fixture
def benchmark(name: str) -> Benchmark:
    return benchmarks.load(name)


@dataclass
class Ran:
    """A run of the example: its exit code, its record, the losses of its steps."""

    code: int
    record: Path

    def content(self, name: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.record / name).read_text())
        return loaded

    def losses(self) -> dict[int, float]:
        lines = map(json.loads, (self.record / "steps.jsonl").read_text().splitlines())
        return {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}


def run(benchmark: Benchmark, out: Path, *flags: str) -> Ran:
    code = main(["run", *benchmark.example, *PLAIN, "--output_dir", str(out), *flags])
    (record,) = out.glob(f"*/{benchmark.name}/*")
    return Ran(code, record)


def built(benchmark: Benchmark, *flags: str) -> tuple[Task, Plan, Source]:
    """The task of the example on one rank."""
    recipe, *own = benchmark.example
    settings = benchmarks.resolve(recipe, [*own, *PLAIN, *flags])
    benchmark.check(settings)
    source = benchmark.prepare(settings)
    task = benchmark.build(settings, CpuRef(), World(), source)
    return task, task.plan(settings), source


def test_recipes_belong_to_it_and_are_listed(benchmark: Benchmark) -> None:
    for key, preset in benchmark.presets.items():
        assert (preset.name, preset.benchmark) == (key, benchmark.name)
        assert preset.summary and preset.data and preset.duration
        assert benchmarks.presets()[key] is preset
        assert benchmarks.resolve(key, []).recipe == preset.recipe
    assert benchmark.example[0] in benchmark.presets


def test_listing_imports_no_torch(name: str) -> None:
    code = (
        "import sys; from bertbench import benchmarks; benchmarks.presets(); "
        f"benchmarks.load({name!r}); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "torch was imported"


def test_unknown_flags_are_refused(benchmark: Benchmark, capsys: Any) -> None:
    assert main(["run", benchmark.example[0], "--no_such_flag", "1"]) == 2
    assert "no_such_flag" in capsys.readouterr().err


def test_dry_run_writes_nothing(benchmark: Benchmark, tmp_path: Path, capsys: Any) -> None:
    words: Sequence[str] = [*benchmark.example, *PLAIN, "--output_dir", str(tmp_path)]
    assert main(["run", *words, "--dry_run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["would_run"] == benchmark.example[0]
    assert not list(tmp_path.iterdir())


def test_a_run_is_recorded_validated_compared_and_reported(
    benchmark: Benchmark, tmp_path: Path, capsys: Any
) -> None:
    done = run(benchmark, tmp_path / "out")
    assert done.code == 0
    assert not [p for p in validate(done.record) if p.severity == "error"]
    manifest = done.content("manifest.json")
    assert (manifest["benchmark"], manifest["status"]) == (benchmark.name, "ok")
    assert manifest["samples"] > 0 and done.losses()
    capsys.readouterr()
    # One run a side: 0, or 2 where it measured nothing that compare judges.
    assert main(["compare", str(done.record), str(done.record), "--json"]) in (0, 2)
    compared = json.loads(capsys.readouterr().out)
    assert compared["comparable"] and compared["rows"]
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "report")]) == 0
    assert benchmark.example[0] in (tmp_path / "report" / "report.md").read_text().replace("\\", "")


def test_two_runs_are_equal(benchmark: Benchmark, tmp_path: Path) -> None:
    first, second = (run(benchmark, tmp_path / n, "--log_freq", "1").losses() for n in "ab")
    assert first == second


def test_a_resumed_run_goes_on_as_the_whole_one(benchmark: Benchmark, tmp_path: Path) -> None:
    """Position, optimizer and random state are all in the checkpoint of the middle."""
    task, plan, _ = built(benchmark)
    batch, steps = task.recipe.global_batch, plan.max_steps
    assert steps >= 2, "the example needs two steps"
    middle = steps // 2
    every = ("--log_freq", "1", "--num_samples_per_checkpoint", str(middle * batch))
    whole = run(benchmark, tmp_path / "whole", *every)
    checkpoint = whole.record / "checkpoints" / f"step_{middle:08d}"
    again = run(benchmark, tmp_path / "again", *every, "--resume", str(checkpoint))
    expected = {step: loss for step, loss in whole.losses().items() if step > middle}
    assert again.losses() == pytest.approx(expected, rel=1e-6)


def test_the_split_into_micro_batches_changes_no_gradient(benchmark: Benchmark) -> None:
    """The loss is a share of the global mean, whatever the micro-batch; without dropout."""
    gradients, samples = [], []
    for size in _two_micro_batches(benchmark):
        task, _, _ = built(benchmark, "--micro_batch", str(size))
        task.model.eval()  # no dropout; gradients are still computed
        steps = task.train_batches(None)
        step = next(steps)
        for batch in step.micro_batches:
            loss, sums = task.loss(task.model, batch, step)
            assert loss.shape == () and sums.shape == (len(task.sum_names),)
            assert not sums.requires_grad
            loss.backward()
        assert sum(b.num_samples for b in step.micro_batches) == task.share == step.num_samples
        samples.append(step.num_samples)
        found = [p.grad for p in task.model.parameters() if p.grad is not None]
        gradients.append(torch.cat([g.flatten() for g in found]))
    assert samples[0] == samples[1]
    scale = gradients[0].abs().max()
    assert float((gradients[0] - gradients[1]).abs().max() / scale) < 1e-4


def _two_micro_batches(benchmark: Benchmark) -> tuple[int, int]:
    task, _, _ = built(benchmark)
    share = task.share
    smaller = next((n for n in range(share // 2, 0, -1) if share % n == 0), 1)
    return share, smaller


def test_ranks_share_a_step(benchmark: Benchmark) -> None:
    """Two ranks train as many samples together as one alone, and not the same."""
    recipe, *own = benchmark.example
    settings = benchmarks.resolve(recipe, [*own, *PLAIN])
    source = benchmark.prepare(settings)
    steps = []
    for rank in range(2):
        world = World(rank=rank, size=2, local_rank=rank, local_size=2)
        task = benchmark.build(settings, CpuRef(), world, source)
        steps.append(next(task.train_batches(None)))
    assert steps[0].num_samples == steps[1].num_samples == task.recipe.global_batch
    own_samples = [sum(b.num_samples for b in step.micro_batches) for step in steps]
    assert sum(own_samples) == steps[0].num_samples
    tokens = [step.micro_batches[0].num_tokens for step in steps]
    assert min(tokens) > 0


def test_the_made_up_step_is_the_largest(benchmark: Benchmark) -> None:
    """A rehearsal tries it in the place of all real ones; it touches no random state."""
    task, plan, _ = built(benchmark)
    state = torch.get_rng_state()
    step = task.made_up_step(2, 3)
    assert torch.equal(state, torch.get_rng_state())
    assert len(step.micro_batches) == 3 and step.num_samples == 6
    (batch, *_) = step.micro_batches
    assert batch.num_samples == 2 and batch.num_tokens == 2 * plan.padded_length
    loss, _ = task.loss(task.model, batch, step)
    assert torch.isfinite(loss)
    assert task.model_flops(batch) > 0
    assert task.made_up_step(2, 1, typical=True).micro_batches[0].num_tokens <= batch.num_tokens


def test_facts_are_json(benchmark: Benchmark) -> None:
    task, _, source = built(benchmark)
    facts = task.facts()
    json.dumps([dict(facts.own), dict(facts.kernels), task.results()])
    assert facts.data and facts.parameters == sum(p.numel() for p in task.model.parameters())
    assert source.hash() is None or len(source.hash() or "") >= 16
