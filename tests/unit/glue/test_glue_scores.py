# SPDX-License-Identifier: Apache-2.0
"""GLUE's scores against their definitions written out, and the undefined ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bertbench.benchmarks.glue import scores
from bertbench.benchmarks.glue.scores import QUALITY, check_libraries, quality, score
from bertbench.benchmarks.glue.tasks import TASKS
from bertbench.common.errors import Unsupported

TRUE = np.array([1, 1, 1, 0, 0, 0, 0, 1])
FOUND = np.array([1, 1, 0, 0, 0, 0, 1, 0])  # tp 2, fn 2, fp 1, tn 3


@pytest.fixture(autouse=True)
def _sklearn():
    pytest.importorskip("sklearn", reason="scikit-learn (the extra glue) is absent")


def test_accuracy_f1_and_matthews_of_a_table_of_four():
    assert score(TASKS["rte"], "rte", TRUE, FOUND) == {"rte": 62.5}
    found = score(TASKS["mrpc"], "mrpc", TRUE, FOUND)
    assert found == pytest.approx({"mrpc": 100 * 4 / 7, "mrpc_accuracy": 62.5})
    mcc = (2 * 3 - 1 * 2) / math.sqrt(3 * 4 * 4 * 5)
    assert score(TASKS["cola"], "cola", TRUE, FOUND)["cola"] == pytest.approx(100 * mcc)


def test_correlations_by_their_definitions():
    a, b = np.array([0, 1, 2, 5], np.float32), np.array([0.5, 0, 4, 4.5], np.float32)
    found = score(TASKS["stsb"], "stsb", a, b)
    pearson = np.corrcoef(a, b)[0, 1]
    spearman = np.corrcoef([0, 1, 2, 3], [1, 0, 2, 3])[0, 1]
    assert found == pytest.approx(
        {"stsb": 50 * (pearson + spearman), "stsb_pearson": 100 * pearson,
         "stsb_spearman": 100 * spearman}
    )  # fmt: skip


def test_equal_predictions_score_0_and_never_nan(recwarn):
    same = np.ones(8, np.float32)
    assert set(score(TASKS["stsb"], "stsb", np.arange(8.0), same).values()) == {0.0}
    assert score(TASKS["cola"], "cola", TRUE, np.ones(8, int)) == {"cola": 0.0}
    assert score(TASKS["qqp"], "qqp", TRUE, np.zeros(8, int)) == {"qqp": 0.0, "qqp_accuracy": 50.0}
    assert not list(recwarn)


def test_every_column_has_a_definition_that_names_its_examples():
    columns = {one.column for task in TASKS.values() for one in task.sets}
    assert len(columns) == 9 and columns < set(QUALITY)
    (metric,) = quality({"mnli": 80.0, "examples": 3}, "the dev set")
    assert (metric.name, metric.unit) == ("mnli", "%")
    assert metric.definition == "right classes / all examples; on the dev set"


def test_without_scikit_learn_the_run_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(scores.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        Unsupported, match=r"need scikit-learn and scipy: .*--no_do_eval"
    ) as refused:
        check_libraries()
    assert "\n" not in str(refused.value)
