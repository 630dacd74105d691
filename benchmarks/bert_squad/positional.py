# SPDX-License-Identifier: Apache-2.0
"""The positional parameters of NVIDIA's scripts/run_squad.sh, in both of their orders.

DeepLearningExamples' head (729963dd) has 14. Until 2021 there were 13, without warmup_proportion,
and the examples of its README still have 13. The fifth parameter (the sixth, where that is empty)
shows the order: a precision is a word, a proportion and a number of devices are numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertbench.benchmarks.bert_squad.layout import names
from bertbench.common.config.reference_flags import as_whole
from bertbench.common.errors import BadInput

DEFAULTS = {
    "init_checkpoint": "",
    "epochs": "2.0",
    "batch_size": "4",
    "learning_rate": "3e-5",
    "warmup_proportion": "0.1",
    "precision": "fp16",
    "num_gpu": "8",
    "seed": "1",
    "squad_dir": "",
    "vocab_file": "",
    "OUT_DIR": "",
    "mode": "train eval",
    "CONFIG_FILE": "",
    "max_steps": "-1",
}
"""The script's defaults at its head, in its order. An empty one is a file of NVIDIA's container;
DATA_PATH, the recipe's model or our default replaces it."""
_BEFORE = "the order of 2021 (without warmup_proportion)"
PRECISIONS = ("fp16", "fp32", "tf32", "bf16", "amp")
MODES = {
    "train": ("--do_train",),
    "eval": ("--do_predict", "--do_eval"),
    "prediction": ("--do_predict",),
}
"""Any other mode does all three."""


@dataclass(slots=True)
class Positional:
    """The parameters as a number of devices, flags and messages."""

    devices: int
    flags: list[str]
    messages: list[str]


def read(words: Sequence[str], environment: Mapping[str, str], *, v2: bool = False) -> Positional:
    """Convert parameters in either order to flags; an empty one has its default.

    ``v2``: squad_dir holds SQuAD v2.0. Raises BadInput for too many, or an unclear order.
    """
    order = _order(words)
    if len(words) > len(order):
        raise BadInput(f"run_squad.sh takes {len(order)} parameters ({', '.join(order)}), not more")
    given = {name: word for name, word in zip(order, words, strict=False) if word}
    version = "v2.0" if v2 else "v1.1"
    if "squad_dir" not in given and environment.get("BERT_PREP_WORKING_DIR"):
        given["squad_dir"] = f"{environment['BERT_PREP_WORKING_DIR']}/download/squad/{version}"
    values = DEFAULTS | given
    if values["precision"] not in PRECISIONS:
        raise BadInput(
            f"precision {values['precision']!r}: give one of {', '.join(PRECISIONS)} (parameter "
            f"{order.index('precision') + 1} of {len(order)})"
        )
    devices = _count("num_gpu", values)
    batch = _count("batch_size", values)
    flags = [
        *("--num_train_epochs", values["epochs"]),
        # The script's batch is per device; ours is for all the devices it names.
        *("--global_batch", str(batch * devices), "--max_micro_batch", str(batch)),
        *("--eval_batch_size", str(batch)),
        *("--learning_rate", values["learning_rate"]),
        *("--warmup_proportion", values["warmup_proportion"]),
        *("--precision", values["precision"]),
        *("--seed", values["seed"], "--max_steps", values["max_steps"], "--log_freq", "50"),
    ]
    flags += MODES.get(values["mode"], ())
    for name, flag in (
        ("init_checkpoint", "--init_checkpoint"),
        ("vocab_file", "--vocab_file"),
        ("OUT_DIR", "--output_dir"),
        ("CONFIG_FILE", "--config_file"),
    ):
        if values[name]:
            flags += [flag, values[name]]
    if values["squad_dir"]:
        for flag, file in zip(("--train_file", "--predict_file"), names(v2), strict=True):
            flags += [flag, str(Path(values["squad_dir"]) / file)]
    kind = "today's order" if len(order) == len(DEFAULTS) else _BEFORE
    messages = [f"run_squad.sh with {len(order)} parameters, in {kind}:"]
    messages += [
        f"  {name}={values[name] or '(not given)'}{'' if name in given else ' (default)'}"
        for name in order
    ]
    if values["precision"] in ("fp32", "tf32"):
        messages.append("precision is exactly the one named; NVIDIA's script lets torch use TF32")
    return Positional(devices, flags, messages)


def _order(words: Sequence[str]) -> list[str]:
    """Return the parameters' names: today's, or those of 2021."""
    today = list(DEFAULTS)
    before = [name for name in today if name != "warmup_proportion"]
    fifth, sixth = ([*words, *[""] * 6])[4:6]
    if fifth:
        if fifth in PRECISIONS:
            return before
        if _is_number(fifth):
            return today
        raise BadInput(
            f"parameter 5 of run_squad.sh is {fifth!r}: give warmup_proportion (a number) or, in "
            f"the order of 2021, precision ({', '.join(PRECISIONS)})"
        )
    return before if _is_number(sixth) else today


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _count(name: str, values: Mapping[str, str]) -> int:
    try:
        number = int(as_whole(values[name]))
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None
    if number < 1:
        raise BadInput(f"{name} is {number}: give a whole number from 1")
    return number
