# SPDX-License-Identifier: Apache-2.0
"""The estimate of a dry run: its model of memory by hand, and the sources of its times."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from bertbench import backends
from bertbench.benchmarks import load, resolve
from bertbench.common.choices import estimate as module
from bertbench.common.choices.dry_run import command
from bertbench.common.choices.estimate import Estimate, Time, estimate
from bertbench.common.choices.memory import Counted, count, needed
from bertbench.common.cli.main import main
from bertbench.common.config.recipe import recipe_hash
from bertbench.common.distributed.world import World
from bertbench.common.results.machines import Machine
from tests.unit.results.constructed import device, make_run

TINY = """--synthetic --hidden_size 8 --num_hidden_layers 2 --num_attention_heads 2
    --intermediate_size 16 --vocab_size 32 --max_seq_length 8 --max_position_embeddings 8
    --max_predictions_per_seq 2 --global_batch 8 --micro_batch 4 --max_steps 10 --kernels plain
    --precision fp32 --backend cpu_ref --num_threads 1 --hidden_dropout 0
    --attention_dropout 0""".split()
RATE = "sequences_per_second"


def settings_of(*flags: str) -> Any:
    return resolve("mini", [*TINY, *flags])


def task_of(settings: Any) -> Any:
    bench = load("bert_pretraining")
    return bench.build(settings, backends.load("cpu_ref")(0), World(), bench.prepare(settings))


def test_the_parts_by_hand() -> None:
    counted = Counted(
        layer_parameters=10, layer_matrices=8, rest_parameters=100, rest_matrices=90,
        largest_parameter=40, layer_bytes=1000, rest_bytes=300,
    )  # fmt: skip
    need = partial(needed, counted, layers=3, eval_batch=5)
    found = need(micro_batch=2, world_size=1, precision="fp32", optimizer_sharding="none")
    parts = {
        "weights": 4 * 130, "gradients": 4 * 130, "optimizer": 8 * 130, "copies": 0,
        "activations": 2 * (300 + 3 * 1000), "working": 2 * 1000 + 4 * 90,
    }  # fmt: skip
    assert found == {**parts, "reserve": round(sum(parts.values()) / 4)}
    more = need(micro_batch=1, world_size=2, precision="bf16", optimizer_sharding="none")
    assert more["optimizer"] == parts["optimizer"]
    assert more["gradients"] == 2 * parts["gradients"]
    assert more["copies"] == 2 * (90 + 3 * 8)
    assert more["activations"] == 5 * 1000  # those of the evaluation
    for ranks, elements in ((1, 130), (2, 65), (3, 44), (4, 40), (64, 40)):  # 40 is one matrix
        shared = need(micro_batch=1, world_size=ranks, precision="bf16", optimizer_sharding="zero1")
        assert shared["optimizer"] == 8 * elements


def test_parameters_and_saved_tensors_of_a_tiny_model() -> None:
    """One plain layer in float32, counted by hand: h = 8, i = 16, 8 tokens, 2 heads."""
    task = task_of(settings_of())
    found = count(task, backends.load("cpu_ref")(0))
    layer = (3 * 64 + 24) + (64 + 8) + (8 * 16 + 16) + (16 * 8 + 8) + 4 * 8
    assert found.layer_parameters == layer
    assert found.layer_matrices == 3 * 64 + 64 + 2 * 8 * 16
    assert found.parameters(2) == sum(p.numel() for p in task.model.parameters())
    # Of each token, in floats: the input, qkv, the context, both norms' inputs with two numbers
    # each, the first norm's output, GELU's input and output; in attention further q, k and the
    # probabilities, [2 heads, 8 tokens], unless torch has a kernel that leaves them out.
    outside = 8 + 24 + 8 + (8 + 2) + (8 + 2) + 8 + 16 + 16
    floats = found.layer_bytes / 4 / 8
    assert outside <= floats <= outside + 8 + 8 + 2 * 8
    assert found.rest_bytes > 0
    typical = count(task, backends.load("cpu_ref")(0), typical=True)
    assert typical.layer_bytes <= found.layer_bytes
    assert typical.layer_parameters == found.layer_parameters


def test_one_layer_is_enough() -> None:
    whole, one = (task_of(settings_of(*f)) for f in ((), ("--num_hidden_layers", "1")))
    backend = backends.load("cpu_ref")(0)
    assert count(whole, backend) == count(one, backend)


def made(place: Path, rate: float, **changed: Any) -> None:
    settings = settings_of()
    config = json.loads(json.dumps(settings.as_dict()))
    recipe = {**config["recipe"], **changed.pop("recipe", {})}
    name = backends.load("cpu_ref")(0).describe().name
    make_run(
        place, {RATE: rate, "run_time_s": 1000 / rate}, system="box", preset="mini",
        devices=[device(0, backend="cpu_ref", name=name)], precision="fp32",
        inputs={"data": None}, recipe_kind="PretrainingRecipe", config={**config, "recipe": recipe},
        **changed,
    )  # fmt: skip


def test_a_time_from_records(tmp_path: Path) -> None:
    settings = settings_of("--output_dir", str(tmp_path), "--system", "box", "--skip_checkpoint")
    for rate in (40.0, 50.0, 100.0):
        made(tmp_path, rate)
    made(tmp_path, 1.0, recipe={"global_batch": 16})  # other work
    made(tmp_path, 2.0, status="failed")
    found = estimate(settings, backends.load("cpu_ref")(0), World(), None)
    assert found.time.sequences_per_second == (50.0, 50.0)
    assert found.time.seconds == (20.0, 20.0) and not found.time.at_most
    assert "3 records" in found.time.source
    assert found.memory is None and found.host_bytes is None and found.warnings() == []
    assert found.record_bytes is not None and found.record_bytes > 0
    assert (found.checkpoints, found.disk_bytes) == (0, found.record_bytes)
    limited = settings_of(
        "--output_dir", str(tmp_path), "--system", "box", "--max_steps", "20",
        "--max_minutes", "0.05",
    )  # fmt: skip
    found = estimate(limited, backends.load("cpu_ref")(0), World(), None)
    assert found.time.seconds == (3.0, 3.0)  # of 20 steps x 8 / 50 = 3.2 s
    assert found.time.at_most and found.disk_bytes is None


def test_a_time_from_the_reference_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("--output_dir", str(tmp_path))
    backend = backends.load("cpu_ref")(0)
    cores = psutil.cpu_count(logical=False) or 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    machine = Machine("mini", "h", recipe_hash(settings.recipe), "fp32", backend.describe().name,
                      1, cores, 5, 1000.0, 77.0, 40.0)  # fmt: skip
    monkeypatch.setattr("bertbench.common.results.machines.machines", lambda: [machine])
    time = estimate(settings, backend, World(), None).time
    assert (time.sequences_per_second, time.seconds) == ((40.0, 40.0), (2.0, 2.0))
    assert "5 runs on the reference machine" in time.source
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores + 1)
    assert estimate(settings, backend, World(), None).time.seconds is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    other = machine._replace(device="another")
    monkeypatch.setattr("bertbench.common.results.machines.machines", lambda: [other])
    time = estimate(settings, backend, World(), None).time
    assert (time.sequences_per_second, time.seconds) == (None, None)
    assert "bertbench quick" in time.source


class Peak(NamedTuple):
    flops_per_second: float


def test_a_time_from_the_published_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("--output_dir", str(tmp_path))
    monkeypatch.setattr("bertbench.common.results.machines.machines", list)
    monkeypatch.setattr(module.peaks, "peaks_of", lambda *_: [Peak(1e9)])
    one = task_of(settings_of("--num_hidden_layers", "1"))
    whole = task_of(settings)
    (batch,) = whole.made_up_step(1, 1, typical=True).micro_batches
    flops = whole.model_flops(batch)
    time = estimate(settings, backends.load("cpu_ref")(0), World(), one).time
    low, high = 0.25e9 / flops, 0.45e9 / flops
    assert time.sequences_per_second == pytest.approx((low, high))
    assert time.seconds == pytest.approx((80 / high, 80 / low)) and time.at_most
    assert "25 % to 45 % of the published peak" in time.source


def test_warnings_name_what_does_not_fit() -> None:
    found = Estimate(
        memory={"weights": 3 << 30}, typical_bytes=2 << 30, device_bytes=1 << 30,
        host_bytes=5 << 30, host_free_bytes=4 << 30, time=Time("nowhere"),
        checkpoint_bytes=1 << 30, checkpoints=3, record_bytes=None, prepared_data_bytes=None,
        disk_free_bytes=2 << 30,
    )  # fmt: skip
    warnings = found.warnings()
    assert [text.partition(":")[0] for text in warnings] == ["device memory", "host memory", "disk"]
    assert "3 GiB needed, 1 GiB there" in warnings[0] and "--micro_batch" in warnings[0]
    assert found.as_dict()["warnings"] == warnings
    lines = dict(found.lines())
    assert lines["time"] == "unknown (nowhere)"
    assert "3 checkpoints of about 1 GiB, record unknown, prepared data unknown" in lines["disk"]


def test_the_command_of_several_processes() -> None:
    settings = settings_of("--dry_run", "--seed", "3")
    one, two = command(settings, World()), command(settings, World(rank=0, size=2, local_size=2))
    assert one[1:3] == ["run", "mini"] and "--dry_run" not in one
    assert two[-len(one) :] == one
    assert "--nproc-per-node=2" in two and "--standalone" in two
    again = resolve("mini", one[3:])
    assert again.recipe == settings.recipe and again.impl == settings.impl
    assert again.run.seed == 3


def test_a_dry_run_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--output_dir", str(tmp_path / "out"), "--dry_run"]
    assert main(["run", "mini", *TINY, *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    parts = found["estimate"]["memory_parts_bytes"]
    assert found["estimate"]["device_memory_bytes"] == sum(parts.values())
    assert parts["optimizer"] == 2 * parts["weights"] == 2 * parts["gradients"]
    assert found["estimate"]["checkpoint_bytes"] == 3 * parts["weights"]
    assert found["estimate"]["prepared_data_bytes"] == 0
    assert 0 < found["estimate"]["disk_free_bytes"] <= shutil.disk_usage(tmp_path).total
    assert main(["run", "mini", *TINY, *flags]) == 0
    text = capsys.readouterr().out
    for name in ("command ", "memory ", "host memory ", "time ", "disk "):
        assert f"\n{name}" in text
    assert "modelled" in text and not (tmp_path / "out").exists()
