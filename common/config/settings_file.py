# SPDX-License-Identifier: Apache-2.0
"""Settings as a TOML file: ``run --config FILE``, and the ``settings.toml`` of each record.

A file names a recipe and flags, without their dashes::

    recipe = "mini"
    max_steps = 20
    synthetic = true

"None" is written as text, as on the command line. A path below the user's home begins with ~/.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertbench.common.config.recipe import BEFORE, Preset, plain
from bertbench.common.errors import BadInput
from bertbench.common.files import read_bytes, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SETTINGS = "settings.toml"
"""The file in a record."""
FLAG = "--config"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
OF_ONE_RUN = ("config", "resume", "dry_run", "json", "quiet")
"""Options that a record does not hand on: they say how one run was started or shown."""


@dataclass(frozen=True, slots=True)
class Given:
    """Settings that come before the flags of the command line, which win."""

    place: str
    """The file or record, for messages."""
    recipe: str | None
    words: list[str]
    """Flags as on the command line."""


def read(path: Path) -> Given:
    """Return the settings in a file; raises BadInput where it holds anything but plain values."""
    place = shown(path)
    try:
        values = tomllib.loads(read_bytes(path).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{FLAG} {place}: cannot be read: {shown(error)}") from error
    for name, value in values.items():
        if not isinstance(value, str | int | float):
            raise BadInput(
                f"{FLAG} {place}: {shown(name, 60)} is not a single text, number, true or false: "
                f"write name = value, without tables and lists"
            )
        if not _NAME.fullmatch(name) or name.startswith("no_"):
            raise BadInput(
                f"{FLAG} {place}: {shown(name, 60)!r} is not the name of a setting: write "
                f"name = value, and name = false for --no_name"
            )
        if isinstance(value, str) and value.lower() in ("true", "false"):
            raise BadInput(f"{FLAG} {place}: {name} is true or false: write it without quotes")
    recipe = values.pop("recipe", None)
    if recipe is not None and not isinstance(recipe, str):
        raise BadInput(f"{FLAG} {place}: recipe is {shown(recipe, 40)}: give a name in quotes")
    if "help" in values or "config" in values:
        raise BadInput(f"{FLAG} {place}: help and config are words of the command line")
    return Given(place, recipe, words_of(values))


def split(words: Sequence[str]) -> tuple[Given | None, list[str]]:
    """Return the settings of the file that ``--config`` names, and the other words.

    Raises BadInput for two files, for one that cannot be read, and without a file.
    """
    files, rest, left = [], [], list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name != FLAG:
            rest.append(word)
        elif not equals and not left:
            raise BadInput(f"{FLAG} needs a file")
        else:
            files.append(value if equals else left.pop(0))
    if len(files) > 1:
        raise BadInput(f"{FLAG} is given {len(files)} times: name one file")
    return (read(Path(files[0])) if files else None), rest


def recipe_of(words: Sequence[str]) -> str | None:
    """Return the recipe's name in ``words`` behind ``run``: the first one, else its file's.

    Raises BadInput where the file names none or cannot be read.
    """
    if words and not words[0].startswith("-"):
        return words[0]
    given, _ = split(words)
    if given is not None and given.recipe is None:
        raise BadInput(
            f'{FLAG} {given.place} names no recipe: add recipe = "NAME" to it, or write '
            f"bertbench run NAME {FLAG} {given.place}"
        )
    return None if given is None else given.recipe


def words_of(values: Mapping[str, Any]) -> list[str]:
    """Return values by field name as flags."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        else:
            home = isinstance(value, str) and value.startswith("~/")
            words += [f"--{name}", str(Path(value).expanduser() if home else value)]
    return words


def changed(config: Mapping[str, Any], preset: Preset) -> dict[str, Any]:
    """Return the values of a record's config.json (``Settings.as_dict``) that the preset lacks.

    A value that the record is too old to have counts as it was then. Raises BadInput for a value
    that there no longer is.
    """
    own = _flat({part: plain(getattr(preset, part)) for part in ("recipe", "impl", "run")})
    then = own | {name: value for name, value in BEFORE.items() if name in own}
    then |= _flat({part: config[part] for part in ("recipe", "impl", "run")})
    # A benchmark that no longer has an option still does what its default did.
    own_then = _flat({part: config[part] for part in ("impl", "run")})
    kept = {n for n, by in config.get("origins", {}).items() if by == "default" and n in own_then}
    gone = [n for n, value in then.items() if n not in own and n not in kept and value is not None]
    if gone:
        raise BadInput(
            f"{preset.name} has no {', '.join(shown(n, 60) for n in gone)} here: run it with the "
            f"code of the record"
        )
    return {
        name: value
        for name, value in then.items()
        if name in own and name not in OF_ONE_RUN and value != own[name]
    }


def as_toml(values: Mapping[str, Any], recipe: str, comment: str) -> str:
    """Return the text of a file of settings; ``comment`` is its first line.

    A path that is no UTF-8, which TOML cannot hold, becomes a comment: it has to be a flag.
    """
    lines = [f"# {comment}", f"recipe = {_value(recipe)}"]
    for name, value in values.items():
        line = f"{name} = {_value(value)}"
        try:
            line.encode()
        except UnicodeEncodeError:
            line = f"# {name} is not UTF-8, as this file is: give it as a flag"
        lines.append(line)
    return "\n".join([*lines, ""])


def _value(value: Any) -> str:
    """Return a value as TOML: basic strings have the escapes of JSON."""
    if value is None:
        value = "None"
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by field name, as on the command line."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value) if isinstance(value, Mapping) else {name: value}
    return found
