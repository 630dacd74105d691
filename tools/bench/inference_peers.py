# SPDX-License-Identifier: Apache-2.0
"""What users quantize the same model with otherwise, for bench_inference.py.

All start from Hugging Face's model with the same weights, exported by torch, and run as their
documents advise: default options, symmetric padding of the batch, the same number of threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.inference_models import SHAPES, model_of
from bench.steps import PEER_MISSING, Step, peer_available, peer_config
from bertbench.common.files import why
from bertbench.common.measure.code import code_hash
from bertbench.common.model.weights import export_state_dict
from bertbench.engines.base import Batch

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("start_logits", "end_logits")
INT8 = {
    "ORT dynamic": "onnxruntime.quantization.quantize_dynamic",
    "ORT dynamic, fused": "the same after onnxruntime.transformers.optimizer",
    "ORT static": "onnxruntime.quantization.quantize_static: QDQ, per tensor, MinMax",
    "NNCF": "nncf.quantize, model_type TRANSFORMER, on OpenVINO",
    "Optimum ORT": "optimum.onnxruntime.ORTQuantizer, avx512_vnni, dynamic",
}
"""Name -> how it quantizes."""
FP32 = {
    "Transformers FP32, ORT": "Hugging Face's model after onnxruntime.transformers.optimizer",
}


class Peers:
    """The peers of one shape on ``batches``; their models are written once, as ours are."""

    def __init__(self, shape: str, batches: list[Batch], threads: int, models: Path) -> None:
        self._shape, self._threads = shape, threads
        self._folder = models / f"{shape}-peers-{_state()}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._inputs = [dict(zip(INPUTS, batch, strict=True)) for batch in batches]
        self._makers: Mapping[str, Callable[[], Step]] = {
            "Transformers FP32, ORT": lambda: self._session(self._fused()),
            "ORT dynamic": lambda: self._session(self._dynamic(self._plain())),
            "ORT dynamic, fused": lambda: self._session(self._dynamic(self._fused())),
            "ORT static": lambda: self._session(self._static()),
            "NNCF": self._nncf,
            "Optimum ORT": lambda: self._session(self._optimum()),
        }

    def make(self, names: Mapping[str, str]) -> tuple[dict[str, Step], dict[str, str]]:
        """Return a turn over all batches for each name, and the reasons of those that lack one."""
        steps: dict[str, Step] = {}
        reasons: dict[str, str] = {}
        for name in names:
            try:
                with quiet():
                    steps[name] = self._makers[name]()
            except Exception as error:  # a package of other people's, in any state
                reasons[name] = why(error)
        return steps, reasons

    # -- models -----------------------------------------------------------------------------------
    def _plain(self) -> Path:
        """Return Hugging Face's model as ONNX; the older exporter's graph is the one ORT fuses."""
        if not peer_available():
            raise ModuleNotFoundError(PEER_MISSING)
        file = self._folder / "plain.onnx"
        if not file.is_file():
            sample = tuple(torch.ones(2, 32, dtype=torch.int64) for _ in INPUTS)
            axes = {0: "batch", 1: "length"}
            torch.onnx.export(
                _Logits(self._shape).eval(), sample, str(file), input_names=INPUTS,
                output_names=OUTPUTS, opset_version=17, dynamo=False,
                dynamic_axes=dict.fromkeys((*INPUTS, *OUTPUTS), axes),
            )  # fmt: skip
        return file

    def _fused(self) -> Path:
        """Return it with ONNX Runtime's fused attention, embeddings and layer normalization."""
        from onnxruntime.transformers import optimizer

        file = self._folder / "fused.onnx"
        if not file.is_file():
            config = SHAPES[self._shape]
            found = optimizer.optimize_model(
                str(self._plain()), model_type="bert", num_heads=config.num_attention_heads,
                hidden_size=config.hidden_size, opt_level=0,
            )  # fmt: skip
            if found.get_fused_operator_statistics()["Attention"] != config.num_hidden_layers:
                raise RuntimeError("its optimizer did not recognise the model's attention")
            found.save_model_to_file(str(file))
        return file

    def _dynamic(self, source: Path) -> Path:
        from onnx import TensorProto
        from onnxruntime.quantization import quantize_dynamic

        file = source.with_name(f"{source.stem}-dynamic.onnx")
        if not file.is_file():
            # Its shape inference does not know the types behind fused operators.
            quantize_dynamic(source, file, extra_options={"DefaultTensorType": TensorProto.FLOAT})
        return file

    def _static(self) -> Path:
        from onnxruntime.quantization import CalibrationDataReader, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self, inputs: list[dict[str, Any]]) -> None:
                self._left = iter(inputs)

            def get_next(self) -> dict[str, Any] | None:
                return next(self._left, None)

        prepared, file = (self._folder / f"{name}.onnx" for name in ("prepared", "static"))
        if not file.is_file():
            quant_pre_process(str(self._plain()), str(prepared), skip_symbolic_shape=True)
            quantize_static(prepared, file, Reader(self._short()))
        return file

    def _optimum(self) -> Path:
        _need("optimum.onnxruntime", "optimum-onnx")
        from optimum.onnxruntime import ORTQuantizer
        from optimum.onnxruntime.configuration import AutoQuantizationConfig

        source = self._folder / "optimum"
        source.mkdir(exist_ok=True)
        peer_config(SHAPES[self._shape], "eager").save_pretrained(source)
        (source / "model.onnx").symlink_to(self._plain().resolve())
        ORTQuantizer.from_pretrained(source, file_name="model.onnx").quantize(
            save_dir=source,
            quantization_config=AutoQuantizationConfig.avx512_vnni(
                is_static=False, per_channel=False
            ),
        )
        return source / "model_quantized.onnx"

    def _short(self) -> list[dict[str, Any]]:
        """Return a few sequences for calibration; the speed does not depend on the scales."""
        return [{name: x[:1, :64] for name, x in inputs.items()} for inputs in self._inputs[:2]]

    # -- engines ----------------------------------------------------------------------------------
    def _session(self, file: Path) -> Step:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        return lambda: [session.run(OUTPUTS, inputs) for inputs in self._inputs]

    def _nncf(self) -> Step:
        _need("openvino", "openvino")
        _need("nncf", "nncf")
        import nncf
        import openvino

        core, file = openvino.Core(), self._folder / "nncf.xml"
        if not file.is_file():
            model = nncf.quantize(
                core.read_model(str(self._plain())), nncf.Dataset(self._short()),
                model_type=nncf.ModelType.TRANSFORMER, subset_size=2,
            )  # fmt: skip
            openvino.save_model(model, file, compress_to_fp16=False)
        options = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": str(self._threads),
        }  # fmt: skip
        request = core.compile_model(str(file), "CPU", options).create_infer_request()
        return lambda: [request.infer(inputs) for inputs in self._inputs]


class _Logits(nn.Module):
    """Hugging Face's model with the shape's weights, as a function of three tensors [B, L]."""

    def __init__(self, shape: str) -> None:
        import transformers

        super().__init__()
        own = model_of(shape)
        self.model = transformers.BertForQuestionAnswering(peer_config(own.config, "eager"))
        self.model.load_state_dict(export_state_dict(own))

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model(input_ids=ids, attention_mask=mask, token_type_ids=segments)
        return found.start_logits, found.end_logits


def _need(module: str, package: str) -> None:
    """Raise ModuleNotFoundError with the fix where a package is not installed."""
    with contextlib.suppress(ModuleNotFoundError):
        if find_spec(module) is not None:
            return
    raise ModuleNotFoundError(f"package {package} is not installed: pip install {package}")


def _state() -> str:
    """Return a hash of the sources and of the versions of the packages that make the models."""
    versions = {d.name: d.version for d in importlib.metadata.distributions()}
    text = code_hash() + json.dumps(versions, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the packages' messages off the output; their errors are raised."""
    level = logging.root.manager.disable
    with (
        warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # fmt: skip
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
