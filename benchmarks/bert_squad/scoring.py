# SPDX-License-Identifier: Apache-2.0
"""From logits to answers to scores: ours, and those of a script that the user brings."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertbench.benchmarks.bert_squad.answers import AnswerOptions, Answers, find_answers
from bertbench.benchmarks.bert_squad.data import SquadSource
from bertbench.benchmarks.bert_squad.examples import read_squad
from bertbench.benchmarks.bert_squad.features import Features
from bertbench.benchmarks.bert_squad.recipes import SquadOptions, SquadRecipe
from bertbench.benchmarks.bert_squad.score import score
from bertbench.benchmarks.bert_squad.stream import share
from bertbench.common.data.samples import ragged_index
from bertbench.common.files import shown
from bertbench.common.measure.metric import Metric

SCRIPT_TIMEOUT_S = 3600
_OFFICIAL = "over all questions, as the official script of SQuAD"
QUALITY = {
    "exact_match": f"answers equal to a true one, after normalisation; {_OFFICIAL}",
    "f1": f"F1 of the answer and the best true one as bags of words; {_OFFICIAL}",
    "eval_script_exact_match": "what --eval_script told",
    "eval_script_f1": "what --eval_script told",
}
"""Metrics of an evaluation that are results, in percent, and what they mean."""


def quality(metrics: Mapping[str, float]) -> list[Metric]:
    """Those of QUALITY that an evaluation has."""
    return [
        Metric(
            name=name,
            value=metrics[name],
            unit="%",
            direction="higher",
            clock="none",
            scope="global",
            definition=definition,
        )
        for name, definition in QUALITY.items()
        if name in metrics
    ]


def assemble(features: Features, parts: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
    """float32 [T, 2], the logits of all features' tokens from each rank's share of them."""
    logits = np.full((len(features.input_ids), 2), np.nan, np.float32)
    for rank, part in enumerate(parts):
        if part is not None:
            rows = share(len(features), len(parts), rank)
            logits[ragged_index(features.offsets, rows)[0]] = part
    return logits


def answer_and_score(
    source: SquadSource, recipe: SquadRecipe, run: SquadOptions, logits: NDArray[Any], folder: Path
) -> tuple[Answers, dict[str, float], dict[str, Any]]:
    """Answers to all questions, the metrics of an evaluation, and what else scoring counted.

    Args:
        source: its ``predict`` features and file.
        recipe: how many answers, and how long.
        run: whether to score.
        logits: float [T, 2], start and end, of all features' tokens.
        folder: for files that live no longer than the call.
    """
    assert source.predict is not None and source.predict_file is not None
    begin = time.perf_counter()
    answers = find_answers(
        read_squad(source.predict_file, training=False),
        source.predict.features,
        logits[:, 0],
        logits[:, 1],
        vocab=source.vocab,
        lowercase=recipe.lowercase,
        options=AnswerOptions.of(recipe),
    )
    metrics: dict[str, float] = {
        "questions": len(answers.predictions),
        "answering_s": time.perf_counter() - begin,
    }
    details: dict[str, Any] = {}
    if run.do_eval:
        file = folder / "predictions.json"
        file.write_text(json.dumps(answers.predictions), encoding="utf-8")
        details = score(source.predict_file, file, v2=recipe.v2 or None)
        metrics |= {name: details[name] for name in ("exact_match", "f1")}
    return answers, metrics, details


def script_scores(
    script: Path, dataset: Path, predictions: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics that a user's script tells of the answers, and all that it told.

    v2.0's official script calls the first of the two ``exact``.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "predictions.json"
        file.write_text(json.dumps(predictions), encoding="utf-8")
        told = run_script(script, dataset, file)
    metrics = {}
    for name, theirs in (("exact_match", "exact"), ("f1", "f1")):
        value = told.get(name, told.get(theirs))
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            metrics[f"eval_script_{name}"] = float(value)
    if not metrics and "error" not in told:
        told["error"] = "told neither exact_match nor f1 as a number"
    return metrics, told


def run_script(script: Path, dataset: Path, predictions: Path) -> dict[str, Any]:
    """Run ``script dataset predictions`` and read the JSON object that ends its output.

    It may take several lines, as v2.0's official script prints it. A script that fails is no
    reason to lose a run: then the answer is ``{"error": why}``.
    """
    command = [sys.executable, str(script), str(dataset), str(predictions)]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace",
            timeout=SCRIPT_TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": shown(error)}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"error": f"exit code {done.returncode}: {shown(last)}"}
    text = "\n" + done.stdout.strip()
    try:
        told = json.loads(text[text.rindex("\n{") :], parse_constant=shown)
    except ValueError:
        last = text.splitlines()[-1]
        return {"error": f"its output does not end with a JSON object but with: {shown(last)}"}
    return dict(told)
