# SPDX-License-Identifier: Apache-2.0
"""The benchmarks: names to classes (base.py), imported only when asked for; and their recipes.

Importing this module, and listing recipes, does not import torch.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from bertbench.backends.registry import own_name
from bertbench.benchmarks.base import Benchmark
from bertbench.common.config.limits import check_flags, check_ranges
from bertbench.common.config.parser import did_you_mean, one_line_errors
from bertbench.common.config.plugins import package, third_parties
from bertbench.common.config.recipe import Preset, Settings, origins
from bertbench.common.config.reference_flags import READ_AS, UnknownFlag, fields
from bertbench.common.config.settings_file import FLAG, Given, split
from bertbench.common.errors import BadInput, BertbenchError, placed

BUILT_IN = {
    "bert_pretraining": "bertbench.benchmarks.bert_pretraining.benchmark:BertPretraining",
    "bert_squad": "bertbench.benchmarks.bert_squad.benchmark:BertSquad",
    "glue": "bertbench.benchmarks.glue.benchmark:Glue",
    "sparse_bert": "bertbench.benchmarks.sparse_bert.benchmark:SparseBert",
}
"""Name -> module:class."""

ENTRY_POINTS = "bertbench.benchmarks"
"""The group in which other packages offer their own benchmarks."""


def names() -> list[str]:
    """Return every known benchmark: those built in, then those of installed packages."""
    return [*BUILT_IN, *_others()[0]]


def refused() -> list[str]:
    """Return a line for each benchmark or recipe of an installed package that cannot be used."""
    return [*_others()[1], *_catalogue()[1]]


@functools.cache
def load(name: str) -> Benchmark:
    """Return the benchmark called ``name``; raises BadInput with the known names."""
    others = _others()[0]
    targets = BUILT_IN | {n: entry.value for n, entry in others.items()}
    if name not in targets:
        raise BadInput(f"unknown benchmark {name!r}; known: {', '.join(targets)}")
    module, _, attribute = targets[name].partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    if not (
        isinstance(kind, type) and issubclass(kind, Benchmark) and getattr(kind, "name", 0) == name
    ):
        raise BadInput(
            f"the entry point {name!r} must lead to a subclass of Benchmark whose name is {name!r}"
        )
    return kind()


def presets() -> dict[str, Preset]:
    """Return every usable recipe of every benchmark."""
    return _catalogue()[0]


def preset(name: str) -> Preset:
    """Return the recipe called ``name``; raises BadInput with the known names."""
    known = presets()
    if name not in known:
        hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
        raise BadInput("\n".join((f"unknown recipe {name!r}{hint}", *refused())))
    return known[name]


def resolve(name: str, flags: Sequence[str], given: Given | None = None) -> Settings:
    """Return a recipe with flags applied; raises BadInput or Unsupported with the fix.

    ``given`` are settings before the flags, which win; default: those of the flag ``--config``.
    """
    base, (file, rest) = preset(name), split(flags)
    if given is not None and file is not None:
        raise BadInput(f"{FLAG}: the settings are those of {given.place}; give flags instead")
    found = given or file
    if found is None:
        chosen, own, notes = _parse(base, flags)
        if getattr(chosen.run, "config", None) is not None:
            raise BadInput(f"write {FLAG} in full")
        return _settings(base, chosen, dict.fromkeys(own, "flag"), notes)
    if found.recipe not in (None, name):
        raise BadInput(f"{found.place} has settings of {found.recipe}, not of {name}: name one")
    try:  # first alone: so an error of the file says that it is the file's
        _, before, remarks = _parse(base, found.words)
        if short := [text for text in remarks if READ_AS in text]:
            raise BadInput(f"{'; '.join(short)}: a file has names in full")
    except BertbenchError as error:
        raise placed(found.place, error) from error
    chosen, own, notes = _parse(base, [*found.words, *(rest if given else flags)])
    origin = {n: "config" if before.get(n) == value else "flag" for n, value in own.items()}
    return _settings(base, chosen, origin, notes)


def _parse(base: Preset, flags: Sequence[str]) -> tuple[Any, dict[str, str], list[str]]:
    """Return the values of recipe, impl and run, our flags that set them by name, and notes."""
    import tyro

    try:
        own, notes = load(base.benchmark).translate(list(flags), base)
    except UnknownFlag as error:
        raise UnknownFlag(f"{error}{_owner(error.name)}", error.name) from None
    kinds = [(part, type(getattr(base, part))) for part in ("recipe", "impl", "run")]
    everything = dataclasses.make_dataclass("everything", kinds, kw_only=True, frozen=True)
    prog = f"bertbench run {base.name}"
    try:
        check_flags(own)
        with one_line_errors(prog):
            chosen: Any = tyro.cli(
                everything,
                default=everything(**{part: getattr(base, part) for part, _ in kinds}),
                args=own,
                prog=prog,
                use_underscores=True,
                config=(tyro.conf.OmitArgPrefixes,),
            )
        for part, _ in kinds:  # those of other packages may not check themselves
            check_ranges(getattr(chosen, part))
    except ValueError as error:
        raise BadInput(str(error)) from error
    given: dict[str, str] = {}
    for word, value in zip(own, [*own[1:], ""], strict=False):
        if word[:2] == "--":
            flag, _, joined = word[2:].partition("=")
            given[flag.replace("-", "_").removeprefix("no_")] = joined or f"{flag} {value}"
    found = _in_folder(chosen.run)
    named = {"backend": own_name(chosen.run.backend), **found}
    chosen = dataclasses.replace(chosen, run=dataclasses.replace(chosen.run, **named))
    return chosen, {**given, **{n: str(path) for n, path in found.items()}}, list(notes)


def _settings(
    base: Preset, chosen: Any, given: Mapping[str, str], notes: Sequence[str]
) -> Settings:
    values = {part: getattr(chosen, part) for part in ("recipe", "impl", "run")}
    return Settings(preset=base, **values, origins=origins(values, base, given), notes=tuple(notes))


def _in_folder(run: Any) -> dict[str, Path]:
    """Return weights and configuration where --init_checkpoint names a Hugging Face model's folder.

    Folders of other models, and of weights in several files, are refused with the run's data.
    """
    folder = getattr(run, "init_checkpoint", None)
    if folder is None or not (folder / "config.json").is_file():
        return {}
    names = ("model.safetensors", "pytorch_model.bin")
    weights = next((folder / name for name in names if (folder / name).is_file()), None)
    if weights is None:
        return {}
    return {
        "init_checkpoint": weights,
        "bert_config_path": run.bert_config_path or folder / "config.json",
    }


def _owner(flag: str) -> str:
    """Return the end of a message: the benchmarks that have the flag, or nothing."""
    every = presets().values()
    has = {p.benchmark for p in every if flag in fields(*map(type, (p.recipe, p.impl, p.run)))}
    return f"; it is a flag of {', '.join(sorted(has))}" if has else ""


def _others() -> tuple[dict[str, EntryPoint], list[str]]:
    return third_parties(ENTRY_POINTS, "benchmark", BUILT_IN)


@functools.cache
def _catalogue() -> tuple[dict[str, Preset], list[str]]:
    """Return all recipes by name, and why some are missing: one package harms no other."""
    found: dict[str, Preset] = {}
    problems: list[str] = []
    for name in names():
        origin = package(_others()[0][name]) if name not in BUILT_IN else "bertbench"
        try:
            offered = _presets_of(name)
        except (Exception, SystemExit) as error:
            if name in BUILT_IN:
                raise
            problems.append(f"benchmark {name!r} of {origin} is refused: {_cause(error)}")
            continue
        for recipe in offered:
            if recipe.name in found:
                problems.append(f"recipe {recipe.name!r} of {origin} is refused: the name is taken")
            else:
                found[recipe.name] = recipe
    return found, problems


def _presets_of(name: str) -> list[Preset]:
    """Return the recipes of a benchmark; raises BadInput where they break its contract."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise BadInput("use lower-case letters, digits and single underscores in its name")
    offered = load(name).presets
    if not isinstance(offered, Mapping):
        raise BadInput("its presets are not a mapping of name to Preset")
    for key, recipe in offered.items():
        if not isinstance(recipe, Preset) or (recipe.name, recipe.benchmark) != (key, name):
            raise BadInput(f"its preset {key!r} is not a Preset of that name and of {name!r}")
        if not re.fullmatch(r"\w[\w.-]*", key):
            raise BadInput(f"its preset {key!r}: use letters, digits, ., _ and - in the name")
    return list(offered.values())


def _cause(error: BaseException) -> str:
    """Return one line for an error of somebody's package, with its file and line."""
    if isinstance(error, BadInput):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith("<") and f.filename != __file__]
    place = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
