# SPDX-License-Identifier: Apache-2.0
"""The pretraining script: its recipe, which depends on the data, and DeepSparkHub's settings."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from bertbench.benchmarks.bert_pretraining.benchmark import BertPretraining
from bertbench.benchmarks.bert_pretraining.flags import FLAGS
from bertbench.benchmarks.bert_pretraining.recipes import PretrainingRecipe
from bertbench.benchmarks.phases import script as phases
from bertbench.common.errors import BadInput
from bertbench.common.launch import launcher

WITH_DATA, WITHOUT_DATA = "deepspark_416", "mini"
"""The default recipe: DeepSparkHub's command, or the one that needs no data."""

DEEPSPARK = ("--seed", "17103", "--skip_checkpoint")
"""Settings of DeepSparkHub's command besides the recipe."""

USAGE = f"""\
usage: [DATA=/path] bash train_bert_pretraining_amp_dist.sh [--recipe NAME] [flags]

  DATA=/path        MLPerf's data set (shards, evaluation set, bert_config.json, checkpoint):
                    trains {WITH_DATA} on the accelerators found
  without DATA      trains {WITHOUT_DATA} on a small corpus that it downloads
  INIT_LOSS_SCALE=N the first loss scale of fp16
  --recipe NAME     another recipe: {", ".join(BertPretraining.presets)}
  --backend NAME    instead of the first accelerator found; cpu_ref is the CPU
"""


def read(argv: Sequence[str], environment: Mapping[str, str]) -> launcher.Request:
    """Return what the script's words ask for. Raises BadInput or Unsupported."""
    messages: list[str] = []
    named, flags = launcher.take(argv, "--recipe", "a name")
    values, _ = FLAGS.read(flags)
    data = values.get("data", environment.get("DATA"))
    has_data = bool(data or "input_dir" in values)
    recipe = named or (WITH_DATA if has_data else WITHOUT_DATA)
    preset = launcher.find_preset(recipe, BertPretraining.presets)
    if data and not Path(data).is_dir():
        raise BadInput(f"DATA={data} is not a folder; it must hold the shards, see README.md")
    if named is None and not has_data:
        corpus = f"the text {values['text']}" if "text" in values else "the quick-start corpus"
        if values.get("synthetic") == "True":
            corpus = "synthetic tokens"
        messages.append(
            f"DATA is not set: training {recipe} on {corpus}. "
            f"For MLPerf's BERT-large: DATA=/path/to/dataset"
        )
    script_flags: list[str] = []
    if data and "data" not in values:
        script_flags += ["--data", data]
    if recipe.startswith("deepspark"):
        script_flags += DEEPSPARK
    if environment.get("INIT_LOSS_SCALE"):
        script_flags += ["--init_loss_scale", environment["INIT_LOSS_SCALE"]]
    return launcher.Request(
        recipe=recipe,
        values=values,
        flags=flags,
        script_flags=script_flags,
        global_batch=cast("PretrainingRecipe", preset.recipe).global_batch,
        small=recipe == WITHOUT_DATA,
        messages=messages,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--positional"]:  # scripts/run_pretraining.sh
        sys.exit(phases.main(sys.argv[2:]))
    sys.exit(launcher.main(sys.argv[1:], USAGE, read))
