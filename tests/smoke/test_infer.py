# SPDX-License-Identifier: Apache-2.0
"""Whole inference runs from the command line, with LoadGen, on a model that the test makes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file

from bertbench.benchmarks.bert_inference.power import Power
from bertbench.common.cli.main import main
from bertbench.common.measure.telemetry import Sampler
from bertbench.engines.base import EngineOptions
from tests.smoke.conftest import manifest
from tests.unit.inference.conftest import export  # noqa: F401
from tests.unit.inference.tiny_export import CONFIG, tiny_model, write_questions

pytest.importorskip("mlperf_loadgen")
pytest.importorskip("onnxruntime")
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
         "vocab_size", "max_position_embeddings")  # fmt: skip


class Runs:
    """Starts the command line; results go to a folder of the test's own."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.export, self.out = model, folder / "results"
        self.questions = write_questions(folder / "dev.json")

    def flags(self, *flags: str) -> list[str]:
        return ["infer", str(self.export), "--predict_file", str(self.questions),
                "--output_dir", str(self.out), "--num_threads", "1", *flags]  # fmt: skip

    def run(self, *flags: str, code: int = 0) -> Path:
        before = set(self.records())
        short = ("--profile", "non-official", "--min_duration_s", "0.05")
        assert main(self.flags(*short, *flags)) == code
        (new,) = set(self.records()) - before
        assert main(["validate", str(new)]) == 0
        return new

    def records(self) -> list[Path]:
        return sorted(p.parent for p in self.out.glob("*/bert_inference/*/manifest.json"))


@pytest.fixture
def runs(export: Path, tmp_path: Path) -> Runs:  # noqa: F811
    return Runs(export, tmp_path)


def values(record: Path) -> dict[str, float]:
    return {m["name"]: m["value"] for m in manifest(record)["metrics"]}


def predictions(record: Path) -> dict[str, str]:
    return json.loads((record / "predictions.json").read_text())


def test_offline_answers_like_the_squad_benchmark(runs, tmp_path, capsys):
    record = runs.run("--scenario", "Offline", "--mode", "both", "--target_qps", "1e5", "--json")
    printed = json.loads(capsys.readouterr().out.splitlines()[0])
    content, found = manifest(record), values(record)
    assert content["status"] == printed["status"] == "ok" and content["preset"].endswith("official")
    assert any("no MLPerf result" in note for note in content["notes"])
    assert found["samples_per_second"] > 0 and found["result_valid"] == 1
    assert {
        "accuracy_mlperf_log_accuracy.json",
        "accuracy_mlperf_log_summary.txt",
        "user.conf",
        "performance_mlperf_log_detail.txt",
        "predictions.json",
    } <= content["files"].keys()
    samples = content["extras"]["tests"]["accuracy"]["samples"]
    assert len(json.loads((record / "accuracy_mlperf_log_accuracy.json").read_text())) == samples

    weights = tmp_path / "model.safetensors"
    save_file(tiny_model().state_dict(), weights)
    sizes = [word for n in SIZES for word in (f"--{n}", str(getattr(CONFIG, n)))]
    assert main([
        "run", "squad_mini", "--starts_from", "checkpoint", "--init_checkpoint", str(weights),
        "--vocab_file", str(runs.export / "vocab.txt"), "--predict_file", str(runs.questions),
        "--no_do_train", *sizes, "--gelu", "erf", "--max_seq_length", "32", "--doc_stride", "8",
        "--max_query_length", "8", "--backend", "cpu_ref", "--precision", "fp32", "--kernels",
        "plain", "--num_threads", "1", "--output_dir", str(tmp_path / "squad"), "--skip_cache",
    ]) == 0  # fmt: skip
    (trained,) = (p.parent for p in (tmp_path / "squad").glob("*/*/*/manifest.json"))
    assert predictions(record) == predictions(trained)
    for name in ("f1", "exact_match"):
        assert found[name] == values(trained)[name]
    assert 0 < found["f1"] < 100, "a model that answers all or none shows little"


def test_every_way_of_asking_gives_the_same_answers(runs):
    stream = runs.run(
        "--scenario", "SingleStream", "--min_queries", "70", "--target_latency_ms", "0.01"
    )
    found = values(stream)
    assert 0 < found["latency_p50_s"] <= found["latency_p90_s"] <= found["latency_p99_s"]
    assert found["latency_p90_early_stopping_s"] >= found["latency_p90_s"]
    accuracy = ("--mode", "accuracy")
    server = runs.run("--scenario", "Server", "--target_qps", "500", *accuracy)
    padded = runs.run("--padded", "--engine", "onnxruntime", *accuracy)
    assert "samples_per_second" not in values(padded)
    assert predictions(stream) == predictions(server) == predictions(padded)
    tests = [manifest(r)["extras"]["tests"]["accuracy"] for r in (stream, padded)]
    assert tests[0]["real_tokens"] == tests[0]["computed_tokens"]
    assert tests[1]["computed_tokens"] == 32 * tests[1]["samples"]


def test_invalid_stays_invalid_and_a_missed_target_is_no_success(runs):
    record = runs.run("--target_qps", "1", "--min_duration_s", "5", "--mode", "performance",
                      "--min_queries", "5", code=1)  # fmt: skip
    assert manifest(record)["status"] == "failed" and values(record)["result_valid"] == 0
    assert "INVALID" in manifest(record)["reason"] and "expected QPS" in manifest(record)["reason"]
    missed = runs.run("--mode", "accuracy", "--target_f1", "99", code=1)
    assert manifest(missed)["status"] == "below_quality"
    assert not manifest(missed)["quality"]["reached"]


def test_an_engine_that_fails_in_a_test_leaves_a_record_that_says_why(runs, tmp_path):
    text = (runs.export / "export.json").read_text()
    content = json.loads(text)
    content["max_seq_length"] = content["model"]["max_position_embeddings"] = 128  # it has 64
    long = tmp_path / "long"
    long.mkdir()
    for file in runs.export.iterdir():
        (long / file.name).write_bytes(file.read_bytes())
    (long / "export.json").write_text(json.dumps(content))
    runs.export = long
    record = runs.run("--padded", "--mode", "accuracy", code=1)
    assert manifest(record)["status"] == "failed" and "Add" in manifest(record)["reason"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "MLPerf's are the 10,833 of dev-v1.1.json"),
        (("--min_duration_s", "60"), "--min_duration_s 60: MLPerf's rules: min_duration"),
        (("--scenario", "Server"), "--target_qps"),
        (("--scenario", "SingleStream", "--target_qps", "4"), "has no rate"),
        (("--audit", "TEST01", "--mode", "accuracy"), "leave out --mode accuracy"),
        (("--user_conf", "none.conf"), "none.conf"),
        (("--user_conf", "none.conf", "--target_qps", "4"), "cannot be combined"),
        (("--engine", "onnxrunime"), "did you mean onnxruntime?"),
        (("--provider", "no_such"), "no such provider"),
        (("--provider_option", "x"), "KEY=VALUE"),
        (("--num_threads", "0"), "--num_threads 0"),
        (("--system", "A B"), "cannot name a folder"),
    ],
)
def test_refusals_leave_no_record(runs, capsys, flags, message):
    assert main(runs.flags(*flags)) == 2
    assert message in capsys.readouterr().err and not runs.records()


def test_an_absent_extra_is_one_line(runs, capsys, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "mlperf_loadgen" else real(n, *a)
    )
    assert main(runs.flags("--profile", "non-official")) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("pip install 'bertbench[onnx]'")


def test_the_devices_power_is_that_of_the_performance_test(runs, monkeypatch):
    begun = time.monotonic()

    def meter(period_s: float) -> Sampler:
        def read() -> dict[str, float]:
            return {"energy_j": 42 * (time.monotonic() - begun), "power_w": 42.0}

        return Sampler(read, source="a meter", period_s=0.02)

    monkeypatch.setattr("bertbench.backends.cpu_ref.backend.open_rapl", meter)
    record = runs.run("--mode", "performance", "--min_duration_s", "0.3", "--target_qps", "5e4")
    found = values(record)
    assert found["power_w"] == pytest.approx(42, rel=0.02)
    seconds = manifest(record)["extras"]["tests"]["performance"]["seconds"]
    assert found["energy_j"] == pytest.approx(42 * seconds, rel=0.1)
    assert "telemetry.jsonl" in manifest(record)["files"]
    assert not any(note.startswith("power:") for note in manifest(record)["notes"])


@pytest.mark.parametrize(
    ("engine", "provider", "said"),
    [("onnxruntime", "QNN", "knows the sensors of provider QNN"), ("onnxruntime", "CANN", "npu")],
)
def test_unread_sensors_are_a_reason(engine, provider, said):
    found = Power.of(engine, EngineOptions(provider=provider))
    assert found.sampler is None and said in found.reason
