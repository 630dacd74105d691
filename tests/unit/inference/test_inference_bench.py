# SPDX-License-Identifier: Apache-2.0
"""tools/bench_inference.py: the same samples in every variant, absent peers listed, the goals."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bertbench.common.errors import Unsupported
from bertbench.engines.exported import Exported, read_export
from tests.unit.inference.tiny_export import CONFIG, quantize

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

import bench_inference
from bench import inference_loadgen, inference_models, inference_peers, inference_speed
from bench.inference_speed import Options


@pytest.fixture
def options(export: Path, tmp_path: Path, monkeypatch) -> Options:
    """A tiny model in the place of the tool's, whose export takes ten seconds."""
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is absent")
    folders = {None: export, "int8": quantize(export, tmp_path / "int8")}

    def made(shape: str, quantization: str | None, folder: Path) -> Exported:
        return read_export(folders[quantization])

    monkeypatch.setattr(inference_speed, "export", made)
    monkeypatch.setitem(inference_models.SHAPES, "tiny", CONFIG)
    features = inference_models.made_up

    def short(number: int, vocab_size: int):
        """The tiny model has 64 positions."""
        return inference_models.made_up_features(
            np.maximum(3, np.diff(features(number, vocab_size).offsets) // 8), vocab_size
        )

    monkeypatch.setattr(inference_models, "made_up", short)
    monkeypatch.setattr(inference_speed, "LENGTH", 48)
    return Options(
        shape="tiny", models=tmp_path, threads=1, rounds=2, samples=12, batch=2, length=16,
        batch_tokens=96,
    )  # fmt: skip


def test_int8_and_peers_list_what_is_absent(options, monkeypatch) -> None:
    def no_openvino(self, engine, exported, batch, load=Options.load):
        if engine == "openvino":
            raise Unsupported("engine openvino: package openvino is not installed")
        return load(self, engine, exported, batch)

    def no_peer(self) -> Path:
        raise ModuleNotFoundError("transformers is not installed")

    monkeypatch.setattr(Options, "load", no_openvino)
    monkeypatch.setattr(inference_peers.Peers, "_plain", no_peer)
    monkeypatch.setattr(inference_peers, "_need", lambda module, package: no_peer(None))
    result = inference_speed.int8(options)
    assert set(result["seconds"]) == {"ONNX Runtime FP32", "ONNX Runtime INT8"}
    slow, fast = (result["seconds"][f"ONNX Runtime {kind}"] for kind in ("FP32", "INT8"))
    pairs = sorted(a / b for a, b in zip(slow, fast, strict=True))
    over = result["over"]["ONNX Runtime INT8"]
    assert (over["least"], over["most"]) == (pairs[0], pairs[-1])
    assert result["ok"] == (over["median"] >= 3.0)
    assert set(result["missing"]) == {"OpenVINO", *inference_peers.FP32}

    result = inference_speed.peers(options)
    assert result["ok"] is None and result["own"] == "ONNX Runtime INT8"
    assert set(result["missing"]) == {"OpenVINO", *inference_peers.INT8}
    table = inference_speed.show(result)
    for name in inference_peers.INT8:
        assert f"| {name} | not measured: ModuleNotFoundError: transformers" in table
    assert "goal 1: not measured." in table


def test_bucketing_computes_the_same_samples_with_less_padding(options) -> None:
    result = inference_speed.bucketing(options)
    padded, by_length = result["batches"].values()
    assert padded["batches"] == 6  # two of 48 in each
    assert padded["real_share"] < by_length["real_share"] <= 1
    assert f"goal {inference_speed.BUCKETING_GOAL:g}: " in inference_speed.show(result)
    sweep = inference_speed.budgets(replace(options, rounds=1))
    assert list(sweep["seconds"]) == ["512", "1,024", "2,048", "4,096", "8,192", "16,384"]
    assert "goal" not in sweep


def test_peers_are_the_same_model(options, monkeypatch) -> None:
    """Their FP32 graph gives our logits: the weights are the same."""
    pytest.importorskip("transformers", reason="transformers ([compare]) is absent")
    batches = options.batches(options.export("int8"))
    peers = inference_peers.Peers("tiny", batches, 1, options.models)
    steps, missing = peers.make({"Transformers FP32, ORT": "", "ORT dynamic": ""})
    assert not missing
    model = inference_models.model_of("tiny")
    found = [np.stack(logits, axis=-1) for logits in steps["Transformers FP32, ORT"]()]
    expected = inference_models_logits(model, batches[0])
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    assert np.abs(np.stack(steps["ORT dynamic"]()[0], axis=-1) - expected).max() > 1e-6


def inference_models_logits(model, batch) -> np.ndarray:
    """Our model's logits, float32 [B, L, 2]."""
    import torch

    from tests.unit.inference.tiny_export import Padded

    with torch.no_grad():
        start, end = Padded(model)(*map(torch.from_numpy, map(np.ascontiguousarray, batch)))
    return np.stack([start.numpy(), end.numpy()], axis=-1)


def test_loadgen_and_the_bare_loop_run_the_same_batches(options) -> None:
    pytest.importorskip("mlperf_loadgen", reason="LoadGen is absent")
    result = inference_loadgen.loadgen(options)
    offline, stream = (result["scenarios"][name] for name in ("Offline", "SingleStream"))
    assert (offline["samples"], stream["samples"]) == (12, 3)
    for figures in (offline, stream):
        assert len(figures["rounds"]) == 2
        for taken in figures["rounds"]:
            assert 0 < taken["outside_engine"] < 1
            assert taken["loadgen_s"] > 0 and taken["bare_s"] > 0
    assert stream["loadgen_p50_s"]["median"] > 0
    assert "SingleStream, p50 latency, ms" in inference_loadgen.show(result)


def test_the_tool_writes_its_figures(options, tmp_path, monkeypatch, capsys) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [
        "bench_inference.py", "bucketing", "--quick", "--threads", "1", "--json", str(file),
    ])  # fmt: skip
    assert bench_inference.main() == 0
    told, figures = capsys.readouterr().out, json.loads(file.read_text())
    assert figures["samples"] == 16
    assert "| sorted by length |" in told and figures["definition"] in told
    assert figures["environment"]["processor"] in told


def test_a_refusal_is_one_line(monkeypatch, capsys) -> None:
    def refused(options):
        raise Unsupported("engine openvino: package openvino is not installed")

    monkeypatch.setitem(bench_inference.MODES, "bucketing", (refused, "tiny"))
    monkeypatch.setattr(sys, "argv", ["bench_inference.py", "bucketing", "--engine", "openvino"])
    assert bench_inference.main() == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
