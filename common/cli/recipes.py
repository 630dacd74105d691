# SPDX-License-Identifier: Apache-2.0
"""``bertbench list``, ``describe`` and ``run``."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from bertbench.benchmarks import preset, presets, refused, resolve
from bertbench.common.cli.verbs import VERBS, parser
from bertbench.common.config.recipe import plain, recipe_hash
from bertbench.common.config.settings_file import recipe_of
from bertbench.common.config.started import adopt
from bertbench.common.errors import BadInput

_WRAP = textwrap.TextWrapper(
    80, initial_indent=" " * 6, subsequent_indent=" " * 8,
    break_long_words=False, break_on_hyphens=False,
)  # fmt: skip
_FACTS = ("name", "benchmark", "summary", "data", "duration")


def list_main(argv: Sequence[str]) -> int:
    """Print every recipe, its data and its duration, by benchmark."""
    given = parser("list").parse_args(argv)
    known = presets()
    for line in refused():
        print(line, file=sys.stderr)
    if given.json:
        rows = [{name: getattr(p, name) for name in _FACTS} for p in known.values()]
        print(json.dumps(rows, indent=1))
        return 0
    for benchmark, group in groupby(known.values(), lambda p: p.benchmark):
        print(benchmark)
        for p in group:
            print(f"  {p.name}")
            for line in (p.summary, f"data: {p.data}", f"time: {p.duration}"):
                print(_WRAP.fill(line))
    return 0


def describe_main(argv: Sequence[str]) -> int:
    """Print every value of a recipe, and its hash."""
    verb = parser("describe")
    verb.add_argument("recipe", metavar="RECIPE", help=f"one of: {', '.join(presets())}")
    given = verb.parse_args(argv)
    chosen = preset(given.recipe)
    settings = resolve(chosen.name, [])
    content = {
        **{name: getattr(chosen, name) for name in _FACTS},
        "recipe_hash_without_inputs": recipe_hash(chosen.recipe),
        "writes": "results/<system>/<benchmark>/<run>/: manifest, config, system, steps, logs",
        **{part: plain(getattr(chosen, part)) for part in ("recipe", "impl", "run")},
        "origins": dict(settings.origins),
    }
    if given.json:
        print(json.dumps(content, indent=1))
        return 0
    for key in ("name", "summary", "data", "duration", "writes"):
        print(f"{key:<10}{content[key]}")
    print(f"{'hash':<10}{content['recipe_hash_without_inputs']} (recipe alone, without its inputs)")
    for part in ("recipe", "impl", "run"):
        print(f"\n{part}")
        _print_values(content[part], settings.origins)
    return 0


def _print_values(values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _print_values(value, sources)
        else:
            print(f"  {key:<34}{value!s:<28}{sources.get(key, '')}")


def run_main(argv: Sequence[str]) -> int:
    """Run a recipe; returns the run's exit code. Raises BadInput without a recipe."""
    names = ", ".join(presets())
    if argv and argv[0] in ("-h", "--help"):
        print(
            f"usage: bertbench run RECIPE [flags]\n\n{VERBS['run'].summary}.\n\nRECIPE: {names}\n\n"
            f"`bertbench run RECIPE --help` lists the flags of a recipe; --config FILE reads them, "
            f"and the recipe, from a TOML file.\nExit code: 0 done, any "
            f"target reached; 1 failed or target missed; 2 refused; 130 interrupted"
        )
        return 0
    name = recipe_of(argv)
    if name is None:
        raise BadInput(f"name a recipe: bertbench run RECIPE [flags]\nrecipes: {names}")
    if (note := adopt(os.environ)) is not None:
        print(f"note: {note}", file=sys.stderr)
    settings = resolve(name, argv[1:] if argv[0] == name else argv)
    from bertbench.common.run import run

    return run(settings).exit_code
