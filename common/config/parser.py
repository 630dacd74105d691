# SPDX-License-Identifier: Apache-2.0
"""How verbs parse their words and refuse wrong ones."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from bertbench.common.errors import BadInput


class Parser(argparse.ArgumentParser):
    """The parser of one verb. It has ``--json``, and takes - for _ in the names of flags."""

    def __init__(self, verb: str, description: str | None, **options: Any) -> None:
        super().__init__(prog=f"bertbench {verb}", description=description, **options)
        self.add_argument("--json", action="store_true", help="print one JSON object")

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """Add an argument; its help states the default where there is one."""
        if options.get("default") not in (None, [], argparse.SUPPRESS):
            options["help"] += " (default: %(default)s)"
        return super().add_argument(*names, **options)

    def add_output(self, *others: str, **options: Any) -> None:
        """Add ``--output``, the place to write to, also by the names of ``others``."""
        options = {"dest": "output", "type": Path, "metavar": "DIR", **options}
        self.add_argument("--output", *others, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse ``args``; raises BadInput for a wrong word."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*map(self._spell, words[:end]), *words[end:]], namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the values of ``args``; raises BadInput as ``parse_known_args``, or for more."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{if_several(rest[0])}")
        return found

    def _spell(self, word: str) -> str:
        """Return a flag with underscores, any other word as it is."""
        name, equals, value = word.partition("=")
        if not name.startswith("--") or " " in name:
            return word
        known = self._option_string_actions
        name = "--" + name[2:].replace("-", "_")
        if not any(flag.startswith(name) for flag in known):
            self.error(f"unknown flag {word}{did_you_mean(name, known)}")
        return name + equals + value

    def error(self, message: str) -> NoReturn:
        """Raise BadInput with the usage."""
        raise BadInput(f"{message}\n{self.format_usage().strip()}")


def wants_json(words: Iterable[str]) -> bool:
    """Return whether ``--json`` is among words that may not parse: abbreviated or with a value."""
    asked = False
    for word in words:
        name, _, value = word.replace("-", "_").partition("=")
        if len(name) > 2 and "__json".startswith(name):
            asked = value.lower() not in ("false", "0")
        elif name == "__no_json":
            asked = False
    return asked


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message: the closest of ``known``, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def if_several(word: str) -> str:
    """Return the end of a message on a word too many: a hint where it names a file, or nothing."""
    if not os.path.lexists(word):
        return ""
    return ": where a pattern (*) matches several files, name one of them"


@contextlib.contextmanager
def one_line_errors(prog: str) -> Iterator[None]:
    """Raise BadInput with one line and the way to the flags in place of tyro's box."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as stop:
        if stop.code != 2:
            raise
        text = " ".join(line.strip("\u2502 ") for line in printed.getvalue().splitlines()[1:])
        message, *details = filter(None, re.split(r" *[\u2500-]{9,} *", text))
        close = re.findall(r"^Perhaps you meant: +(--\w+)", details[0] if details else "")
        hint = f"; did you mean {close[0]}?" if close else ""
        message = message.removeprefix("Error parsing ")
        raise BadInput(f"{message}{hint}\n`{prog} --help` lists the flags") from None
    print(printed.getvalue(), end="", file=sys.stderr)
