# SPDX-License-Identifier: Apache-2.0
"""The command line of this benchmark: our fields and the reference scripts' flags, as our fields.

Nothing is ignored silently. As in the references, the last of two flags wins and an abbreviation
that is not ambiguous is taken for its flag.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Iterator, Sequence

from benchmarks.bert_pretraining.recipes import PretrainingRecipe
from benchmarks.bert_pretraining.reference_flags import REFERENCE, Refuses, Sets, as_float, as_whole
from common.errors import BadInput, Unsupported
from common.recipe import Impl, RunOptions

DERIVED = {
    "train_batch_size": "global_batch",
    "gradient_accumulation_steps": "micro_batch",
    "average_packing_rate": "",
    "packed_samples": "",
}
"""Quantities from which fields of ours are computed: naming the field directly undoes them."""


def _fields(kind: type) -> dict[str, type]:
    """Field name -> type, nested dataclasses flattened, as the command line has them."""
    found: dict[str, type] = {}
    hints = typing.get_type_hints(kind)
    for f in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[f.name]):
            found |= _fields(hints[f.name])
        else:
            found[f.name] = hints[f.name]
    return found


OWN = {n: t for part in (PretrainingRecipe, Impl, RunOptions) for n, t in _fields(part).items()}
NAMES = sorted({*OWN, *REFERENCE, "warmup", "help"})


def translate(
    argv: Sequence[str], recipe: PretrainingRecipe | None = None, world: int | None = None
) -> tuple[list[str], list[str]]:
    """Flags of ours or of a reference script -> (flags of ours, notes for the user).

    Args:
        argv: what follows the recipe's name on the command line.
        recipe: the preset that the flags change; its global batch is what
            ``--gradient_accumulation_steps`` alone divides.
        world: processes over all nodes, which ``--train_batch_size`` is multiplied by; default:
            the launcher's WORLD_SIZE, else 1.

    Raises:
        BadInput: an unknown or ambiguous flag, a missing or impossible value; says what was meant.
        Unsupported: a flag that cannot be honoured; says why and what to do instead.
    """
    values, notes = read(argv)
    if "help" in values:
        return ["--help"], []
    world = int(os.environ.get("WORLD_SIZE", 1)) if world is None else world
    _derive(values, notes, recipe, world)
    own: list[str] = []
    for name, value in values.items():
        if OWN[name] is bool:
            own.append(f"--{name}" if value == "True" else f"--no_{name}")
        else:
            own += [f"--{name}", value]
    return own, [f"{', '.join(dict.fromkeys(flags))}: {text}" for text, flags in notes.items()]


def read(argv: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The values given, by our fields' names, and flags by the note they need.

    Batch sizes are still the reference's (the keys of ``DERIVED``); ``help`` stands for --help.
    Raises what ``translate`` raises.
    """
    values: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    for given, name, value in _parse(argv, notes):
        if name == "help":
            return {"help": "True"}, {}
        try:
            _apply(name, value, values, notes)
        except (BadInput, Unsupported) as error:
            raise type(error)(f"--{given}: {error}") from None
    return values, notes


def _parse(
    argv: Sequence[str], notes: dict[str, list[str]]
) -> Iterator[tuple[str, str, str | None]]:
    """(as written, full name, value or None) for each flag in turn."""
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "-h":
            word = "--help"
        if not word.startswith("--"):
            raise BadInput(f"{word!r} is not a flag; flags are written --name value")
        written, equals, joined = word[2:].partition("=")
        name = _full_name(written)
        if name != written.replace("-", "_"):
            notes.setdefault(f"taken as --{name}", []).append(f"--{written}")
        value: str | None = joined if equals else None
        if value is not None and not _takes_value(name) and not _is_switch(name):
            raise BadInput(f"--{written} takes no value, not {value!r}")
        if value is None and _takes_value(name):
            if not rest or rest[0].startswith("--"):
                raise BadInput(f"--{written} needs a value")
            value = rest.pop(0)
        yield written, name, value


def _full_name(written: str) -> str:
    name = written.replace("-", "_")
    if name in NAMES or _is_switch(name):
        return name
    starts = [n for n in NAMES if n.startswith(name)]
    if len(starts) == 1:
        return starts[0]
    if starts:
        raise BadInput(f"--{written} is ambiguous: {', '.join('--' + n for n in starts)}")
    close = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join('--' + n for n in close)}? " if close else ""
    raise BadInput(f"unknown flag --{written}; {hint}`bertbench run RECIPE --help` lists all")


def _is_switch(name: str) -> bool:
    """Whether it is a yes-or-no field of ours, or its negation."""
    return OWN.get(name, OWN.get(name.removeprefix("no_"))) is bool


def _takes_value(name: str) -> bool:
    meaning = REFERENCE.get(name)
    if meaning is not None:
        return meaning.takes_value
    if name == "warmup":
        return True
    return name in OWN and OWN[name] is not bool


def _apply(
    name: str, value: str | None, values: dict[str, str], notes: dict[str, list[str]]
) -> None:
    """Record one flag in ``values`` or ``notes``."""
    meaning = REFERENCE.get(name)
    if name == "warmup":  # the references' two warm-up flags at once
        assert value is not None
        share = as_float(value) < 1
        _set(values, "warmup_proportion", value if share else "0")
        _set(values, "warmup_steps", "0" if share else as_whole(value))
    elif meaning is None:
        _set(values, *_own(name, value))
    elif isinstance(meaning, Sets):
        if callable(meaning.value):
            assert value is not None
            _set(values, meaning.field, meaning.value(value))
        else:
            _set(values, meaning.field, meaning.value)
    elif isinstance(meaning, Refuses) and value not in meaning.off:
        raise Unsupported(f"{meaning.text}" if value is None else f"{value!r}: {meaning.text}")
    else:
        if name == "packed_samples":
            values["packed_samples"] = "True"
        notes.setdefault(meaning.text, []).append(f"--{name}")


def _own(name: str, value: str | None) -> tuple[str, str]:
    """A field of ours: name and value, with a switch's value spelled True or False."""
    if name not in OWN:
        name, no = name.removeprefix("no_"), True
    else:
        no = False
    if OWN[name] is not bool:
        assert value is not None
        return name, value
    on = {None: True, "true": True, "1": True, "false": False, "0": False}.get(
        value if value is None else value.lower()
    )
    if on is None:
        raise BadInput(f"is a switch: --{name} or --no_{name}, not {value!r}")
    return name, str(on != no)


def _set(values: dict[str, str], name: str, value: str) -> None:
    """The last one wins, also between a field and what it could be derived from."""
    for source, field in DERIVED.items():
        if name == source:
            values.pop(field, None)
        elif name == field:
            values.pop(source, None)
    values.pop(name, None)
    values[name] = value


def _derive(
    values: dict[str, str],
    notes: dict[str, list[str]],
    recipe: PretrainingRecipe | None,
    world: int,
) -> None:
    """Global batch and micro-batch from the references' batch sizes, which are per device.

    Theirs: global batch = train_batch_size x processes (x the packing rate for packed rows), and
    train_batch_size is what one device sees in a step, before it is split into accumulation steps.
    """
    packing = values.pop("average_packing_rate", None)
    rate = 1
    if values.pop("packed_samples", None) is not None:
        rate = 2 if packing is None else int(packing)  # the reference's default is 2
    elif packing is not None:
        notes.setdefault("used beside --packed_samples only, as in the reference", []).append(
            "--average_packing_rate"
        )
    per_device = values.pop("train_batch_size", None)
    accumulation = values.pop("gradient_accumulation_steps", None)
    total = recipe.global_batch if recipe is not None else None
    if "global_batch" in values:
        total = int(as_whole(values["global_batch"]))
    if per_device is not None:
        total = int(per_device) * rate * world
        values["global_batch"] = str(total)
        rows = f" x {rate} sequences a row" if rate > 1 else ""
        notes.setdefault(
            f"{per_device} per device x {world} processes{rows} = global batch {total}", []
        ).append("--train_batch_size")
    if accumulation is None:
        return
    steps = int(accumulation)
    if total is None:
        raise BadInput("--gradient_accumulation_steps needs --train_batch_size beside it")
    if steps < 1 or total % (world * steps):
        raise BadInput(
            f"--gradient_accumulation_steps {steps}: a global batch of {total} on {world} "
            f"processes is {total / world:g} sequences each, which {steps} does not divide"
        )
    values["micro_batch"] = str(total // (world * steps))
