# SPDX-License-Identifier: Apache-2.0
"""The SQuAD scripts: recipe, number of devices, data, and the precision of Enflame's scripts."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from bertbench.benchmarks.bert_squad import positional
from bertbench.benchmarks.bert_squad.flags import FLAGS, derive_parts
from bertbench.benchmarks.bert_squad.layout import Files, locate, missing, names, sources
from bertbench.benchmarks.bert_squad.recipes import PRESETS, SquadRecipe
from bertbench.common.errors import BadInput
from bertbench.common.launch import launcher

DEFAULT, SMALL = "squad_large", "squad_mini"
DATA_PATH = "dataset/pytorch_bert_large"
"""The data folder of Enflame's scripts, where DATA_PATH is not set."""
TF32_SWITCH = "ENFLAME_ENABLE_TF32"
"""The variable with which Enflame's scripts choose between TF32 (true, their default) and FP32.
Enflame's driver reads it; here it chooses the precision on every device."""
SCRIPTS = ("--seed", "1", "--skip_steps", "5", "--log_freq", "20")
"""Settings of Enflame's scripts besides the recipe."""

USAGE = f"""\
usage: [DATA_PATH=/path] bash scripts/run_squad_{{1,8}}{{gpu,gcu}}.sh [flags]
       [DATA_PATH=/path] bash scripts/run_squad.sh [parameters of NVIDIA's run_squad.sh] [flags]

Fine-tunes BERT on SQuAD, answers the questions of the dev file and scores the answers.

  DATA_PATH=/path   squad/train-v1.1.json, squad/dev-v1.1.json and checkpoint/*.pt
                    (default: {DATA_PATH})
  run_squad_Ngpu.sh NVIDIA's recipe on N devices that PyTorch addresses as cuda
  run_squad_Ngcu.sh Enflame's recipe on N of its devices; {TF32_SWITCH}=false for FP32
  run_squad.sh      init_checkpoint epochs batch_size learning_rate [warmup_proportion] precision
                    num_gpu seed squad_dir vocab_file OUT_DIR mode CONFIG_FILE max_steps; mode is
                    train, eval, prediction, or anything else for all
  --recipe NAME     another recipe: {", ".join(PRESETS)}
  --device NAME     another backend or kind of device; cpu is the CPU
"""


def read(argv: Sequence[str], environment: Mapping[str, str]) -> launcher.Request:
    """Return what a script's words ask for. Raises BadInput or Unsupported.

    The scripts pass ``--cards 8xyz`` (eight devices of a kind) and ``--positional`` (the words up
    to the first flag are NVIDIA's parameters).
    """
    cards, rest = launcher.take(argv, "--cards", "a number and a kind of device")
    named, rest = launcher.take(rest, "--recipe", "a name")
    script_flags, messages = [*SCRIPTS], []
    devices, kind = None, None
    if cards is not None:
        found = re.fullmatch(r"(\d+)(\w+)", cards)
        if found is None:
            raise BadInput(f"--cards {cards}: give a number and a kind of device")
        devices, kind = int(found[1]), found[2]
    if rest[:1] == ["--positional"]:
        end = next((i for i, w in enumerate(rest) if i and w.startswith("--")), len(rest))
        words, rest = rest[1:end], rest[end:]
        v2 = FLAGS.read(rest)[0].get("v2") == "True"
        parameters = positional.read(words, environment, v2=v2)
        devices = parameters.devices
        script_flags, messages = parameters.flags, parameters.messages
    name = named or DEFAULT
    recipe = cast("SquadRecipe", launcher.find_preset(name, PRESETS).recipe)
    values, _ = FLAGS.read([*script_flags, *rest])
    if kind is not None:
        values.setdefault("backend", kind)
    try:
        script_flags += _data(name, recipe, values, environment)
    except BadInput as error:  # the messages show how the parameters were read
        raise BadInput("\n".join((*messages, str(error)))) from None
    variables = {TF32_SWITCH: "false" if values.get("precision") == "fp32" else "true"}
    tf32 = {**variables, **environment}[TF32_SWITCH].strip().lower() in ("true", "1")
    return launcher.Request(
        recipe=name,
        values=values,
        flags=rest,
        script_flags=script_flags,
        global_batch=recipe.global_batch,
        small=name == SMALL,
        devices=devices,
        precision="tf32" if tf32 else "fp32",
        variables=variables,
        messages=messages,
    )


def _data(
    name: str, recipe: SquadRecipe, values: Mapping[str, str], environment: Mapping[str, str]
) -> list[str]:
    """Return --data for DATA_PATH where it is needed. Raises BadInput with the missing files."""
    if values.get("synthetic") == "True":
        return []
    parts = dict(values)
    derive_parts(parts, {})
    v2 = values.get("v2", str(recipe.v2)) == "True"
    root = values.get("data") or environment.get("DATA_PATH") or DATA_PATH
    exists = Path(root).is_dir()
    if not exists and (values.get("data") or environment.get("DATA_PATH")):
        raise BadInput(f"DATA_PATH={root} is not a folder; it must hold squad/ and checkpoint/")
    paths = {
        "train": "train_file",
        "predict": "predict_file",
        "checkpoint": "init_checkpoint",
        "vocab": "vocab_file",
        "config": "bert_config_path",
    }
    weights = (
        "init_checkpoint" in values or values.get("starts_from", recipe.starts_from) == "checkpoint"
    )
    files = locate(
        Path(root) if exists else None,
        v2=v2,
        weights=weights,
        **{part: Path(values[flag]) for part, flag in paths.items() if flag in values},
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
    return ["--data", root] if exists and "data" not in values else []


def _advice(
    name: str, recipe: SquadRecipe, lacking: list[str], files: Files, root: str, v2: bool
) -> str:
    """Return the missing files, where they are published, and a command that needs none of them."""
    train, predict = (
        str(file) if file is not None and file.is_file() else name
        for file, name in zip((files.train, files.predict), names(v2), strict=True)
    )
    lines = [f"{name} lacks", *(f"  {file}" for file in lacking)]
    where = sources(lacking, layers=recipe.model.num_hidden_layers, v2=v2)
    if where:
        lines += ["Published:", *(f"  {place}" for place in where)]
    lines += [f"Put them into {root} (squad/, checkpoint/), or DATA_PATH=/path/to/such/a/folder."]
    if name != SMALL:
        lines += [
            "The small recipe needs only the SQuAD files and downloads its weights:",
            f"  .venv/bin/bertbench run {SMALL} --train_file {train} --predict_file {predict}",
            "  (add --backend cpu_ref for the CPU)",
        ]
    lines += ["To measure speed without any file: add --synthetic"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(launcher.main(sys.argv[1:], USAGE, read))
