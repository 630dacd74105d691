# SPDX-License-Identifier: Apache-2.0
"""From logits to answers to scores: ours, and those of the user's script."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bertbench.benchmarks.bert_squad.answers import AnswerOptions, Answers, find_answers
from bertbench.benchmarks.bert_squad.data import SquadSource
from bertbench.benchmarks.bert_squad.examples import read_squad
from bertbench.benchmarks.bert_squad.features import Features
from bertbench.benchmarks.bert_squad.recipes import SquadOptions, SquadRecipe
from bertbench.benchmarks.bert_squad.score import score_answers
from bertbench.benchmarks.bert_squad.stream import share
from bertbench.common.data.samples import ragged_index
from bertbench.common.files import parse_json, shown
from bertbench.common.measure.metric import Metric

_MOST_OUTPUT = 1 << 20
"""Bytes at the end of a script's output that are read."""
_MOST_VALUES = 100
_OFFICIAL = "over all questions, as the official script of SQuAD"
QUALITY = {
    "exact_match": f"answers equal to a true one, after normalisation; {_OFFICIAL}",
    "f1": f"F1 of the answer and the best true one as bags of words; {_OFFICIAL}",
    "eval_script_exact_match": "as --eval_script reports",
    "eval_script_f1": "as --eval_script reports",
}
"""The result metrics of an evaluation, in percent, and their definitions."""


def quality(metrics: Mapping[str, float]) -> list[Metric]:
    """Return the metrics of QUALITY that an evaluation has."""
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
    """Return the logits of all tokens, float32 [T, 2], from each rank's [t, 2]."""
    logits = np.full((len(features.input_ids), 2), np.nan, np.float32)
    for rank, part in enumerate(parts):
        if part is not None:
            rows = share(len(features), len(parts), rank)
            logits[ragged_index(features.offsets, rows)[0]] = part
    return logits


def answer_and_score(
    source: SquadSource, recipe: SquadRecipe, run: SquadOptions, logits: NDArray[Any]
) -> tuple[Answers, dict[str, float], dict[str, Any]]:
    """Return answers to all questions, the evaluation's metrics, and scoring's other counts.

    Args:
        source: its ``predict`` features and file.
        recipe: number and length of the answers.
        run: whether to score.
        logits: float [T, 2], start and end, of all features' tokens.
    """
    assert source.predict is not None and source.predict_file is not None
    begin = time.perf_counter()
    answers = find_answers(
        read_squad(source.predict_file, training=False, raw=source.predict_bytes),
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
        details = score_answers(
            source.predict_file,
            answers.predictions,
            v2=recipe.v2 or None,
            raw=source.predict_bytes,
        )
        metrics |= {name: details[name] for name in ("exact_match", "f1")}
    return answers, metrics, details


def script_scores(
    script: Path, dataset: Path, predictions: Mapping[str, str], minutes: float = 10.0
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the metrics that a user's script reports, and the plain values of its output.

    v2.0's official script calls the first of the two ``exact``. Whatever the script or the disk
    does, nothing is raised: the second is then ``{"error": why}``.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "predictions.json"
            file.write_text(json.dumps(predictions), encoding="utf-8")
            found = run_script(script, dataset, file, minutes)
    except OSError as error:
        found = {"error": shown(error)}
    plain = [(shown(k, 60), v) for k, v in found.items() if isinstance(v, int | float | str | None)]
    reported = {k: shown(v) if isinstance(v, str) else v for k, v in plain[:_MOST_VALUES]}
    metrics = {}
    for name, theirs in (("exact_match", "exact"), ("f1", "f1")):
        value = reported.get(name, reported.get(theirs))
        if isinstance(value, int | float) and not isinstance(value, bool):
            metrics[f"eval_script_{name}"] = float(value)
    if not metrics and "error" not in reported:
        reported["error"] = "reports neither exact_match nor f1 as a number"
    return metrics, reported


def run_script(
    script: Path, dataset: Path, predictions: Path, minutes: float = 10.0
) -> dict[str, Any]:
    """Run ``script dataset predictions`` and read the JSON object that ends its output.

    It may take several lines, as v2.0's official script prints it. A script that fails, that goes
    on for more than ``minutes`` (it is ended then, with all that it started) or prints something
    else does not lose the run: the result is then ``{"error": why}``. Raises OSError where it
    cannot be started.
    """
    process = subprocess.Popen(
        [sys.executable, str(script), str(dataset), str(predictions)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    out, err = _Tail(process.stdout), _Tail(process.stderr)
    try:
        code = process.wait(minutes * 60)
    except subprocess.TimeoutExpired:
        return {"error": f"it did not end within {minutes:g} minutes (--eval_script_minutes)"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started, and itself where it goes on
        process.wait()
    text, errors = out.text(), err.text()
    if code:
        last = (errors.strip().splitlines() or [""])[-1]
        how = f"exit code {code}" if code > 0 else f"ended by signal {-code}"
        return {"error": f"{how}: {shown(last)}"}
    text = "\n" + text.strip()
    try:
        return dict(parse_json(text[text.rindex("\n{") :], parse_constant=shown))
    except ValueError:
        last = text.splitlines()[-1]
        return {"error": f"its output does not end with a JSON object but with: {shown(last)}"}


class _Tail(threading.Thread):
    """Reads a stream to its end and keeps the last of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._stream, self._kept = stream, b""
        self.start()

    def run(self) -> None:
        while chunk := os.read(self._stream.fileno(), 1 << 16):
            self._kept += chunk
            if len(self._kept) > 2 * _MOST_OUTPUT:
                self._kept = self._kept[-_MOST_OUTPUT:]

    def text(self) -> str:
        """Return the end of what was printed; a process that left the group may hold it open."""
        self.join(timeout=5)
        return self._kept[-_MOST_OUTPUT:].decode("utf-8", errors="replace")
