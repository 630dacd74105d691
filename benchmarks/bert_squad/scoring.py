# SPDX-License-Identifier: Apache-2.0
"""From logits to answers to scores: ours, and those of a script that the user brings."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bert_squad.answers import AnswerOptions, Answers, find_answers
from benchmarks.bert_squad.data import Source
from benchmarks.bert_squad.examples import read_squad
from benchmarks.bert_squad.features import Features
from benchmarks.bert_squad.recipes import SquadOptions, SquadRecipe
from benchmarks.bert_squad.score import score
from benchmarks.bert_squad.stream import share
from common.data.samples import ragged_index
from common.files import shown
from common.measure.metric import Metric

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
    logits = np.empty((len(features.input_ids), 2), np.float32)
    for rank, part in enumerate(parts):
        if part is not None:
            rows = share(len(features), len(parts), rank)
            logits[ragged_index(features.offsets, rows)[0]] = part
    return logits


def answer_and_score(
    source: Source, recipe: SquadRecipe, run: SquadOptions, logits: NDArray[Any], folder: Path
) -> tuple[Answers, dict[str, float], dict[str, Any]]:
    """Answers to all questions, the metrics of an evaluation, and what else scoring counted.

    Args:
        source: its ``predict`` features and file.
        recipe: how many answers, and how long.
        run: whether to score, and with which script besides.
        logits: float [T, 2], start and end, of all features' tokens.
        folder: for files that live no longer than the call.
    """
    assert source.predict is not None and source.predict_file is not None
    begin = time.perf_counter()
    options = AnswerOptions(
        n_best_size=recipe.n_best_size,
        max_answer_length=recipe.max_answer_length,
        v2=recipe.v2,
        null_score_diff_threshold=recipe.null_score_diff_threshold,
    )
    answers = find_answers(
        read_squad(source.predict_file, training=False),
        source.predict.features,
        logits[:, 0],
        logits[:, 1],
        vocab=source.vocab,
        lowercase=recipe.lowercase,
        options=options,
    )
    metrics: dict[str, float] = {
        "questions": len(answers.predictions),
        "answering_s": time.perf_counter() - begin,
    }
    details: dict[str, Any] = {}
    file = folder / "predictions.json"
    file.write_text(json.dumps(answers.predictions), encoding="utf-8")
    if run.do_eval:
        details = score(source.predict_file, file, v2=recipe.v2 or None)
        metrics |= {name: details[name] for name in ("exact_match", "f1")}
    if run.eval_script is not None:
        details["eval_script"] = told = run_script(run.eval_script, source.predict_file, file)
        for name in ("exact_match", "f1"):
            if isinstance(told.get(name), float | int):
                metrics[f"eval_script_{name}"] = float(told[name])
    return answers, metrics, details


def run_script(script: Path, dataset: Path, predictions: Path) -> dict[str, Any]:
    """Run ``script dataset predictions`` and read the JSON object of its last line of output.

    A script that fails is no reason to lose a run: then the answer is ``{"error": why}``.
    """
    command = [sys.executable, str(script), str(dataset), str(predictions)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SCRIPT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": shown(error)}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"error": f"exit code {done.returncode}: {shown(last)}"}
    lines = done.stdout.strip().splitlines()
    try:
        told = json.loads(lines[-1])
        if not isinstance(told, dict):
            raise ValueError("no JSON object")
    except (IndexError, ValueError) as error:
        return {"error": f"its last line is not what was expected: {shown(error)}"}
    return dict(told)
