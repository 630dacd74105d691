# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: Intel's processors and GPUs, and Arm's processors."""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import Any

import numpy as np

from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.files import why
from bertbench.engines import exact
from bertbench.engines.base import CPU, Batch, Engine, EngineOptions, FloatArray, require_int8
from bertbench.engines.exported import INPUTS, OUTPUTS, Exported
from bertbench.engines.graph import is_linear, shared

_INTEGER = ("i8", "u8")


class OpenVino(Engine):
    """One compiled model with one request; floating point is FP32 unless an option says else."""

    name, package, extra = "openvino", "openvino", "openvino"

    def __init__(self, compiled: Any, facts: dict[str, Any]) -> None:
        self._request, self._facts = compiled.create_infer_request(), facts

    @classmethod
    def check(cls, options: EngineOptions) -> None:
        """Raise Unsupported for a device that OpenVINO does not find here."""
        _device(cls.module(), options.provider)

    @classmethod
    def load(cls, exported: Exported, options: EngineOptions) -> OpenVino:
        """As Engine; raises BadInput for a model or an option that OpenVINO refuses."""
        openvino = cls.module()
        core, device = openvino.Core(), _device(openvino, options.provider)
        own = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else bf16 where the processor has it
            **({"INFERENCE_NUM_THREADS": str(options.num_threads)} if device == CPU else {}),
            **options.provider_options,
        }
        try:
            model = core.read_model(str(exported.onnx))
            compiled = core.compile_model(model, device, own)
        except RuntimeError as error:
            raise BadInput(f"{exported.onnx}: OpenVINO refuses it: {why(error)}") from error
        if exported.quantization == "int8":
            _check_sums(core, device, own)
        names = {name for port in (*model.inputs, *model.outputs) for name in port.names}
        if missing := [name for name in (*INPUTS, *OUTPUTS) if name not in names]:
            raise BadInput(
                f"{exported.onnx}: it lacks {', '.join(missing)}: export the model again"
            )
        facts = {
            "version": openvino.__version__,
            "provider": device,
            "provider_options": own,
            "num_threads": options.num_threads,
            "device": None if device == CPU else str(core.get_property(device, "FULL_DEVICE_NAME")),
            **_linear_layers(compiled, exported),
        }
        require_int8(cls.name, exported, facts, "this device lacks INT8 products for them")
        return cls(compiled, facts)

    def run(self, batch: Batch) -> tuple[FloatArray, FloatArray]:
        self._request.infer(dict(zip(INPUTS, batch, strict=True)))
        # Copies: the request's own memory is the next batch's.
        start, end = (np.array(self._request.get_tensor(name).data) for name in OUTPUTS)
        return start, end

    def describe(self) -> dict[str, Any]:
        return self._facts


def _check_sums(core: Any, device: str, own: dict[str, str]) -> None:
    """Raise Unsupported where the device's INT8 sums are not exact."""
    found = core.compile_model(core.read_model(exact.graph()), device, own)(exact.given())
    if not exact.is_exact([found[name] for name in exact.NAMES]):
        raise Unsupported(
            f"OpenVINO's INT8 sums on {device} are clipped at 16 bits, as on processors without "
            f"VNNI: the answers would be wrong. Use --engine onnxruntime, which has an exact mode"
        )


def _device(openvino: ModuleType, name: str) -> str:
    present = [str(device) for device in openvino.Core().available_devices]
    if name.upper() in present:
        return name.upper()
    raise Unsupported(f"--provider {name}: OpenVINO finds {', '.join(present)} here")


def _linear_layers(compiled: Any, exported: Exported) -> dict[str, Any]:
    """Return the facts on the compiled graph; unknown ones where a device does not describe it."""
    counts, operators = {"linear_int8": 0, "linear_float": 0}, Counter[str]()
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        kind, precision = (_text(facts, key) for key in ("layerType", "runtimePrecision"))
        operators[kind] += 1
        if kind == "FullyConnected":
            weight = node.input(1).get_partial_shape()
            if weight.is_static and is_linear(tuple(weight.to_shape()), exported.model):
                counts["linear_int8" if precision in _INTEGER else "linear_float"] += 1
    if not sum(counts.values()):  # another device's graph has other names
        return dict.fromkeys((*counts, "int8_share", "operators"))
    return counts | shared(**counts) | {"operators": dict(sorted(operators.items()))}


def _text(facts: Any, key: str) -> str:
    if key not in facts:
        return "unknown"
    value = facts[key]
    return str(value.astype(str) if hasattr(value, "astype") else value)
