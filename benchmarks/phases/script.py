# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's scripts/run_pretraining.sh, which SparseBERT copies: two phases, one after the other.

DeepLearningExamples' script has these 24 parameters with these defaults; its later 25 to 32 prepare
data in another format. Phase 2 starts from the weights of phase 1's last step.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from bertbench.benchmarks import presets
from bertbench.benchmarks.bert_pretraining.flags import FLAGS
from bertbench.benchmarks.bert_pretraining.recipes import PretrainingRecipe
from bertbench.common.config.reference_flags import as_whole
from bertbench.common.errors import BadInput, BertbenchError
from bertbench.common.files import read_json
from bertbench.common.launch import launcher
from bertbench.common.launch.restarts import RESTARTS, restarts

DEFAULTS = {
    "train_batch_size": "8192",
    "learning_rate": "6e-3",
    "precision": "fp16",
    "num_gpus": "8",
    "warmup_proportion": "0.2843",
    "train_steps": "7038",
    "save_checkpoint_steps": "200",
    "resume_training": "false",
    "create_logfile": "true",
    "accumulate_gradients": "true",
    "gradient_accumulation_steps": "128",
    "seed": "12439",
    "job_name": "bert_lamb_pretraining",
    "allreduce_post_accumulation": "true",
    "allreduce_post_accumulation_fp16": "true",
    "train_batch_size_phase2": "4096",
    "learning_rate_phase2": "4e-3",
    "warmup_proportion_phase2": "0.128",
    "train_steps_phase2": "1563",
    "gradient_accumulation_steps_phase2": "512",
    "DATA_DIR_PHASE1": "",
    "DATA_DIR_PHASE2": "",
    "CODEDIR": ".",
    "init_checkpoint": "None",
}
"""The script's, in its order. An empty folder is looked for under BERT_PREP_WORKING_DIR; CODEDIR is
in NVIDIA's container."""
PRECISIONS = ("fp16", "fp32", "tf32", "bf16", "amp")
CONFIG = "bert_config.json"
"""The model of NVIDIA's script, in the current folder; without it the model is the recipe's."""
DENSE, SEARCH = "nvidia_large", "sparse_bert"
"""The recipes, without _phase1 and _phase2: the script's, and those with --lamb."""

USAGE = f"""\
usage: bash scripts/run_pretraining.sh [parameters of NVIDIA's script] [flags]

Pretrains BERT in two phases; phase 2 starts from phase 1's weights. An empty parameter has its
default. Records and logs are written to CODEDIR/results. The parameters, in this order:

{chr(10).join(f"  {name:<35} {value}" for name, value in DEFAULTS.items())}

  --recipe NAME     other recipes: NAME_phase1 and NAME_phase2 (default: {DENSE})
  --lamb X          penalty of the mask search; the recipes are {SEARCH}'s
"""


@dataclass(frozen=True, slots=True)
class Script:
    """What the script's words ask for."""

    values: Mapping[str, str]
    """The parameters by name."""
    family: str
    """The recipes' names, without the phase."""
    flags: Sequence[str]
    """The user's flags, of both phases."""
    messages: Sequence[str]

    @property
    def results(self) -> Path:
        """The folder of records and logs."""
        given = FLAGS.read(self.plain)[0].get("output_dir")
        return Path(given) if given else Path(self.values["CODEDIR"]) / "results"

    @property
    def plain(self) -> list[str]:
        """The flags that every pretraining has."""
        return launcher.take(self.flags, "--lamb", "a number")[1]

    @property
    def dry(self) -> bool:
        return FLAGS.read(self.plain)[0].get("dry_run") == "True"

    def recipe(self, phase: int) -> str:
        return f"{self.family}_phase{phase}"

    def of(self, name: str, phase: int) -> str:
        """Return a parameter that each phase has."""
        return self.values[name if phase == 1 else f"{name}_phase2"]


def read(argv: Sequence[str]) -> Script:
    """Read parameters up to the first flag, then flags. Raises BadInput or Unsupported."""
    end = next((i for i, word in enumerate(argv) if word.startswith("--")), len(argv))
    words, rest = argv[:end], argv[end:]
    if len(words) > len(DEFAULTS):
        raise BadInput(
            f"run_pretraining.sh takes {len(DEFAULTS)} parameters, not {len(words)}: NVIDIA's "
            f"later ones prepare parquet files, which bertbench does not read; use its HDF5 shards"
        )
    given = {name: word for name, word in zip(DEFAULTS, words, strict=False) if word}
    values = DEFAULTS | given
    for number, (name, value) in enumerate(values.items(), 1):
        if DEFAULTS[name] in ("true", "false") and value not in ("true", "false"):
            raise BadInput(f"{name} is {value!r}: give true or false (parameter {number})")
    if values["precision"] not in PRECISIONS:
        raise BadInput(f"precision {values['precision']!r}: give one of {', '.join(PRECISIONS)}")
    if re.fullmatch(r"[\w.+-]+", values["job_name"]) is None:
        raise BadInput("job_name begins a file's name: give letters, digits and . + -")
    named, flags = launcher.take(rest, "--recipe", "a name")
    penalty, plain = launcher.take(flags, "--lamb", "a number")
    if FLAGS.read(plain)[0].get("skip_checkpoint") == "True":
        raise BadInput("--skip_checkpoint: phase 2 starts from phase 1's checkpoint: leave it out")
    messages = [
        f"  {name}={value or '(not given)'}{'' if name in given else ' (default)'}"
        for name, value in values.items()
    ]
    if values["precision"] in ("fp32", "tf32"):
        messages.append("precision is exactly the one named; NVIDIA's script lets torch use TF32")
    family = named or (DENSE if penalty is None else SEARCH)
    return Script(values, family, flags, ["run_pretraining.sh with", *messages])


def request(script: Script, phase: int, start: Sequence[str]) -> launcher.Request:
    """Return the request of one phase; ``start`` are the flags of its beginning.

    Raises BadInput for parameters that do not fit together, or data that is not there.
    """
    name = script.recipe(phase)
    preset = launcher.find_preset(name, presets())
    devices, batch = count("num_gpus", script.values), _count("train_batch_size", script, phase)
    accumulation = 1
    if script.values["accumulate_gradients"] == "true":
        accumulation = _count("gradient_accumulation_steps", script, phase)
    if batch % accumulation:
        raise BadInput(f"phase {phase}: {accumulation} accumulation steps do not divide {batch}")
    flags = [
        # The script's batch is per device, before accumulation.
        *("--global_batch", str(batch * devices), "--max_micro_batch", str(batch // accumulation)),
        *("--learning_rate", script.of("learning_rate", phase)),
        *("--warmup_proportion", script.of("warmup_proportion", phase)),
        *("--max_steps", str(_count("train_steps", script, phase))),
        *("--num_steps_per_checkpoint", str(count("save_checkpoint_steps", script.values))),
        *("--precision", script.values["precision"], "--seed", script.values["seed"]),
        *("--output_dir", str(script.results)),
        *start,
    ]
    for switch in ("allreduce_post_accumulation", "allreduce_post_accumulation_fp16"):
        if script.values[switch] == "true":
            flags.append(f"--{switch}")
    if Path(CONFIG).is_file():
        flags += ["--config_file", CONFIG]
    given = FLAGS.read(script.plain)[0]
    if not {"input_dir", "data", "synthetic"} & given.keys():
        flags += ["--input_dir", str(_data(script, phase))]
    return launcher.Request(
        recipe=name,
        values=FLAGS.read([*flags, *script.plain])[0],
        flags=script.flags,
        script_flags=flags,
        global_batch=cast("PretrainingRecipe", preset.recipe).global_batch,
        devices=devices,
        messages=[f"phase {phase}"],
    )


def _data(script: Script, phase: int) -> Path:
    """Return the phase's folder of shards. Raises BadInput where there is none, or several."""
    name = f"DATA_DIR_PHASE{phase}"
    number = list(DEFAULTS).index(name) + 1
    if script.values[name]:
        folder = Path(script.values[name])
        if not folder.is_dir():
            raise BadInput(f"{name}={folder} is not a folder (parameter {number})")
        return folder
    root = os.environ.get("BERT_PREP_WORKING_DIR", "")
    pattern = f"hdf5_*_seq_len_{(128, 512)[phase - 1]}_*/*"
    found = [path for path in sorted(Path(root).glob(pattern)) if path.is_dir()] if root else []
    if len(found) != 1:
        raise BadInput(
            f"{name} (parameter {number}) is not given and BERT_PREP_WORKING_DIR={root} has "
            f"{len(found)} folders {pattern}: give the folder of the phase's *training*.hdf5"
        )
    training = found[0] / "training"  # where the script's later versions keep them
    return training if training.is_dir() else found[0]


def _count(name: str, script: Script, phase: int) -> int:
    return count(name if phase == 1 else f"{name}_phase2", script.values)


def count(name: str, values: Mapping[str, str]) -> int:
    """Return a parameter's whole number from 1. Raises BadInput for anything else."""
    try:
        number = int(as_whole(values[name]))
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None
    if number < 1:
        raise BadInput(f"{name} is {number}: give a whole number from 1")
    return number


def newest(root: Path, recipe: str) -> tuple[int, Path] | None:
    """Return step and folder of the last checkpoint of the newest run of ``recipe`` with one."""
    runs = sorted(root.glob("*/*/*/checkpoints"), key=lambda path: path.parent.name, reverse=True)
    for folder in runs:
        steps = [path for path in folder.iterdir() if re.fullmatch(r"step_\d{8,}", path.name)]
        try:
            config = read_json(folder.with_name("config.json"))
        except (OSError, ValueError):
            continue
        if steps and isinstance(config, dict) and config.get("preset") == recipe:
            last = max(steps, key=lambda path: int(path.name[5:]))
            return int(last.name[5:]), last
    return None


def starts(script: Script) -> dict[int, list[str]]:
    """Return the phases to run now, with the flags of their beginning where these are known.

    resume_training goes on with phase 2 where it has a checkpoint, else with phase 1; one that has
    ended is not run again. Raises BadInput where there is nothing to resume.
    """
    weights = script.values["init_checkpoint"]
    first = [] if weights == "None" else ["--init_checkpoint", weights]
    if script.values["resume_training"] == "false":
        return {1: first, 2: []}
    second = newest(script.results, script.recipe(2))
    if second is not None:
        return {2: ["--resume", str(second[1])]}
    before = newest(script.results, script.recipe(1))
    if before is None:
        raise BadInput(
            f"resume_training=true, and {script.results} has no checkpoint of {script.recipe(1)}: "
            f"give false (parameter 8) to start anew"
        )
    if before[0] >= count("train_steps", script.values):
        return {2: []}
    return {1: [*first, "--resume", str(before[1])], 2: []}


def weights_of_phase1(script: Script) -> list[str]:
    """Return the flags with which phase 2 starts. Raises BadInput where phase 1 has not ended."""
    found, steps = newest(script.results, script.recipe(1)), count("train_steps", script.values)
    if found is None or found[0] < steps:
        at = "has no checkpoint" if found is None else f"ends at step {found[0]}"
        raise BadInput(f"phase 1 {at} in {script.results}, not at step {steps}: phase 2 needs it")
    return ["--init_checkpoint", str(found[1] / "model.safetensors")]


def run(script: Script) -> int:
    """Run the phases; return the first exit code that is not 0. Raises BertbenchError."""
    if restarts(os.environ):
        raise BadInput(f"{RESTARTS} is for scripts of one phase: unset it, and run this one again")
    for text in script.messages:
        print(f"launch: {text}")
    todo = starts(script)
    for phase in todo:  # before hours of phase 1, whatever is wrong with phase 2
        request(script, phase, todo[phase])
    for phase, start in todo.items():
        if phase == 2 and not start and not script.dry:
            start = weights_of_phase1(script)
        asked = request(script, phase, start)
        code = launcher.complete(launcher.prepare(asked), _log(script, phase, asked))
        if code:
            return code
        if phase == 1 and script.dry:
            print("launch: phase 2 will start from the weights of phase 1's last step")
    return 0


def _log(script: Script, phase: int, asked: launcher.Request) -> Path | None:
    """Return the log's file, named as NVIDIA's script does; None where none is asked for."""
    if script.values["create_logfile"] == "false" or script.dry:
        return None
    script.results.mkdir(parents=True, exist_ok=True)
    tag = f"phase{phase}_{script.values['precision']}_gbs{asked.values['global_batch']}"
    stamp = time.strftime("%y%m%d%H%M%S")
    name = f"{script.values['job_name']}.pyt_bert_pretraining_{tag}.{stamp}.log"
    print(f"launch: output is also written to {script.results / name}")
    return script.results / name


def main(argv: Sequence[str]) -> int:
    """Run the script; return its exit code, 0 after the help and 2 after an error."""
    if any(word in ("-h", "--help") for word in argv):
        print(USAGE + launcher.USAGE)
        return 0
    try:
        return run(read(argv))
    except BertbenchError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2
