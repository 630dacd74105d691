# SPDX-License-Identifier: Apache-2.0
"""Measure SQuAD: fine-tuning with a record, and the speed of answering."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_squad.data import find_source
from bertbench.benchmarks.bert_squad.model import SpanBatch
from bertbench.benchmarks.bert_squad.stream import answer_batches
from bertbench.benchmarks.bert_squad.task import SquadTask
from bertbench.common.distributed.world import World
from bertbench.common.measure.metric import SHARED
from bertbench.common.training.evaluation import evaluate
from bertbench.common.training.progress import Progress
from check.device import TINY_SQUAD, Check, choose_precision, free_memory
from check.figure import NotAvailable, SectionReport
from check.runs import REPORTS, RunFailed, report_run, run
from check.section import Failed, apart

PRECISIONS = ("bf16", "tf32")
WARM_UP = 2
"""Untimed batches."""


def squad(check: Check, report: SectionReport) -> None:
    """Fine-tune BERT-large with NVIDIA's hyperparameters and answer, in bf16 and TF32."""
    missing, failed = [], []
    for wanted in PRECISIONS:
        try:
            apart(lambda wanted=wanted: one_precision(check, report, wanted))
        except NotAvailable as reason:
            missing.append(str(reason))
            report.fact(f"SQuAD in {wanted}", f"not available: {reason}")
        except Failed as error:
            failed.append(f"{wanted}: {error}")
    if failed:
        raise RunFailed("; ".join(failed))
    if len(missing) == len(PRECISIONS):
        raise NotAvailable("; ".join(missing))


def one_precision(check: Check, report: SectionReport, wanted: str) -> None:
    """Do one run with its record, and measure the speed of answering."""
    backend = check.open()
    precision = choose_precision(check, backend, wanted)
    steps = check.size(60, 4)
    flags = ["--synthetic", "--precision", precision, "--max_steps", str(steps)]
    flags += ["--log_freq", str(max(1, steps // REPORTS)), *(TINY_SQUAD if check.tiny else ())]
    done = run(check, ["squad_large_1", *flags])
    label = f"SQuAD {precision} 1 x {done.manifest['global_batch']}"
    report_run(check, report, label, done, backend.capabilities.notes)
    free_memory(backend)
    answer(check, report, flags, precision)


class Answering(SquadTask):
    """Answer synthetic questions, which `bertbench run --synthetic` only trains on.

    They have no text, so their answers are not scored.
    """

    batches: Sequence[SpanBatch] = ()

    def eval_batches(self) -> Sequence[SpanBatch]:
        self._logits = []
        return self.batches

    def eval_result(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {self.target_metric: sums["sequences"]}


def answer(check: Check, report: SectionReport, flags: Sequence[str], precision: str) -> None:
    """Report rate and latency of answering, measured by the suite's own evaluation."""
    settings = resolve("squad_large_1", flags)
    backend, size = check.open(), settings.impl.eval_batch_size
    source = find_source(settings)
    task = Answering(settings, backend, World(), source)
    assert source.train is not None
    count = min(len(source.train.features), size * (WARM_UP + check.size(60, 4)))
    task.batches = answer_batches(
        source.train.features, np.arange(count), size, pin=backend.capabilities.pinned_memory
    )
    event = evaluate(
        task,
        backend=backend,
        world=World(),
        plan=dataclasses.replace(task.plan(settings), skip_steps=WARM_UP),
        progress=Progress(),
        observers=(),
    )
    label = f"SQuAD {precision}, batches of {size}"
    shown = {"inference_sequences_per_second": (event.inference_sequences_per_second, 1.0, "")}
    for which, seconds in event.latency_s.items():
        shown[f"inference_latency_{which}_s"] = (seconds, 1e3, "ms")
    for name, (value, factor, unit) in shown.items():
        report.figure(
            f"{label}: {name.removesuffix('_s').replace('_', ' ')}",
            None if value is None else value * factor,
            unit or SHARED[name].unit,
            f"{SHARED[name].definition}; synthetic questions, {WARM_UP} batches of warm-up",
            "" if value is not None else "no batch was counted",
        )
