# SPDX-License-Identifier: Apache-2.0
"""PyTorch on any backend of bertbench: the only engine for devices that others have no build for.

Linear layers of an INT8 model are products of int8 operands (``torch._int_mm``); 2:4 weights go to
torch's semi-structured kernels (cuSPARSELt) where the device has them. Both are tried on the device
and compared with the host's exact sums before they are used. Written from torch's documents for
GPUs, and run on processors only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertbench.backends import probing, registry
from bertbench.backends.base import Backend
from bertbench.common.compress.pruning import KEPT, most_nonzeros
from bertbench.common.config.parser import did_you_mean
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.files import why
from bertbench.engines.base import Batch, Engine, EngineOptions, FloatArray, require_int8
from bertbench.engines.exported import INPUTS, OUTPUTS, Exported
from bertbench.engines.torch_graph import Linear, Reader
from bertbench.engines.torch_ops import FloatLinear, Int8Linear

CPU, HOST = "CPU", "cpu_ref"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPTIONS = {"precision": tuple(DTYPES), "sparse": ("on", "off")}
HOST_TOKENS = 512
"""Of the parts in which a processor computes a batch: their activations stay in its cache."""
_TRIAL_ROWS, _TOLERANCE = 32, 2.0**-6
"""The tolerance of a 16-bit product is relative to its largest value."""


class Torch(Engine):
    """The exported graph, called operator by operator; nothing is compiled."""

    name, package, extra = "torch", "onnx", "onnx"

    def __init__(
        self, backend: Backend, plan: Callable[[dict[str, Tensor]], list[Tensor]],
        facts: dict[str, Any],
    ) -> None:  # fmt: skip
        self._device, self._plan, self._facts = backend.device, plan, facts
        self._host = backend.name == HOST

    @classmethod
    def check(cls, options: EngineOptions) -> None:
        """Raise Unsupported or BadInput for a backend that cannot run here, or is unknown."""
        cls.module()
        _given(options)
        name = _backend(options.provider)
        if name != HOST:
            answer = probing.examine([name])[name]
            if not answer["ok"]:
                raise Unsupported(f"--provider {name} cannot run here: {answer['reason']}")

    @classmethod
    def load(cls, exported: Exported, options: EngineOptions) -> Torch:
        """As Engine; raises BadInput for a file that is no model."""
        onnx, given = cls.module(), _given(options)
        torch.set_num_threads(options.num_threads)
        backend = registry.load(_backend(options.provider))(0)
        precision = _precision(backend, given["precision"])
        numerics = backend.verify_precision(precision)  # which sets the switches of TF32, too
        try:
            graph = onnx.load(str(exported.onnx)).graph
        except Exception as error:  # of protobuf, or a file of weights that is missing
            raise BadInput(f"{exported.onnx}: onnx cannot read it: {why(error)}") from error
        _check_names(graph, exported)
        dtype = DTYPES[precision]
        with torch.no_grad():
            reader = Reader(graph, exported.onnx, exported.model, dtype)
            make = partial(_make, backend.device, dtype)
            require_int8(cls.name, exported, reader.counts(), "export the model again")
            layers = [layer for layer in reader.layers.values() if layer.encoder]
            _check_int8(backend, layers, make)
            sparse, why_not = _sparse(
                backend, exported, layers, make, precision, given.get("sparse")
            )
            plan = reader.plan(lambda layer: make(layer, sparse=sparse), backend.device)
        facts = {
            "version": torch.__version__,
            "provider": CPU if backend.name == HOST else backend.name,
            "provider_options": dict(options.provider_options),
            "num_threads": torch.get_num_threads(),
            "device": None if backend.name == HOST else backend.describe().name,
            "precision": precision,
            "numerics": numerics,
            "attention": "scaled_dot_product_attention" if plan.operators["Attention"]
            else "float over int8-rounded values" if plan.operators["Round"] else "float",
            "sparse_kernels": sparse,
            "sparse_kernels_why_not": why_not,
            **reader.counts(),
            "operators": dict(sorted(plan.operators.items())),
        }  # fmt: skip
        return cls(backend, plan, facts)

    @torch.no_grad()
    def run(self, batch: Batch) -> tuple[FloatArray, FloatArray]:
        rows, length = batch.input_ids.shape
        size = max(1, HOST_TOKENS // length) if self._host else rows
        parts = []
        for first in range(0, rows, size):
            inputs = (torch.from_numpy(array[first : first + size]) for array in batch)
            found = self._plan({n: x.to(self._device) for n, x in zip(INPUTS, inputs, strict=True)})
            parts.append([x.float().cpu().numpy() for x in found])
        start, end = (np.concatenate(logits) for logits in zip(*parts, strict=True))
        return start, end

    def describe(self) -> dict[str, Any]:
        return self._facts


def _given(options: EngineOptions) -> dict[str, str]:
    """Return the options with their defaults; raises BadInput for others than OPTIONS."""
    for name, value in options.provider_options.items():
        if name not in OPTIONS:
            hint = did_you_mean(name, OPTIONS)
            raise BadInput(
                f"--provider_option {name}: engine torch has no such option{hint}; it has "
                f"{', '.join(OPTIONS)}"
            )
        if value not in OPTIONS[name]:
            raise BadInput(
                f"--provider_option {name}={value}: choose from {', '.join(OPTIONS[name])}"
            )
    return {"precision": "fp32"} | dict(options.provider_options)


def _backend(provider: str) -> str:
    """Return the backend's name; CPU is each engine's name for the host's processor."""
    known = {CPU.lower(): HOST} | {name: name for name in registry.names()}
    found = known.get(provider.lower())
    if found is None:
        hint = did_you_mean(provider, known)
        raise BadInput(
            f"--provider {provider}: bertbench has no such backend{hint}; it has {CPU}, "
            f"{', '.join(registry.names())}"
        )
    return found


def _precision(backend: Backend, name: str) -> str:
    """Return ``name``; raises Unsupported where the device does not compute in it."""
    found = backend.capabilities
    if name not in found.precisions:
        reason = found.notes.get(name, "unknown to this backend")
        have = [precision for precision in OPTIONS["precision"] if precision in found.precisions]
        raise Unsupported(
            f"--provider_option precision={name}: {backend.name} has no {name} ({reason}); it has "
            f"{', '.join(have)}"
        )
    return name


def _check_names(graph: Any, exported: Exported) -> None:
    """Raise BadInput where inputs or outputs are not those of an exported model."""
    for kind, expected, found in (
        ("inputs", INPUTS, graph.input),
        ("outputs", OUTPUTS, graph.output),
    ):
        names = [value.name for value in found]
        if sorted(names) != sorted(expected):
            raise BadInput(
                f"{exported.onnx}: its {kind} are {', '.join(names)}, not {', '.join(expected)}: "
                f"export the model again"
            )


def _make(
    device: torch.device, dtype: torch.dtype, layer: Linear, *, sparse: bool
) -> FloatLinear | Int8Linear:
    """Return a layer on the device; only the encoder's may be sparse."""
    sparse = sparse and layer.encoder
    weight, bias = layer.weight.to(device), layer.bias
    bias = None if bias is None else bias.to(device)
    if layer.step is not None:
        return Int8Linear(weight, bias, layer.step, dtype, sparse=sparse)
    bias = None if bias is None else bias.to(dtype)
    return FloatLinear(weight.to(dtype), bias, sparse=sparse)


Maker = Callable[..., FloatLinear | Int8Linear]


def _check_int8(backend: Backend, layers: list[Linear], make: Maker) -> None:
    """Raise Unsupported where the device has no correct product of int8 operands."""
    for layer in _shapes([layer for layer in layers if layer.step is not None]):
        reason = _problem(backend.device, layer, make, sparse=False)
        if reason is not None:
            raise Unsupported(
                f"{backend.name}: torch._int_mm with weights {list(layer.weight.shape)}: {reason}. "
                f"Use another --engine, or export a model without --quantization"
            )


def _sparse(
    backend: Backend,
    exported: Exported,
    layers: list[Linear],
    make: Maker,
    precision: str,
    asked: str | None,
) -> tuple[bool, str | None]:
    """Return whether 2:4 kernels are used, and why not; raises Unsupported if they are asked for.

    Raises BadInput for weights that are not 2:4 though the export says so.
    """
    if asked == "off":
        return False, "sparse=off"
    reason = None
    if exported.weight_sparsity is None:
        reason = "the model's weights are dense"
    else:
        if any(most_nonzeros(layer.weight) > KEPT for layer in layers):
            raise BadInput(
                f"{exported.onnx}: a weight has more than {KEPT} nonzeros in four, though the "
                f"export says 2:4: export the model again"
            )
        problems = (_problem(backend.device, x, make, sparse=True) for x in _shapes(layers))
        reason = next(filter(None, problems), None)
        if reason is None and precision == "fp32" and any(x.step is None for x in layers):
            reason = "they are not exact in float32: choose precision=bf16 or fp16"
    if reason is not None and asked == "on":
        raise Unsupported(f"sparse=on: {backend.name} cannot use 2:4 kernels: {reason}")
    return reason is None, reason


def _shapes(layers: list[Linear]) -> Iterator[Linear]:
    """Yield one layer of each shape."""
    yield from {layer.weight.shape: layer for layer in layers}.values()


def _problem(device: torch.device, layer: Linear, make: Maker, *, sparse: bool) -> str | None:
    """Try a product with the layer's weights; return why it cannot be used, or None."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (_TRIAL_ROWS, layer.weight.shape[1]), generator=generator)
    exact = x.double() @ layer.weight.double().T
    try:
        made = make(layer, sparse=sparse)
        kind = torch.int8 if isinstance(made, Int8Linear) else made.weight.dtype
        found = made.product(x.to(device, kind)).cpu().double()
    except Exception as error:  # whatever a device may raise, it is the reason
        return why(error).partition(". ")[0]
    bound = 0.0 if layer.step is not None else _TOLERANCE * float(exact.abs().max())
    off = float((found - exact).abs().max())
    return None if off <= bound else f"its results are off by {off:.2g}"
