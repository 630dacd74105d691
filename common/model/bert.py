# SPDX-License-Identifier: Apache-2.0
"""The BERT encoder over unpadded tokens (Devlin et al. 2019), post-LN or pre-LN.

The modules only hold parameters, always float32; every computation is a call of ``Ops``, so that a
backend's kernels and this code cannot drift apart. Shapes as in common/model/ops.py.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import skip_init

from bertbench.common.data.batch import Tokens
from bertbench.common.masks.search import searched_attention
from bertbench.common.model.config import BertConfig
from bertbench.common.model.ops import Ops


class FusedQKV(nn.Linear):
    """Query, key and value projections as one [3H, H] matrix: all of q, then k, then v."""

    segments = 3
    """The weight is three matrices to an optimizer that takes norms per matrix (LAMB)."""


def linear(in_features: int, out_features: int) -> nn.Linear:
    """Return a linear layer whose parameters ``initialize`` fills."""
    return skip_init(nn.Linear, in_features, out_features)


def initialize(module: nn.Module, std: float) -> None:
    """Initialise as BERT: matrices normal(0, ``std``), LayerNorm gains one, vectors zero."""
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=std)
            else:
                nn.init.zeros_(parameter)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)


class Embeddings(nn.Module):
    """Word, position and token-type tables, and post-LN's LayerNorm of their sum."""

    def __init__(self, config: BertConfig, ops: Ops) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        hidden = config.hidden_size
        self.word = skip_init(nn.Embedding, config.vocab_size, hidden)
        self.position = skip_init(nn.Embedding, config.max_position_embeddings, hidden)
        self.token_type = skip_init(nn.Embedding, config.type_vocab_size, hidden)
        if config.norm_position == "post":
            self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the tokens' embeddings, [T, H]."""
        tables = self.word.weight, self.position.weight, self.token_type.weight
        dropout = self.config.hidden_dropout if self.training else 0.0
        if self.config.norm_position == "pre":
            return self.ops.embed_sum(tokens, *tables, dropout=dropout)
        norm = self.norm
        return self.ops.embed(
            tokens, *tables, norm.weight, norm.bias, eps=norm.eps, dropout=dropout
        )


class Layer(nn.Module):
    """Self-attention and feed-forward, each with residual and LayerNorm: [T, H] -> [T, H]."""

    def __init__(self, config: BertConfig, ops: Ops) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.attention_mask: Tensor | None = None
        """bool [1 or N, L, L] on the model's device; not a buffer, which DDP would broadcast. In a
        search it is float32, with a gradient."""
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.qkv = skip_init(FusedQKV, hidden, 3 * hidden)
        self.attention_output = linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=eps)
        self.intermediate = linear(hidden, config.intermediate_size)
        self.output = linear(config.intermediate_size, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=eps)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Return [T, H]. Post-LN: norm(x + sublayer(x)). Pre-LN: x + sublayer(norm(x))."""
        ops = self.ops
        qkv = self._linear(self._before(x, self.attention_norm), self.qkv)
        # Inline, not in a method: with attention outside the graph, a layer is then two graphs.
        heads = self.config.num_attention_heads
        dropout = self.config.attention_dropout if self.training else 0.0
        if self.attention_mask is None:
            context = ops.attention(qkv, tokens, num_heads=heads, dropout=dropout)
        else:
            learnt = self.attention_mask.is_floating_point()
            masked = searched_attention if learnt else ops.masked_attention
            context = masked(qkv, tokens, self.attention_mask, num_heads=heads, dropout=dropout)
        x = self._after(self._linear(context, self.attention_output), x, self.attention_norm)
        inner = self._linear(self._before(x, self.output_norm), self.intermediate, gelu=True)
        return self._after(self._linear(inner, self.output), x, self.output_norm)

    def _linear(self, x: Tensor, part: nn.Linear, *, gelu: bool = False) -> Tensor:
        """Return ``part`` of x, [T, in] -> [T, out], with GELU behind it where asked."""
        operands = self._operands(x, part)
        if gelu:
            return self.ops.linear_gelu(*operands, approximate=self.config.approximate)
        return self.ops.linear(*operands)

    def _operands(self, x: Tensor, part: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
        """Return input, weight and bias of ``part``; common/compress changes them."""
        return x, part.weight, part.bias

    def _before(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return a sublayer's input."""
        if self.config.norm_position == "post":
            return x
        return self.ops.norm(x, norm.weight, norm.bias, eps=norm.eps)

    def _after(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return a sublayer's output: dropout, residual and, in post-LN, LayerNorm."""
        dropout = self.config.hidden_dropout if self.training else 0.0
        if self.config.norm_position == "pre":
            return self.ops.dropout_add(x, residual, dropout=dropout)
        return self.ops.dropout_add_norm(
            x, residual, norm.weight, norm.bias, eps=norm.eps, dropout=dropout
        )


class BertEncoder(nn.Module):
    """Embeddings and layers. Not initialised: the model that owns it does that once."""

    def __init__(self, config: BertConfig, ops: Ops) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.embeddings = Embeddings(config, ops)
        layers = (Layer(config, ops.in_layers) for _ in range(config.num_hidden_layers))
        self.layers = nn.ModuleList(layers)
        if config.norm_position == "pre":
            self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the hidden state of every token, [T, H]."""
        x: Tensor = self.embeddings(tokens)
        for layer in self.layers:
            x = layer(x, tokens)
        if self.config.norm_position == "pre":
            norm = self.final_norm
            x = self.ops.norm(x, norm.weight, norm.bias, eps=norm.eps)
        return x
