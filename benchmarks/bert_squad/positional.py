# SPDX-License-Identifier: Apache-2.0
"""The positional parameters of NVIDIA's scripts/run_squad.sh, in both of their orders.

At DeepLearningExamples' head (729963dd) there are 14; until 2021, and in the examples of its README
still, there are 13, without warmup_proportion. They are told apart by the fifth (or, where that is
empty, the sixth): a precision is a word, a share and a number of devices are numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
"""Of the script at its head, by the names and in the order that it has; empty: a file of NVIDIA's
container, for which DATA_PATH, the recipe's model or our defaults stand here."""
PRECISIONS = ("fp16", "fp32", "tf32", "bf16", "amp")
MODES = {
    "train": ("--do_train",),
    "eval": ("--do_predict", "--do_eval"),
    "prediction": ("--do_predict",),
}
"""Any other mode does all three."""


@dataclass(slots=True)
class Positional:
    """What the parameters come to."""

    cards: int
    flags: list[str]
    says: list[str] = field(default_factory=list)


def read(words: Sequence[str], environment: Mapping[str, str], *, v2: bool = False) -> Positional:
    """Parameters in either order -> flags of this benchmark; empty ones have their default.

    ``v2`` says which of SQuAD's files squad_dir holds.
    Raises BadInput for too many, or where the order cannot be told.
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
    cards = _count("num_gpu", values)
    batch = _count("batch_size", values)
    flags = [
        *("--num_train_epochs", values["epochs"]),
        # Batches are theirs times their number of devices, on whatever this runs.
        *("--global_batch", str(batch * cards), "--max_micro_batch", str(batch)),
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
    says = [f"run_squad.sh with {_kind(order)}:"]
    says += [
        f"  {name}={values[name] or '(not given)'}{'' if name in given else ' (default)'}"
        for name in order
    ]
    if values["precision"] in ("fp32", "tf32"):
        says.append("precision is taken at its word; NVIDIA's script lets torch choose TF32")
    return Positional(cards, flags, says)


def _kind(order: Sequence[str]) -> str:
    if "warmup_proportion" in order:
        return f"{len(order)} parameters, in today's order"
    return f"{len(order)} parameters, in the order of 2021 (without warmup_proportion)"


def _order(words: Sequence[str]) -> list[str]:
    """The parameters' names: today's, or those of 2021."""
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
