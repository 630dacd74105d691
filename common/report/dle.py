# SPDX-License-Identifier: Apache-2.0
"""The three tables of NVIDIA DeepLearningExamples' BERT: full precision beside mixed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from bertbench.common.report.groups import Entry, Value
from bertbench.common.report.tables import (
    RATE,
    Cell,
    Table,
    columns,
    count,
    number_cell,
    plain_cell,
    row,
    same_but_batch,
    task_note,
)
from bertbench.common.report.words import duration


def _pairs(
    entries: Sequence[Entry], value: Callable[[Entry], Value | None]
) -> list[tuple[Entry, dict[bool, tuple[Entry, Value]]]]:
    """Return (entry, {False: full, True: mixed}) of entries that differ in precision and batch."""
    found: dict[tuple[Any, ...], dict[bool, tuple[Entry, Value]]] = defaultdict(dict)
    for e in entries:
        v, mixed = value(e), e.mixed
        if v is None or mixed is None:
            continue
        r = e.first
        key: tuple[Any, ...] = (r.kind, e.workload, r.system_name, e.device)
        if not e.measured:
            key += (str(r.path),)
        while mixed in found[key]:
            key += ("another",)
        found[key][mixed] = (e, v)
    return [(next(iter(pair.values()))[0], pair) for pair in found.values()]


def speed(ident: str, what: str, entries: Sequence[Entry]) -> Table:
    rows = []
    pairs = _pairs(entries, lambda e: e.value(*RATE))
    one: dict[tuple[Any, ...], float] = {}
    for _, pair in pairs:
        for mixed, (e, v) in pair.items():
            if (e.first.world_size if e.measured else e.devices) == 1:
                one.setdefault(_family(e, mixed), v.median)
    for e, pair in pairs:
        full = "" if False not in pair else f", {pair[False][0].precision}"
        cells = [Cell(e.device, e.link(), e.workload + full)]
        batches = [str(pair[m][0].batch or "?") for m in (False, True) if m in pair]
        cells.append(Cell(" / ".join(dict.fromkeys(batches)), sort=e.batch))
        scaled = []
        for mixed in (False, True):
            there, rate = pair.get(mixed, (None, None))
            link = there.link() if there else ""
            cells.append(number_cell(rate, link))
            base = one.get(_family(there, mixed)) if there else None
            scaled.append(plain_cell(rate.median / base if rate and base else None, link, digits=3))
        gain = pair[True][1].median / pair[False][1].median if len(pair) == 2 else None
        rows.append(row(e, *cells, plain_cell(gain, e.link(), digits=3), *scaled))
    return Table(
        id=f"dle-{ident}",
        title=f"In the format of DeepLearningExamples' performance table: {what}",
        intro="Throughput in sequences trained / s. Full precision is FP32 or TF32, as the row "
        "states. Scaling is relative to one device (or process) of the same precision.",
        columns=columns(
            "GPUs | # Batch / GPU | # FP32 or TF32 | # Mixed precision | # Speed-up, mixed | "
            "# Scaling, FP32 or TF32 | # Scaling, mixed"
        ),
        rows=rows,
    )


def accuracy(entries: Sequence[Entry]) -> Table:
    rows = []
    for e, pair in _pairs(entries, lambda e: e.quality("f1")):
        cells = [Cell(e.device, e.link(), e.workload), count(e.batch)]
        times = [Cell(""), Cell("")]
        for mixed in (False, True):
            there, v = pair.get(mixed, (None, None))
            cells.append(number_cell(v, there.link() if there else ""))
            if there:
                took = there.value("time_to_target_s", "run_time_s", "train_time_s", "e2e_time_s")
                times[mixed] = number_cell(took, there.link(), form=duration)
        rows.append(row(e, *cells, *times))
    return Table(
        id="dle-accuracy",
        title="In the format of DeepLearningExamples' accuracy table",
        intro="F1 on SQuAD, and training time.",
        columns=columns(
            "GPUs | # Batch / GPU | # F1, FP32 or TF32 | # F1, mixed | # Time, FP32 or TF32 | "
            "# Time, mixed"
        ),
        rows=rows,
    )


def inference(entries: Sequence[Entry]) -> Table:
    rows = []
    for e in entries:
        rate = e.value("inference_sequences_per_second")
        if rate is None:
            continue
        late = [e.value(f"inference_latency_p{p}_s") for p in (50, 90, 99)]
        batch = e.first.config.get("impl", {}).get("eval_batch_size") if e.measured else e.batch
        cells = (
            Cell(e.device, e.link(), task_note(e)),
            count(batch if isinstance(batch, int) else None),
            Cell(e.precision),
            number_cell(rate, e.link()),
            *(number_cell(v, e.link(), scale=1e3) for v in late),
        )
        rows.append(row(e, *cells))
    return Table(
        id="dle-inference",
        title="In the format of DeepLearningExamples' inference table",
        intro="Sequences per second and milliseconds of a batch, scoring excluded.",
        columns=columns(
            "GPUs | # Batch | Precision | # Throughput, sequences/s | # Latency p50, ms | "
            "# p90, ms | # p99, ms"
        ),
        rows=rows,
    )


def _family(e: Entry, mixed: bool) -> tuple[Any, ...]:
    r = e.first
    if e.measured:  # weak scaling changes the whole batch, strong scaling each device's
        return (same_but_batch(e), r.device_name, e.backend, mixed)
    return (r.kind, e.workload, r.device_name or r.system_name, e.batch, mixed, str(r.path))
