# SPDX-License-Identifier: Apache-2.0
"""The compared variants of one training step, each a callable without arguments."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from bertbench.common.data.batch import PretrainingBatch
from bertbench.common.model.config import BertConfig
from bertbench.common.model.heads import BertForPreTraining
from bertbench.common.model.ops import Ops
from bertbench.common.optim.clip import clip_, grad_norm

Step = Callable[[], object]

PEER_MISSING = "transformers is not installed (pip install bertbench[compare]): no comparison"


def peer_available() -> bool:
    """Return whether Hugging Face's model is installed."""
    return find_spec("transformers") is not None


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Return torch's fused AdamW with a negligible learning rate, for every variant."""
    return torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)


def own_step(
    config: BertConfig, batch: PretrainingBatch, ops: Ops, dtype: torch.dtype,
    mask: Tensor | None = None,
) -> Step:  # fmt: skip
    """Return forward, backward, clipping and AdamW of common/model with ``ops``.

    All layers' attention has the ``mask``, bool [1 or N, L, L].
    """
    torch.manual_seed(0)
    model = BertForPreTraining(config, ops).train()
    for layer in model.encoder.layers:
        layer.attention_mask = mask
    optimizer = adamw(model)
    masked, sequences = len(batch.masked_labels), len(batch.next_sentence_labels)
    parameters = list(model.parameters())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            sums = model(batch)
            loss = sums.mlm_loss / masked + sums.nsp_loss / sequences
        loss.backward()
        clip_(parameters, grad_norm(parameters), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def peer_step(
    config: BertConfig, batch: PretrainingBatch, attention: str, dtype: torch.dtype
) -> Step:
    """Return the same of Hugging Face's BertForPreTraining, in bf16 under autocast.

    Its batch is padded to the longest sequence, as a data collator pads it.
    """
    from transformers import BertForPreTraining as PeerModel

    torch.manual_seed(0)
    model = PeerModel(peer_config(config, attention)).train()
    optimizer = adamw(model)
    inputs = padded(batch)
    parameters = list(model.parameters())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def peer_config(config: BertConfig, attention: str) -> Any:
    """Return Hugging Face's configuration of the same model, with torch's kernel for tanh GELU."""
    from transformers import BertConfig as PeerConfig

    values = config.as_huggingface() | {"attn_implementation": attention}
    del values["model_type"]
    if config.gelu == "tanh":
        values["hidden_act"] = "gelu_pytorch_tanh"
    return PeerConfig(**values)


def padded(batch: PretrainingBatch) -> dict[str, Tensor]:
    """Return the batch for Hugging Face's model: [B, longest], unmasked labels -100."""
    tokens = batch.tokens
    labels = torch.full((tokens.num_tokens,), -100)
    labels[batch.masked_indices] = batch.masked_labels

    def pad(x: Tensor, value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence(
            list(x.split(tokens.lengths)), batch_first=True, padding_value=value
        )

    return {
        "input_ids": pad(tokens.input_ids, 0),
        "attention_mask": pad(torch.ones_like(tokens.input_ids), 0),
        "token_type_ids": pad(tokens.segment_ids, 0),
        "labels": pad(labels, -100),
        "next_sentence_label": batch.next_sentence_labels,
    }


def replay_step(config: BertConfig, batch: PretrainingBatch, dtype: torch.dtype) -> Step:
    """Return the step's matrix products alone, through torch in ``dtype``.

    Forward and both gradients of every linear layer on the real tokens, of the decoder on the
    masked ones, and of attention's two products for each sequence, without recomputation. This is
    the machine's lower bound for a step.
    """
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    tokens, masked = batch.tokens.num_tokens, len(batch.masked_labels)

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype)

    layer = [
        (tokens, hidden, 3 * hidden),
        (tokens, hidden, hidden),
        (tokens, hidden, inner),
        (tokens, inner, hidden),
    ]
    head = [(masked, hidden, hidden), (masked, hidden, config.vocab_size)]
    operands = {
        (m, k, n): (matrix(m, k), matrix(n, k), matrix(m, n)) for m, k, n in (*layer, *head)
    }
    size = hidden // heads
    attention = {
        n: (matrix(heads, n, size), matrix(heads, n, size), matrix(heads, n, n))
        for n in set(batch.tokens.lengths)
    }

    def product(shape: tuple[int, int, int]) -> None:
        x, weight, dy = operands[shape]
        torch.mm(x, weight.t())
        torch.mm(dy, weight)
        torch.mm(dy.t(), x)

    def attend(length: int) -> None:
        a, b, scores = attention[length]
        for _ in range(2):  # scores and their gradient
            torch.bmm(a, b.transpose(1, 2))
        for _ in range(2):  # context, and the gradient of q
            torch.bmm(scores, a)
        for _ in range(2):  # the gradients of k and v
            torch.bmm(scores.transpose(1, 2), a)

    def step() -> None:
        for _ in range(config.num_hidden_layers):
            for shape in layer:
                product(shape)
            for length in batch.tokens.lengths:
                attend(length)
        for shape in head:
            product(shape)

    return step
