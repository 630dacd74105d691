# SPDX-License-Identifier: Apache-2.0
"""Derive the figures of an inference record again, from LoadGen's files in it.

F1 is not derived again: the questions are not in the record. ``bertbench score squad`` scores its
predictions.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from bertbench.common.errors import BertbenchError
from bertbench.common.files import read_json, shown
from bertbench.common.mlperf.inference import OFFICIAL
from bertbench.common.mlperf.loadgen import (
    CLOCK,
    DETAIL,
    TestResult,
    broken_rules,
    metrics,
    read_detail,
)

_PREDICTIONS = "predictions.json"
_LARGEST = 1 << 28
_WHOLE = ("ok", "below_quality")
Finding = tuple[Literal["error", "note"], str, str]


def check(
    path: Path,
    manifest: Mapping[str, Any],
    config: Mapping[str, Any],
    steps: list[Mapping[str, Any]],
) -> Iterator[Finding]:
    """Compare LoadGen's logs with the metrics, the extras, the recipe and the status."""
    recipe, stored = config["recipe"], manifest["extras"].get("loadgen") or {}
    for test in sorted(n.removesuffix(f"_{DETAIL}") for n in manifest["files"] if DETAIL in n):
        name = f"{test}_{DETAIL}"
        try:
            result = read_detail(path / name)
        except BertbenchError as error:
            if manifest["status"] in _WHOLE:
                yield "error", name, str(error)
            continue
        differ = [k for k, v in stored.get(test, {}).items() if result.values.get(k) != v]
        if differ:
            yield "error", name, f"its {', '.join(map(shown, differ[:4]))} are not the manifest's"
        yield from _against_recipe(name, result, recipe)
        if recipe["profile"] == OFFICIAL and manifest["status"] in _WHOLE:
            for text in broken_rules(result, recipe["scenario"]):
                yield "error", name, f"official profile: {text}"
        if test == "performance":
            yield from _figures(name, result, manifest, recipe["scenario"])
        if not result.valid and manifest["status"] in _WHOLE:
            yield (
                "error",
                "manifest.json",
                f"{manifest['status']}, but LoadGen says INVALID: {name}",
            )
    yield from _answered(path, manifest, steps)


def _against_recipe(name: str, result: TestResult, recipe: Mapping[str, Any]) -> Iterator[Finding]:
    for key, wanted in (
        ("effective_scenario", recipe["scenario"]),
        ("effective_min_duration_ms", recipe["min_duration_ms"]),
    ):
        if result.values.get(key) != wanted:
            text = f"its {key} is {shown(result.values.get(key), 40)}, not the recipe's {wanted}"
            yield "error", name, text


def _figures(
    name: str, result: TestResult, manifest: Mapping[str, Any], scenario: Any
) -> Iterator[Finding]:
    found = {m["name"]: m["value"] for m in manifest["metrics"] if m["clock"] == CLOCK}
    derived = {m.name: m.value for m in metrics(result, scenario)}
    for metric in sorted({*found, *derived}):
        own, theirs = found.get(metric), derived.get(metric)
        if own is None or theirs is None or not math.isclose(own, theirs, rel_tol=1e-9):
            text = f"{metric} is {own}, but {name} gives {theirs}"
            yield "error", "manifest.json", shown(text, 200)


def _answered(
    path: Path, manifest: Mapping[str, Any], steps: list[Mapping[str, Any]]
) -> Iterator[Finding]:
    """Check that every question that was scored has an answer in predictions.json."""
    scored = [line["metrics"].get("questions") for line in steps if line["kind"] == "eval"]
    if not scored or scored[-1] is None:
        return
    try:
        answers = read_json(path / _PREDICTIONS, _LARGEST)
    except (OSError, ValueError) as error:
        yield "error", _PREDICTIONS, shown(error)
        return
    if not isinstance(answers, dict) or len(answers) != scored[-1]:
        yield "error", _PREDICTIONS, f"does not answer the {scored[-1]:g} questions of the score"
