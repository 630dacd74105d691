# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph as a list of PyTorch calls, with its linear layers and attention recognised.

The graph, not a copy of the model's code, says what is computed, as for every engine. Recognised
are

- DequantizeLinear of a stored int8 weight: a linear layer whose input is such too, in steps of one
  scale, is a product of int8 operands;
- softmax(q @ k / c + mask) @ v: one attention kernel. Where training rounded the probabilities,
  they are computed one by one.

What is no longer used then is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bertbench.common.errors import Unsupported
from bertbench.common.files import shown
from bertbench.common.model.config import BertConfig
from bertbench.engines.exported import OUTPUTS
from bertbench.engines.graph import is_linear, shared
from bertbench.engines.torch_ops import OPERATORS, attention, dequantized, quantized, rounded


@dataclass(frozen=True)
class Step:
    """One call: the values of ``inputs`` in, those of ``outputs`` out; ``last`` are dropped."""

    name: str
    function: Any
    """Of a linear layer, None until the plan is made."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...] = ()


class Scaled(NamedTuple):
    """An integer value and the scale that makes a number of it."""

    value: Any
    """The integers themselves, or the name of the value that has them."""
    scale: float


class Linear(NamedTuple):
    """A linear layer of the graph; tensors are on the host."""

    weight: Tensor
    """[out, in], int8 or float32."""
    bias: Tensor | None
    """[out], int32 or float32."""
    step: float | None
    """The scale of the sums of an INT8 layer."""
    encoder: bool
    """Whether it is one of the encoder's, and not the head."""


Make = Callable[[Linear], Callable[[Tensor], Tensor]]


class Plan:
    """The calls, in their order, and the stored values on the device."""

    def __init__(self, steps: list[Step], constants: dict[str, Tensor]) -> None:
        self._steps, self._constants = steps, constants
        self.operators = Counter(step.name for step in steps)

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the tensors named OUTPUTS, [B, L] each, from those named INPUTS."""
        values = {**self._constants, **inputs}
        for step in self._steps:
            found = step.function(*[values[name] if name else None for name in step.inputs])
            found = found if isinstance(found, tuple) else (found,)
            values.update(zip(step.outputs, found, strict=True))
            for name in step.last:
                del values[name]
        return [values[name] for name in OUTPUTS]


class Reader:
    """Reads an ONNX graph; ``layers`` then has its linear layers, and ``plan`` makes the plan."""

    def __init__(self, graph: Any, file: Path, config: BertConfig, dtype: torch.dtype) -> None:
        """Read ``graph`` (onnx.GraphProto) of ``file``.

        Raises Unsupported for an operator, or a use of one, that PyTorch is not called for here.
        """
        from onnx import numpy_helper

        self._file, self._config, self._dtype = file, config, dtype
        self._constants = {
            t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer
        }
        self._integers: dict[str, Scaled] = {}
        self._made_by = {name: node for node in graph.node for name in node.output}
        self._steps: list[Step] = []
        self.layers: dict[str, Linear] = {}
        """By the name of the result."""
        for node in graph.node:
            try:
                self._read(node)
            except (KeyError, ValueError, TypeError, RuntimeError, AssertionError) as error:
                where = f"{node.op_type} {shown(node.name or node.output[0], 60)}"
                raise self._refusal(f"{where}: {type(error).__name__}: {error}") from error

    def _refusal(self, text: str) -> Unsupported:
        return Unsupported(
            f"{self._file}: engine torch cannot compute {shown(text)}: use --engine onnxruntime"
        )

    def _read(self, node: Any) -> None:
        attributes = _attributes(node)
        if node.op_type == "Constant":
            self._constants[node.output[0]] = attributes["value"]
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            self._read_scaled(node)
        elif node.op_type not in OPERATORS:
            raise self._refusal(f"the operator {shown(node.op_type, 60)}")
        elif (layer := self._linear(node, attributes)) is not None:
            self.layers[node.output[0]] = layer
            source = self._float(node.input[0])
            if layer.step is not None:
                source = self._integers[source].value
            self._add(node.op_type if layer.step is None else "Int8Linear", None, [source], node)
        elif (fused := self._attention(node)) is not None:
            self._add("Attention", *fused, node)
        else:
            function = partial(OPERATORS[node.op_type], attributes | {"dtype": self._dtype})
            inputs = [self._float(name) for name in node.input]
            if all(name in self._constants for name in inputs if name):
                found = function(*[self._constants[name] if name else None for name in inputs])
                found = found if isinstance(found, tuple) else (found,)
                self._constants.update(zip(node.output, found, strict=True))
            else:
                self._add(node.op_type, function, inputs, node)

    def _add(self, name: str, function: Any, inputs: list[str], node: Any) -> None:
        self._steps.append(Step(name, function, tuple(inputs), tuple(node.output)))

    def _read_scaled(self, node: Any) -> None:
        """Read QuantizeLinear or DequantizeLinear with one scale and no zero point."""
        source, scale, *zero = node.input
        if self._constants[scale].numel() != 1 or any(
            self._constants[name].count_nonzero() for name in zero if name
        ):
            raise ValueError("it has several scales, or a zero point")
        step = float(self._constants[scale])
        if node.op_type == "QuantizeLinear":
            if not zero or self._constants[zero[0]].dtype != torch.int8:
                raise ValueError("it does not round to int8")
            self._add(node.op_type, partial(quantized, step), [self._float(source)], node)
            return
        stored = self._constants.get(source)
        self._integers[node.output[0]] = Scaled(source if stored is None else stored, step)
        if stored is None:
            self._add(node.op_type, partial(dequantized, step, self._dtype), [source], node)

    def _float(self, name: str) -> str:
        """Return ``name``, after stored integers with a scale have become numbers."""
        known = self._integers.get(name)
        if known is not None and name not in self._constants and isinstance(known.value, Tensor):
            self._constants[name] = known.value * known.scale
        return name

    def _linear(self, node: Any, attributes: Mapping[str, Any]) -> Linear | None:
        """Return the linear layer that ``node`` is, or None."""
        plain = all(attributes.get(name, 1.0) == 1 for name in ("alpha", "beta"))
        if node.op_type not in ("MatMul", "Gemm") or not plain or attributes.get("transA"):
            return None
        source, weight, bias = (*node.input, "")[:3]
        stored = self._integers.get(weight, Scaled(self._constants.get(weight), 1.0))
        if not isinstance(stored.value, Tensor) or stored.value.dim() != 2:
            return None
        values: Tensor = stored.value if attributes.get("transB") else stored.value.T
        step = self._int8_step(source, stored, bias)
        if step is None and stored.scale != 1.0:
            values = values * stored.scale
        added = None
        if bias:
            stored_bias = step is not None
            added = (
                self._integers[bias].value if stored_bias else self._constants[self._float(bias)]
            )
        encoder = is_linear(tuple(values.shape), self._config)
        return Linear(values.contiguous(), added, step, encoder)

    def _int8_step(self, source: str, weight: Scaled, bias: str) -> float | None:
        """Return the scale of the sums where operands are int8 and the bias int32, else None."""
        x = self._integers.get(source)
        if x is None or isinstance(x.value, Tensor) or weight.value.dtype != torch.int8:
            return None
        step, added = x.scale * weight.scale, self._integers.get(bias)
        if bias and (
            added is None
            or isinstance(added.value, str)
            or added.value.dtype != torch.int32
            or not math.isclose(added.scale, step, rel_tol=1e-6)
        ):
            return None
        return step

    def _attention(self, node: Any) -> tuple[Any, list[str]] | None:
        """Return function and inputs of softmax(q @ k / c + mask) @ v, or None."""
        if node.op_type != "MatMul":
            return None
        softmax = self._maker(node.input[0], "Softmax")
        if softmax is not None and _attributes(softmax).get("axis", -1) != -1:
            return None
        added = softmax and self._maker(softmax.input[0], "Add")
        for scores, mask in (added.input, added.input[::-1]) if added else ():
            divided = self._maker(scores, "Div")
            product = divided and self._maker(divided.input[0], "MatMul")
            if product and divided.input[1] in self._constants:
                scale = 1 / float(self._constants[divided.input[1]])
                return partial(attention, scale), [*product.input, mask, node.input[1]]
        return None

    def _maker(self, name: str, operator: str) -> Any:
        """Return the node that makes ``name`` if it is such an operator, else None."""
        node = self._made_by.get(name)
        return node if node is not None and node.op_type == operator else None

    def counts(self) -> dict[str, Any]:
        """Return ``linear_int8``, ``linear_float`` and ``int8_share`` as in ``Engine.describe``."""
        encoder = [layer for layer in self.layers.values() if layer.encoder]
        integer = sum(layer.step is not None for layer in encoder)
        counts = {"linear_int8": integer, "linear_float": len(encoder) - integer}
        return counts | shared(**counts)

    def plan(self, make: Make, device: torch.device) -> Plan:
        """Return the plan of the needed calls; ``make`` builds the linear layers."""
        needed, kept = set(OUTPUTS), list[Step]()
        for step in reversed(self._rounding_at_once()):
            if needed.isdisjoint(step.outputs):
                continue
            # A value is dropped after its last use, which is the first from the end; so are
            # outputs that are never used.
            own = dict.fromkeys((*step.inputs, *step.outputs))
            last = [n for n in own if n and n not in needed and n not in self._constants]
            needed.update(step.inputs)
            kept.append(replace(step, last=tuple(n for n in last if n in self._made_by)))
        steps = [
            step if step.function else replace(step, function=make(self.layers[step.outputs[0]]))
            for step in reversed(kept)
        ]
        constants = {
            name: self._placed(value, device)
            for name, value in self._constants.items()
            if name in needed
        }
        return Plan(steps, constants)

    def _rounding_at_once(self) -> list[Step]:
        """Return the steps; one that rounds is in the place of two whose integers nobody uses."""
        uses = Counter(name for step in self._steps for name in step.inputs)
        makers = {step.outputs[0]: step for step in self._steps if step.name == "QuantizeLinear"}
        steps = []
        for step in self._steps:
            maker = makers.get(step.inputs[0]) if step.name == "DequantizeLinear" else None
            if maker is not None and uses[step.inputs[0]] == 1:
                both = partial(rounded, maker.function.args[0], step.function.args[0])
                step = Step("Round", both, maker.inputs, step.outputs)
            steps.append(step)
        return steps

    def _placed(self, value: Tensor, device: torch.device) -> Tensor:
        """Return a stored value where it is used: shapes and positions on the host."""
        if value.dtype == torch.int64:
            return value
        return value.to(device, self._dtype if value.is_floating_point() else None)


def _attributes(node: Any) -> dict[str, Any]:
    """Return a node's attributes; texts as str, tensors as PyTorch's."""
    from onnx import TensorProto, helper, numpy_helper

    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    for name, value in found.items():
        if isinstance(value, bytes):
            found[name] = value.decode()
        elif isinstance(value, TensorProto):
            found[name] = torch.from_numpy(numpy_helper.to_array(value).copy())
    return found
