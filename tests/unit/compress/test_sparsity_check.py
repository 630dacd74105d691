# SPDX-License-Identifier: Apache-2.0
"""bertbench sparsity check: the pattern is proved in each format, along the input features."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bertbench.common.cli.main import main
from bertbench.common.compress.layers import compress, compressed_layers
from bertbench.common.compress.pruning import two_of_four
from bertbench.common.training.checkpoint import Checkpoints


def check(place: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    code = main(["sparsity", "check", str(place), "--json"])
    return code, json.loads(capsys.readouterr().out)


def prune(model: nn.Module) -> nn.Module:
    compress(model, prune=True, quantize=False)
    for layer in compressed_layers(model):
        layer.prune()
    return model


def saved_run(model: nn.Module, folder: Path) -> Path:
    Checkpoints(folder / "checkpoints").save(3, {"model": model.state_dict()}, {})
    described = {"benchmark": "bert_squad", "recipe": {"model": asdict(model.config)}}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def test_a_run_its_export_and_its_weights_hold(model, tmp_path, capsys):
    dense = saved_run(model, tmp_path / "dense")
    code, found = check(dense, capsys)
    assert code == 1 and (found["kind"], found["held"], found["eligible"]) == ("checkpoint", 0, 8)
    run = saved_run(prune(model), tmp_path / "run")
    code, found = check(run, capsys)
    assert code == 0 and (found["held"], found["kept"]) == (8, 0.5)
    first = found["matrices"][0]
    assert first["shape"] in ([32, 32], [96, 32], [64, 32], [32, 64]) and first["most"] == 2
    assert {m["name"] for m in found["matrices"]} == {
        f"encoder.layers.{i}.{n}.weight"
        for i in range(2) for n in ("qkv", "attention_output", "intermediate", "output")
    }  # fmt: skip
    out = tmp_path / "weights"
    assert main(["export-weights", str(run), "--output", str(out), "--naming", "huggingface"]) == 0
    capsys.readouterr()
    for place in (out, out / "model.safetensors"):  # q, k and v apart
        code, found = check(place, capsys)
        assert code == 0 and (found["kind"], found["held"]) == ("weights", 12)
    # Pooler, embeddings and head do not count, and a prefix does not matter.
    state = {f"model.{n}": t for n, t in model.state_dict().items()}
    state["model.pooler.dense.weight"] = torch.ones(32, 32)
    torch.save({"state_dict": state}, tmp_path / "weights.pt")
    code, found = check(tmp_path / "weights.pt", capsys)
    assert code == 0 and found["held"] == 8


def test_one_weight_more_is_found_and_named(model, tmp_path, capsys):
    state = {n: t.clone() for n, t in prune(model).state_dict().items()}
    weight = state["encoder.layers.1.output.weight"]
    weight[7, 4:8] = torch.tensor([1.0, 1e-30, 0.0, float("nan")])
    save_file(state, tmp_path / "w.safetensors")
    assert main(["sparsity", "check", str(tmp_path / "w.safetensors")]) == 1
    lines = capsys.readouterr().out.splitlines()
    wrong = [line for line in lines if "no: up to 3 of 4" in line]
    assert len(wrong) == 1 and "layers.1.output.weight" in wrong[0] and "32 x 64" in wrong[0]
    assert lines[-1].startswith("7 of 8 weights are 2:4 sparse and keep 50.0")


def test_a_shape_that_kernels_do_not_take_is_not_counted(tmp_path, capsys):
    state = {
        "encoder.layers.0.qkv.weight": torch.ones(30, 32),
        "encoder.layers.10.output.weight": torch.ones(8, 16) * torch.tensor([0, 1, 1, 0]).repeat(4),
        "encoder.layers.2.output.weight": torch.ones(8, 16) * torch.tensor([0, 0, 1, 0]).repeat(4),
    }
    save_file(state, tmp_path / "w.safetensors")
    code, found = check(tmp_path / "w.safetensors", capsys)
    assert code == 0 and (found["eligible"], found["kept"]) == (2, 0.375)
    assert [m["holds"] for m in found["matrices"]] == [False, True, True]
    assert [m["name"].split(".")[2] for m in found["matrices"]] == ["0", "2", "10"]
    save_file({"encoder.layers.0.qkv.weight": torch.zeros(30, 32)}, tmp_path / "w.safetensors")
    assert main(["sparsity", "check", str(tmp_path / "w.safetensors")]) == 2
    assert "none of its 1 encoder weights can be 2:4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pkl", b"", "`bertbench import-weights` converts Megatron's .pkl"),
        ("w.safetensors", b"\x08", "not a complete safetensors file"),
        ("w.pt", b"\x80\x02cos\nsystem\nq.", "Nothing in it was executed"),
        ("w.onnx", b"\xff\xff\xff", "cannot be read as an ONNX model"),
        ("w.onnx", b"", "none of its 0 encoder weights"),
    ],
)
def test_other_files_are_refused(name, content, message, tmp_path, capsys):
    if name.endswith(".onnx"):
        pytest.importorskip("onnx", reason="the extra [onnx] is absent")
    (tmp_path / name).write_bytes(content)
    for place in (tmp_path / name, tmp_path / "absent", tmp_path):
        assert main(["sparsity", "check", str(place)]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def onnx_file(tmp_path: Path):
    """A function that writes a graph of products with one weight each."""
    onnx = pytest.importorskip("onnx", reason="the extra [onnx] is absent")
    from onnx import helper, numpy_helper

    def write(nodes: list, weights: dict[str, np.ndarray]) -> Path:
        graph = helper.make_graph(
            [helper.make_node(kind, ins, outs, **more) for kind, ins, outs, more in nodes],
            "g", [], [], [numpy_helper.from_array(w, n) for n, w in weights.items()],
        )  # fmt: skip
        onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
        return tmp_path / "m.onnx"

    return write


PATTERN = torch.manual_seed(0) and two_of_four(torch.rand(16, 32)).numpy()
"""Kept entries, bool [out, in]; not 2:4 along the outputs."""


@pytest.mark.parametrize(
    ("kind", "stored", "more"),
    [
        ("MatMul", PATTERN.T, {}),
        ("Gemm", PATTERN.T, {}),
        ("Gemm", PATTERN, {"transB": 1}),
        ("MatMul", PATTERN, {"order": (1, 0)}),
        ("left", PATTERN, {}),
    ],
)
@pytest.mark.parametrize("zero", [None, 0, 3, np.arange(16, dtype=np.int8)])
def test_onnx_is_read_along_the_inputs(kind, stored, more, zero, onnx_file, capsys):
    assert most_along_outputs(PATTERN) > 2
    name, nodes, weights = "w", [], {"w": stored.astype(np.float32)}
    if zero is not None:
        axis = 1 if stored is not PATTERN else 0
        shift = zero if np.ndim(zero) == 0 else zero.reshape((1, 16) if axis else (16, 1))
        weights["w"] = (stored * 5 + shift).astype(np.int8)
        weights["z"] = np.asarray(zero, np.int8)
        weights["s"] = np.ones(np.shape(zero), np.float32)
        nodes.append(("DequantizeLinear", ["w", "s", "z"], ["f"], {"axis": axis}))
        name = "f"
    if "order" in more:
        nodes.append(("Transpose", [name], ["t"], {"perm": [1, 0]}))
        name = "t"
    attributes = {n: v for n, v in more.items() if n != "order"}
    factors = [name, "x"] if kind == "left" else ["x", name]
    nodes.append((kind.replace("left", "MatMul"), factors, ["y"], attributes))
    nodes.append(("MatMul", ["y", "y"], ["attention"], {}))
    code, found = check(onnx_file(nodes, weights), capsys)
    assert code == 0 and found["kind"] == "onnx"
    assert [(m["name"], m["shape"], m["most"]) for m in found["matrices"]] == [("w", [16, 32], 2)]


def most_along_outputs(pattern: np.ndarray) -> int:
    return int(pattern.reshape(4, 4, -1).sum(1).max())


def test_onnx_that_is_sparse_along_the_outputs_does_not_hold(onnx_file, capsys):
    weights = {"w": np.ascontiguousarray(PATTERN).astype(np.float32)}
    place = onnx_file([("MatMul", ["x", "w"], ["y"], {})], weights)
    code, found = check(place, capsys)
    assert code == 1 and found["matrices"][0]["shape"] == [32, 16]
    circle = [("Cast", ["b"], ["a"], {"to": 1}), ("Cast", ["a"], ["b"], {"to": 1}),
              ("MatMul", ["x", "a"], ["y"], {})]  # fmt: skip
    assert main(["sparsity", "check", str(onnx_file(circle, weights))]) == 2
    outside = onnx_file([("MatMul", ["x", "w"], ["y"], {})], weights)
    import onnx

    model = onnx.load(str(outside))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../../etc/passwd")
    model.graph.initializer[0].ClearField("raw_data")
    outside.write_bytes(model.SerializeToString())
    assert main(["sparsity", "check", str(outside)]) == 2
    assert "cannot be read as an ONNX model" in capsys.readouterr().err
