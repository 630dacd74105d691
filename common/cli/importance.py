# SPDX-License-Identifier: Apache-2.0
"""``bertbench importance``: which keys matter, by evaluating a model without them.

Shi et al. 2021 ask which positions of the attention matrix BERT can do without, and find that the
diagonal matters least. Here the weights of a run are evaluated once under their own mask, and once
more for each distance between query and key, with the entries of that distance closed. Benchmark
and score are those of the recipe.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bertbench import backends, benchmarks
from bertbench.common.cli.run_words import settings_of, split_words
from bertbench.common.cli.verbs import parser
from bertbench.common.errors import BadInput
from bertbench.common.files import check_writable, shown, why, write_atomic
from bertbench.common.launch.threads import host_threads
from bertbench.common.report.plot import Series, lines, standalone

if TYPE_CHECKING:
    from bertbench.backends.base import Backend
    from bertbench.common.config.recipe import Settings
    from bertbench.common.training.task import Task

DISTANCES = "0-8,12,16,24,32,48,64"
MEANING = """closed: no query attends to keys at this distance ([CLS]: to the first token)
+/-: score minus the score with nothing closed; below 0, the model needs these keys"""
NEAR_ZERO = 0.02
"""A score, or a percentage, of a model that has learnt nothing yet."""
FIRST = "[CLS]"
"""The label of the first token as a key."""


def main(argv: Sequence[str]) -> int:
    """Print and draw the scores; raises BadInput or Unsupported as the run itself."""
    verb = parser(
        "importance",
        usage="bertbench importance [--distances 0-8,16] [--plot FILE] -- run RECIPE "
        "--init_checkpoint WEIGHTS [flags]",
        epilog=f"The first token ({FIRST}) as a key is always among the entries that are closed.",
    )
    verb.add_argument(
        "--distances", metavar="D",
        help=f"between query and key, in tokens (default: those of {DISTANCES} that there are)",
    )  # fmt: skip
    verb.add_argument("--plot", type=Path, metavar="FILE", help="draw them (.svg)")
    own, words = split_words("importance", argv)
    given = verb.parse_args(own)
    distances = _numbers(DISTANCES if given.distances is None else given.distances)
    if given.plot is not None:
        if given.plot.suffix != ".svg":
            raise BadInput(f"--plot {shown(given.plot)}: the name of the picture ends in .svg")
        if given.plot.is_dir():
            raise BadInput(f"--plot {shown(given.plot)} is a folder: name a file")
        check_writable(given.plot.parent, "the folder of --plot,")
    settings = settings_of(words)
    task, backend = _build(settings)
    if given.distances is not None and distances[-1] >= (length := _length(task)):
        raise BadInput(
            f"--distances {shown(given.distances)}: sequences have up to {length} tokens, so that "
            f"distances are from 0 to {length - 1}"
        )
    if not given.json:
        print(MEANING)
    rows: list[dict[str, Any]] = []
    for label, mask in _without(task, distances):
        found = _evaluate(task, settings, backend, mask)
        rows.append(
            {"closed": label, "score": found[task.target_metric], "loss": found.get("loss")}
        )
        if not given.json:
            print(_line(rows, task.target_metric), flush=True)
    near_zero = abs(rows[0]["score"]) < NEAR_ZERO
    if near_zero and not given.json:
        print(f"note: the model's {task.target_metric} is near zero: the differences say nothing")
    if given.plot is not None:
        try:
            given.plot.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(given.plot, draw(rows, task.target_metric))
        except OSError as error:
            raise BadInput(f"--plot {shown(given.plot)}: {why(error)}") from error
    if given.json:
        print(json.dumps({"metric": task.target_metric, "rows": rows, "near_zero": near_zero}))
    return 0


def _numbers(text: str) -> list[int]:
    """Return the numbers of ``0-8,16``; raises BadInput for other words."""
    found: set[int] = set()
    for word in text.split(","):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", word)
        some = range(0) if match is None else range(int(match[1]), int(match[2] or match[1]) + 1)
        if not some:
            raise BadInput(f"--distances {shown(text)!r}: give numbers and ranges, as 0-8,16")
        found.update(some)
    return sorted(found)


def _build(settings: Settings) -> tuple[Task, Backend]:
    """Return the run's task with its weights; raises BadInput where there is nothing to close."""
    from bertbench.common.distributed.world import World

    benchmark = benchmarks.load(settings.preset.benchmark)
    benchmark.check(settings)
    backend = backends.resolve(settings.run.backend)(0)
    torch.set_num_threads(settings.impl.num_threads or host_threads(1))
    source = benchmark.prepare(settings)
    if source.init_checkpoint is None:
        raise BadInput("give --init_checkpoint: random weights have no important keys")
    if not source.has_eval:
        raise BadInput("give held-out data: there is nothing to evaluate on")
    if getattr(settings.recipe, "search", None) is not None:
        raise BadInput("name a recipe without --search, which draws its own masks")
    if settings.recipe.attention_mask is None:  # so that the kernels are those of masks throughout
        recipe = dataclasses.replace(settings.recipe, attention_mask="dense")
        settings = dataclasses.replace(settings, recipe=recipe)
    task = benchmark.build(settings, backend, World(), source)
    if not hasattr(settings.recipe, "max_seq_length") or not _layers(task):
        raise BadInput(f"{settings.preset.benchmark} has no attention whose keys could be closed")
    return task, backend


def _layers(task: Task) -> list[Any]:
    return [part for part in task.model.modules() if hasattr(part, "attention_mask")]


def _length(task: Task) -> int:
    """Return the longest sequence, in tokens."""
    length: int = task.recipe.max_seq_length  # type: ignore[attr-defined]
    return length


def _without(task: Task, distances: Sequence[int]) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield a label and each layer's mask, bool [1 or N, L, L], with what it names closed."""
    own = [layer.attention_mask for layer in _layers(task)]
    yield "", own
    length = _length(task)
    at = torch.arange(length)
    # Query i is in sequences of more than i tokens, of which the shortest counts; BERT's have two.
    near = at <= at.clamp(min=1)[:, None]
    distance = (at[:, None] - at).abs()
    closed = {str(d): distance == d for d in distances if d < length}
    for label, cells in {**closed, FIRST: (at == 0).expand(length, -1)}.items():
        made: dict[int, Tensor] = {}  # layers that share a mask share what is left of it
        for mask in own:
            if id(mask) not in made:
                open_ = mask & ~cells.to(mask.device)
                # A query without a key would have no context at all.
                open_[:, at, at] |= ~(open_ & near.to(mask.device)).any(2)
                made[id(mask)] = open_
        yield label, [made[id(mask)] for mask in own]


def _line(rows: Sequence[dict[str, Any]], metric: str) -> str:
    """Return the last row for people: its score, and the distance from the first one's."""
    score, label = rows[-1]["score"], rows[-1]["closed"] or "nothing"
    change = "" if len(rows) == 1 else f"  {score - rows[0]['score']:+.5f}"
    return f"{label:>8} closed: {metric} {score:.5f}{change}"


def _evaluate(
    task: Task, settings: Settings, backend: Backend, masks: Sequence[Tensor]
) -> Mapping[str, float]:
    """Return the task's results under each layer's mask, bool [1 or N, L, L]."""
    from bertbench.common.distributed.world import World
    from bertbench.common.training.evaluation import evaluate
    from bertbench.common.training.progress import Progress

    for layer, mask in zip(_layers(task), masks, strict=True):
        layer.attention_mask = mask
    event = evaluate(
        task, backend=backend, world=World(), plan=task.plan(settings), progress=Progress(),
        observers=[],
    )  # fmt: skip
    return event.metrics


def draw(rows: Sequence[dict[str, Any]], metric: str) -> str:
    """Return the scores over distance as a picture (SVG); the first row is the model's own."""
    points = [(float(r["closed"]), r["score"]) for r in rows if str(r["closed"]).isdigit()]
    goals = [(rows[0]["score"], "nothing closed")]
    goals += [(row["score"], f"{FIRST} closed") for row in rows if row["closed"] == FIRST]
    plot = lines(
        "importance",
        "Score without the keys of one distance",
        f"{metric} when no query attends to keys of one distance, in all layers and heads",
        [Series(label=metric, points=points)],
        x="distance between query and key that is closed, tokens",
        y=metric,
        targets=goals,
    )
    return standalone(plot)
