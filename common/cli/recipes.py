# SPDX-License-Identifier: Apache-2.0
"""``bertbench list``, ``describe`` and ``run``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bertbench.benchmarks import preset, presets, resolve
from bertbench.common.config.parser import Parser
from bertbench.common.config.recipe import plain, recipe_hash
from bertbench.common.errors import BadInput


def list_main(argv: Sequence[str]) -> int:
    """Print every recipe, what it needs and how long it takes."""
    parser = Parser("list", "The recipes, what they need and how long they take.")
    given = parser.parse_args(argv)
    known = presets()
    if given.json:
        rows = [
            {f: getattr(p, f) for f in ("name", "benchmark", "summary", "data", "duration")}
            for p in known.values()
        ]
        print(json.dumps(rows, indent=1))
        return 0
    width = 2 + max(map(len, known))
    for p in known.values():
        print(f"{p.name:<{width}}{p.summary}")
        print(f"{'':<{width}}  data: {p.data}\n{'':<{width}}  time: {p.duration}")
    return 0


def describe_main(argv: Sequence[str]) -> int:
    """Print every value of a recipe, its hash and its inputs."""
    parser = Parser("describe", "Every value of a recipe, its hash, its inputs.")
    parser.add_argument("recipe", metavar="RECIPE", help=f"one of: {', '.join(presets())}")
    given = parser.parse_args(argv)
    chosen = preset(given.recipe)
    settings = resolve(chosen.name, [])
    content = {
        "name": chosen.name,
        "benchmark": chosen.benchmark,
        "summary": chosen.summary,
        "data": chosen.data,
        "duration": chosen.duration,
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
    """Run a recipe with its flags applied; the exit code says how it ended."""
    words = list(argv)
    if not words or words[0].startswith("-"):
        if words and words[0] in ("-h", "--help"):
            print(f"usage: bertbench run RECIPE [flags]\n\nrecipes: {', '.join(presets())}")
            print("bertbench run RECIPE --help lists the flags of a recipe")
            return 0
        raise BadInput(
            f"name a recipe: bertbench run RECIPE [flags]; there are {', '.join(presets())}"
        )
    settings = resolve(words[0], words[1:])
    from bertbench.common.run import run

    return run(settings).exit_code
