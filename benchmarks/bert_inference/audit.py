# SPDX-License-Identifier: Apache-2.0
"""TEST01: the logits of the performance mode are those of the accuracy mode.

Source: compliance/TEST01 of mlcommons/inference. A performance test is run again, and LoadGen logs
some of its answers. Its figure must be within 10 % of the performance test's (20 % of a
SingleStream latency up to 0.2 ms, or a MultiStream one up to 1.6 ms), and its answers must equal
those of the accuracy test bit by bit; where they do not, the F1 of both over the logged samples
must agree within 1 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertbench.benchmarks.bert_inference.scoring import Questions
from bertbench.benchmarks.bert_squad.answers import AnswerOptions
from bertbench.common.mlperf.inference import TEST01, Scenario
from bertbench.common.mlperf.loadgen import TestResult

CONF = """# compliance/TEST01/bert/audit.config of mlcommons/inference
*.*.mode = 2
*.*.accuracy_log_rng_seed = 720381539243781796
*.*.accuracy_log_sampling_target = 4096
"""
FIGURE = {
    "Offline": "result_samples_per_second",
    "Server": "result_completed_samples_per_sec",
    "SingleStream": "early_stopping_latency_ss",
    "MultiStream": "early_stopping_latency_ms",
}
"""Scenario -> the key of LoadGen's detail log whose value is the result."""
_SHORT_NS = {"SingleStream": 200_000, "MultiStream": 1_600_000}
_F1_WITHIN = 0.01
Answers = Mapping[int, NDArray[np.float32]]


def audit(
    questions: Questions,
    options: AnswerOptions,
    scenario: Scenario,
    tests: tuple[TestResult, TestResult],
    answers: tuple[Answers, Answers],
) -> dict[str, Any]:
    """Return ``passed`` and the counts behind it, as JSON values.

    Args:
        questions: of all samples.
        options: of the answers.
        scenario: of the tests.
        tests: the performance test and its audit.
        answers: sample -> logits, float32 [length, 2], of the accuracy test and of the audit.
    """
    performance = _performance(scenario, *tests)
    reference, logged = answers
    differ = [row for row, found in logged.items() if not np.array_equal(found, reference[row])]
    content: dict[str, Any] = {
        "test": TEST01,
        **performance,
        "logged_samples": len(logged),
        "different_samples": len(differ),
        "accuracy_passed": bool(logged) and not differ,
    }
    if differ:
        rows = np.array(sorted(logged))
        part = questions.part(rows)
        scores = [
            part.score(part.answers(np.concatenate([side[r] for r in rows]), options))
            for side in answers
        ]
        f1 = [found["f1"] for found in scores]
        content |= {
            **{
                f"{name}_of_{test}": found[name]
                for name in ("exact_match", "f1")
                for test, found in zip(("accuracy_test", "audit"), scores, strict=True)
            },
            "largest_difference": max(
                float(np.abs(logged[row] - reference[row]).max()) for row in differ
            ),
            "accuracy_passed": abs(f1[0] - f1[1]) <= _F1_WITHIN * f1[0],
        }
    passed = content["performance_passed"] and content["accuracy_passed"]
    return {"passed": bool(passed), **content}


def _performance(scenario: Scenario, test: TestResult, again: TestResult) -> dict[str, Any]:
    figures = [result.number(FIGURE[scenario]) for result in (test, again)]
    content: dict[str, Any] = {
        "figure": FIGURE[scenario],
        "performance": figures[0],
        "audit": figures[1],
        "performance_passed": False,
    }
    before, after = figures
    if before is not None and after is not None and test.valid and again.valid:
        within = 0.2 if before <= _SHORT_NS.get(scenario, 0) else 0.1
        content["performance_passed"] = abs(after - before) <= within * before
    return content
