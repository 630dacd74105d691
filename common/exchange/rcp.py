# SPDX-License-Identifier: Apache-2.0
"""``bertbench rcp``: MLPerf's convergence check, which refuses runs that converge too fast.

It compares the samples that runs need to reach the target with reference convergence points: the
reference implementation's results at some batch sizes, interpolated between them. The verdict is
that of mlperf_logging.rcp_checker (with the pruned points, as its package checker).
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.exchange.export_checks import check_sound
from bertbench.common.files import shown
from bertbench.common.mlperf.compliance import (
    RULESETS,
    foreign_words,
    read_whole,
    run_checker,
)
from bertbench.common.mlperf.log import LOG, TOKEN, log_lines, read_log
from bertbench.common.results.store import load_results

ROUNDS = RULESETS[1:]
"""0.7 had no reference points."""
_FEWEST = 3
"""Fastest and slowest are dropped."""
_EPOCHS = 10_000
"""An ``epoch_num`` below this counts epochs, as in rounds before 2.0."""
_TIMEOUT_S = 300


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """The verdict and its numbers: samples to the target, without the fastest and slowest run."""

    passed: bool
    verdict: str
    runs: int
    ruleset: str
    global_batch: int | None
    samples: float | None
    """Mean over the runs."""
    reference: float | None
    """Mean of the reference's runs at ``reference_batch``."""
    reference_batch: int | None
    """Differs from ``global_batch`` if that is smaller than every reference batch."""
    least: float | None
    """The smallest accepted mean."""
    interpolated: bool
    factor: float
    """MLPerf's factor on the time, if the mean is below the reference's."""


def check_convergence(logs: Sequence[Path], ruleset: str) -> Convergence:
    """Compare the runs of these MLPerf logs with the reference.

    Raises BadInput for too few logs or an unknown round, Unsupported if MLPerf has no reference
    for them: any log of the open division.
    """
    if ruleset not in ROUNDS:
        raise BadInput(
            f"no reference points in round {shown(ruleset)!r}: choose from {', '.join(ROUNDS)}"
        )
    if len(logs) < _FEWEST:
        raise BadInput(
            f"{len(logs)} runs are too few: give at least {_FEWEST}; the fastest and the slowest "
            f"are dropped"
        )
    values, texts = zip(*map(_values, logs), strict=True)
    for log, found in zip(logs, values, strict=True):
        division, benchmark = (found.get(f"submission_{k}") for k in ("division", "benchmark"))
        if (division, benchmark) != ("closed", "bert"):
            raise _no_reference(
                f"{shown(log)} (division {shown(division)}, benchmark {shown(benchmark)})"
            )
    for log, found in zip(logs, values, strict=True):
        if "run_stop" not in found:
            raise BadInput(
                f"{shown(log)} is cut off: it has no run_stop; fetch it again, or leave it out"
            )
        if type(found.get("global_batch_size")) is not int:
            raise BadInput(f"{shown(log)}: its global_batch_size is not a whole number")
    batches = {found.get("global_batch_size") for found in values}
    if len(batches) > 1:
        raise BadInput(f"the logs must have one batch size; found {shown(batches)}")
    unit = "epochs" if any(map(_counts_epochs, values)) else "samples"
    files = {f"result_{number}.txt": text for number, text in enumerate(texts)}
    logged = _checked(files, ruleset, unit)
    passed, said, factor = logged["passed"], str(logged["said"]), logged["factor"]
    point = logged.get("RCP Record", {})
    samples = logged.get("Submission mean epochs")
    mean, speedup = point.get("RCP Mean"), point.get("Max Speedup")
    batch = batches.pop()
    return Convergence(
        passed=passed,
        verdict=_verdict(passed, said, factor),
        runs=len(logs),
        ruleset=ruleset,
        global_batch=batch if isinstance(batch, int) else None,
        samples=None if samples is None or not math.isfinite(samples) else float(samples),
        reference=None if mean is None else float(mean),
        reference_batch=point.get("BS"),
        least=None if mean is None else float(mean / speedup),
        interpolated="Interpolation" in said,
        factor=factor if passed else 1.0,
    )


def _no_reference(subject: str) -> Unsupported:
    return Unsupported(
        f"MLPerf has no reference convergence points for {subject}: they exist only for the closed "
        f"division's BERT-large"
    )


def _verdict(passed: bool, said: str, factor: float) -> str:
    if passed and factor > 1:
        return (
            f"faster than the reference, within its spread; MLPerf counts the time x {factor:.4f}"
        )
    if passed:
        return "no faster than the reference"
    if said.startswith("Missing RCP"):
        return "no reference point for this batch size: MLPerf requires one with the results"
    return {
        "RCP found": "faster than the reference's spread allows: the task differs",
        "RCP Interpolation": "faster than the reference's spread allows: the task differs",
        "Insufficient convergence": "more than one run missed the target: train longer",
    }.get(said, shown(f"the checker reports: {said}"))


def find_logs(paths: Sequence[Path], ruleset: str | None) -> tuple[list[Path], str]:
    """Return the logs and the round; raise BadInput for records that are not sound."""
    logs, folders = [], []
    for path in paths:
        inside = [] if path.is_file() else sorted(path.glob("result_*.txt"))
        if path.is_file() or (inside and not (path / "manifest.json").exists()):
            logs += inside or [path]
        else:
            folders.append(path)
    if logs and folders:
        raise BadInput("name records or MLPerf logs, not both")
    if logs:
        return logs, ruleset or ROUNDS[-1]
    runs, damaged = load_results(folders, references=False)
    if damaged:
        raise BadInput(f"{shown(damaged[0].path)}: {shown(damaged[0].problem)}; leave it out")
    for run in runs:
        mlperf = run.manifest.get("mlperf")
        if not isinstance(mlperf, dict) or mlperf.get("division") != "closed":
            raise _no_reference(f"the recipe {shown(run.preset)} ({shown(run.path)})")
    check_sound(runs)
    return [run.path / LOG for run in runs], ruleset or str(runs[0].manifest["mlperf"]["ruleset"])


def _values(log: Path) -> tuple[dict[str, Any], str]:
    """Return key -> value of its last line, and ``epoch_num`` of the last evaluation; and the log.

    Raises BadInput for an unreadable or damaged log, and for one whose division or benchmark is
    anywhere no word of MLPerf's.
    """
    values: dict[str, Any] = {}
    text = ""
    events = list(read_log(log_lines(read_whole(log))))
    for number, event in events:
        if event is None:
            raise BadInput(f"{shown(log)}: line {number} is cut or damaged: log the run again")
        values[event["key"]] = event["value"]
        if event["key"] == "eval_accuracy":
            values["epoch_num"] = event["metadata"].get("epoch_num")
        text += f"{TOKEN}{json.dumps(event)}\n"
    if foreign := foreign_words(events):
        raise BadInput(f"{shown(log)}: {foreign[0]}: log the run again")
    return values, text


def _counts_epochs(values: dict[str, Any]) -> bool:
    """Return whether only ``train_samples`` counts the samples."""
    last = values.get("epoch_num")
    return not isinstance(last, (int, float)) or last < _EPOCHS


def _checked(files: dict[str, str], ruleset: str, unit: str) -> dict[str, Any]:
    """Return the checker's verdict and numbers; raise BadInput where it fails on the logs."""
    try:
        done = run_checker("rcp_checker", ruleset, unit, files=files, timeout_s=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BadInput(f"MLPerf's checker took more than {_TIMEOUT_S} s on these logs") from None
    if done.returncode:
        last = shown((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
        raise BadInput(f"MLPerf's checker cannot read these logs: {last}")
    return dict(json.loads(done.stdout))
