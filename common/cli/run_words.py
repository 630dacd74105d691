# SPDX-License-Identifier: Apache-2.0
"""The words of a run, and the runs behind ``--`` of ``repeat`` and ``scale``."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any, cast

from bertbench.benchmarks import resolve
from bertbench.common.config.launched import check_alone, ranks
from bertbench.common.config.parser import Parser
from bertbench.common.config.recipe import Settings
from bertbench.common.config.settings_file import recipe_of, split
from bertbench.common.errors import BadInput
from bertbench.common.report.ending import Nowhere

EXAMPLES = {
    "repeat": "6 -- run mini",
    "scale": "--devices 1,2 -- run mini",
    "importance": "-- run mini --init_checkpoint model.safetensors",
}
"""Verb -> how its words may look."""


def split_words(verb: str, args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split at ``--`` into the verb's arguments and ``run RECIPE [flags]``."""
    own, words = list(args), []
    if "--" in own:
        place = own.index("--")
        own, words = own[:place], own[place + 1 :]
    if {"-h", "--help"} & set(own):
        return own, words
    return own, run_words(verb, words)


def run_words(verb: str, words: Sequence[str]) -> list[str]:
    """Return ``words`` if they are a run, its ``--config`` written out, for later runs read none.

    Raises BadInput with an example, or for a file that cannot be read.
    """
    name = recipe_of(words[1:]) if words[:1] == ["run"] else None
    if name is None:
        raise BadInput(f"give the run after --, for example: bertbench {verb} {EXAMPLES[verb]}")
    given, rest = split(words[1:])
    if given is None:
        return list(words)
    flags = rest[1:] if rest[:1] == [name] else rest
    resolve(name, flags, given)  # an error of the file says that it is the file's
    return ["run", name, *given.words, *flags]


def settings_of(words: Sequence[str]) -> Settings:
    """Return the settings of ``run RECIPE [flags]``.

    Raises BadInput for --resume and --dry_run, and where this is one of several processes, each of
    which would start all the runs.
    """
    check_alone()
    if ranks().size > 1:
        raise BadInput("run this verb once, not in each process: unset WORLD_SIZE and RANK")
    settings = resolve(words[1], words[2:])
    for flag in ("resume", "dry_run"):
        if getattr(settings.run, flag):
            raise BadInput(f"--{flag} is of a single run: leave it out")
    return settings


def add_output_flags(verb: Parser) -> None:
    """Add --quiet and --verbose, of which one run of the verb takes one."""
    one = verb.add_mutually_exclusive_group()
    one.add_argument("--quiet", action="store_true", help="print the result and errors only")
    one.add_argument("--verbose", action="store_true", help="show the output of the runs")


def progress(given: Any) -> IO[str]:
    """Return where a verb reports on its runs: with --json beside the result, --quiet nowhere."""
    out = Nowhere() if given.quiet else sys.stderr if given.json else sys.stdout
    return cast("IO[str]", out)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and, without nohup, SIGHUP, as on Ctrl-C."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    old = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # nohup
        with contextlib.suppress(ValueError):  # not the main thread
            old[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
