# SPDX-License-Identifier: Apache-2.0
"""The kernels of ``--kernels auto`` on an accelerator: of those that work, the measured fastest.

Before a run builds its model, each candidate computes batches of the run's shape. Each batch has
new lengths, as in training: a kernel that plans for each length pays for its plans here, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from bertbench.backends.accelerator import (
    AMP_DTYPES,
    TORCH,
    WRONG_TYPE,
    Accelerator,
    of_activations,
    one_line,
)
from bertbench.backends.attention_costs import made_up_tokens
from bertbench.backends.base import Backend
from bertbench.common.config.recipe import Settings
from bertbench.common.data.batch import Tokens
from bertbench.common.model.bert import Layer, initialize
from bertbench.common.model.ops import ComputeTypeOps, Ops
from bertbench.common.optim.lamb import Lamb, LambKernel, parameter_groups

WARM_UP, ROUNDS = 3, 7
"""Passes of each candidate that are not timed, and those whose median counts."""
MAX_TOKENS, LAMB_LAYERS = 16384, 4
"""Of a batch, which otherwise is a micro-batch; and layers whose parameters are updated."""
MARGIN = 1.05
"""What comes first stays unless it takes so many times longer: repeated runs then choose alike."""

Step = Callable[[int], Any]
"""Compute the batch of this number, forward and backward, or an update."""


def time_kernels(
    settings: Settings, backend: Backend, gather: Callable[[Any], list[Any]], micro_batch: int
) -> dict[str, dict[str, Any] | None] | None:
    """Measure what ``auto`` takes on ``backend`` from now on; return the choices for the record.

    Every rank calls this, and ``gather`` returns what each gave it. The choices are of
    ``attention``, the ``layer`` around it and ``lamb``. None with other --kernels, a mask, no BERT,
    in a dry run (whose ranks never meet), and on a backend that ``measures`` nothing. The random
    state stays as it was.
    """
    impl, recipe = settings.impl, cast("Any", settings.recipe)
    known = hasattr(recipe, "model") and hasattr(recipe, "max_seq_length")
    wanted = impl.kernels == "auto" and recipe.attention_mask is None and not settings.run.dry_run
    if not (wanted and known and isinstance(backend, Accelerator) and backend.measures):
        return None
    longest = recipe.max_seq_length
    state = backend.rng_state()
    try:
        generator = torch.Generator().manual_seed(0)  # the same lengths on all ranks
        size = (WARM_UP + ROUNDS, max(1, min(micro_batch, MAX_TOKENS // longest)))
        drawn = torch.randint(max(1, longest // 8), longest + 1, size, generator=generator)
        batches = [made_up_tokens(lengths, backend.device) for lengths in drawn.tolist()]
        asked = backend.resolve_precision(impl.precision)
        precision = of_activations(asked)
        bench = _Bench(backend, gather, precision, recipe.model, batches)
        # A compiler fuses a layer itself, and in 8 bits one way is there.
        layer = impl.compile is None and precision == asked
        return {
            "attention": bench.attention(),
            "layer": bench.layer() if layer else None,
            "lamb": bench.lamb() if getattr(recipe, "optimizer", None) == "lamb" else None,
        }
    finally:
        backend.set_rng_state(state)


def agree(ranks: Sequence[tuple[Mapping[str, float], Mapping[str, str]]]) -> dict[str, Any]:
    """Return the choice by each rank's milliseconds and reasons; None if none works on all."""
    reasons = {name: why for _, failed in reversed(ranks) for name, why in failed.items()}
    everywhere = [name for name in ranks[0][0] if all(name in times for times, _ in ranks)]
    mean = {name: statistics.fmean(times[name] for times, _ in ranks) for name in everywhere}
    chosen = None
    for name, milliseconds in mean.items():
        if chosen is None or milliseconds * MARGIN < mean[chosen]:
            chosen = name
    return {"chosen": chosen, "milliseconds": mean, "passed_over": reasons}


@dataclass(frozen=True, slots=True)
class _Bench:
    """The measurements of one rank; each sets what ``auto`` takes."""

    backend: Accelerator
    gather: Callable[[Any], list[Any]]
    precision: str
    model: Any
    batches: Sequence[Tokens]

    def attention(self) -> dict[str, Any]:
        backend, precision = self.backend, self.precision
        trials = backend.attention_trials(precision)
        works = [name for name, why in trials.items() if why is None]
        made = {name: partial(backend.attention_ops, name, precision) for name in works}
        failed = {name: why for name, why in trials.items() if why not in (None, WRONG_TYPE)}
        found = self._choose(self._attend, made, failed)
        unfused = partial(ComputeTypeOps, backend.stream_dtype(precision), fused=False)
        chosen: Callable[..., Ops] = made.get(found["chosen"], unfused)
        backend.auto_ops[precision] = partial(chosen, passed_over=found["passed_over"])
        return found

    def layer(self) -> dict[str, Any]:
        backend, attention = self.backend, self.backend.auto_ops[self.precision]
        made = {TORCH: attention}
        for name in backend.fused_kernels:
            made[name] = partial(backend.fused_ops, name, self.precision, attention)
        found = self._choose(self._compute, made)
        backend.auto_ops[self.precision] = made[found["chosen"] or TORCH]
        return found

    def lamb(self) -> dict[str, Any]:
        names = (TORCH, *self.backend.fused_kernels)
        made = {name: partial(self.backend.lamb_kernel, name) for name in names}
        found = self._choose(self._update, made)
        self.backend.auto_lamb = found["chosen"] or TORCH
        return found

    def _choose(
        self, start: Callable[[Any], Step], made: Mapping[str, Callable[[], Any]],
        failed: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Time the candidates that are made, by what ``start`` makes of each, on all ranks."""
        times, reasons = {}, dict(failed or {})
        for name, make in made.items():
            try:
                times[name] = self._time_ms(start(make()))
            except Exception as error:  # whatever a kernel may raise, it is a reason
                reasons[name] = one_line(error)
            self.backend.free_memory()
        return agree(self.gather((times, reasons)))

    def _time_ms(self, step: Step) -> float:
        for index in range(WARM_UP):
            step(index)
        timer = self.backend.timer()
        for index in range(WARM_UP, WARM_UP + ROUNDS):
            timer.start()
            step(index)
            timer.stop()
        return 1e3 * statistics.median(timer.seconds())

    def _attend(self, ops: Ops) -> Step:
        heads, dropout = self.model.num_attention_heads, self.model.attention_dropout
        attention = partial(ops.attention, num_heads=heads, dropout=dropout)
        return self._passes(attention, 3 * self.model.hidden_size)

    def _compute(self, ops: Ops) -> Step:
        return self._passes(self._layers(1, ops)[0], self.model.hidden_size)

    def _passes(self, forward: Callable[[Tensor, Tokens], Tensor], width: int) -> Step:
        """Return a pass of ``forward``, [T, width] -> [T, H], and back, over one of the batches."""
        rows = max(batch.num_tokens for batch in self.batches)
        values = torch.randn(rows, width, device=self.backend.device)
        values = values.to(AMP_DTYPES.get(self.precision, torch.float32))

        def step(index: int) -> None:
            tokens = self.batches[index]
            x = values[: tokens.num_tokens].requires_grad_()
            with self.backend.precision(self.precision):
                out = forward(x, tokens)
            out.backward(torch.ones_like(out))

        return step

    def _update(self, kernel: LambKernel | None) -> Step:
        layers = self._layers(min(LAMB_LAYERS, self.model.num_hidden_layers), Ops())
        for parameter in layers.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer = Lamb(parameter_groups(layers, 0.01), lr=1e-4, kernel=kernel)
        return lambda _: optimizer.step()

    def _layers(self, count: int, ops: Ops) -> nn.ModuleList:
        layers = nn.ModuleList(Layer(self.model, ops) for _ in range(count))
        initialize(layers, self.model.initializer_range)
        return layers.to(self.backend.device)
