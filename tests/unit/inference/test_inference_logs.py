# SPDX-License-Identifier: Apache-2.0
"""LoadGen's files: loadgen/ holds lines of detail logs that LoadGen 6.0.17 wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bertbench.benchmarks.bert_inference.audit import audit
from bertbench.benchmarks.bert_squad.answers import AnswerOptions
from bertbench.common.errors import BertbenchError
from bertbench.common.mlperf.loadgen import (
    TestResult,
    logits_of,
    metrics,
    read_answers,
    read_detail,
)

LOGS = Path(__file__).parent / "loadgen"


def values(name: str, scenario: str) -> dict[str, float]:
    return {m.name: m.value for m in metrics(read_detail(LOGS / f"{name}_detail.txt"), scenario)}


def test_an_invalid_test_keeps_its_figures_and_says_why():
    result = read_detail(LOGS / "offline_detail.txt")
    assert not result.valid
    assert result.reason.startswith("the minimum duration was not reached; Increase expected QPS")
    assert values("offline", "Offline") == {"samples_per_second": 18702.3, "result_valid": 0}


def test_latencies_are_seconds_and_the_early_stopping_estimate_is_apart():
    found = values("singlestream", "SingleStream")
    assert found["latency_p90_s"] == pytest.approx(1172777e-9)
    assert found["latency_p90_early_stopping_s"] == pytest.approx(1192184e-9)
    assert found["samples_per_second"] == 836.775 and found["result_valid"] == 1
    units = {m.name: m.unit for m in metrics(read_detail(LOGS / "singlestream_detail.txt"),
                                             "SingleStream")}  # fmt: skip
    assert units["latency_p99_s"] == "s" and units["samples_per_second"] == "samples/s"


def test_server_counts_completed_samples_and_names_the_condition_that_failed():
    result = read_detail(LOGS / "server_detail.txt")
    assert "early stopping's condition" in result.reason and "428 more queries" in result.reason
    assert values("server", "Server")["samples_per_second"] == 291.196
    assert result.errors == ("Multiple conf files are used. This is not valid for official "
                             "submission.",)  # fmt: skip


def test_a_log_without_its_end_is_no_result(tmp_path):
    lines = (LOGS / "offline_detail.txt").read_text().splitlines()
    file = tmp_path / "detail.txt"
    file.write_text("\n".join(line for line in lines if "power_end" not in line))
    with pytest.raises(BertbenchError, match="before the test's end"):
        read_detail(file)
    with pytest.raises(BertbenchError, match="No such file"):
        read_detail(tmp_path / "none.txt")


def entry(row: int, logits: np.ndarray) -> dict:
    return {"seq_id": row, "qsl_idx": row, "data": logits.astype("<f4").tobytes().hex().upper()}


def test_logits_come_back_as_they_were_answered(tmp_path):
    rng, lengths = np.random.default_rng(0), np.array([2, 3])
    rows = [rng.normal(size=(n, 2)).astype(np.float32) for n in lengths]
    file = tmp_path / "accuracy.json"
    file.write_text(json.dumps([entry(1, rows[1]), entry(0, rows[0])]))
    found = read_answers(file, lengths)
    assert np.array_equal(logits_of(found, np.array([0, 2, 5])), np.concatenate(rows))
    with pytest.raises(BertbenchError, match="lacks 1 of 2"):
        logits_of({0: rows[0]}, np.array([0, 2, 5]))


@pytest.mark.parametrize("text", ["[", "{}[]", '[{"qsl_idx": 5, "data": ""}]',
                                  '[{"qsl_idx": 0, "data": "00"}]', '[{"data": ""}]'])  # fmt: skip
def test_a_damaged_accuracy_log_is_refused(tmp_path, text):
    file = tmp_path / "accuracy.json"
    file.write_text(text)
    with pytest.raises(BertbenchError, match="accuracy log"):
        read_answers(file, np.array([2]))


class Scored:
    """Stands in for Questions: F1 is 100 times the first logit."""

    def part(self, rows):
        return self

    def answers(self, logits, options):
        return logits[0, 0]

    def score(self, answers):
        return {"f1": 100.0 * float(answers), "exact_match": 0.0}


def result(rate: float, valid: bool = True) -> TestResult:
    return TestResult(valid=valid, reason="", values={"result_samples_per_second": rate}, errors=())


@pytest.mark.parametrize(
    ("after", "logged", "passed"),
    [
        (91.0, 0.5, True),
        (89.0, 0.5, False),  # another rate
        (111.0, 0.5, False),
        (100.0, 0.504, True),  # other bits, and within 1 % of F1
        (100.0, 0.506, False),
    ],
)
def test_test01_compares_rate_and_answers(after, logged, passed):
    answers = [{0: np.full((2, 2), value, np.float32)} for value in (0.5, logged)]
    found = audit(Scored(), AnswerOptions(), "Offline", (result(100.0), result(after)), answers)
    assert found["passed"] is passed
    assert found["different_samples"] == (logged != 0.5)


def test_test01_needs_valid_tests_and_answers():
    answers = [{0: np.zeros((2, 2), np.float32)}, {}]
    tests = (result(100.0), result(100.0, valid=False))
    found = audit(Scored(), AnswerOptions(), "Offline", tests, answers)
    assert not found["performance_passed"] and not found["accuracy_passed"]
