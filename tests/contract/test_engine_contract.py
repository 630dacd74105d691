# SPDX-License-Identifier: Apache-2.0
"""The contract of an engine, for each that is installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bertbench import engines
from bertbench.common.errors import BadInput, Unsupported
from bertbench.engines import exact
from bertbench.engines.base import Engine, EngineOptions
from bertbench.engines.exported import read_export
from bertbench.engines.onnxruntime import _exact_sums
from tests.unit.inference.conftest import export  # noqa: F401
from tests.unit.inference.tiny_export import Padded, batch_of, quantize, tiny_model

OPTIONS = EngineOptions(num_threads=1, max_batch=4, max_length=32)
LINEAR = 8
"""Of the tiny model: four in each of two layers."""


@pytest.fixture(params=engines.ENGINES)
def kind(request: pytest.FixtureRequest) -> type[Engine]:
    found = engines.load(request.param)
    if (reason := found.absent()) is not None:
        pytest.skip(reason)
    return found


def test_an_absent_package_is_a_refusal_that_names_the_extra(kind, monkeypatch):
    monkeypatch.setattr(kind, "package", "no_such_package")
    assert "pip install 'bertbench[" in kind.absent()
    with pytest.raises(Unsupported, match="no_such_package is not installed"):
        kind.check(OPTIONS)


def test_logits_are_those_of_torch_at_every_shape(kind, export):  # noqa: F811
    engine, model = kind.load(read_export(export), OPTIONS), Padded(tiny_model())
    rng = np.random.default_rng(1)
    for sizes, length in (([5, 20, 32], 32), ([9], 9), ([3, 7], 12), ([1] * 4, 1)):
        batch = batch_of(rng, sizes, length)
        before = [array.copy() for array in batch]
        found = engine.run(batch)
        with torch.no_grad():
            expected = model(*map(torch.from_numpy, batch))
        real = batch.input_mask.astype(bool)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.shape == real.shape and ours.dtype == np.float32
            np.testing.assert_allclose(ours[real], theirs.numpy()[real], atol=2e-4)
        assert all(np.array_equal(a, b) for a, b in zip(before, batch, strict=True))


def test_results_stay_when_the_next_batch_runs(kind, export):  # noqa: F811
    engine, rng = kind.load(read_export(export), OPTIONS), np.random.default_rng(2)
    first, other = batch_of(rng, [8, 6], 8), batch_of(rng, [7, 8], 8)
    start, _ = engine.run(first)
    kept = start.copy()
    engine.run(other)
    assert np.array_equal(start, kept)


def test_it_describes_itself_for_the_record(kind, export):  # noqa: F811
    facts = kind.load(read_export(export), OPTIONS).describe()
    json.dumps(facts)
    assert facts["provider"] == "CPU" and facts["num_threads"] == 1 and facts["version"]
    assert (facts["linear_int8"], facts["linear_float"]) == (0, LINEAR)
    assert sum(facts["operators"].values()) > LINEAR


def test_a_quantized_model_runs_in_int8_and_near_its_float_logits(kind, export, tmp_path):  # noqa: F811
    exported = read_export(quantize(export, tmp_path / "int8"))
    engine, floating = kind.load(exported, OPTIONS), kind.load(read_export(export), OPTIONS)
    facts = engine.describe()
    assert (facts["linear_int8"], facts["linear_float"]) == (LINEAR, 0)
    assert facts["int8_share"] == 1
    batch = batch_of(np.random.default_rng(3), [20, 32], 32)
    found, reference = engine.run(batch)[0], floating.run(batch)[0]
    difference = np.abs(found - reference).max()
    assert 0 < difference < 0.5 * np.abs(reference).max()


def test_a_quantized_model_with_a_layer_in_float_is_refused(kind, export, tmp_path):  # noqa: F811
    partly = read_export(quantize(export, tmp_path / "partly", floating=1))
    with pytest.raises(Unsupported, match=f"1 of the {LINEAR} linear layers"):
        kind.load(partly, OPTIONS)
    shutil.copy(export / "model.onnx", tmp_path / "partly" / "model.onnx")
    for data in export.glob("model.onnx.*"):
        shutil.copy(data, tmp_path / "partly")
    with pytest.raises(Unsupported, match=f"{LINEAR} of the {LINEAR} linear layers"):
        kind.load(partly, OPTIONS)


def test_int8_sums_that_are_clipped_are_a_refusal(kind, export, tmp_path, monkeypatch):  # noqa: F811
    folder = quantize(export, tmp_path / "int8")
    if kind.name == "torch":
        pytest.skip("it compares each product with the host's sums: test_torch_engine.py")
    monkeypatch.setattr(exact, "is_exact", lambda products: False)
    with pytest.raises(Unsupported, match="at 16 bits"):
        kind.load(read_export(folder), OPTIONS)
    kind.load(read_export(export), OPTIONS)  # a float model has none


def test_the_trial_of_sums_finds_what_processors_without_vnni_do():
    a, b = (x.astype(np.int64) for x in exact.operands())
    unsigned = a + 128  # one operand of the instruction; the surplus is taken off the sums
    pairs = (unsigned[:, :, None] * b).reshape(exact.ROWS, -1, 2, exact.ROWS).sum(2)
    clipped = pairs.clip(-(2**15), 2**15 - 1).sum(1) - 128 * b.sum(0)
    assert exact.is_exact([a @ b]) and not exact.is_exact([a @ b, clipped])


def test_onnx_runtime_sums_int8_exactly_on_this_processor(tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    for key, value in _exact_sums(runtime).items():
        settings.add_session_config_entry(key, value)
    session = runtime.InferenceSession(exact.graph(), settings, providers=["CPUExecutionProvider"])
    assert exact.is_exact(session.run(exact.NAMES, exact.given()))
    # In INT8: products in float32 would be exact on every processor.
    used = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "MatMulIntegerToFloat" in used and "MatMul" not in used


def test_an_unknown_or_absent_provider_is_refused_with_those_present(kind):
    with pytest.raises((BadInput, Unsupported), match=r"no_such.* CPU"):
        kind.check(EngineOptions(provider="no_such"))


def test_a_file_that_is_no_model_is_refused(kind, export, tmp_path):  # noqa: F811
    folder = Path(shutil.copytree(export, tmp_path / "damaged"))
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(BadInput, match=r"model\.onnx"):
        kind.load(read_export(folder), OPTIONS)


def test_onnx_runtime_names_the_wheel_of_a_provider():
    kind = engines.load("onnxruntime")
    if kind.absent() is not None:
        pytest.skip(str(kind.absent()))
    for name in ("CUDA", "cuda", "TensorRT", "TensorrtExecutionProvider"):
        if "CUDAExecutionProvider" in kind.module().get_available_providers():
            pytest.skip("this build has them")
        with pytest.raises(Unsupported, match="pip install onnxruntime-gpu"):
            kind.check(EngineOptions(provider=name))
