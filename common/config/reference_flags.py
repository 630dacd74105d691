# SPDX-License-Identifier: Apache-2.0
"""Translation of the reference scripts' flags into our fields, from a benchmark's table.

A reference's flag is one of our fields under the same name (in no table), or under another name or
with other values (``Sets``); a choice that changes nothing here (``Notes``); or a request that
bertbench cannot honour, since it would change the maths, the precision or the meaning of the
numbers (``Refuses``). No flag is ignored silently. As in the references, the last of two flags
wins, and an unambiguous abbreviation is accepted.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bertbench.common.config.launched import number
from bertbench.common.config.parser import if_several
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.files import shown

Values = dict[str, str]
"""Values by the name of our field or of a derived quantity, in the order given."""
READ_AS = "read as --"
"""Begins the note on a name that was not written in full."""
Remarks = dict[str, list[str]]
"""Note for the user -> the flags it concerns."""


@dataclass(frozen=True, slots=True)
class Sets:
    """A flag that sets our ``field``; ``value`` converts the flag's value or is a constant."""

    field: str
    value: str | Callable[[str], str]
    note: str = ""
    """The difference, where the meanings are close but not the same."""

    @property
    def takes_value(self) -> bool:
        return callable(self.value)


@dataclass(frozen=True, slots=True)
class Divides:
    """A flag that sets several fields."""

    values: Callable[[str], dict[str, str]]
    takes_value: bool = True


@dataclass(frozen=True, slots=True)
class Notes:
    """A flag that changes nothing; ``text`` is the reason."""

    text: str
    takes_value: bool = False
    keeps: bool = False
    """Whether the flag stays among the values, for the benchmark's derived quantities."""


@dataclass(frozen=True, slots=True)
class Refuses:
    """A flag that bertbench cannot honour; with a value in ``off`` it changes nothing."""

    text: str
    takes_value: bool = False
    off: tuple[str, ...] = ()


Meaning = Sets | Divides | Notes | Refuses


def each(names: str, meaning: Meaning) -> dict[str, Meaning]:
    """Give all ``names``, separated by blanks, the same meaning."""
    return dict.fromkeys(names.split(), meaning)


def as_float(text: str, what: str = "number") -> float:
    """Read a number. Raises BadInput for anything else, infinities included."""
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"'{shown(text, 40)}' is not a number") from None
    if not math.isfinite(value):
        raise BadInput(f"'{shown(text, 40)}' is not a {what} that fits")
    return value


def as_whole(text: str) -> str:
    """Read a whole number. Raises BadInput for others; the references allow 7100.0 and 4.5e6."""
    value = as_float(text, "whole number")
    if value != int(value):
        raise BadInput(f"'{shown(text, 40)}' is not a whole number")
    return str(int(value))


def log_freq(text: str) -> str:
    """Convert the references' "never" (0 or below) to an interval that only the last step ends."""
    return str(2**31 - 1) if as_float(text) <= 0 else as_whole(text)


def fields(*kinds: type) -> dict[str, type]:
    """Return field name -> type, with nested dataclasses flattened as on the command line."""
    found: dict[str, type] = {}
    for kind in kinds:
        hints = typing.get_type_hints(kind)
        for f in dataclasses.fields(kind):
            if dataclasses.is_dataclass(hints[f.name]):
                found |= fields(hints[f.name])
            else:
                found[f.name] = hints[f.name]
    return found


RANKS = "rank and device come from the launcher's environment"
FUSED = "the backend chooses the fused kernels; change them with --kernels (`bertbench doctor`)"
SHARED: dict[str, Meaning] = {
    "fp16": Sets("precision", "fp16"),
    "amp": Sets(
        "precision",
        "amp",
        note="mixed precision in the device's better 16-bit format; the reference's float16 is "
        "--fp16",
    ),
    "log_freq": Sets("log_freq", log_freq),
    "train_batch_size": Sets("train_batch_size", as_whole),
    "gradient_accumulation_steps": Sets("gradient_accumulation_steps", as_whole),
    **each("output out", Sets("output_dir", str)),  # the name that other verbs have for it
    "local_rank": Notes(RANKS, takes_value=True),
    "use_env": Notes(RANKS),
    "loss_scale": Refuses(
        "a fixed loss scale is not supported: fp16 scales dynamically from --init_loss_scale, "
        "other precisions need none",
        takes_value=True,
        off=("0", "0.", "0.0"),
    ),
}
"""Flags that the references of all benchmarks have, with one meaning."""


class UnknownFlag(BadInput):
    """A flag that the benchmark does not have; ``name`` is its name."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


class Flags:
    """The flags of one benchmark."""

    def __init__(
        self,
        own: Mapping[str, type],
        reference: Mapping[str, Meaning],
        derived: Mapping[str, str],
    ) -> None:
        """Args:
        own: our fields and their types (``fields``).
        reference: the meaning of the references' flags; SHARED is added.
        derived: the references' quantities -> the field computed from each ("": from none
            alone). The last of the two that is given replaces the other.
        """
        self.own, self._reference, self._derived = own, {**SHARED, **reference}, derived
        self.names = sorted({*own, *self._reference, "help"})

    def translate(
        self, argv: Sequence[str], derive: Callable[[Values, Remarks], None]
    ) -> tuple[list[str], list[str]]:
        """Translate flags to our own: (our flags, notes for the user).

        ``derive`` replaces the references' quantities by our fields. Raises as ``read`` does.
        """
        values, notes = self.read(argv)
        if "help" in values:
            return ["--help"], []
        derive(values, notes)
        return self.write(values, notes)

    def read(self, argv: Sequence[str]) -> tuple[Values, Remarks]:
        """Return the values and the notes; only ``help`` for --help.

        Raises:
            BadInput: an unknown or ambiguous flag, a missing or impossible value.
            Unsupported: a flag that bertbench cannot honour; the message has the alternative.
        """
        values: Values = {}
        notes: Remarks = {}
        for given, name, value in self._parse(argv, notes):
            if name == "help":
                return {"help": "True"}, {}
            try:
                self._apply(name, value, values, notes)
            except (BadInput, Unsupported) as error:
                raise type(error)(f"--{given}: {error}") from None
        return values, notes

    def write(self, values: Values, notes: Remarks) -> tuple[list[str], list[str]]:
        """Return our flags for ``values``, and a line for each note."""
        argv: list[str] = []
        for name, value in values.items():
            if self.own[name] is bool:
                argv.append(f"--{name}" if value == "True" else f"--no_{name}")
            else:
                argv += [f"--{name}", value]
        return argv, [f"{', '.join(dict.fromkeys(flags))}: {text}" for text, flags in notes.items()]

    def _parse(self, argv: Sequence[str], notes: Remarks) -> Iterator[tuple[str, str, str | None]]:
        """Yield (as written, full name, value or None) for each flag."""
        rest = list(argv)
        while rest:
            word = rest.pop(0)
            if word == "-h":
                word = "--help"
            if not word.startswith("--"):
                hint = if_several(word) or "; flags are written --name value"
                raise BadInput(f"'{shown(word, 60)}' is not a flag{hint}")
            written, equals, joined = word[2:].partition("=")
            name = self._full_name(written)
            if name != written.replace("-", "_"):
                notes.setdefault(f"{READ_AS}{name}", []).append(f"--{written}")
            value: str | None = joined if equals else None
            if value is not None and not self._takes_value(name) and not self._is_switch(name):
                raise BadInput(f"--{written} takes no value, not {shown(repr(value), 40)}")
            if value is None and self._takes_value(name):
                if not rest or rest[0].startswith("--"):
                    raise BadInput(f"--{written} needs a value")
                value = rest.pop(0)
            yield written, name, value

    def _full_name(self, written: str) -> str:
        name = written.replace("-", "_")
        if name in self.names or self._is_switch(name):
            return name
        starts = [n for n in self.names if n.startswith(name)]
        if len(starts) == 1:
            return starts[0]
        if starts:
            raise BadInput(f"--{written} is ambiguous: {', '.join('--' + n for n in starts)}")
        close = difflib.get_close_matches(name, self.names, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join('--' + n for n in close)}? " if close else ""
        raise UnknownFlag(
            f"unknown flag --{shown(written, 60)}; {hint}`bertbench run RECIPE --help` lists all",
            name,
        )

    def _is_switch(self, name: str) -> bool:
        """Return whether ``name`` is a yes-or-no field, or its negation."""
        return self.own.get(name, self.own.get(name.removeprefix("no_"))) is bool

    def _takes_value(self, name: str) -> bool:
        meaning = self._reference.get(name)
        if meaning is not None:
            return meaning.takes_value
        return name in self.own and self.own[name] is not bool

    def _apply(self, name: str, value: str | None, values: Values, notes: Remarks) -> None:
        """Record one flag in ``values`` or ``notes``."""
        meaning = self._reference.get(name)
        if meaning is None:
            self._set(values, *self._switch_or_value(name, value))
        elif isinstance(meaning, Divides):
            for part, text in meaning.values(value or "").items():
                self._set(values, part, text)
        elif isinstance(meaning, Sets):
            text = meaning.value(value or "") if callable(meaning.value) else meaning.value
            self._set(values, meaning.field, text)
            if meaning.note:
                notes.setdefault(meaning.note, []).append(f"--{name}")
        elif isinstance(meaning, Refuses) and value not in meaning.off:
            raise Unsupported(f"{meaning.text}" if value is None else f"{value!r}: {meaning.text}")
        else:
            if isinstance(meaning, Notes) and meaning.keeps:
                values[name] = "True"
            notes.setdefault(meaning.text, []).append(f"--{name}")

    def _switch_or_value(self, name: str, value: str | None) -> tuple[str, str]:
        """Return one of our fields and its value; a switch's value is True or False."""
        no = name not in self.own
        name = name.removeprefix("no_") if no else name
        if self.own[name] is not bool:
            assert value is not None
            return name, value
        on = {None: True, "true": True, "1": True, "false": False, "0": False}.get(
            value if value is None else value.lower()
        )
        if on is None:
            raise BadInput(f"is a switch: --{name} or --no_{name}, not {value!r}")
        return name, str(on != no)

    def _set(self, values: Values, name: str, value: str) -> None:
        """Set a value. The last one wins, also between a field and a quantity it derives from."""
        for source, field in self._derived.items():
            if name == source:
                values.pop(field, None)
            elif name == field:
                values.pop(source, None)
        values.pop(name, None)
        values[name] = value


BATCHES = {"train_batch_size": "global_batch", "gradient_accumulation_steps": "micro_batch"}
"""The references' batch sizes and our fields, for ``derived`` (``derive_batches``)."""


def derive_batches(
    values: Values, notes: Remarks, *, global_batch: int | None, world: int | None, rows: int = 1
) -> None:
    """Replace the references' batch sizes, which are per device, by global batch and micro-batch.

    In the references, global batch = train_batch_size x processes (x sequences in a packed row),
    and a step splits train_batch_size into accumulation steps.

    Args:
        values: replaced in place.
        notes: added to in place.
        global_batch: the recipe's.
        world: processes over all nodes; default: the launcher's WORLD_SIZE, else 1.
        rows: sequences in a packed row.

    Raises:
        BadInput: the accumulation steps do not divide the batch, or no batch is known.
    """
    world = number("WORLD_SIZE") if world is None else world
    per_device = values.pop("train_batch_size", None)
    accumulation = values.pop("gradient_accumulation_steps", None)
    total = global_batch
    if "global_batch" in values:
        try:
            total = int(as_whole(values["global_batch"]))
        except BadInput as error:
            raise BadInput(f"--global_batch: {error}") from None
    if per_device is not None:
        total = int(per_device) * rows * world
        values["global_batch"] = str(total)
        packed = f" x {rows} sequences a row" if rows > 1 else ""
        notes.setdefault(
            f"{per_device} per device x {world} processes{packed} = global batch {total}", []
        ).append("--train_batch_size")
    if accumulation is None:
        return
    steps = int(accumulation)
    if total is None:
        raise BadInput("--gradient_accumulation_steps needs --train_batch_size")
    if steps < 1 or total % (world * steps):
        raise BadInput(
            f"--gradient_accumulation_steps {steps}: a global batch of {total} on {world} "
            f"processes is {total / world:g} sequences each, which {steps} does not divide"
        )
    values["micro_batch"] = str(total // (world * steps))
