# SPDX-License-Identifier: Apache-2.0
"""Command lines of reference scripts, as our flags. Each benchmark brings its two tables.

A reference's flag is a field of ours under the same name (in no table); a field under another name
or with another spelling of its values (``Sets``); a choice that changes nothing here, said in a
note (``Notes``); or a request that cannot be honoured (``Refuses``): whatever would change the
maths, the precision or the meaning of the numbers. Nothing is ignored silently. As in the
references, the last of two flags wins and an abbreviation that is not ambiguous is taken for its
flag.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bertbench.common.errors import BadInput, Unsupported

Values = dict[str, str]
"""What is given, by the names of our fields (or of derived quantities); the last one last."""
Remarks = dict[str, list[str]]
"""What the user must be told -> the flags it is about."""


@dataclass(frozen=True, slots=True)
class Sets:
    """Our ``field`` in place of theirs; ``value`` converts, or is the value where none is given."""

    field: str
    value: str | Callable[[str], str]
    note: str = ""
    """Said where theirs means something near, but not the same."""

    @property
    def takes_value(self) -> bool:
        return callable(self.value)


@dataclass(frozen=True, slots=True)
class Divides:
    """One flag of theirs for several fields of ours."""

    values: Callable[[str], dict[str, str]]
    takes_value: bool = True


@dataclass(frozen=True, slots=True)
class Notes:
    """Accepted, changes nothing; ``text`` says why."""

    text: str
    takes_value: bool = False
    keeps: bool = False
    """Kept among the values, for the benchmark's derived quantities."""


@dataclass(frozen=True, slots=True)
class Refuses:
    """Cannot be honoured; with one of the values ``off`` it asks for nothing and is noted."""

    text: str
    takes_value: bool = False
    off: tuple[str, ...] = ()


Meaning = Sets | Divides | Notes | Refuses


def each(names: str, meaning: Meaning) -> dict[str, Meaning]:
    """The same meaning for all of ``names``, which blanks separate."""
    return dict.fromkeys(names.split(), meaning)


def as_float(text: str) -> float:
    """A number, or BadInput."""
    try:
        return float(text)
    except ValueError:
        raise BadInput(f"{text!r} is not a number") from None


def as_whole(text: str) -> str:
    """The references declare counts as floats: 7100.0 and 4.5e6 are whole numbers."""
    value = as_float(text)
    if value != value or value in (float("inf"), float("-inf")) or value != int(value):
        raise BadInput(f"{text!r} is not a whole number")
    return str(int(value))


def log_freq(text: str) -> str:
    """Theirs: nothing is reported where it is not positive. Ours: only the last step then."""
    return str(2**31 - 1) if as_float(text) <= 0 else as_whole(text)


def fields(*kinds: type) -> dict[str, type]:
    """Field name -> type, nested dataclasses flattened, as the command line has them."""
    found: dict[str, type] = {}
    for kind in kinds:
        hints = typing.get_type_hints(kind)
        for f in dataclasses.fields(kind):
            if dataclasses.is_dataclass(hints[f.name]):
                found |= fields(hints[f.name])
            else:
                found[f.name] = hints[f.name]
    return found


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
        reference: what the references' flags mean.
        derived: quantities of theirs -> the field of ours that is computed from them ("": of
            none alone). Naming one of the two undoes the other.
        """
        self.own, self._reference, self._derived = own, reference, derived
        self.names = sorted({*own, *reference, "help"})

    def read(self, argv: Sequence[str]) -> tuple[Values, Remarks]:
        """The values given, and flags by the note they need.

        Quantities of theirs that ours are computed from are still theirs; ``help`` stands for
        --help.

        Raises:
            BadInput: an unknown or ambiguous flag, a missing or impossible value; says what was
                meant.
            Unsupported: a flag that cannot be honoured; says why and what to do instead.
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
        """Flags of ours that say ``values``, and a line for each note."""
        argv: list[str] = []
        for name, value in values.items():
            if self.own[name] is bool:
                argv.append(f"--{name}" if value == "True" else f"--no_{name}")
            else:
                argv += [f"--{name}", value]
        return argv, [f"{', '.join(dict.fromkeys(flags))}: {text}" for text, flags in notes.items()]

    def _parse(self, argv: Sequence[str], notes: Remarks) -> Iterator[tuple[str, str, str | None]]:
        """(as written, full name, value or None) for each flag in turn."""
        rest = list(argv)
        while rest:
            word = rest.pop(0)
            if word == "-h":
                word = "--help"
            if not word.startswith("--"):
                raise BadInput(f"{word!r} is not a flag; flags are written --name value")
            written, equals, joined = word[2:].partition("=")
            name = self._full_name(written)
            if name != written.replace("-", "_"):
                notes.setdefault(f"taken as --{name}", []).append(f"--{written}")
            value: str | None = joined if equals else None
            if value is not None and not self._takes_value(name) and not self._is_switch(name):
                raise BadInput(f"--{written} takes no value, not {value!r}")
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
        raise BadInput(f"unknown flag --{written}; {hint}`bertbench run RECIPE --help` lists all")

    def _is_switch(self, name: str) -> bool:
        """Whether it is a yes-or-no field of ours, or its negation."""
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
            if callable(meaning.value):
                assert value is not None
                self._set(values, meaning.field, meaning.value(value))
            else:
                self._set(values, meaning.field, meaning.value)
            if meaning.note:
                notes.setdefault(meaning.note, []).append(f"--{name}")
        elif isinstance(meaning, Refuses) and value not in meaning.off:
            raise Unsupported(f"{meaning.text}" if value is None else f"{value!r}: {meaning.text}")
        else:
            if isinstance(meaning, Notes) and meaning.keeps:
                values[name] = "True"
            notes.setdefault(meaning.text, []).append(f"--{name}")

    def _switch_or_value(self, name: str, value: str | None) -> tuple[str, str]:
        """A field of ours: name and value, with a switch's value spelled True or False."""
        if name not in self.own:
            name, no = name.removeprefix("no_"), True
        else:
            no = False
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
        """The last one wins, also between a field and what it could be derived from."""
        for source, field in self._derived.items():
            if name == source:
                values.pop(field, None)
            elif name == field:
                values.pop(source, None)
        values.pop(name, None)
        values[name] = value


BATCHES = {"train_batch_size": "global_batch", "gradient_accumulation_steps": "micro_batch"}
"""For ``derived``: the references' batch sizes (``derive_batches``)."""


def world_size() -> int:
    """Processes over all nodes, from the launcher's environment."""
    return int(os.environ.get("WORLD_SIZE", 1))


def derive_batches(
    values: Values, notes: Remarks, *, global_batch: int | None, world: int, rows: int = 1
) -> None:
    """Global batch and micro-batch from the references' batch sizes, which are per device.

    Theirs: global batch = train_batch_size x processes (x ``rows`` sequences in a packed row), and
    train_batch_size is what one device sees in a step, before it is split into accumulation steps.
    ``global_batch`` is the recipe's. Raises BadInput where it cannot be split.
    """
    per_device = values.pop("train_batch_size", None)
    accumulation = values.pop("gradient_accumulation_steps", None)
    total = global_batch
    if "global_batch" in values:
        total = int(as_whole(values["global_batch"]))
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
        raise BadInput("--gradient_accumulation_steps needs --train_batch_size beside it")
    if steps < 1 or total % (world * steps):
        raise BadInput(
            f"--gradient_accumulation_steps {steps}: a global batch of {total} on {world} "
            f"processes is {total / world:g} sequences each, which {steps} does not divide"
        )
    values["micro_batch"] = str(total // (world * steps))
