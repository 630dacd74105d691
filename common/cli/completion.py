# SPDX-License-Identifier: Apache-2.0
"""``bertbench completion``: verbs, recipes and flags, collected from the helps of the verbs."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Sequence

from bertbench.benchmarks import presets
from bertbench.common.cli.verbs import VERBS, parser

_SCRIPT = """\
_bertbench() {{
  local words=
  case "$COMP_CWORD,${{COMP_WORDS[1]}}" in
    1,*) words="{verbs}" ;;
    2,help) words="{verbs}" ;;
    2,run|2,describe) words="{recipes}" ;;
{flags}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _bertbench bertbench
"""
_ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"


def main(argv: Sequence[str]) -> int:
    """Print the script; returns the exit code."""
    verb = parser(
        "completion",
        epilog="`bertbench completion bash > FILE`, or `bertbench completion zsh > FILE`; then "
        "`source FILE` from the shell's start-up file.",
    )
    verb.add_argument("shell", choices=("bash", "zsh"), metavar="SHELL", help="bash or zsh")
    given = verb.parse_args(argv)
    text = _SCRIPT.format(
        verbs=" ".join(["help", *VERBS]),
        recipes=" ".join(presets()),
        flags="\n".join(f'    *,{name}) words="{" ".join(_words(name))}" ;;' for name in VERBS),
    )
    text = _ZSH * (given.shell == "zsh") + text
    print(json.dumps({"script": text}) if given.json else text.rstrip())
    return 0


def _words(verb: str) -> list[str]:
    """Return the second words and the flags in a verb's help."""
    text = _help(verb)
    second = re.findall(rf"bertbench {verb} ([a-z]+)\b", text)
    recipes = {preset.benchmark: name for name, preset in presets().items()}
    for word in recipes.values() if verb == "run" else second:
        text += _help(verb, word)
    lines = [line.strip("\u2502 ") for line in text.splitlines()]
    rows = " ".join(line.split("  ")[0] for line in lines if line.startswith("-"))
    return [*dict.fromkeys(second), *sorted(set(re.findall(r"--[a-z]\w*", rows)))]


def _help(verb: str, *words: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        VERBS[verb].load()([*words, "--help"])
    return printed.getvalue()
