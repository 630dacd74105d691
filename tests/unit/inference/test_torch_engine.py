# SPDX-License-Identifier: Apache-2.0
"""The engine torch: beside ONNX Runtime, its options, and its products of int8 operands.

The 2:4 kernels need a GPU: stand-ins with their documented limits take their place here.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bertbench import engines
from bertbench.common.compress.pruning import two_of_four
from bertbench.common.errors import BadInput, Unsupported
from bertbench.engines.base import EngineOptions
from bertbench.engines.exported import DESCRIPTION, MODEL, read_export
from tests.unit.inference.conftest import export  # noqa: F401
from tests.unit.inference.tiny_export import batch_of, quantize

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is absent")
BATCH = batch_of(np.random.default_rng(4), [5, 32, 20], 32)
REAL = BATCH.input_mask.astype(bool)


def loaded(folder: Path, name: str = "torch", *, threads: int = 1, **options: str):
    given = EngineOptions(num_threads=threads, max_length=32, provider_options=options)
    return engines.load(name).load(read_export(folder), given)


def sparse_export(source: Path, folder: Path, *, prune: bool = True) -> Path:
    """``source`` with int8 weights that are 2:4, and said to be so."""
    quantize(source, folder)
    model = onnx.load(str(folder / MODEL))
    for tensor in model.graph.initializer:
        if prune and tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2:
            values = onnx.numpy_helper.to_array(tensor)
            kept = values * two_of_four(torch.from_numpy(values.T.copy())).numpy().T
            tensor.CopyFrom(onnx.numpy_helper.from_array(kept.astype(np.int8), tensor.name))
    onnx.save(model, str(folder / MODEL))
    described = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(described | {"weight_sparsity": "2:4"}))
    return folder


@pytest.fixture
def kernels(monkeypatch):
    """Stand-ins for cuSPARSELt's kernels, with their limits on shapes and layouts."""

    def compress(weight):
        assert weight.dtype == torch.int8 and all(size % 32 == 0 for size in weight.shape)
        return weight

    def product(a, b, *, out_dtype):
        assert b.dtype == torch.int8 and b.shape[1] % 16 == 0
        assert b.T.is_contiguous() and out_dtype == torch.int32
        return (a.double() @ b.double()).to(out_dtype)

    monkeypatch.setattr(torch, "_cslt_compress", compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", product)


def test_float_logits_are_those_of_onnx_runtime(export):  # noqa: F811
    pytest.importorskip("onnxruntime")
    engine = loaded(export)
    assert engine.describe()["attention"] == "scaled_dot_product_attention"
    for found, expected in zip(
        engine.run(BATCH), loaded(export, "onnxruntime").run(BATCH), strict=True
    ):
        np.testing.assert_allclose(found[REAL], expected[REAL], atol=1e-5, rtol=1e-5)


def test_a_batch_is_computed_in_parts_and_whole_alike(export, monkeypatch):  # noqa: F811
    engine = loaded(export)
    sizes = []
    plan = engine._plan
    monkeypatch.setattr(engine, "_plan", lambda x: (sizes.append(len(x["input_ids"])), plan(x))[1])
    whole = engine.run(BATCH)
    monkeypatch.setattr("bertbench.engines.torch.HOST_TOKENS", 64)
    for found, expected in zip(engine.run(BATCH), whole, strict=True):
        np.testing.assert_allclose(found[REAL], expected[REAL], atol=1e-5)
    assert sizes == [3, 2, 1]


def test_threads_are_those_asked_for(export):  # noqa: F811
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            facts = loaded(export, threads=threads).describe()
            assert facts["num_threads"] == torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["CPU", "cpu", "cpu_ref"])
def test_the_hosts_processor_has_one_name_in_the_record(name):
    from bertbench.engines.torch import _backend

    assert _backend(name) == "cpu_ref"


def test_options_are_honoured_or_refused(export):  # noqa: F811
    for options, match in (
        ({"precisoin": "fp32"}, "did you mean precision"),
        ({"precision": "fp8"}, "choose from fp32, bf16, fp16"),
        ({"sparse": "yes"}, "choose from on, off"),
    ):
        with pytest.raises(BadInput, match=match):
            engines.load("torch").check(EngineOptions(provider_options=options))
    with pytest.raises(
        Unsupported, match=r"precision=fp16: cpu_ref has no fp16 \(.*; it has .*fp3"
    ):
        loaded(export, precision="fp16")
    with pytest.raises(Unsupported, match=r"sparse=on: .* weights are dense"):
        loaded(export, sparse="on")


def test_bf16_is_computed_in_bf16(export, monkeypatch):  # noqa: F811
    from bertbench.backends.cpu_ref import backend

    monkeypatch.setattr(backend, "_computes_bf16", lambda: True)  # slow without instructions
    engine = loaded(export, precision="bf16")
    found, expected = engine.run(BATCH)[0][REAL], loaded(export).run(BATCH)[0][REAL]
    assert engine.describe()["precision"] == "bf16"
    assert torch.equal(torch.from_numpy(found).bfloat16().float(), torch.from_numpy(found))
    assert 1e-3 < np.abs(found - expected).mean() < 0.1 * np.abs(expected).mean()


@pytest.mark.parametrize("rows", [1, 16, 17, 40])
@pytest.mark.parametrize("sparse", [False, True])
def test_products_of_int8_are_exact_for_any_number_of_rows(rows, sparse, kernels):
    from bertbench.engines.torch_ops import Int8Linear

    weight, x = (torch.randint(-127, 128, (size, 64), dtype=torch.int8) for size in (32, rows))
    bias = torch.randint(-9999, 9999, (32,), dtype=torch.int32)
    layer = Int8Linear(weight, bias, 0.25, torch.float32, sparse=sparse)
    expected = (x.double() @ weight.double().T + bias) * 0.25
    assert torch.equal(layer(x).double(), expected) and layer(x).is_contiguous()


def test_sparse_kernels_are_used_where_they_work(export, tmp_path, kernels):  # noqa: F811
    folder = sparse_export(export, tmp_path / "sparse")
    engine, dense = loaded(folder), loaded(folder, sparse="off")
    assert engine.describe()["sparse_kernels"] is True
    assert dense.describe()["sparse_kernels_why_not"] == "sparse=off"
    for found, expected in zip(engine.run(BATCH), dense.run(BATCH), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_sparse_kernels_that_fail_are_recorded_or_refused(
    export,  # noqa: F811
    tmp_path,
    kernels,
    monkeypatch,
):
    folder = sparse_export(export, tmp_path / "sparse")
    monkeypatch.setattr(
        torch, "_cslt_sparse_mm", lambda a, b, out_dtype: torch.zeros(len(a), b.shape[1]).int()
    )
    facts = loaded(folder).describe()
    assert facts["sparse_kernels"] is False and "off by" in facts["sparse_kernels_why_not"]
    assert facts["linear_int8"] == 8
    with pytest.raises(Unsupported, match=r"sparse=on: cpu_ref cannot use 2:4 kernels: .*off by"):
        loaded(folder, sparse="on")


def test_a_processor_refuses_sparse_kernels_with_torchs_reason(export, tmp_path):  # noqa: F811
    with pytest.raises(Unsupported, match=r"cpu_ref cannot use 2:4 kernels: .*CPU"):
        loaded(sparse_export(export, tmp_path / "sparse"), sparse="on")


def test_weights_that_are_not_as_sparse_as_said_are_refused(export, tmp_path):  # noqa: F811
    with pytest.raises(BadInput, match="more than 2 nonzeros in four"):
        loaded(sparse_export(export, tmp_path / "dense", prune=False))


def test_a_device_without_a_correct_int8_product_is_refused(
    export,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    folder, product = quantize(export, tmp_path / "int8"), torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda x, y: product(x, y) + 1)
    with pytest.raises(Unsupported, match=r"_int_mm .* off by 1\. Use another --engine"):
        loaded(folder)
    monkeypatch.delattr(torch, "_int_mm")
    with pytest.raises(Unsupported, match=r"_int_mm .*AttributeError"):
        loaded(folder)


def test_an_operator_that_it_lacks_is_named(export, tmp_path):  # noqa: F811
    folder = quantize(export, tmp_path / "other")
    model = onnx.load(str(folder / MODEL))
    next(node for node in model.graph.node if node.op_type == "Gelu").op_type = "Mish"
    onnx.save(model, str(folder / MODEL))
    with pytest.raises(Unsupported, match="the operator Mish: use --engine onnxruntime"):
        loaded(folder)
