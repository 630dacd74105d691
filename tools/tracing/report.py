# SPDX-License-Identifier: Apache-2.0
"""Report a trace as JSON values, and as text with definitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from tracing.device import BACKWARD, CLIP, FORWARD, NEXT, OPTIMIZER, PHASES
from tracing.run import Trace
from tracing.tally import ATTENTION, COPY, KINDS, MEMORY, PRODUCT, Cost, Rates

PER_MICRO_BATCH = (FORWARD + NEXT, BACKWARD + NEXT)
SHOWN = (*PER_MICRO_BATCH, CLIP, OPTIMIZER)
"""Phases of the table by operation; a step's first micro-batch has a row by phase only."""

DEFINITIONS = """\
forward          from the copy of the micro-batch to the device until Tensor.backward
backward         Tensor.backward, until the next micro-batch; makes the gradients of a step
..., next        of each further micro-batch of the step: its gradients are added to those there
clip             checks of the losses, the gradient scaler's unscaling, gradient norm and clipping
optimizer        the update, and the scaler's
launches         kernels and copies, an estimate: one per ATen operation that is neither a view nor
                 an allocation. Operations on lists of tensors count as CUDA's multi_tensor_apply
                 launches them ({kb} kB of arguments), torch.cat one per 128 tensors. Kernels that
                 an operation launches besides its main one are unknown here (fills with zeros,
                 cuBLAS's split sums, before and after attention's backward pass)
GB               10^9 bytes of the device's memory, a lower bound: each operation reads every
                 element that it needs once and writes every element of its results once. A tensor
                 given twice and the repeats of an expanded one count once, operations by index
                 touch the rows they name, gradients of tables are also filled with zeros. Caches,
                 and kernels that read their input twice, are unknown here
matrix products  mm, addmm, bmm and the like. FLOPs: a multiplication and an addition are two
attention        fused kernels. FLOPs: two products forward and five backward of each sequence's
                 own length (padded length where the kernel takes padding). Attention without a
                 fused kernel counts as the products and the rest that it is made of
memory-bound     all other operations
copy             between host and device; takes no ms here and is in the table of operations only
ms               estimate: each operation takes the larger of its bytes / {bandwidth:g} TB/s and
                 its FLOPs / rate, one after the other. Rates: {products:g} TFLOP/s for matrix
                 products, {eight_bit_products:g} for those of 8-bit floats, for attention
                 {attention_forward:g} forward, {attention_backward:g} backward. Gaps between
                 kernels, data, all-reduce and evaluation are not included
host ms          estimate: launches x {launch:g} us, the host's time to issue them in eager mode
sequences/s      sequences of a step on one device / the larger of its ms and its host ms
synchronisation  the host waits for the device: it reads a number, needs a size that depends on
                 data, or copies without non_blocking. A number that is read is taken to be 0
not run          the product's trials on the device: kernels, LayerNorm in 16 bits and fused AdamW
                 are assumed to work. scaled_dot_product_attention is assumed to choose
                 FlashAttention for 4-D 16-bit inputs without a mask, else memory-efficient"""


def summary(trace: Trace, rates: Rates, accumulations: Sequence[int], kb: int) -> dict[str, Any]:
    """Return the trace as JSON values, in bytes, FLOPs and seconds."""
    costs, waits = trace.tally.costs, trace.tally.waits

    def total(phases: Iterable[str], kinds: Iterable[str] = KINDS) -> Cost:
        cost = Cost()
        for (phase, kind, _), one in costs.items():
            if phase in phases and kind in kinds:
                cost.add(one)
        return cost

    size = len(trace.lengths)
    steps = []
    for passes in accumulations:
        cost, bound = total(PHASES), total(PHASES, [MEMORY])
        cost.add(total(PER_MICRO_BATCH), passes - 2)
        bound.add(total(PER_MICRO_BATCH, [MEMORY]), passes - 2)
        host_s = cost.launches * rates.launch_s
        steps.append(
            {
                "accumulation": passes,
                "sequences": passes * size,
                **asdict(cost),
                "memory_bound_bytes": bound.bytes,
                "synchronisations": _waiting(waits, PHASES)
                + (passes - 2) * _waiting(waits, PER_MICRO_BATCH),
                "host_seconds": host_s,
                "sequences_per_second": passes * size / max(cost.seconds, host_s),
            }
        )
    return {
        "recipe": trace.name,
        "torch": str(torch.__version__),
        "precision": trace.precision,
        "kernels": trace.kernels,
        "micro_batch": {
            "sequences": size,
            "tokens": sum(trace.lengths),
            "squared_lengths": sum(n * n for n in trace.lengths),
            "masked": trace.masked,
            "model_flops": trace.model_flops,
        },
        "rates": asdict(rates),
        "launch_argument_kb": kb,
        "phases": {
            phase: {kind: asdict(total([phase], [kind])) for kind in KINDS}
            | {"synchronisations": _waiting(waits, [phase])}
            for phase in PHASES
        },
        "operations": [
            {"phase": phase, "kind": kind, "operation": name, **asdict(cost)}
            for (phase, kind, name), cost in sorted(costs.items())
        ],
        "synchronisations": [
            {"phase": phase, "operation": name, "where": where, "count": count}
            for (phase, name, where), count in sorted(waits.items())
        ],
        "steps": steps,
    }


def _waiting(waits: Mapping[tuple[str, str, str], int], phases: Iterable[str]) -> int:
    return sum(count for (phase, *_), count in waits.items() if phase in phases)


def render(found: dict[str, Any], top: int) -> str:
    """Return ``summary`` as text; the table by operation has the ``top`` with the most bytes."""
    batch, rates = found["micro_batch"], found["rates"]
    masked = "" if batch["masked"] is None else f", {batch['masked']:,} masked"
    kernels = ", ".join(f"{name} {what}" for name, what in found["kernels"].items())
    lines = [
        f"{found['recipe']}: one training step in {found['precision']} on fake tensors, not "
        f"measured (torch {found['torch']})",
        f"kernels: {kernels}",
        f"micro-batch: {batch['sequences']} sequences, {batch['tokens']:,} tokens{masked}, model "
        f"FLOPs {batch['model_flops'] / 1e12:.3f} T; the synthetic micro-batch whose tokens are "
        "nearest the mean",
        "",
        *_phases(found),
        "",
        *_operations(found, top),
        "",
        *_steps(found),
        "",
        *_waits(found),
        "",
        "Definitions",
        DEFINITIONS.format(
            kb=found["launch_argument_kb"],
            bandwidth=rates["bandwidth"] / 1e12,
            launch=1e6 * rates["launch_s"],
            **{n: rates[n] / 1e12 for n in rates if n not in ("bandwidth", "launch_s")},
        ),
    ]
    return "\n".join(lines)


def _phases(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{'':<16}{'launches':>9} |{'matrix products':^25} |{'attention':^25} |"
        f"{'memory-bound':^17} |{'all':>8} |{'syn-':>6}",
        f"{'phase':<16}{'':>9} |{'TFLOP':>8}{'GB':>8}{'ms':>9} |{'TFLOP':>8}{'GB':>8}{'ms':>9} |"
        f"{'GB':>8}{'ms':>9} |{'ms':>8} |{'chron.':>6}",
    ]
    for phase, kinds in found["phases"].items():
        costs = [kinds[kind] for kind in KINDS]
        line = f"{phase:<16}{sum(c['launches'] for c in costs):>9,} |"
        for kind in (PRODUCT, ATTENTION):
            line += f"{kinds[kind]['flops'] / 1e12:>8.3f}{_gb_ms(kinds[kind])} |"
        line += f"{_gb_ms(kinds[MEMORY])} |{1e3 * sum(c['seconds'] for c in costs):>8.2f} |"
        lines.append(line + f"{kinds['synchronisations']:>6}")
    return lines


def _gb_ms(cost: dict[str, Any]) -> str:
    return f"{cost['bytes'] / 1e9:>8.3f}{1e3 * cost['seconds']:>9.2f}"


def _operations(found: dict[str, Any], top: int) -> list[str]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in found["operations"]:
        if one["phase"] in SHOWN:
            rows.setdefault((one["kind"], one["operation"]), {})[one["phase"]] = one
    ordered = sorted(
        rows.items(), key=lambda row: (row[0][0] == COPY, -sum(c["bytes"] for c in row[1].values()))
    )
    width = 1 + max(30, *(len(name) for (_, name), _ in ordered[:top]))
    lines = [
        f"{'operation':<{width}}{'kind':<16}" + "".join(f"|{phase:^17} " for phase in SHOWN),
        " " * (width + 16) + f"|{'launches':>9}{'GB':>8} " * len(SHOWN),
    ]
    rest: dict[str, Cost] = {phase: Cost() for phase in SHOWN}
    for number, ((kind, name), cells) in enumerate(ordered):
        if number < top:
            lines.append(f"{name:<{width}}{kind:<16}" + "".join(_cell(cells.get(p)) for p in SHOWN))
            continue
        for phase, cell in cells.items():
            rest[phase].launches += cell["launches"]
            rest[phase].bytes += cell["bytes"]
    if len(ordered) > top:
        label = f"{len(ordered) - top} others"
        lines.append(f"{label:<{width + 16}}" + "".join(_cell(asdict(rest[p])) for p in SHOWN))
    return lines


def _cell(cost: dict[str, Any] | None) -> str:
    if cost is None or not cost["launches"]:
        return f"|{'':>17} "
    return f"|{cost['launches']:>9,}{cost['bytes'] / 1e9:>8.3f} "


def _steps(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{'micro-batches a step':<21}{'sequences':>10}{'launches':>10}{'memory-bound GB':>17}"
        f"{'ms':>10}{'host ms':>10}{'sequences/s':>13}{'synchronisations':>18}"
    ]
    for step in found["steps"]:
        lines.append(
            f"{step['accumulation']:<21}{step['sequences']:>10,}{step['launches']:>10,}"
            f"{step['memory_bound_bytes'] / 1e9:>17.1f}{1e3 * step['seconds']:>10.1f}"
            f"{1e3 * step['host_seconds']:>10.1f}"
            f"{step['sequences_per_second']:>13.0f}{step['synchronisations']:>18}"
        )
    return lines


def _waits(found: dict[str, Any]) -> list[str]:
    waits = found["synchronisations"]
    if not waits:
        return ["synchronisations: none"]
    return ["synchronisations, of a step of two micro-batches:"] + [
        f"  {one['count']} x {one['operation']} in {one['phase']}: {one['where']}" for one in waits
    ]
