# SPDX-License-Identifier: Apache-2.0
"""The pretraining script: which recipe, by whether there is data, and what DeepSparkHub's sets.

Backend, processes and the command are common/launch/launcher.py's part.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from bertbench.benchmarks.bert_pretraining.flags import FLAGS
from bertbench.benchmarks.bert_pretraining.recipes import PRESETS, PretrainingRecipe
from bertbench.common.errors import BadInput
from bertbench.common.launch.launcher import (
    Launch,
    Report,
    Wish,
    assemble,
    choose_devices,
    doctor,
    split_recipe,
    start,
)

WITH_DATA, WITHOUT_DATA = "deepspark_416", "mini"
"""The recipe where none is named: DeepSparkHub's command, or the one that needs no data."""

DEEPSPARK = ("--seed", "17103", "--skip_checkpoint")
"""What DeepSparkHub's command sets besides the recipe; flags of the user come after it."""

USAGE = """\
usage: [DATA=/path] bash train_bert_pretraining_amp_dist.sh [--recipe NAME] [flags]

  DATA=/path        MLPerf's data set (shards, evaluation set, bert_config.json, checkpoint):
                    trains {with_data} on the accelerators found
  without DATA      trains {without_data} on a small corpus that is fetched by itself
  --recipe NAME     another recipe: {recipes}
  --backend NAME    instead of the first accelerator found; cpu_ref is the CPU
  flags             those of the recipe (`.venv/bin/bertbench run RECIPE --help`) and of NVIDIA's
                    and DeepSparkHub's run_pretraining.py; the last of two wins
  --dry-run         say what would run

Environment: NPROC (processes on this node; default: one per accelerator), NNODES, NODE_RANK,
MASTER_ADDR, MASTER_PORT (several nodes: start it on each), INIT_LOSS_SCALE, and the vendor's
variable of visible devices."""


def plan(
    argv: Sequence[str], environment: Mapping[str, str], report: Report, python: str
) -> Launch:
    """What to run for these flags, variables and ``bertbench doctor --json`` report.

    Raises BadInput or Unsupported with the fix.
    """
    says: list[str] = []
    named, rest = split_recipe(argv)
    given, _ = FLAGS.read(rest)
    data = given.get("data", environment.get("DATA"))
    has_data = bool(data or "input_dir" in given)
    recipe = named or (WITH_DATA if has_data else WITHOUT_DATA)
    if recipe not in PRESETS:
        raise BadInput(f"unknown recipe {recipe!r}; there are: {', '.join(PRESETS)}")
    if data and not Path(data).is_dir():
        raise BadInput(f"DATA={data} is not a folder; it must hold the shards, see README.md")
    if named is None and not has_data:
        corpus = f"the text {given['text']}" if "text" in given else "the quick-start corpus"
        if given.get("synthetic") == "True":
            corpus = "synthetic tokens"
        says.append(
            f"DATA is not set: training {recipe} on {corpus}. "
            f"For MLPerf's BERT-large: DATA=/path/to/dataset"
        )
    own: list[str] = []
    if data and "data" not in given:
        own += ["--data", data]
    if recipe.startswith("deepspark"):
        own += DEEPSPARK
    if environment.get("INIT_LOSS_SCALE"):
        own += ["--init_loss_scale", environment["INIT_LOSS_SCALE"]]
    wish = Wish(
        recipe=recipe,
        given=given,
        rest=rest,
        own=own,
        global_batch=cast("PretrainingRecipe", PRESETS[recipe].recipe).global_batch,
        small=recipe == WITHOUT_DATA,
        says=says,
    )
    devices = choose_devices(wish, environment, report)
    return assemble(wish, devices, environment, report, python)


def main(argv: Sequence[str]) -> int:
    """Become the run; returns only when refused (2) or asked for help (0)."""
    if any(word in ("-h", "--help") for word in argv):
        names = {"with_data": WITH_DATA, "without_data": WITHOUT_DATA}
        print(USAGE.format(**names, recipes=", ".join(PRESETS)))
        return 0

    def make() -> Launch:
        given, _ = FLAGS.read(split_recipe(argv)[1])  # a typing error is told before all else
        report = doctor(sys.executable, given.get("backend", "auto"), os.environ)
        return plan(argv, os.environ, report, sys.executable)

    return start(make)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
