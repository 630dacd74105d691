# SPDX-License-Identifier: Apache-2.0
"""Summary tables in the format of the reference suites.

The columns are those of DeepSparkHub's two BERT tables, Enflame's two, NVIDIA DeepLearningExamples'
(training performance, training accuracy, inference) and SparseBERT's; mlperf.py has MLPerf's. A row
is a measured configuration, or a figure of that source. Columns without a definition there have one
here; a cell without a measurement is empty.
"""

from __future__ import annotations

from collections.abc import Sequence

from bertbench.common.report import dle, inference, sparsity
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
    share_cell,
    task_note,
)
from bertbench.common.report.words import number

F1, EM, MLM = "f1", "exact_match", "mlm_accuracy"
Scalability = dict[str, Value]
"""Anchor of an entry -> its scalability."""


def suite_tables(entries: Sequence[Entry], scalability: Scalability) -> list[Table]:
    """Return the tables that have a row."""
    pretraining = [e for e in entries if "pretrain" in e.benchmark]
    squad = [e for e in entries if "squad" in e.benchmark]
    made = [
        _deepspark_speed(_of(pretraining, "deepspark", "iluvatar")),
        _deepspark_all(_of(pretraining, "deepspark", "iluvatar"), scalability),
        _enflame(_of(squad, "enflame"), accuracy=True),
        _enflame(_of(squad, "enflame"), accuracy=False),
        dle.speed("squad", "fine-tuning on SQuAD", _of(squad, "nvidia", "deeplearningexamples")),
        dle.speed("pretraining", "pretraining", _of(pretraining, "nvidia", "deeplearningexamples")),
        dle.accuracy(_of(squad, "nvidia", "deeplearningexamples")),
        dle.inference(_of(squad, "nvidia", "deeplearningexamples")),
        inference.published(entries),
        sparsity.glue(entries),
    ]
    return [table for table in made if table.rows]


def _of(entries: Sequence[Entry], *publishers: str) -> list[Entry]:
    """Return the measured entries and those of ``publishers``."""

    def theirs(e: Entry) -> bool:
        words = f"{e.source.get('title', '')} {e.source.get('url', '')}".lower()
        return e.first.kind == "published" and any(p in words for p in publishers)

    return [e for e in entries if e.measured or theirs(e)]


def _deepspark_speed(entries: Sequence[Entry]) -> Table:
    rows = [
        row(
            e,
            Cell(e.device, e.link(), task_note(e)),
            number_cell(e.value(*RATE), e.link()),
            number_cell(e.value("e2e_time_s"), e.link(), form=lambda s: f"{number(s)} s"),
            number_cell(e.quality(MLM), e.link()),
        )
        for e in entries
        if e.value(*RATE, "e2e_time_s")
    ]
    return Table(
        id="deepsparkhub-1",
        title="In the format of DeepSparkHub's first table",
        intro="FPS: sequences trained in the timed window / its seconds; E2E: start of the process "
        "to its last measurement; accuracy: masked tokens of the held-out set. DeepSparkHub "
        "defines none of them.",
        columns=columns("GPUs | # FPS | # E2E | # Accuracy"),
        rows=rows,
    )


def _deepspark_all(entries: Sequence[Entry], scalability: Scalability) -> Table:
    rows = []
    for e in entries:
        link, count = e.link(), e.devices or 1
        watts, peak = e.value("power_w"), e.value("peak_memory_bytes")
        scaled = scalability.get(e.anchor) or e.value("scalability")
        if not e.value(*RATE) or not (watts or scaled or peak or e.measured):
            continue
        target = next((r.quality.get("target") for r in e.results if r.quality), None)
        batch = f"batch {e.batch}, " if e.batch else ""
        cells = (
            plain_cell(target, link),
            Cell(f"{e.device}, {batch}{e.precision}", link, task_note(e)),
            number_cell(e.value(*RATE), link),
            number_cell(e.quality(MLM), link),
            number_cell(watts, link, form=lambda w, n=count: f"{number(w / n, 3)} x {n}"),
            number_cell(scaled, link),
            number_cell(peak, link, scale=2**-30, form=lambda g, n=count: f"{number(g, 3)} x {n}"),
            share_cell(e) if e.measured else number_cell(e.value("stability"), link),
        )
        rows.append(row(e, *cells))
    return Table(
        id="deepsparkhub-2",
        title="In the format of DeepSparkHub's second table",
        intro="Power and memory: per device x devices; scalability: rate(N) / (N x rate(1)); "
        "stability: runs that ended well / runs made. DeepSparkHub defines none of them.",
        columns=columns(
            "Convergence criteria | Configuration | # Performance | # Accuracy | # Power, W | "
            "# Scalability | # Memory, GiB | # Stability"
        ),
        rows=rows,
    )


def _enflame(entries: Sequence[Entry], *, accuracy: bool) -> Table:
    rows = []
    for e in entries:
        value = e.quality(F1) if accuracy else e.value("sequences_per_second", "train_fps_mean")
        if value is not None:
            exact = [number_cell(e.value(EM), e.link())] if accuracy else []
            cells = [Cell(e.device, e.link(), task_note(e)), count(e.batch), Cell(e.precision)]
            rows.append(row(e, *cells, *exact, number_cell(value, e.link())))
    kind, intro, last = (
        ("accuracy", "SQuAD after training, scored as the official script does.",
         "# Exact match, % | # Accuracy, F1 %")
        if accuracy else
        ("performance", "Sequences trained in the timed window / its seconds. Enflame labels them "
         "images per second.", "# Throughput, sequences/s")
    )  # fmt: skip
    return Table(
        id=f"enflame-{kind}",
        title=f"In the format of Enflame's {kind} table",
        intro=intro,
        columns=columns(f"Devices | # Batch / device | Data type | {last}"),
        rows=rows,
    )
