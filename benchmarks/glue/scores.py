# SPDX-License-Identifier: Apache-2.0
"""GLUE's scores, in percent, by scikit-learn and scipy.

The libraries are imported only where a score is computed; scikit-learn is the extra ``glue``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertbench.benchmarks.glue.tasks import TASKS, GlueTask
from bertbench.common.errors import Unsupported, install
from bertbench.common.measure.metric import Metric

_KINDS = {
    "accuracy": "right classes / all examples",
    "f1": "F1 of the class 1",
    "matthews": "Matthews correlation of predicted and true classes, times 100",
    "correlation": "mean of Pearson's and Spearman's correlation, times 100",
}


def _definitions() -> dict[str, str]:
    found = {"mnli": _KINDS["accuracy"]}
    for task in TASKS.values():
        for one in task.sets:
            found[one.column] = _KINDS[task.score]
    for name in ("qqp", "mrpc"):
        found[f"{name}_accuracy"] = _KINDS["accuracy"]
    for kind in ("pearson", "spearman"):
        found[f"stsb_{kind}"] = f"{kind.capitalize()}'s correlation, times 100"
    return found


QUALITY = _definitions()
"""The result metrics of an evaluation, in percent, and their definitions; GLUE's columns have the
names that the published tables have."""


def check_libraries() -> None:
    """Raise Unsupported where scikit-learn or scipy is not installed."""
    lacking = [m for m in ("sklearn", "scipy") if importlib.util.find_spec(m) is None]
    if lacking:
        raise Unsupported(
            f"GLUE's scores need scikit-learn and scipy: {install('glue')}; to train without "
            f"scores: --no_do_eval"
        )


def score(
    task: GlueTask, column: str, labels: NDArray[Any], predicted: NDArray[Any]
) -> dict[str, float]:
    """Return the metrics of one evaluation set of N examples.

    A correlation with predictions that are all equal is undefined and counts as 0, as GLUE's own
    Matthews correlation does, and likewise an F1 without any example of class 1.

    Args:
        task: its score.
        column: the name of the set's score.
        labels: int64 or float32 [N].
        predicted: int64 [N], classes, or float32 [N], numbers.
    """
    if task.score == "correlation":
        return _correlations(column, labels, predicted)
    from sklearn import metrics

    if task.score == "matthews":
        return {column: 100 * float(metrics.matthews_corrcoef(labels, predicted))}
    accuracy = 100 * float(metrics.accuracy_score(labels, predicted))
    if task.score == "accuracy":
        return {column: accuracy}
    f1 = 100 * float(metrics.f1_score(labels, predicted, zero_division=0))
    return {column: f1, f"{column}_accuracy": accuracy}


def _correlations(column: str, labels: NDArray[Any], predicted: NDArray[Any]) -> dict[str, float]:
    from scipy import stats

    found = {"pearson": 0.0, "spearman": 0.0}
    if len(set(labels.tolist())) > 1 and len(set(predicted.tolist())) > 1:
        a, b = labels.astype(np.float64), predicted.astype(np.float64)
        found = {
            "pearson": 100 * float(stats.pearsonr(a, b).statistic),
            "spearman": 100 * float(stats.spearmanr(a, b).statistic),
        }
    mean = sum(found.values()) / 2
    return {column: mean, **{f"{column}_{name}": value for name, value in found.items()}}


def quality(metrics: Mapping[str, float], where: str) -> list[Metric]:
    """Return the metrics of QUALITY that an evaluation on the examples ``where`` has."""
    return [
        Metric(
            name=name,
            value=metrics[name],
            unit="%",
            direction="higher",
            clock="none",
            scope="global",
            definition=f"{definition}; on {where}",
        )
        for name, definition in QUALITY.items()
        if name in metrics
    ]
