# SPDX-License-Identifier: Apache-2.0
"""A run's exported model, as ONNX Runtime and PyTorch compute it, beside the run's own."""

from __future__ import annotations

import platform
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from bertbench import engines
from bertbench.benchmarks.bert_squad.model import BertForQuestionAnswering
from bertbench.common.compress.layers import (
    LINEAR,
    compress,
    compressed_layers,
    named_quantizers,
)
from bertbench.common.compress.pruning import most_nonzeros
from bertbench.common.compress.start import calibrate
from bertbench.common.distributed.world import World
from bertbench.common.exchange.export_onnx import write_onnx
from bertbench.common.exchange.onnx_model import INPUTS, OUTPUTS, PaddedBert
from bertbench.common.model.ops import Ops
from bertbench.engines.base import Batch, Engine, EngineOptions
from bertbench.engines.exported import Exported
from tests.unit.compress.conftest import batch, config

LAYERS = 2
GIVEN = batch(9, 30, 4, 41)


def weights(norm_position: str) -> BertForQuestionAnswering:
    torch.manual_seed(3)
    made = BertForQuestionAnswering(config(norm_position, LAYERS), Ops()).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(4 if p.dim() > 1 else 1).add_(0.03 * torch.randn_like(p))
    return made


def compressed(norm_position: str) -> BertForQuestionAnswering:
    made = weights(norm_position)
    compress(made, prune=True, quantize=True)
    for layer in compressed_layers(made):
        layer.prune()
    calibrate(made, lambda: made(GIVEN), World.from_env())
    return made


def clipped(norm_position: str) -> BertForQuestionAnswering:
    """With weights beyond both ends of INT8, as calibration by least squares leaves them."""
    made = compressed(norm_position)
    for name, quantizer in named_quantizers(made).items():
        if name.endswith("_weight"):
            quantizer.amax.mul_(0.3)
    return made


def padded(length: int) -> list[torch.Tensor]:
    """Input ids, mask and segments, int64 [B, length], of the batch."""
    made = [torch.zeros(len(GIVEN.tokens.lengths), length, dtype=torch.int64) for _ in range(3)]
    at = GIVEN.rows, GIVEN.tokens.position_ids
    for target, values in zip(
        made, (GIVEN.tokens.input_ids, torch.ones_like(GIVEN.rows), GIVEN.tokens.segment_ids),
        strict=True,
    ):  # fmt: skip
        target[at] = values
    return made


def of_tokens(start, end) -> torch.Tensor:
    """Logits [B, L] as the unpadded model gives them, [T, 2]."""
    both = torch.stack([torch.as_tensor(start), torch.as_tensor(end)], dim=-1)
    return both[GIVEN.rows, GIVEN.tokens.position_ids]


def check_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5, except in one sequence where a sum fell on the other side of a rounding.

    float32 sums differ by their order; one that lies between two levels then differs by a level.
    """
    apart = [float(x.abs().max()) for x in (found - expected).split(GIVEN.tokens.lengths)]
    assert sorted(apart)[-2] < 1e-5 and max(apart) < 0.1, apart
    assert expected.abs().max() > 0.5


def torch_engine(folder: Path, model: BertForQuestionAnswering) -> Engine:
    exported = Exported(
        folder=folder, model=model.config, max_seq_length=48, doc_stride=8, max_query_length=8,
        lowercase=True, quantization="int8", weight_sparsity="2:4", parameters=1, run=None,
        recipe_hash=None,
    )  # fmt: skip
    options = EngineOptions(num_threads=torch.get_num_threads())
    return engines.load("torch").load(exported, options)


@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("make", [weights, compressed, clipped])
def test_padded_model_equals_the_unpadded_one(make, norm_position: str) -> None:
    model = make(norm_position)
    with torch.no_grad():
        expected = model(GIVEN)
        found = PaddedBert(model.encoder, model.qa_outputs).eval()(*padded(48))
    check_equal(of_tokens(*found), expected)


def input_types(onnx, file: Path) -> set[str]:
    """The types of the linear layers' inputs, by their zero points."""
    graph = onnx.load(file).graph
    stored = {t.name: onnx.numpy_helper.to_array(t).dtype.name for t in graph.initializer}
    return {stored[node.input[2]] for node in graph.node if node.op_type == "QGemm"}


def test_onnx_runtime_takes_the_quantized_model_in_its_exact_mode(tmp_path: Path) -> None:
    """The mode of x86 processors without VNNI, which fails at zero points that nodes share."""
    runtime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is absent")
    pytest.importorskip("onnxscript", reason="the extra [onnx] is absent")
    model = compressed("post")
    write_onnx(model, tmp_path / "model.onnx")
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = runtime.InferenceSession(
        str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    with torch.no_grad():
        expected = model(GIVEN)
    inputs = dict(zip(INPUTS, (x.numpy() for x in padded(41)), strict=True))
    check_equal(of_tokens(*session.run(None, inputs)), expected)


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_onnx_runtime_computes_the_quantized_model_in_int8(norm_position, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra [onnx] is absent")
    runtime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is absent")
    pytest.importorskip("onnxscript", reason="the extra [onnx] is absent")
    model = compressed(norm_position)
    write_onnx(model, tmp_path / "model.onnx")
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    session = runtime.InferenceSession(
        str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    assert [x.name for x in session.get_inputs()] == list(INPUTS)
    assert [x.name for x in session.get_outputs()] == list(OUTPUTS)
    with torch.no_grad():
        expected = model(GIVEN)
    engine = torch_engine(tmp_path, model)
    for length in (41, 48):  # not the length of the export
        inputs = dict(zip(INPUTS, (x.numpy() for x in padded(length)), strict=True))
        check_equal(of_tokens(*session.run(None, inputs)), expected)
        check_equal(of_tokens(*engine.run(Batch(*inputs.values()))), expected)
    facts = engine.describe()
    assert (facts["linear_int8"], facts["linear_float"]) == (6 * LAYERS, 0)
    assert facts["operators"]["Int8Linear"] == 6 * LAYERS
    assert facts["attention"] == "float over int8-rounded values"

    done = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    # Six linear layers, and the two products of attention; the head alone stays in float32.
    assert done["QGemm"] == 6 * LAYERS
    assert done["QLinearMatMul"] + done["MatMulIntegerToFloat"] == 2 * LAYERS
    assert done["Gemm"] + done["MatMul"] + done["FusedMatMul"] == 1
    if platform.machine() in ("x86_64", "AMD64"):  # whose products of int8 and int8 are slow
        assert input_types(onnx, tmp_path / "optimized.onnx") == {"uint8"}

    stored = {t.name: onnx.numpy_helper.to_array(t) for t in
              onnx.load(tmp_path / "model.onnx").graph.initializer}  # fmt: skip
    for number in range(LAYERS):
        for name in LINEAR:
            for part in [f"{name}.{n}" for n in range(3)] if name == "qkv" else [name]:
                weight = stored[f"layers.{number}.{part}.weight"]
                assert weight.dtype == np.int8
                assert stored[f"layers.{number}.{part}.bias"].dtype == np.int32
                assert most_nonzeros(torch.from_numpy(weight.T.copy())) == 2
