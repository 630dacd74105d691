# SPDX-License-Identifier: Apache-2.0
"""The choice of masked attention's kernel by measured cost, on a clock that the test sets."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from bertbench.backends import attention_costs
from bertbench.backends.attention_costs import (
    ROUNDS,
    AttentionCosts,
    AttentionShape,
    choose_kernels,
    measure,
)
from bertbench.common.data.batch import Tokens
from bertbench.common.model.config import BertConfig
from bertbench.common.model.ops import Ops

SHAPE = AttentionShape(
    heads=2, size=4, dropout=0.0, dtype=torch.float32, device=torch.device("cpu")
)
DENSE_S = 0.005


class Timed(Ops):
    """Operations that advance a clock by each kernel's seconds; the first turn takes longer."""

    def __init__(self, seconds: list[Mapping[str, float]], masks: list[Tensor]) -> None:
        self.now, self.turns = 0.0, 0
        self._seconds = {id(mask): row for mask, row in zip(masks, seconds, strict=True)}
        self.used: dict[int, str] = {}
        self._warm: set[Any] = set()
        self.lengths: set[tuple[int, ...]] = set()

    def clock(self) -> float:
        return self.now

    def attention(self, qkv: Tensor, tokens: Tokens, **rest: Any) -> Tensor:
        self._spend("dense", DENSE_S)
        self.lengths.add(tokens.lengths)
        return qkv[:, : qkv.shape[1] // 3] * 2

    def masked_attention(self, qkv: Tensor, tokens: Tokens, mask: Tensor, **rest: Any) -> Tensor:
        used = self.used[id(mask)]
        self._spend((id(mask), used), self._seconds[id(mask)][used])
        return qkv[:, : qkv.shape[1] // 3] * 2

    def _spend(self, what: Any, seconds: float) -> None:
        self.now += seconds if what in self._warm else 100.0
        self._warm.add(what)
        self.turns += 1

    def masked_routes(self, mask: Tensor, num_heads: int) -> dict[str, str]:
        return {name: name for name in self._seconds[id(mask)]}

    def use_route(self, mask: Tensor, route: str) -> None:
        self.used[id(mask)] = route


def masks(count: int, length: int = 8) -> list[Tensor]:
    return [torch.ones(1, length, length, dtype=torch.bool) for _ in range(count)]


def test_the_fastest_kernel_of_each_mask_is_used() -> None:
    both = masks(2)
    ops = Timed([{"a": 0.004, "b": 0.002}, {"a": 0.001, "c": 0.003}], both)
    costs = measure(ops, both, SHAPE, clock=ops.clock)
    assert costs.layers == (pytest.approx({"a": 4, "b": 2}), pytest.approx({"a": 1, "c": 3}))
    assert costs.dense_ms == pytest.approx(5)  # once: it is the same for both masks
    assert ops.turns == (ROUNDS + 1) * 5
    assert (costs.chosen, costs.masked_ms) == (("b", "a"), pytest.approx(1.5))
    assert ops.lengths == {(8,) * 512}
    assert costs.facts()["chosen"] == ["b", "a"]
    assert "b and a, measured 1.50 ms, dense 5.00 ms (3.33 x)" in costs.note()


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("fp16", torch.float16), ("fp8", torch.bfloat16)],
)
def test_attention_is_timed_in_the_type_that_it_computes_in(
    precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp8, too, which concerns the linear layers alone."""
    (mask,), shapes = masks(1), []

    def measured(ops: Ops, masks: Any, shape: AttentionShape, **rest: Any) -> AttentionCosts:
        shapes.append(shape)
        return AttentionCosts(sequences=1, dense_ms=1.0, layers=({"a": 1.0},))

    monkeypatch.setattr(attention_costs, "measure", measured)
    world = SimpleNamespace(is_main=True, gather=lambda own: [own])
    ops = Timed([{"a": 0.004}], [mask])
    backend = SimpleNamespace(
        device=SHAPE.device, precision=str, synchronize=None, ops=lambda *asked: ops
    )
    model = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8,
    )  # fmt: skip
    choose_kernels(ops, [mask], model, backend, world, precision)  # type: ignore[arg-type]
    assert [shape.dtype for shape in shapes] == [dtype]


def test_every_rank_uses_what_the_first_one_measured() -> None:
    """Rank 1 measures nothing, and gets rank 0's costs."""
    both = masks(2)
    told = AttentionCosts(
        sequences=1, dense_ms=1.0, layers=({"a": 1.0, "b": 2.0}, {"a": 2.0, "c": 1.0})
    )
    world = SimpleNamespace(is_main=False, gather=lambda own: [told, own])
    ops = Timed([{"a": 0.004, "b": 0.002}, {"a": 0.001, "c": 0.003}], both)
    backend = SimpleNamespace(device=SHAPE.device)
    model = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8,
    )  # fmt: skip
    costs = choose_kernels(ops, both, model, backend, world, "fp32")  # type: ignore[arg-type]
    assert costs is told
    assert [ops.used[id(mask)] for mask in both] == ["a", "c"]
    assert ops.turns == 0


def test_a_mask_that_saves_no_time_is_named_so_by_its_time() -> None:
    one = masks(1, 5000)
    ops = Timed([{"a": 0.0051}], one)
    costs = measure(ops, one, SHAPE, clock=ops.clock)
    assert "no faster than dense attention at this length" in costs.note()
    assert costs.sequences == 1


def test_dense_attention_that_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"available": 1000}))
    one = masks(1)
    ops = Timed([{"a": 0.0051}], one)
    costs = measure(ops, one, SHAPE, clock=ops.clock)
    assert (costs.dense_ms, costs.speedup) == (None, None)
    assert "dense attention would not fit in memory" in costs.note()


def test_operations_with_one_kernel_are_measured_too() -> None:
    one = masks(1)
    costs = measure(Ops(), one, SHAPE)
    assert costs.chosen == ("unfused-per-sequence",)
    assert isinstance(costs, AttentionCosts)
