# SPDX-License-Identifier: Apache-2.0
"""A fine-tuned question-answering model over padded batches, as other engines compute it.

Inputs and outputs have the names of MLPerf's own reference model (mlcommons/inference,
language/bert). A quantised model has a pair of QuantizeLinear and DequantizeLinear where training
rounded; its weights are stored as int8, and its biases as int32 with the step of the sums that they
are added to, without which ONNX Runtime computes these layers in float32. Each use of a rounded
value has a pair of its own (``keep_apart``).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
import torch.nn.functional as F
from torch import Tensor, nn

from bertbench.common.compress.layers import LINEAR, TABLES, CompressedLayer
from bertbench.common.compress.quantizer import LEVELS, LOWEST, Quantizer
from bertbench.common.model.bert import BertEncoder, Layer

INPUTS = ("input_ids", "input_mask", "segment_ids")
OUTPUTS = ("output_start_logits", "output_end_logits")
_INT32 = 2**31 - 1
_Q = torch.ops.quantized_decomposed


class PaddedBert(nn.Module):
    """The same function of int64 [B, L] inputs: start and end logits, float32 [B, L]."""

    def __init__(self, encoder: BertEncoder, qa_outputs: nn.Linear) -> None:
        super().__init__()
        self.config = encoder.config
        self.tables = encoder.embeddings
        self.layers = nn.ModuleList(PaddedLayer(cast("Layer", layer)) for layer in encoder.layers)
        self.final_norm = getattr(encoder, "final_norm", None)
        known = getattr(encoder, "quantizers", {})
        self.round_output = Round(known["encoder_output"] if known else None)
        tables = getattr(encoder.embeddings, "quantizers", {})
        self.round_tables = nn.ModuleList(Round(tables[n] if tables else None) for n in TABLES)
        self.qa_outputs = qa_outputs

    def forward(
        self, input_ids: Tensor, input_mask: Tensor, segment_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        ids = input_ids, positions, segment_ids
        word, position, segment = (
            rounded(F.embedding(index, getattr(self.tables, name).weight))
            for name, index, rounded in zip(TABLES, ids, self.round_tables, strict=True)
        )
        x: Tensor = word + position + segment
        batch, length, size = x.shape
        # Two dimensions: ONNX has a product with a bias (Gemm) for these only.
        x = x.view(batch * length, size)
        if self.config.norm_position == "post":
            x = self.tables.norm(x)
        # Large enough for a probability of exactly 0 in float32, and within float16's range.
        hidden = (1.0 - input_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, hidden)
        if self.final_norm is not None:
            x = self.final_norm(x)
        logits = self.qa_outputs(self.round_output(x)).view(batch, length, 2)
        return logits[..., 0], logits[..., 1]


class PaddedLayer(nn.Module):
    """One encoder layer over [B * L, H]."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.config = layer.config
        self.attention_norm, self.output_norm = layer.attention_norm, layer.output_norm
        known = getattr(layer, "quantizers", None)

        def rounded(name: str, factor: float = 1.0) -> Round:
            return Round(None if known is None else known[name], factor)

        self.attention_output, self.intermediate, self.output = (
            Product.of(layer, name) for name in LINEAR[1:]
        )
        # Three products if quantised: each then rounds its own sums to int8 as it writes them.
        size = self.config.hidden_size
        rows = [slice(n * size, (n + 1) * size) for n in range(3)]
        self.qkv = nn.ModuleList(
            Product.of(layer, LINEAR[0], part)
            for part in ([slice(None)] if known is None else rows)
        )
        # q is read back in steps that are smaller by the scores' factor: L * L divisions less.
        factors = (1 / math.sqrt(self._head_size()), 1.0, 1.0)
        self.round_qkv = nn.ModuleList(
            rounded(name, factor) for name, factor in zip(("q", "k", "v"), factors, strict=True)
        )
        self.round_input = nn.ModuleDict({name: rounded(f"{name}_input") for name in LINEAR})
        self.round_probabilities = rounded("probabilities")
        self.round_added = nn.ModuleList(
            rounded(f"{where}_{what}")
            for where in ("attention", "output")
            for what in ("added", "residual")
        )

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return [B * L, H]; ``hidden`` [B, 1, 1, L] is added to the scores."""
        pre = self.config.norm_position == "pre"
        context = self._attention(self.attention_norm(x) if pre else x, hidden)
        out = self.attention_output(self.round_input["attention_output"](context))
        x = self._after(out, x, self.attention_norm, *self.round_added[:2])
        inner = self.round_input["intermediate"](self.output_norm(x) if pre else x)
        inner = F.gelu(self.intermediate(inner), approximate=self.config.approximate)
        out = self.output(self.round_input["output"](inner))
        return self._after(out, x, self.output_norm, *self.round_added[2:])

    def _attention(self, x: Tensor, hidden: Tensor) -> Tensor:
        batch, length = hidden.shape[0], hidden.shape[-1]
        size, heads = self.config.hidden_size, self.config.num_attention_heads
        x = self.round_input["qkv"](x)
        parts = [product(x) for product in self.qkv]
        if len(parts) == 1:
            parts = list(parts[0].split(size, dim=1))
        q, k, v = (
            rounded(part).view(batch, length, heads, size // heads).transpose(1, 2)
            for part, rounded in zip(parts, self.round_qkv, strict=True)
        )
        scores = q @ k.transpose(-1, -2)
        if len(self.qkv) == 1:
            scores = scores / math.sqrt(self._head_size())
        scores = scores + hidden
        context = self.round_probabilities(scores.softmax(-1)) @ v
        return context.transpose(1, 2).reshape(batch * length, size)

    def _head_size(self) -> int:
        return self.config.hidden_size // self.config.num_attention_heads

    def _after(
        self, x: Tensor, residual: Tensor, norm: nn.Module, added: nn.Module, kept: nn.Module
    ) -> Tensor:
        x = added(x) + kept(residual)
        return x if self.config.norm_position == "pre" else norm(x)


class Round(nn.Module):
    """A quantizer as QuantizeLinear and DequantizeLinear, times ``factor``; nothing without one."""

    def __init__(self, quantizer: Quantizer | None, factor: float = 1.0) -> None:
        super().__init__()
        self.scale = None if quantizer is None else float(quantizer.scale)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            return x
        limits = (0, LOWEST, LEVELS, torch.int8)
        steps = _Q.quantize_per_tensor(x, self.scale, *limits)
        return _Q.dequantize_per_tensor(steps, self.scale * self.factor, *limits)


class Product(nn.Module):
    """x @ weight + bias with a stored weight [in, out], int8 or float32."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, steps: tuple[float, float] | None) -> None:
        super().__init__()
        self.steps = steps
        weight = weight.detach().T.contiguous()
        if steps is not None:
            weight = torch.round(weight / steps[1]).clamp(LOWEST, LEVELS).to(torch.int8)
            sums = bias.detach().double() / (steps[0] * steps[1])
            bias = torch.round(sums).clamp(-_INT32, _INT32).to(torch.int32)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias.detach().clone())

    @classmethod
    def of(cls, layer: Layer, name: str, rows: slice = slice(None)) -> Product:
        """Return a linear layer of ``layer``, or the part with these rows of its weight."""
        part, steps = getattr(layer, name), None
        weight = layer.weight(name) if isinstance(layer, CompressedLayer) else part.weight
        if (known := getattr(layer, "quantizers", None)) is not None:
            steps = float(known[f"{name}_input"].scale), float(known[f"{name}_weight"].scale)
        return cls(weight[rows], part.bias[rows], steps)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if self.steps is not None:
            step = self.steps[0] * self.steps[1]
            weight = _Q.dequantize_per_tensor(weight, self.steps[1], 0, LOWEST, LEVELS, torch.int8)
            bias = _Q.dequantize_per_tensor(bias, step, 0, -_INT32 - 1, _INT32, torch.int32)
        return torch.addmm(bias, x, weight)


def keep_apart(graph: Any) -> None:
    """Give each use of a rounded value its own pair, and each node of a pair its own zero point.

    ``graph`` is onnx_ir's. On x86 ONNX Runtime turns int8 activations into the uint8 of its fast
    products only where a QuantizeLinear has one DequantizeLinear behind it: a layer's input, which
    is rounded for the product and for the residual, is computed ten times as slowly otherwise. Both
    roundings are the same, so that optimizers would join them again; the attribute axis, which
    means nothing for one scale, makes them differ. At zero points that nodes share ONNX
    Runtime 1.32 fails where it makes its products exact (session.x64quantprecision).
    """
    import onnx_ir

    for dequantize in [node for node in graph if node.op_type == "DequantizeLinear"]:
        quantize = dequantize.inputs[0].producer()
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        for number, (user, place) in enumerate(list(dequantize.outputs[0].uses())[1:]):
            axis = {"axis": number - 2}
            inputs = quantize.inputs
            for node in (quantize, dequantize):
                twin = onnx_ir.node(node.op_type, [inputs[0], *node.inputs[1:]], axis)
                graph.insert_before(user, twin)
                inputs = twin.outputs
            user.replace_input_with(place, inputs[0])
    pairs = [node for node in graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for number, node in enumerate(pairs):
        shared = onnx_ir.convenience.get_const_tensor(node.inputs[2])
        assert shared is not None, "the exporter's zero points are constants"
        stored = onnx_ir.tensor(shared.numpy(), name=f"zero_{number}")
        zero = onnx_ir.val(stored.name, const_value=stored)
        graph.register_initializer(zero)
        node.replace_input_with(2, zero)
