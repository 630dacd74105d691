# SPDX-License-Identifier: Apache-2.0
"""The benchmarks: names to packages, imported only when asked for.

A benchmark's package has ``recipes.py`` (PRESETS, pure data), ``flags.py`` (``translate``, which
turns the flags of the reference scripts into ours) and ``benchmark.py`` with

* ``prepare(settings)``: files and samples, the run's source (``hash``, ``checkpoint_hash``);
* ``build(settings, backend, world, source)``: a Task of common/training/task.py, which also has
  ``plan``, ``facts``, ``notes``, ``check_start``, ``quality`` and ``results`` for the runner;
* ``observers(...)``: what the benchmark writes into a record besides what every run writes, and
  ``closing(folder)``, what the user is told of it;
* ``division(settings)``: MLPerf's, or None; ``split_of(settings, world)`` for --dry_run.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

from bertbench.common.config.recipe import Preset, Settings, origins
from bertbench.common.errors import BadInput

BENCHMARKS = ("bert_pretraining", "bert_squad")


def load(name: str, part: str) -> Any:
    """A module of a benchmark's package."""
    return importlib.import_module(f"bertbench.benchmarks.{name}.{part}")


def presets() -> dict[str, Preset]:
    """Every named recipe of every benchmark."""
    found: dict[str, Preset] = {}
    for name in BENCHMARKS:
        found |= load(name, "recipes").PRESETS
    return found


def preset(name: str) -> Preset:
    """The recipe called ``name``; BadInput with those there are."""
    known = presets()
    if name not in known:
        raise BadInput(f"unknown recipe {name!r}; there are: {', '.join(known)}")
    return known[name]


def resolve(name: str, flags: Sequence[str]) -> Settings:
    """A preset with flags applied; raises BadInput or Unsupported with the fix."""
    import tyro

    base = preset(name)
    own, notes = load(base.benchmark, "flags").translate(list(flags), base.recipe)
    kinds = [(part, type(getattr(base, part))) for part in ("recipe", "impl", "run")]
    everything = dataclasses.make_dataclass("everything", kinds, kw_only=True, frozen=True)
    try:
        chosen: Any = tyro.cli(
            everything,
            default=everything(**{part: getattr(base, part) for part, _ in kinds}),
            args=own,
            prog=f"bertbench run {name}",
            use_underscores=True,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except ValueError as error:
        raise BadInput(str(error)) from error
    values = {part: getattr(chosen, part) for part, _ in kinds}
    given = {
        a[2:].split("=")[0].replace("-", "_").removeprefix("no_") for a in own if a[:2] == "--"
    }
    return Settings(preset=base, **values, origins=origins(values, base, given), notes=tuple(notes))
