# SPDX-License-Identifier: Apache-2.0
"""The SQuAD scripts: which recipe on how many devices, its data, and the precision of Enflame's.

Backend, processes and the command are common/launch/launcher.py's part.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from bertbench.benchmarks.bert_squad import positional
from bertbench.benchmarks.bert_squad.flags import FLAGS, derive_parts
from bertbench.benchmarks.bert_squad.layout import Files, locate, missing, names, sources
from bertbench.benchmarks.bert_squad.recipes import PRESETS, SquadRecipe
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
    take,
)

DEFAULT, SMALL = "squad_large", "squad_mini"
DATA_PATH = "dataset/pytorch_bert_large"
"""Where Enflame's scripts look for data when DATA_PATH is not set."""
TF32_SWITCH = "ENFLAME_ENABLE_TF32"
"""Enflame's scripts export it as true. A device that has a switch of this name reads it as its
driver starts; for any other it decides between TF32 and FP32 all the same."""
SCRIPTS = ("--seed", "1", "--skip_steps", "5", "--log_freq", "20")
"""What Enflame's scripts set besides the recipe; flags of the user come after it."""

USAGE = """\
usage: [DATA_PATH=/path] bash scripts/run_squad_{{1,8}}{{gpu,gcu}}.sh [flags]
       [DATA_PATH=/path] bash scripts/run_squad.sh [parameters of NVIDIA's run_squad.sh] [flags]

Fine-tunes BERT on SQuAD, answers the questions of the dev file and scores the answers.

  DATA_PATH=/path   squad/train-v1.1.json, squad/dev-v1.1.json and checkpoint/*.pt
                    (default: {data})
  run_squad_Ngpu.sh NVIDIA's recipe on N devices that PyTorch addresses as cuda
  run_squad_Ngcu.sh Enflame's recipe on N of its devices; {switch}=false for FP32
  run_squad.sh      init_checkpoint epochs batch_size learning_rate [warmup_proportion] precision
                    num_gpu seed squad_dir vocab_file OUT_DIR mode CONFIG_FILE max_steps; mode is
                    train, eval, prediction, or anything else for all
  --recipe NAME     another recipe: {recipes}
  --device NAME     another backend or kind of device; cpu is the CPU
  flags             those of the recipe (`.venv/bin/bertbench run RECIPE --help`) and of NVIDIA's
                    and Enflame's run_squad.py (--amp, --fp16, ...); the last of two wins
  --dry-run         say what would run

Environment: NPROC (processes on this node; default: as many as the script says), NNODES,
NODE_RANK, MASTER_ADDR, MASTER_PORT, and the vendor's variable of visible devices."""


def wish(argv: Sequence[str], environment: Mapping[str, str]) -> Wish:
    """What the script's words ask for, whatever there is to run it on.

    ``--cards 8xyz`` (eight devices of a kind) and ``--positional`` (words up to the first flag are
    NVIDIA's parameters) are the scripts' own. Raises BadInput or Unsupported with the fix.
    """
    cards_of, rest = take(argv, "--cards", "a number and a kind of device")
    named, rest = split_recipe(rest)
    own, says = [*SCRIPTS], []
    cards, device = None, None
    if cards_of is not None:
        found = re.fullmatch(r"(\d+)(\w+)", cards_of)
        if found is None:
            raise BadInput(f"--cards {cards_of}: give a number and a kind of device")
        cards, device = int(found[1]), found[2]
    if rest[:1] == ["--positional"]:
        end = next((i for i, w in enumerate(rest) if i and w.startswith("--")), len(rest))
        words, rest = rest[1:end], rest[end:]
        v2 = FLAGS.read(rest)[0].get("v2") == "True"
        parameters = positional.read(words, environment, v2=v2)
        cards = parameters.cards
        own, says = parameters.flags, parameters.says
    recipe_name = named or DEFAULT
    if recipe_name not in PRESETS:
        raise BadInput(f"unknown recipe {recipe_name!r}; there are: {', '.join(PRESETS)}")
    recipe = cast("SquadRecipe", PRESETS[recipe_name].recipe)
    given, _ = FLAGS.read([*own, *rest])
    if device is not None:
        given.setdefault("backend", device)
    try:
        own += _data(recipe_name, recipe, given, environment)
    except BadInput as error:  # what was taken for what is part of the reason
        raise BadInput("\n".join((*says, str(error)))) from None
    return Wish(
        recipe=recipe_name,
        given=given,
        rest=rest,
        own=own,
        global_batch=recipe.global_batch,
        small=recipe_name == SMALL,
        cards=cards,
        says=says,
    )


def plan(
    argv: Sequence[str], environment: Mapping[str, str], report: Report, python: str
) -> Launch:
    """What to run for these words, variables and ``bertbench doctor --json`` report.

    Raises BadInput or Unsupported with the fix.
    """
    from bertbench.backends import FAMILIES  # here, since BERTBENCH_SIMULATE may be refused

    asked = wish(argv, environment)
    environment = switched(environment, asked.given)
    devices = choose_devices(asked, environment, report, FAMILIES)
    if "precision" not in asked.given:
        precision = "tf32" if _is_on(environment[TF32_SWITCH]) else "fp32"
        if precision == "tf32" and precision not in devices.backend["precisions"]:
            precision = "fp32"
            devices.says.append(f"{devices.name} has no TF32 here: FP32 (or --amp)")
        asked = replace(asked, own=[*asked.own, "--precision", precision])
    return assemble(asked, devices, environment, report, python)


def switched(environment: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """The environment with TF32_SWITCH as the user set it, else as the precision needs it."""
    fp32 = given.get("precision") == "fp32"
    return {TF32_SWITCH: "false" if fp32 else "true", **environment}


def _is_on(text: str) -> bool:
    return text.strip().lower() in ("true", "1")


def _data(
    name: str, recipe: SquadRecipe, given: Mapping[str, str], environment: Mapping[str, str]
) -> list[str]:
    """The flag for DATA_PATH, if it is needed; BadInput says which files are missing."""
    if given.get("synthetic") == "True":
        return []
    parts = dict(given)
    derive_parts(parts, {})
    v2 = given.get("v2", str(recipe.v2)) == "True"
    root = given.get("data") or environment.get("DATA_PATH") or DATA_PATH
    there = Path(root).is_dir()
    if not there and (given.get("data") or environment.get("DATA_PATH")):
        raise BadInput(f"DATA_PATH={root} is not a folder; it must hold squad/ and checkpoint/")
    paths = {
        "train": "train_file",
        "predict": "predict_file",
        "checkpoint": "init_checkpoint",
        "vocab": "vocab_file",
        "config": "bert_config_path",
    }
    weights = (
        "init_checkpoint" in given or given.get("starts_from", recipe.starts_from) == "checkpoint"
    )
    files = locate(
        Path(root) if there else None,
        v2=v2,
        weights=weights,
        **{part: Path(given[flag]) for part, flag in paths.items() if flag in given},
    )
    lacking = missing(
        files,
        train=parts.get("do_train") != "False",
        predict=parts.get("do_predict") != "False",
        checkpoint=weights,
        v2=v2,
    )
    if lacking:
        raise BadInput(_advice(name, recipe, lacking, files, root, v2))
    return ["--data", root] if there and "data" not in given else []


def _advice(
    name: str, recipe: SquadRecipe, lacking: list[str], files: Files, root: str, v2: bool
) -> str:
    """What is missing, where it is published, and what runs without it."""
    train, predict = (
        str(file) if file is not None and file.is_file() else name
        for file, name in zip((files.train, files.predict), names(v2), strict=True)
    )
    lines = [f"{name} lacks", *(f"  {what}" for what in lacking)]
    where = sources(lacking, layers=recipe.model.num_hidden_layers, v2=v2)
    if where:
        lines += ["Published:", *(f"  {what}" for what in where)]
    lines += [f"Put them into {root} (squad/, checkpoint/), or DATA_PATH=/path/to/such/a/folder."]
    if name != SMALL:
        lines += [
            "The small recipe needs a SQuAD file only and fetches its weights by itself:",
            f"  .venv/bin/bertbench run {SMALL} --train_file {train} --predict_file {predict}",
            "  (add --backend cpu_ref for the CPU)",
        ]
    lines += ["For the speed alone no file is needed: add --synthetic"]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Become the run; returns only when refused (2) or asked for help (0)."""
    if any(word in ("-h", "--help") for word in argv):
        print(USAGE.format(data=DATA_PATH, switch=TF32_SWITCH, recipes=", ".join(PRESETS)))
        return 0

    def make() -> Launch:
        from bertbench.backends import FAMILIES

        given = wish(argv, os.environ).given  # what is wrong with the words is told before all else
        asked = given.get("backend", "auto")
        environment = switched(os.environ, given)
        report = doctor(sys.executable, "auto" if asked in FAMILIES else asked, environment)
        return plan(argv, environment, report, sys.executable)

    return start(make)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
