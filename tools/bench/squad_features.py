# SPDX-License-Identifier: Apache-2.0
"""Features per second of one core, ours and plain Python's, from the same SQuAD file.

The baseline is the reference scripts' procedure in Python, with which the tests compare features
(tests/unit/squad/squad_reference.py): once tokenizing every paragraph again for each question, as
those scripts do, once caching the wordpieces of words.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from operator import truediv
from pathlib import Path
from typing import Any

from bench.squad_quality import RECIPE
from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_squad.data import find_source
from bertbench.benchmarks.bert_squad.examples import read_squad
from bertbench.benchmarks.bert_squad.features import FeatureOptions, Features, make_features
from bertbench.common.files import file_sha256

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "unit" / "squad"))

import squad_reference

GOAL = 5.0
OWN, PLAIN, REMEMBERING = "own", "plain Python", "plain Python that remembers words"


def rates(predict: Path, articles: int, rounds: int) -> dict[str, Any]:
    """Return features per second of the process's CPU time, reading the file included.

    For ``articles`` articles spread over the file; medians over the rounds. Raises AssertionError
    if the features differ.
    """
    flags = ("--backend", "cpu_ref", "--no_do_train", "--predict_file", str(predict))
    source = find_source(resolve(RECIPE, flags))
    names, recipe = source.vocab, source.recipe
    ids = {name: i for i, name in enumerate(names)}
    options = FeatureOptions(
        max_seq_length=recipe.max_seq_length,
        doc_stride=recipe.doc_stride,
        max_query_length=recipe.max_query_length,
        lowercase=recipe.lowercase,
    )
    content = json.loads(predict.read_bytes())
    step = max(1, len(content["data"]) // articles)
    content["data"] = content["data"][::step][:articles]
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.json"
        part.write_text(json.dumps(content))

        def own() -> Features:
            return make_features(read_squad(part, training=False), names, options)

        def plain(remember: bool) -> list[dict[str, Any]]:
            made = []
            squad_reference.REMEMBERED.clear()
            for example in squad_reference.examples(json.loads(part.read_bytes()), False):
                made += squad_reference.features(
                    example, ids, options.lowercase, options.max_seq_length, options.doc_stride,
                    options.max_query_length, False,
                )  # fmt: skip
                if not remember:
                    squad_reference.REMEMBERED.clear()
            return made

        ours, theirs = own(), plain(True)
        same = [x for f in theirs for x, m in zip(f["ids"], f["mask"], strict=True) if m]
        assert ours.input_ids.tolist() == same, "the sides' features differ"
        turns: dict[str, Callable[[], object]] = {
            OWN: own, PLAIN: lambda: plain(False), REMEMBERING: lambda: plain(True),
        }  # fmt: skip
        found: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(rounds):
            for name, turn in turns.items():
                begin = time.process_time()
                turn()
                found[name].append(len(ours) / (time.process_time() - begin))
    over = {n: statistics.median(map(truediv, found[OWN], found[n])) for n in turns if n != OWN}
    return {
        "data": {predict.name: file_sha256(predict)},
        "features": len(ours),
        "features_per_cpu_second": {n: statistics.median(rate) for n, rate in found.items()},
        "over": over,
        "ok": over[PLAIN] >= GOAL,
    }


def show(result: dict[str, Any]) -> str:
    """Return a table of the result."""
    lines = ["| | features per CPU second | ours is x times as fast |", "|---|---|---|"]
    for name, rate in result["features_per_cpu_second"].items():
        over = f"{result['over'][name]:.1f}" if name in result["over"] else ""
        if name == PLAIN:
            over += f", goal {GOAL:g}: {'reached' if result['ok'] else 'missed'}"
        lines.append(f"| {name} | {rate:,.0f} | {over} |")
    return "\n".join(lines)
