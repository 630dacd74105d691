# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: the processor by default, and every execution provider that its wheel has."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from bertbench.common.config.parser import did_you_mean
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.files import why
from bertbench.engines import exact
from bertbench.engines.base import CPU, Batch, Engine, EngineOptions, FloatArray, require_int8
from bertbench.engines.exported import INPUTS, OUTPUTS, Exported
from bertbench.engines.graph import linear_layers

_SUFFIX = "ExecutionProvider"
WHEELS = {
    "CUDA": "onnxruntime-gpu",
    "Tensorrt": "onnxruntime-gpu",
    "NvTensorRTRTX": "onnxruntime-trt-rtx",
    "MIGraphX": "onnxruntime-migraphx",
    "ROCM": "onnxruntime-rocm",
    "OpenVINO": "onnxruntime-openvino",
    "CANN": "onnxruntime-cann",
    "QNN": "onnxruntime-qnn",
    "Dml": "onnxruntime-directml",
    "WebGpu": "onnxruntime-webgpu",
    "VitisAI": "onnxruntime-vitisai",
}
"""Provider -> the wheel that has it; others need a build from source."""
_PRODUCTS = ("MatMul", "Gemm", "Conv", "Attention")
_UNKNOWN: dict[str, Any] = dict.fromkeys(("linear_int8", "linear_float", "int8_share", "operators"))


class OnnxRuntime(Engine):
    """One session; its optimized graph is read back, so that no fallback goes unnoticed."""

    name, package, extra = "onnxruntime", "onnxruntime", "onnx"

    def __init__(self, session: Any, facts: dict[str, Any]) -> None:
        self._session, self._facts = session, facts

    @classmethod
    def check(cls, options: EngineOptions) -> None:
        """Raise Unsupported or BadInput for a provider that this wheel lacks, or is unknown."""
        _provider(cls.module(), options.provider)

    @classmethod
    def load(cls, exported: Exported, options: EngineOptions) -> OnnxRuntime:
        """As Engine; raises BadInput for a model or an option that the provider refuses."""
        runtime = cls.module()
        provider = _provider(runtime, options.provider)
        own = _own_options(provider, exported, options) | dict(options.provider_options)
        entries = {}
        if exported.quantization == "int8" and provider == CPU + _SUFFIX:
            entries = _exact_sums(runtime)
        with tempfile.TemporaryDirectory(prefix="bertbench-") as folder:
            graph = Path(folder) / "optimized.onnx"
            session = _session(runtime, exported, options, (provider, own), graph, entries)
            found = linear_layers(graph, exported.model) if graph.is_file() else _UNKNOWN
        _check_provider(session, provider)
        _check_names(session, exported)
        facts = {
            "version": runtime.__version__,
            "provider": provider.removesuffix(_SUFFIX),
            "provider_options": own,
            "session_options": entries,
            "num_threads": options.num_threads,
            "device": None if provider == CPU + _SUFFIX else provider.removesuffix(_SUFFIX),
            **found,
        }
        require_int8(
            cls.name, exported, facts,
            "its biases must be int32 with the scale of input x weight, and the provider must have "
            "INT8 products: CPU and TensorRT have, CUDA alone has not",
        )  # fmt: skip
        return cls(session, facts)

    def run(self, batch: Batch) -> tuple[FloatArray, FloatArray]:
        start, end = self._session.run(OUTPUTS, dict(zip(INPUTS, batch, strict=True)))
        return start, end

    def describe(self) -> dict[str, Any]:
        return self._facts


def _provider(runtime: ModuleType, name: str) -> str:
    """Return ONNX Runtime's own name; raises where this wheel lacks it."""
    known = {p.removesuffix(_SUFFIX) for p in runtime.get_all_providers()} | WHEELS.keys()
    present = [p.removesuffix(_SUFFIX) for p in runtime.get_available_providers()]
    spelt = {p.lower(): p for p in (*known, *present)}
    short = name.lower().removesuffix(_SUFFIX.lower())
    found = spelt.get(short)
    if found in present:
        return f"{found}{_SUFFIX}"
    has = f"this onnxruntime {runtime.__version__} has {', '.join(present)}"
    if found is None:
        hint = did_you_mean(short, spelt)
        raise BadInput(f"--provider {name}: ONNX Runtime has no such provider{hint}; {has}")
    wheel = WHEELS.get(found)
    fix = f"pip install {wheel} in the place of onnxruntime" if wheel else "build it from source"
    raise Unsupported(f"--provider {name} is not in this build; {has}. To get it: {fix}")


def _own_options(provider: str, exported: Exported, options: EngineOptions) -> dict[str, str]:
    """Return the options that a provider needs for this model."""
    if provider != f"Tensorrt{_SUFFIX}":
        return {}
    # Without a profile of shapes TensorRT builds a new engine inside the timed run.
    shapes = {
        "min": (1, 1),
        "opt": (options.max_batch, options.max_length),
        "max": (options.max_batch, options.max_length),
    }
    found = {
        f"trt_profile_{kind}_shapes": ",".join(f"{n}:{rows}x{columns}" for n in INPUTS)
        for kind, (rows, columns) in shapes.items()
    }
    if exported.quantization == "int8":
        found["trt_int8_enable"] = "1"
    if exported.weight_sparsity == "2:4":
        found["trt_sparsity_enable"] = "1"
    return found


def _session(
    runtime: ModuleType,
    exported: Exported,
    options: EngineOptions,
    provider: tuple[str, dict[str, str]],
    graph: Path,
    entries: dict[str, str],
) -> Any:
    """Return a session that has written its optimized graph, where the provider keeps one."""
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = options.num_threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    settings.optimized_model_filepath = str(graph)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", "weights.bin"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("session.record_ep_graph_assignment_info", "1"),
        *entries.items(),
    ):
        settings.add_session_config_entry(key, value)
    try:
        try:
            return runtime.InferenceSession(str(exported.onnx), settings, providers=[provider])
        except Exception as error:
            if "compiled" not in str(error).lower():
                raise
            # A provider that compiles parts of the graph cannot write it; its facts are unknown.
            settings.optimized_model_filepath = ""
            return runtime.InferenceSession(str(exported.onnx), settings, providers=[provider])
    except Exception as error:
        again = ""
        if "existing tensor" in str(error):  # of zero points that nodes share
            again = " Export the run again: older exports do not fit its exact mode."
        raise BadInput(f"{exported.onnx}: ONNX Runtime refuses it: {why(error)}.{again}") from error


def _exact_sums(runtime: ModuleType) -> dict[str, str]:
    """Return the session's options that make INT8 sums exact on this processor: none with VNNI.

    Raises Unsupported where no option does.
    """
    for entries in ({}, {"session.x64quantprecision": "1"}):
        settings = runtime.SessionOptions()
        for key, value in entries.items():
            settings.add_session_config_entry(key, value)
        session = runtime.InferenceSession(exact.graph(), settings, providers=[CPU + _SUFFIX])
        if exact.is_exact(session.run(exact.NAMES, exact.given())):
            return entries
    raise Unsupported(
        f"ONNX Runtime {runtime.__version__} clips INT8 sums at 16 bits on this processor, which "
        f"has no VNNI: its answers would be wrong. Use a newer ONNX Runtime or another processor"
    )


def _check_provider(session: Any, provider: str) -> None:
    """Refuse a session on another provider: one whose libraries are missing falls back silently."""
    if session.get_providers()[0] != provider:
        raise Unsupported(
            f"{provider} could not start, and ONNX Runtime fell back to "
            f"{', '.join(session.get_providers())}: install the vendor's libraries that it needs"
        )
    if provider == CPU + _SUFFIX:
        return
    fallen = Counter(
        node.op_type
        for part in _assigned(session)
        if part.ep_name == CPU + _SUFFIX
        for node in part.get_nodes()
        if any(word in node.op_type for word in _PRODUCTS)
    )
    if fallen:
        listed = ", ".join(f"{number} {name}" for name, number in fallen.items())
        raise Unsupported(f"{provider} leaves matrix products to the processor: {listed}")


def _assigned(session: Any) -> Iterable[Any]:
    """Return the parts of the graph with their provider; none before ONNX Runtime 1.24."""
    known = getattr(session, "get_provider_graph_assignment_info", None)
    return known() if known is not None else ()


def _check_names(session: Any, exported: Exported) -> None:
    """Raise BadInput where inputs or outputs are not those of an exported model."""
    for kind, expected, found in (
        ("inputs", INPUTS, session.get_inputs()),
        ("outputs", OUTPUTS, session.get_outputs()),
    ):
        names = [value.name for value in found]
        if sorted(names) != sorted(expected):
            raise BadInput(
                f"{exported.onnx}: its {kind} are {', '.join(names)}, not {', '.join(expected)}: "
                f"export the model again"
            )
