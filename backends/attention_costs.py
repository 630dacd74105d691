# SPDX-License-Identifier: Apache-2.0
"""The measured costs of masked attention: of each kernel that can compute it, and of dense.

The time of a kernel depends on the mask, the length and the machine in ways that no share of scores
predicts, so each candidate takes its turn before the run's clock starts, and the fastest is used.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from bertbench.backends.accelerator import AMP_DTYPES, of_activations
from bertbench.common.data.batch import Tokens
from bertbench.common.errors import Unsupported
from bertbench.common.model.config import BertConfig
from bertbench.common.model.ops import Ops

if TYPE_CHECKING:
    from bertbench.backends.base import Backend
    from bertbench.common.distributed.world import World

ROUNDS = 3
"""Timed turns of each candidate, after one that is not."""
TOKENS = 4096
"""Of the batch that is timed: as many sequences of the mask's length as fit, at least one."""
_COPIES = 2
"""Of all scores in float32: what dense attention keeps and computes at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """The attention of one layer of a run."""

    heads: int
    size: int
    """Elements of a head."""
    dropout: float
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCosts:
    """Medians of one forward and backward pass of one layer's attention, in milliseconds."""

    sequences: int
    """Of the mask's length, in the batch that was timed."""
    dense_ms: float | None
    """Attention without a mask; None where it would not fit in half of the host's free memory."""
    layers: tuple[Mapping[str, float], ...]
    """For each of the model's masks: kernel -> milliseconds."""

    @property
    def chosen(self) -> tuple[str, ...]:
        """The fastest kernel for each of the masks."""
        return tuple(min(layer, key=layer.__getitem__) for layer in self.layers)

    @property
    def masked_ms(self) -> float:
        """The time of the chosen kernels, mean over the masks."""
        return statistics.fmean(min(layer.values()) for layer in self.layers)

    @property
    def speedup(self) -> float | None:
        """Dense attention's time over that of the chosen kernels."""
        return None if self.dense_ms is None else self.dense_ms / self.masked_ms

    def facts(self) -> dict[str, Any]:
        """Return the costs and the choice for the record."""
        return asdict(self) | {"chosen": list(self.chosen), "speedup": self.speedup}

    def note(self) -> str:
        """Return the costs in words, for people."""
        names = " and ".join(dict.fromkeys(self.chosen))
        if self.speedup is None:
            return f"{names}, {self.masked_ms:.2f} ms; dense attention would not fit in memory"
        verdict = "" if self.speedup > 1.0 else ": no faster than dense attention at this length"
        return (
            f"{names}, measured {self.masked_ms:.2f} ms, dense {self.dense_ms:.2f} ms "
            f"({self.speedup:.2f} x){verdict}"
        )


def measure(
    ops: Ops,
    masks: Sequence[Tensor],
    shape: AttentionShape,
    *,
    dense_ops: Ops | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    synchronize: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> AttentionCosts:
    """Time ``ops`` on each of ``masks``, bool [1 or heads, L, L], on random sequences of L tokens.

    Dense attention is that of ``dense_ops``, or of ``ops`` where they are not given or refuse this
    shape. Draws from the device's generator where there is dropout.
    """
    length = masks[0].shape[1]
    sequences = max(1, TOKENS // length)
    tokens = made_up_tokens([length] * sequences, shape.device)
    width = shape.heads * shape.size
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(len(tokens.input_ids), 4 * width, generator=generator)
    made = made.to(shape.device, shape.dtype)
    qkv, dy = made[:, : 3 * width].contiguous().requires_grad_(), made[:, 3 * width :].contiguous()
    options: dict[str, Any] = {"num_heads": shape.heads, "dropout": shape.dropout}

    def passes(forward: Callable[[], Tensor]) -> None:
        with autocast():
            out = forward()
        torch.autograd.grad(out, qkv, dy.to(out.dtype))

    def masked(mask: Tensor, route: Any) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            ops.use_route(mask, route)
            return ops.masked_attention(qkv, tokens, mask, **options)

        return forward

    dense_ms, layers = None, []
    scores = 4 * _COPIES * sequences * shape.heads * length**2
    for mask in masks:
        routes = ops.masked_routes(mask, shape.heads)
        turns = {name: masked(mask, route) for name, route in routes.items()}
        if mask is masks[0] and _fits(scores, shape.device):
            turns[""] = partial(_dense, (dense_ops or ops, ops), qkv, tokens, options)
        ms: dict[str, list[float]] = {name: [] for name in turns}
        for turn in range(ROUNDS + 1):
            for name, forward in turns.items():
                synchronize()
                begin = clock()
                passes(forward)
                synchronize()
                if turn:
                    ms[name].append(1e3 * (clock() - begin))
        medians = {name: statistics.median(times) for name, times in ms.items()}
        dense_ms = medians.pop("", dense_ms)
        layers.append(medians)
    return AttentionCosts(sequences=sequences, dense_ms=dense_ms, layers=tuple(layers))


def _dense(
    choices: tuple[Ops, Ops], qkv: Tensor, tokens: Tokens, options: dict[str, Any]
) -> Tensor:
    """Return attention by the first of ``choices`` that computes heads of this size."""
    first, second = choices
    try:
        return first.attention(qkv, tokens, **options)
    except Unsupported:
        return second.attention(qkv, tokens, **options)


def choose_kernels(
    ops: Ops, masks: Sequence[Tensor], model: BertConfig, backend: Backend, world: World,
    precision: str,
) -> AttentionCosts:  # fmt: skip
    """Compute each of ``masks``, bool [1 or heads, L, L], by its fastest kernel from now on.

    Rank 0 measures while the others wait, so that all of them choose alike.
    """
    heads, own = model.num_attention_heads, None
    shape = AttentionShape(
        heads=heads,
        size=model.hidden_size // heads,
        dropout=model.attention_dropout,
        dtype=AMP_DTYPES.get(of_activations(precision), torch.float32),
        device=backend.device,
    )
    if world.is_main:
        autocast = partial(backend.precision, precision)
        own = measure(
            ops, masks, shape, autocast=autocast, synchronize=backend.synchronize,
            dense_ops=backend.ops("auto", precision),  # the device's fastest, for all kernels
        )  # fmt: skip
    costs: AttentionCosts = world.gather(own)[0]
    for mask, name in zip(masks, costs.chosen, strict=True):
        ops.use_route(mask, ops.masked_routes(mask, heads)[name])
    return costs


def made_up_tokens(lengths: Sequence[int], device: torch.device) -> Tokens:
    """Return sequences of ``lengths``; attention reads nothing of them but where they begin."""
    zeros = torch.zeros(sum(lengths), dtype=torch.int64)
    return Tokens(
        input_ids=zeros,
        segment_ids=zeros,
        position_ids=zeros,
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        lengths=tuple(lengths),
    ).to(device)


def _fits(size: int, device: torch.device) -> bool:
    """Return whether dense attention may take that many bytes; a device's own memory refuses."""
    return device.type != "cpu" or bool(size < psutil.virtual_memory().available / 2)
