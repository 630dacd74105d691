# SPDX-License-Identifier: Apache-2.0
"""``bertbench rcp``: MLPerf's convergence check, which no run may pass by converging too fast.

The samples that runs need to reach the target are compared with reference convergence points:
for some batch sizes the results of the reference implementation, interpolated between them. The
verdict is that of mlperf_logging.rcp_checker (with the pruned points, as its package checker).
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.exchange.export_checks import check_sound
from bertbench.common.files import shown
from bertbench.common.mlperf.compliance import RULESETS
from bertbench.common.mlperf.log import LOG, read_log
from bertbench.common.results.store import load_results

ROUNDS = RULESETS[1:]
"""0.7 had no reference points."""
_FEWEST = 3
"""Fastest and slowest are dropped."""
_EPOCHS = 10_000
"""Below this an ``epoch_num`` counts no samples: rounds before 2.0."""


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """The verdict and the numbers it rests on; samples to the target, without first and last."""

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
    """Differs from ``global_batch`` where that is smaller than all of the reference's."""
    least: float | None
    """The smallest mean that is accepted."""
    interpolated: bool
    factor: float
    """What MLPerf multiplies the time with, where the mean is below the reference's."""


def check_convergence(logs: Sequence[Path], ruleset: str) -> Convergence:
    """Compare the runs whose MLPerf logs these are with the reference.

    Raises BadInput for too few logs or an unknown round, Unsupported where MLPerf has no
    reference for them: any log of the open division.
    """
    if ruleset not in ROUNDS:
        raise BadInput(f"no reference points in round {shown(ruleset)!r}: {', '.join(ROUNDS)}")
    if len(logs) < _FEWEST:
        raise BadInput(f"{len(logs)} runs are too few: fastest and slowest are dropped")
    values = [_values(log) for log in logs]
    for log, told in zip(logs, values, strict=True):
        division, benchmark = (told.get(f"submission_{k}") for k in _KINDS)
        if (division, benchmark) != ("closed", "bert"):
            raise Unsupported(
                f"MLPerf has no reference convergence points for {shown(log)} (division "
                f"{shown(division)}, benchmark {shown(benchmark)}): they are for the closed "
                f"division's BERT-large. Nothing says how fast this recipe should converge"
            )
    for log, told in zip(logs, values, strict=True):
        if "run_stop" not in told:
            raise BadInput(f"{log} is cut off: it has no run_stop; fetch it again, or leave it out")
        if type(told.get("global_batch_size")) is not int:
            raise BadInput(f"{log}: its global_batch_size is no whole number")
    batches = {told.get("global_batch_size") for told in values}
    if len(batches) > 1:
        raise BadInput(f"the logs must be of one batch size, here are {shown(batches)}")
    from mlperf_logging.rcp_checker import rcp_checker

    in_epochs = any(map(_counts_epochs, values))
    with tempfile.TemporaryDirectory() as folder, _heard() as heard:
        for number, log in enumerate(logs):
            shutil.copyfile(log, Path(folder) / f"result_{number}.txt")
        passed, said, factor = rcp_checker.check_directory(
            folder, "training", ruleset, False, in_epochs, rcp_pass="pruned_rcps"
        )
    point = heard.get("RCP Record", {})
    samples = heard.get("Submission mean epochs")
    mean, speedup = point.get("RCP Mean"), point.get("Max Speedup")
    batch = batches.pop()
    return Convergence(
        passed=bool(passed),
        verdict=_verdict(bool(passed), said, float(factor)),
        runs=len(logs),
        ruleset=ruleset,
        global_batch=batch if isinstance(batch, int) else None,
        samples=None if samples is None or not math.isfinite(samples) else float(samples),
        reference=None if mean is None else float(mean),
        reference_batch=point.get("BS"),
        least=None if mean is None else float(mean / speedup),
        interpolated="Interpolation" in said,
        factor=float(factor) if passed else 1.0,
    )


_KINDS = ("division", "benchmark")


def _verdict(passed: bool, said: str, factor: float) -> str:
    if passed and factor > 1:
        return f"faster than the reference, within its spread; MLPerf takes the time x {factor:.4f}"
    if passed:
        return "no faster than the reference"
    if said.startswith("Missing RCP"):
        return "no reference point for this batch size: MLPerf wants one along with the results"
    return {
        "RCP found": "faster than the reference's spread allows: something is easier here",
        "RCP Interpolation": "faster than the reference's spread allows: something is easier here",
        "Insufficient convergence": "more than one run missed the target: train longer",
    }.get(said, shown(f"the checker says: {said}"))


def find_logs(paths: Sequence[Path], ruleset: str | None) -> tuple[list[Path], str]:
    """The logs to look at, and the round: of records after they were found sound."""
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
        raise BadInput(f"{damaged[0].path}: {damaged[0].problem}; leave it out")
    for run in runs:
        told = run.manifest.get("mlperf")
        if not isinstance(told, dict) or told.get("division") != "closed":
            raise Unsupported(
                f"MLPerf has no reference convergence points for the recipe {shown(run.preset)} "
                f"({run.path}): they are for the closed division's BERT-large. Nothing says how "
                f"fast it should converge"
            )
    check_sound(runs)
    return [run.path / LOG for run in runs], ruleset or str(runs[0].manifest["mlperf"]["ruleset"])


def _values(log: Path) -> dict[str, Any]:
    """Key -> value of each kind of line, the last of its kind; ``epoch_num`` of an evaluation."""
    try:
        lines = log.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise BadInput(f"cannot read the MLPerf log {log}: {error.strerror}") from error
    values: dict[str, Any] = {}
    for number, event in read_log(lines):
        if event is None:
            raise BadInput(f"{log}: line {number} is cut or damaged: log the run again")
        values[event["key"]] = event["value"]
        if event["key"] == "eval_accuracy":
            values["epoch_num"] = event["metadata"].get("epoch_num")
    return values


def _counts_epochs(values: dict[str, Any]) -> bool:
    """Whether the samples are told by ``train_samples`` alone."""
    last = values.get("epoch_num")
    return not isinstance(last, (int, float)) or last < _EPOCHS


@contextmanager
def _heard() -> Iterator[dict[str, Any]]:
    """What the checker logs on the way to its verdict; it returns no numbers."""
    heard: dict[str, Any] = {}

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            args: Any = record.args
            name = str(record.msg).split(":")[0].strip()
            if args and name in ("RCP Record", "Submission mean epochs"):
                # A mapping as the only argument is unpacked by logging itself.
                heard[name] = args if isinstance(args, dict) else args[0]

    root, listener = logging.getLogger(), Listener()
    before = root.level
    root.addHandler(listener)
    root.setLevel(logging.INFO)
    try:
        yield heard
    finally:
        root.removeHandler(listener)
        root.setLevel(before)
