# SPDX-License-Identifier: Apache-2.0
"""The runs that ``repeat`` and ``scale`` are given behind ``--``."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from bertbench.common.config.recipe import Settings
from bertbench.common.errors import BadInput


def split_words(verb: str, args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The verb's own arguments, and the ``run RECIPE [flags]`` behind ``--``."""
    own, words = list(args), []
    if "--" in own:
        place = own.index("--")
        own, words = own[:place], own[place + 1 :]
    if {"-h", "--help"} & set(own):
        return own, words
    return own, run_words(verb, words)


def run_words(verb: str, words: Sequence[str]) -> list[str]:
    """``words`` if they are a run; BadInput with an example."""
    if len(words) < 2 or words[0] != "run" or words[1].startswith("-"):
        raise BadInput(
            f"say what to run behind --, for example: "
            f"bertbench {verb} {'6' if verb == 'repeat' else '--devices 1,2'} -- run mini"
        )
    return list(words)


def settings_of(words: Sequence[str]) -> Settings:
    """What a run would run; BadInput also for what a fresh run cannot have."""
    from bertbench.benchmarks import resolve

    settings = resolve(words[1], words[2:])
    for flag in ("resume", "dry_run"):
        if getattr(settings.run, flag):
            raise BadInput(f"--{flag} is no fresh run: leave it out")
    return settings


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM, and a terminal that closes, stop us as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    old = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(ValueError):  # not the main thread: nothing to catch
            old[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
