# SPDX-License-Identifier: Apache-2.0
"""Read LoadGen's files: the result of a test, and the logits that it logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertbench.common.data.samples import IntArray
from bertbench.common.errors import BertbenchError
from bertbench.common.files import read_bytes, read_json, shown
from bertbench.common.measure.metric import Metric
from bertbench.common.mlperf.inference import (
    MIN_DURATION_MS,
    MIN_QUERIES,
    PERCENTILE,
    SAMPLES,
    SEED_KEYS,
    SEEDS,
    SERVER_LATENCY_MS,
    Scenario,
)
from bertbench.common.mlperf.log import log_lines, read_log

DETAIL, SUMMARY = "mlperf_log_detail.txt", "mlperf_log_summary.txt"
ACCURACY = "mlperf_log_accuracy.json"
CLOCK = "LoadGen"
"""Of the metrics that LoadGen measures."""
_LARGEST_DETAIL, _LARGEST_ACCURACY = 1 << 30, 2 << 30
_EXPECTED = "Found Audit Config file"
"""The warning that every audit has."""
_CONDITIONS = {
    "result_min_duration_met": "the minimum duration was not reached",
    "result_min_queries_met": "the minimum number of queries was not reached",
    "result_perf_constraints_met": "the latency bound was not met",
    "early_stopping_met": "early stopping's condition was not met",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """What LoadGen found in one test."""

    __test__ = False  # no test of pytest's

    valid: bool
    reason: str
    """Why it is INVALID, in LoadGen's words; empty for VALID."""
    values: Mapping[str, Any]
    """Key -> value of the detail log; of repeated keys the last."""
    errors: tuple[str, ...]
    """LoadGen's errors and warnings."""

    def number(self, key: str) -> float | None:
        """Return a positive value; None where it is absent or 0, LoadGen's unknown."""
        value = self.values.get(key)
        return float(value) if isinstance(value, int | float) and value > 0 else None


def read_detail(file: Path) -> TestResult:
    """Return the result in a detail log.

    Raises BertbenchError where the log cannot be read, or does not hold a finished test.
    """
    try:
        lines = log_lines(read_bytes(file, _LARGEST_DETAIL), "utf-8")
    except (OSError, ValueError) as error:
        raise BertbenchError(f"LoadGen's log {shown(file)}: {shown(error)}") from error
    values: dict[str, Any] = {}
    errors = []
    for _, event in read_log(lines):
        if event is None:
            continue
        values[event["key"]] = event["value"]
        flagged = event["metadata"].get("is_error") or event["metadata"].get("is_warning")
        if flagged and not str(event["value"]).startswith(_EXPECTED):
            errors.append(shown(event["value"], 300))
    if "effective_scenario" not in values or "power_end" not in values:
        raise BertbenchError(f"LoadGen's log {shown(file)} ends before the test's end")
    performance = values["effective_test_mode"] == "PerformanceOnly"
    valid = values.get("result_validity") == "VALID" if performance else True
    return TestResult(
        valid=valid,
        reason="" if valid else _reason(values),
        values=values,
        errors=tuple(dict.fromkeys(errors)),
    )


def _reason(values: Mapping[str, Any]) -> str:
    """Return LoadGen's reasons for INVALID: the conditions that failed, and its advice."""
    parts = [text for key, text in _CONDITIONS.items() if values.get(key) is False]
    parts.append(" ".join(str(values.get("result_invalid_reason", "")).split()))
    if values.get("early_stopping_met") is False:
        parts.append(" ".join(str(values.get("early_stopping_result", "")).split()).lstrip("* "))
    return shown("; ".join(part for part in parts if part), 500)


def metrics(result: TestResult, scenario: Scenario) -> Iterator[Metric]:
    """Yield the metrics of a performance test; those that LoadGen did not find are left out."""
    values = {
        "samples_per_second": (_RATES[scenario], 1.0),
        "scheduled_samples_per_second": ("result_scheduled_samples_per_sec", 1.0),
    }
    if scenario != "Offline":  # whose one query holds all samples
        query = "_per_query" if scenario == "MultiStream" else ""
        for p in (50, 90, 99):
            values[f"latency_p{p}_s"] = (f"result_{p}.00_percentile{query}_latency_ns", 1e-9)
    if scenario in _EARLY:
        name = f"latency_p{PERCENTILE[scenario]}_early_stopping_s"
        values[name] = (_EARLY[scenario], 1e-9)
    for name, (key, factor) in values.items():
        if (value := result.number(key)) is not None:
            yield _metric(name, value * factor, scenario)
    yield _metric("result_valid", float(result.valid), scenario)


_RATES = {
    "Offline": "result_samples_per_second",
    "Server": "result_completed_samples_per_sec",
    "SingleStream": "result_qps_with_loadgen_overhead",
    "MultiStream": "",
}
_EARLY = {"SingleStream": "early_stopping_latency_ss", "MultiStream": "early_stopping_latency_ms"}
_DEFINITIONS = {
    "samples_per_second": "samples answered / seconds of the test, as LoadGen counts",
    "scheduled_samples_per_second": "samples that LoadGen's schedule asked for / its seconds",
    "result_valid": "1: LoadGen says VALID; 0: INVALID, and the figures are not a result",
}


def _metric(name: str, value: float, scenario: Scenario) -> Metric:
    if name.startswith("latency"):
        what = "8 samples" if scenario == "MultiStream" else "one sample"
        text = f"LoadGen's latency of a query of {what}, its percentile {name[9:11]}"
        if name.endswith("early_stopping_s"):
            text += ", with early stopping's margin: MLPerf's result"
        unit, better = "s", "lower"
    else:
        text, better = f"{_DEFINITIONS[name]}", "higher"
        unit = "samples/s" if name.endswith("second") else "1"
    return Metric(
        name=name,
        value=value,
        unit=unit,
        direction=better,  # type: ignore[arg-type]
        clock=CLOCK,
        scope="global",
        definition=f"{text} ({scenario})",
    )


def broken_rules(result: TestResult, scenario: str) -> Iterator[str]:
    """Yield what in a test's log MLPerf's submission checker refuses; ``scenario`` is the run's.

    Source: submission_checker/checks/performance_check.py and accuracy_check.py of
    mlcommons/inference. Early stopping's condition is part of LoadGen's verdict.
    """
    values, performance = result.values, result.values.get("effective_test_mode") != "AccuracyOnly"
    if values.get("effective_scenario") != scenario:
        yield f"its scenario is {shown(values.get('effective_scenario'), 40)}, not {scenario}"
    if errors := values.get("num_errors", 0):
        yield f"LoadGen counts {shown(errors, 40)} errors"
    wanted = dict(zip(SEED_KEYS, SEEDS["6.0"], strict=True))
    found = {key: values.get(f"effective_{key}") for key in SEED_KEYS}
    yield from (
        f"{k} is {shown(found[k], 40)}, not {v}" for k, v in wanted.items() if found[k] != v
    )
    if not performance:
        if values.get("effective_accuracy_sample_count") != SAMPLES:
            yield f"it covers {shown(values.get('effective_accuracy_sample_count'), 40)} samples"
        return
    if not result.valid:
        yield f"INVALID: {result.reason}"
    least = {"performance_sample_count": SAMPLES, "min_duration_ms": MIN_DURATION_MS}
    asked = "samples_per_query" if scenario == "Offline" else "min_query_count"
    for key, number in {**least, asked: MIN_QUERIES.get(scenario, 0)}.items():
        if (result.number(f"effective_{key}") or 0) < number:
            yield f"{key} is {shown(values.get(f'effective_{key}'), 40)}, below {number}"
    bound = result.number("effective_target_latency_ns") or 0
    if scenario == "Server" and bound > SERVER_LATENCY_MS * 1e6:
        yield f"the latency bound is {bound / 1e6:g} ms, above {SERVER_LATENCY_MS}"


def read_answers(file: Path, lengths: IntArray) -> dict[int, NDArray[np.float32]]:
    """Return sample -> logits, float32 [length, 2], of an accuracy log.

    ``lengths`` are all samples' [N]. A sample that was asked more than once has its last answer.
    Raises BertbenchError where the log is damaged or an answer has another length.
    """
    try:
        found = {}
        for entry in read_json(file, _LARGEST_ACCURACY):
            row = entry["qsl_idx"]
            logits = np.frombuffer(bytes.fromhex(entry["data"]), "<f4")
            found[row] = logits.reshape(int(lengths[row]), 2).astype(np.float32)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BertbenchError(f"LoadGen's accuracy log {shown(file)}: {shown(error)}") from error
    return found


def logits_of(answers: Mapping[int, NDArray[np.float32]], offsets: IntArray) -> NDArray[np.float32]:
    """Return the logits of all samples end to end, float32 [T, 2], from ``offsets`` [N + 1].

    Raises BertbenchError where a sample has no answer.
    """
    missing = [row for row in range(len(offsets) - 1) if row not in answers]
    if missing:
        raise BertbenchError(
            f"LoadGen's accuracy log lacks {len(missing)} of {len(offsets) - 1} samples"
        )
    return np.concatenate([answers[row] for row in range(len(offsets) - 1)])
