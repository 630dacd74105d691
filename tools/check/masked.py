# SPDX-License-Identifier: Apache-2.0
"""Compare masked attention with the reference, and its time and a whole step's with dense ones."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bertbench.backends.accelerator import AMP_DTYPES
from bertbench.backends.selfcheck import TOLERANCES
from bertbench.common.data.batch import Tokens
from bertbench.common.errors import Unsupported
from bertbench.common.masks.patterns import parse
from bertbench.common.model.ops import Ops
from check.anatomy import Clocked, subject
from check.device import Check, choose_precision, free_memory
from check.figure import SectionReport
from check.parts import DTYPES, HEAD, Bench

PATTERNS = ("longformer:window=1,globals=0,block=128", "longformer:window=64,globals=0")
"""One made of the blocks that kernels skip, and one as wide that cuts through them."""
LENGTHS = (512, 1024, 2048, 4096)
REPEATS = 5


class Wrong(Exception):
    """Masked attention differs from the reference."""


def masked(check: Check, report: SectionReport) -> None:
    """Report differences, times and ratios; raise Wrong for a kernel that masks wrongly."""
    backend = check.open()
    for precision in backend.capabilities.precisions:
        if precision in (*AMP_DTYPES, "fp32"):
            equality(check, report, backend, precision)
    precision = choose_precision(check, backend, "bf16")
    bench = Bench(
        report=report, backend=backend, precision=precision,
        dtype=DTYPES.get(precision, torch.float32),
    )  # fmt: skip
    lengths = tuple(check.size(n, n // 8) for n in LENGTHS[: check.size(4, 2)])
    times(bench, lengths, check.size(16384, 256), check.size(1024, 128))
    free_memory(backend)
    steps(check, report, backend, precision)


def batch(lengths: tuple[int, ...], device: torch.device) -> Tokens:
    """Return empty tokens of sequences of ``lengths``."""
    empty = torch.zeros(sum(lengths), dtype=torch.int64, device=device)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    return Tokens(
        input_ids=empty, segment_ids=empty, position_ids=empty, cu_seqlens=starts, lengths=lengths
    )


def bits(pattern: str, length: int, device: torch.device) -> Tensor:
    """Return a pattern's mask, bool [1, length, length]."""
    return torch.from_numpy(parse(pattern).bits(length).copy())[None].to(device)


# -- numbers --------------------------------------------------------------------------------------
def equality(check: Check, report: SectionReport, backend: Any, precision: str) -> None:
    """Report differences from the reference in ``precision``; raise Wrong for large ones."""
    try:
        ops = backend.masked_ops("auto", precision)
    except Unsupported as error:
        raise Wrong(str(error)) from error
    label = f"{precision} masked attention by {ops.masked_kernel}"
    if why := ops.kernels.get("attention_passed_over"):
        report.fact(f"{precision} masked attention: passed over", why)
    dtype, heads = AMP_DTYPES.get(precision, torch.float32), 4
    lengths = (check.size(1000, 140), 257, 40)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(sum(lengths), 3 * heads * HEAD, generator=generator).to(dtype)
    weights = torch.randn(sum(lengths), heads * HEAD, generator=generator).to(dtype)
    host = torch.device("cpu")

    def run(chosen: Ops, on: torch.device, kind: torch.dtype, pattern: str) -> list[Tensor]:
        leaf = values.to(on, kind, copy=True).requires_grad_()
        mask = bits(pattern, max(lengths), on)
        out = chosen.masked_attention(leaf, batch(lengths, on), mask, num_heads=heads, dropout=0.0)
        out.backward(weights.to(on, kind))
        assert leaf.grad is not None
        return [t.detach().float().cpu() for t in (out, leaf.grad)]

    wrong = []
    for pattern in PATTERNS:
        got = run(ops, backend.device, dtype, pattern)
        wanted = run(Ops(), host, torch.float32, pattern)
        for what, mine, right in zip(("output", "gradient"), got, wanted, strict=True):
            off = float((mine - right).abs().max() / right.abs().max())
            report.figure(
                f"{label}, {pattern}: {what}", off, "1",
                "largest difference from plain PyTorch in float32 on the host / largest value; "
                f"{TOLERANCES[dtype]:g} allowed",
            )  # fmt: skip
            if not off <= TOLERANCES[dtype]:
                wrong.append(f"{label}, {pattern}: its {what} is off by {off:.1e}")
    ones = torch.cat([values[:, : 2 * heads * HEAD], torch.ones_like(weights)], 1)
    for rate in (0.1, 0.5):
        with torch.no_grad():
            kept = ops.masked_attention(
                ones.to(backend.device), batch(lengths, backend.device),
                bits(PATTERNS[0], max(lengths), backend.device), num_heads=heads, dropout=rate,
            )  # fmt: skip
        mean = float(kept.float().mean())
        report.figure(
            f"{label}: dropout {rate:g}", mean, "1",
            "mean of the outputs where all values are 1: dropout keeps it at 1; 0.05 allowed",
        )  # fmt: skip
        if not abs(mean - 1) <= 0.05:
            wrong.append(f"{label}: dropout {rate:g} scales by {mean:.3f}")
    if wrong:
        raise Wrong("; ".join(wrong))


# -- times ----------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Layer:
    """The attention of one layer, for sequences of one length."""

    bench: Bench
    tokens: Tokens
    qkv: Tensor
    gradient: Tensor
    label: str
    options: Mapping[str, Any]

    def ms(self, name: str, attend: Callable[..., Tensor]) -> float | None:
        """Report the milliseconds of forward and backward as ``name`` and return them."""

        def call() -> object:
            with self.bench.backend.precision(self.bench.precision):
                out = attend(self.qkv, self.tokens, **self.options)
            return torch.autograd.grad(out, self.qkv, self.gradient.to(out.dtype))

        heads, number = self.options["num_heads"], len(self.tokens.lengths)
        what = f"forward and backward; {number} sequences, {heads} heads of {HEAD}"
        return self.bench.rate(f"{self.label}: {name}", 1.0, "ms", what, lambda: call)

    def ratio(self, name: str, dense: float | None, own: float | None) -> None:
        """Report the time of dense attention / that of masked attention."""
        there = dense is not None and own is not None
        self.bench.report.figure(
            f"{self.label}: {name}, dense over masked",
            dense / own if dense is not None and own is not None else None,
            "1",
            "milliseconds of dense attention / of masked attention",
            "" if there else "one of both was not measured",
        )


def times(bench: Bench, lengths: tuple[int, ...], tokens: int, hidden: int) -> None:
    """Report forward and backward of attention at each length, and dense's time / masked's."""
    backend, heads = bench.backend, hidden // HEAD
    dense = backend.ops("auto", bench.precision)
    kernels = [backend.masked_ops("auto", bench.precision)]
    if "sdpa" in backend.capabilities.kernels and kernels[0].name == "flex":
        kernels.append(backend.ops("sdpa", bench.precision))
    # One mask for all lengths, which have its corner: their compiled code is the same.
    masks = {pattern: bits(pattern, max(lengths), backend.device) for pattern in PATTERNS}
    for n in lengths:
        packed = batch((n,) * max(1, tokens // n), backend.device)
        qkv = bench.random(packed.num_tokens, 3 * hidden).requires_grad_()
        gradient = bench.random(packed.num_tokens, hidden)
        for rate in (0.0, 0.1):
            layer = Layer(
                bench=bench, tokens=packed, qkv=qkv, gradient=gradient,
                label=f"{bench.precision} {n} tokens, dropout {rate:g}",
                options={"num_heads": heads, "dropout": rate},
            )  # fmt: skip
            base = layer.ms(f"{dense.name}, dense", dense.attention)
            for ops, (pattern, mask) in itertools.product(kernels, masks.items()):
                name = f"{ops.masked_kernel}, {pattern}"
                own = layer.ms(name, functools.partial(ops.masked_attention, mask=mask))
                layer.ratio(name, base, own)


def steps(check: Check, report: SectionReport, backend: Any, precision: str) -> None:
    """Report a training step of BERT-large at 2,048 tokens, dense and masked."""
    length, seconds = str(check.size(2048, 128)), {}
    clocked = Clocked(report=report, backend=backend, label=f"{precision}, {length} tokens")
    flags = ["--max_seq_length", length, "--max_position_embeddings", length]
    for name, more in (("dense", []), ("masked", ["--attention_mask", PATTERNS[0]])):
        made = subject(check, backend, precision, check.size(8, 2), 1, *flags, *more)
        report.fact(f"{name} step: kernels", made.task.facts().kernels["attention"])
        step = made.stepper()
        seconds[name] = clocked.ms(
            f"{name} step", lambda s=step, b=made.batches[0]: s(b), REPEATS,  # type: ignore[misc]
            f"whole optimizer step of BERT-large, {made.batches[0].num_tokens} tokens",
        )  # fmt: skip
        del made, step
        free_memory(backend)
    clocked.add(
        "dense over masked, step", seconds["dense"] / seconds["masked"], "1",
        f"milliseconds of the dense step / of the one with --attention_mask {PATTERNS[0]}",
    )  # fmt: skip
