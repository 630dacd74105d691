# SPDX-License-Identifier: Apache-2.0
"""An encoder whose weights are 2:4 sparse, whose layers compute as INT8 will, or both.

Quantised are the inputs and weights of the four linear layers, the inputs of both attention
products, and both inputs of both residual additions: 12 activations and 4 weights a layer. A
pre-LN encoder has one activation more, its output: 289 and 96 for BERT-large, those of MLPerf
Inference v0.7 (open/NVIDIA, tensorrt_sparse). A post-LN one has its output and the rows of its
three tables ("MLPerf INT8 BERT Finetuning"). The heads stay in floating point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertbench.common.compress.pruning import is_prunable, two_of_four
from bertbench.common.compress.quantizer import Quantizer
from bertbench.common.data.batch import Tokens
from bertbench.common.model.bert import BertEncoder, Embeddings, Layer
from bertbench.common.model.ops import Ops

Choice = Callable[[Tensor, Tensor], Tensor]
"""A histogram's counts, int64 [bins], and its end, float32 [] -> amax, float32 []."""
LINEAR = ("qkv", "attention_output", "intermediate", "output")
"""The linear layers of an encoder layer, by their names in it."""
ATTENTION = ("q", "k", "v", "probabilities")
ADDED = ("attention_added", "attention_residual", "output_added", "output_residual")
TABLES = ("word", "position", "token_type")
OWN_STATE = (".quantizers.", "_mask")
"""What marks this module's tensors in a model's state: no weights, and of no other software."""


class CompressedLayer(Layer):
    """A layer with the parameters of another, under their names."""

    def __init__(self, layer: Layer, *, prune: bool, quantize: bool) -> None:
        nn.Module.__init__(self)
        self.config, self.ops, self.attention_mask = layer.config, layer.ops, layer.attention_mask
        for name, part in layer.named_children():
            self.add_module(name, part)
        self.pruned = tuple(n for n in LINEAR if prune and is_prunable(getattr(self, n).weight))
        for name in self.pruned:
            kept = torch.ones_like(getattr(self, name).weight, dtype=torch.bool)
            self.register_buffer(f"{name}_mask", kept)
        self.products: dict[str, Tensor] | None = None
        """X.T X [K + 1, K + 1] of each pruned layer's inputs with 1 behind them, while wanted."""
        self.quantizers: nn.ModuleDict | None = None
        if quantize:
            sites = [f"{name}_{what}" for name in LINEAR for what in ("input", "weight")]
            made = {site: Quantizer() for site in (*sites, *ATTENTION, *ADDED)}
            self.quantizers = nn.ModuleDict(made)
            self.ops = QuantizedAttention(layer.ops, self.quantizers)  # type: ignore[assignment]
        self.train(layer.training)

    def prune(self) -> None:
        """Choose the entries that stay, and set the others to zero."""
        for name in self.pruned:
            weight, kept = getattr(self, name).weight, getattr(self, f"{name}_mask")
            kept.copy_(two_of_four(weight))
            weight.data.mul_(kept)

    def scale_weights(self, choose: Choice | None = None) -> None:
        """Set the scale of each weight, as pruned: at its largest magnitude, or by ``choose``."""
        for name in LINEAR if self.quantizers is not None else ():
            quantizer = self.quantizer(f"{name}_weight")
            quantizer.begin_range()
            self.weight(name)
            if choose is None:
                quantizer.finish()
            else:
                quantizer.begin_histogram()
                self.weight(name)
                quantizer.finish(choose(quantizer.histogram(), quantizer.amax))

    def quantizer(self, site: str) -> Quantizer:
        """Return the quantizer of a place of a quantised layer."""
        assert self.quantizers is not None
        found = self.quantizers[site]
        assert isinstance(found, Quantizer)
        return found

    def weight(self, name: str) -> Tensor:
        """Return a linear layer's weight [out, in] as it is used: pruned and quantised."""
        weight: Tensor = getattr(self, name).weight
        if name in self.pruned:
            weight = weight * getattr(self, f"{name}_mask")
        return weight if self.quantizers is None else self.quantizer(f"{name}_weight")(weight)

    def _operands(self, x: Tensor, part: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
        name = next(n for n in LINEAR if getattr(self, n) is part)
        if self.products is not None and name in self.pruned:
            with torch.autocast(x.device.type, enabled=False):
                seen = F.pad(x.float(), (0, 1), value=1.0)
                self.products[name] = self.products.get(name, 0.0) + seen.T @ seen
        if self.quantizers is None:
            return x, self.weight(name), part.bias
        inputs, weights = (self.quantizer(f"{name}_{what}") for what in ("input", "weight"))
        bias: Tensor = part.bias
        if inputs.mode == weights.mode == "on":
            # INT8 engines add the bias to int32 sums: it has their step.
            step = inputs.scale * weights.scale
            bias = bias + (torch.round(bias / step) * step - bias).detach()
        return inputs(x), self.weight(name), bias

    def _after(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        if self.quantizers is not None:
            where = "attention" if norm is self.attention_norm else "output"
            x = self.quantizer(f"{where}_added")(x)
            residual = self.quantizer(f"{where}_residual")(residual)
        return super()._after(x, residual, norm)


class QuantizedAttention:
    """Another ``Ops`` whose attention multiplies quantised tensors."""

    def __init__(self, ops: Ops, quantizers: nn.ModuleDict) -> None:
        self._ops, self._quantizers = ops, quantizers

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while it is copied, and has no other Ops yet
            raise AttributeError(name)
        return getattr(self._ops, name)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it loops over lengths that differ in each batch
    def attention(self, qkv: Tensor, tokens: Tokens, *, num_heads: int, dropout: float) -> Tensor:
        """Return self-attention within each sequence: [T, 3H] -> [T, H]."""
        return self._attend(qkv, tokens, None, num_heads, dropout)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def masked_attention(
        self, qkv: Tensor, tokens: Tokens, mask: Tensor, *, num_heads: int, dropout: float
    ) -> Tensor:
        """Return attention where ``mask``, bool [1 or N, L, L], is True: [T, 3H] -> [T, H]."""
        return self._attend(qkv, tokens, mask, num_heads, dropout)

    def _attend(
        self, qkv: Tensor, tokens: Tokens, mask: Tensor | None, heads: int, dropout: float
    ) -> Tensor:
        hidden = qkv.shape[1] // 3
        parts = zip(("q", "k", "v"), qkv.split(hidden, dim=1), strict=True)
        q, k, v = (self._quantizers[n](x).view(-1, heads, hidden // heads) for n, x in parts)
        out, begin = [], 0
        scores, limits = [], []
        for n in tokens.lengths:
            rows = slice(begin, begin + n)
            begin += n
            score = torch.einsum("ihd,jhd->hij", q[rows], k[rows]) / math.sqrt(hidden // heads)
            if mask is not None:
                score = score.masked_fill(~mask[:, :n, :n], float("-inf"))
            probability = F.dropout(score.float().softmax(-1), dropout).to(q.dtype)
            scores.append(probability.reshape(-1))
            limits.append((rows, n))
        # One rounding for the whole batch, since each is a few launches.
        rounded = self._quantizers["probabilities"](torch.cat(scores))
        for (rows, n), flat in zip(
            limits, rounded.split([heads * n * n for _, n in limits]), strict=True
        ):
            context = torch.einsum("hij,jhd->ihd", flat.view(heads, n, n), v[rows])
            out.append(context.reshape(n, hidden))
        return torch.cat(out)


class QuantizedEmbeddings(Embeddings):
    """Post-LN embeddings with the parameters of others, whose tables' rows are quantised."""

    def __init__(self, embeddings: Embeddings) -> None:
        nn.Module.__init__(self)
        self.config, self.ops = embeddings.config, embeddings.ops
        for name, part in embeddings.named_children():
            self.add_module(name, part)
        self.quantizers = nn.ModuleDict({name: Quantizer() for name in TABLES})
        self.train(embeddings.training)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the tokens' embeddings, [T, H]."""
        ids = tokens.input_ids, tokens.position_ids, tokens.segment_ids
        x = sum(
            self.quantizers[name](F.embedding(index, getattr(self, name).weight))
            for name, index in zip(TABLES, ids, strict=True)
        )
        dropout = self.config.hidden_dropout if self.training else 0.0
        return F.dropout(
            self.ops.norm(x, self.norm.weight, self.norm.bias, eps=self.norm.eps), dropout
        )


def compress(model: nn.Module, *, prune: bool, quantize: bool) -> None:
    """Give the encoder of ``model`` compressed layers; its parameters and their names stay.

    Nothing is pruned or rounded before ``prune_layers`` and ``calibrate``. Raises ValueError for a
    model without a BertEncoder.
    """
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, BertEncoder):
        raise ValueError(f"{type(model).__name__} has no BertEncoder to compress")
    for at, layer in enumerate(encoder.layers):
        assert isinstance(layer, Layer)
        encoder.layers[at] = CompressedLayer(layer, prune=prune, quantize=quantize)
    if quantize:
        if encoder.config.norm_position == "post":
            encoder.embeddings = QuantizedEmbeddings(encoder.embeddings)
        encoder.quantizers = nn.ModuleDict({"encoder_output": Quantizer()})
        encoder.register_forward_hook(_round_output)


def _round_output(encoder: BertEncoder, _inputs: Any, output: Tensor) -> Tensor:
    return encoder.quantizers["encoder_output"](output)  # type: ignore[operator,index]


def weights_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's state, tensors [...] by name, without masks and scales."""
    return {name: t for name, t in state.items() if not any(mark in name for mark in OWN_STATE)}


def compressed_layers(model: nn.Module) -> list[CompressedLayer]:
    """Return the compressed layers of ``model``, in order."""
    return [part for part in model.modules() if isinstance(part, CompressedLayer)]


def named_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """Return the quantizers of ``model`` by name; those of weights end in ``_weight``."""
    return {name: part for name, part in model.named_modules() if isinstance(part, Quantizer)}
