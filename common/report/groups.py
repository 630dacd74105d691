# SPDX-License-Identifier: Apache-2.0
"""The rows of the report: runs of one configuration, or one published figure.

A configuration is benchmark, recipe hash, system, devices, processes, backend, precision and
implementation. Values are medians over its runs, each a separate process. Rates and times are taken
over the runs that reached their target; if none did, over the others, and the report marks them.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from bertbench.common.config.recipe import BEFORE
from bertbench.common.report.markers import REFERENCE, STYLES
from bertbench.common.results.attention import Attention, attention
from bertbench.common.results.comparable import FINISHED
from bertbench.common.results.result import RUNNING
from bertbench.common.results.statistics import Interval, median, median_interval
from bertbench.common.results.store import Result

OF_ALL = ("e2e_time_s", "run_time_s", "eval_s", "data_wait_s", "checkpoint_s", "energy_j")
"""Amounts of a whole run; of a resumed one they are only of its last part."""
FILTERS = ("benchmark", "backend", "precision")
MASKS = frozenset(("attention_mask", "search", "lamb", "target_sparsity"))
"""Values of a recipe that the name of its attention states."""
FULL = ("tf32", "fp32", "fp64")
"""Full precision in DeepLearningExamples' tables; every other stated one is mixed."""


_CUT = ("interrupted", RUNNING)


class Value(NamedTuple):
    """A metric of a row: median, minimum and maximum over ``n`` runs."""

    median: float
    low: float
    high: float
    n: int
    unit: str
    missed: bool
    """Whether the runs missed their target."""
    interval: Interval | None = None
    """95 % interval of the median; None for fewer than six runs."""
    partial: bool = False
    """Whether the runs were resumed and it is only of their last parts."""
    runs: tuple[float, ...] = ()


def value_of(found: Sequence[float], unit: str = "", *, missed: bool = False) -> Value:
    """Return the Value of at least one run."""
    interval = median_interval(found)
    ends = median(found), min(found), max(found)
    return Value(*ends, len(found), unit, missed, interval, runs=tuple(found))


@dataclass(frozen=True)
class Entry:
    """Runs of one configuration, or one published row."""

    results: tuple[Result, ...]
    anchor: str
    style: int | str = 0
    variant: str = ""
    """The recipe or implementation values in which it differs from similar entries."""
    anchors: Mapping[str, str] = field(default_factory=dict)
    """Run id -> anchor of the run's section."""

    @property
    def first(self) -> Result:
        return self.results[0]

    @property
    def measured(self) -> bool:
        return self.first.kind == "run"

    @property
    def benchmark(self) -> str:
        return self.first.benchmark

    @property
    def devices(self) -> int | None:
        return self.first.num_devices

    @property
    def workload(self) -> str:
        """The recipe, or the source's description of the task."""
        m = self.first.manifest
        if self.measured:
            return f"{self.first.preset}{f' ({self.variant})' if self.variant else ''}"
        length, task = m.get("sequence_length"), str(m.get("task") or "")
        size = f"length {length}" if length and "sequence" not in task else None
        division = f"{m['division']} division" if m.get("division") else None  # never compared
        parts = (task, self.first.preset, size, division)
        return ", ".join(str(p) for p in parts if p) or "as published"

    @property
    def device(self) -> str:
        """The number of devices and their name: ``8 x A100``."""
        name, count = self.first.device_name, self.devices
        if name is None and not self.measured:
            return self.first.system_name
        name = name or self.first.system_name
        if (cores := self.first.cores) is not None:
            name += f", {cores} core{'s' * (cores > 1)}"
        if self.measured and self.first.world_size not in (None, count):
            name += f", {self.first.world_size} processes"
        return f"{count} x {name}" if count else name

    @property
    def precision(self) -> str:
        return self.first.precision or "not stated"

    @property
    def mixed(self) -> bool | None:
        """Whether the precision is mixed, in the sense of NVIDIA's tables; None: unknown."""
        precision = (self.first.precision or "").lower()
        if not precision:
            return None
        return not any(re.match(rf"{name}\b", precision) for name in FULL)

    @property
    def backend(self) -> str:
        return self.first.backend or ("unknown" if self.measured else "published")

    @property
    def batch(self) -> int | None:
        """Sequences per device and step."""
        each = self.first.manifest.get("batch_per_device")
        if not self.measured and isinstance(each, int):
            return each
        whole, count = self.first.global_batch, self.devices
        return whole // count if whole and count and whole % count == 0 else None

    @property
    def label(self) -> str:
        """The entry's name in legends."""
        return f"{self.workload}, {self.device}, {self.precision}"

    @cached_property
    def attention(self) -> Attention:
        """The attention that its runs have in common."""
        return attention(self.first)

    @property
    def sparsity(self) -> float | None:
        """The sparsity ratio in %, median over the runs; of a published row as stated."""
        if not self.measured:
            stated = self.first.metrics.get("sparsity")
            return float(stated["value"]) if stated and stated["unit"] == "%" else None
        found = [attention(r).sparsity_ratio for r in self.results]
        known = [100 * ratio for ratio in found if ratio is not None]
        return median(known) if known else None

    @property
    def tags(self) -> dict[str, str]:
        """The values that the filters select by."""
        return {name: getattr(self, name) for name in FILTERS}

    @property
    def made(self) -> int:
        """The number of runs that have ended."""
        return sum(not r.running for r in self.results)

    @property
    def cautions(self) -> list[str]:
        """What the runs have in common that repeats should not."""
        seeds = len({r.seed for r in self.results})
        told = [f"{seeds} seed{'s' * (seeds > 1)}"] if seeds < self.made else []
        dirty = any(r.manifest.get("dirty") for r in self.results)
        return told + ["uncommitted changes"] * dirty

    @cached_property
    def reached(self) -> tuple[Result, ...]:
        """The runs that ended well."""
        return tuple(r for r in self.results if ended_well(r))

    def value(self, *names: str) -> Value | None:
        """Return the first of ``names`` that was measured, or None."""
        for name in names:
            for some in (self.reached, tuple(r for r in self.results if r.status not in _CUT)):
                known = [r for r in some if name in r.metrics]
                whole = [r for r in known if not (r.resumed and name in OF_ALL)]
                if known:
                    found = [float(r.metrics[name]["value"]) for r in whole or known]
                    missed = self.measured and some is not self.reached
                    value = value_of(found, known[0].metrics[name]["unit"], missed=missed)
                    return value._replace(partial=not whole)
        return None

    def quality(self, *metrics: str) -> Value | None:
        """Return the last evaluation's value, limited to the names ``metrics`` if given.

        Runs that failed or were stopped do not count.
        """
        found = []
        for r in self.results:
            if self.measured and r.status not in FINISHED:
                continue
            quality = r.quality or {}
            wanted = not metrics or quality.get("metric") in metrics
            if wanted and quality.get("value") is not None:
                found.append(float(quality["value"]))
        if not found:
            return self.value(*metrics) if metrics else None
        return value_of(found)

    @property
    def quality_name(self) -> str:
        names = (r.quality.get("metric") for r in self.results if r.quality)
        return next((name for name in names if isinstance(name, str)), "")

    @property
    def source(self) -> Mapping[str, Any]:
        """A published row's title, url and date."""
        return mapping(self.first.manifest.get("source"))

    @property
    def doubts(self) -> list[str]:
        doubts = self.first.manifest.get("doubt")
        return [str(d) for d in doubts] if isinstance(doubts, list) else []

    def link(self) -> str:
        """Return the anchor that this row's cells link to: the run, or the list of runs."""
        one = len(self.results) == 1
        return self.anchors.get(self.first.run_id, self.anchor) if one else self.anchor


def ended_well(r: Result) -> bool:
    """Return whether it reached its target, or its end if it has no target, or is published."""
    return r.status in ("ok", "success", "published")


def entries(results: Iterable[Result]) -> list[Entry]:
    """Return measured configurations, then simulated ones, then published rows."""
    ids = _Anchors()
    runs: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
    published = []
    rows: dict[str, Mapping[str, Any]] = {}
    for result in results:
        if result.kind == "run":
            runs[_visible(result)].append(result)
            continue
        first = rows.setdefault(result.run_id, result.manifest)
        if first is result.manifest or first != result.manifest:  # else a copied folder
            published.append(result)
    _completed(runs)
    recipes: dict[tuple[Any, ...], dict[str, Any]] = defaultdict(dict)
    for key, some in runs.items():
        for r in some:
            recipe = recipe_of(r)
            recipes[key[:3]][json.dumps(recipe, sort_keys=True)] = recipe
    changed = {key: differing(some.values()) for key, some in recipes.items()}
    found: list[Entry] = []
    styles: Counter[tuple[Any, ...]] = Counter()  # by recipe, as the plots are
    for key in sorted(runs, key=str):
        parts = _apart(runs[key], changed[key[:3]])
        for i, (variant, some) in enumerate(parts):
            name = f"group-{key[1]}-{key[2]}-{key[3]}-{key[5]}-{key[6]}-{key[4]}-{i}"
            anchors = {r.run_id: ids(f"run-{r.run_id}") for r in some}
            style, styles[key[:3]] = styles[key[:3]] % STYLES, styles[key[:3]] + 1
            found.append(Entry(tuple(some), ids(name), style, variant, anchors))
    for result in published:
        found.append(Entry((result,), ids(f"ref-{result.run_id}"), REFERENCE))
    return found


def _visible(r: Result) -> tuple[Any, ...]:
    return (
        r.simulated, r.benchmark, r.preset, r.system_name, r.num_devices, r.backend, r.precision,
        r.world_size, r.device_name, r.cores,
    )  # fmt: skip


def _settings(r: Result, *, precision: bool = True) -> str:
    """Return recipe and implementation, which every record has; with the requested precision."""
    impl = mapping(r.config.get("impl"))
    if not precision:
        impl = {k: v for k, v in impl.items() if k != "precision"}
    return json.dumps([{**BEFORE, **recipe_of(r)}, {**BEFORE, **impl}], sort_keys=True)


def recipe_of(r: Result) -> dict[str, Any]:
    """Return the recipe's values, with the content of an attention mask, not its file's name."""
    recipe = dict(mapping(r.config.get("recipe")))
    if recipe.get("attention_mask") is not None:
        recipe["attention_mask"] = attention(r).key
    return recipe


def _unprecise(key: tuple[Any, ...], r: Result) -> tuple[Any, ...]:
    return (*key[:6], *key[7:], _settings(r))


def _completed(runs: dict[tuple[Any, ...], list[Result]]) -> None:
    """Move runs that ended before their precision was recorded to those with equal settings."""
    alike: dict[tuple[Any, ...], set[tuple[Any, ...]]] = defaultdict(set)
    for key, some in runs.items():
        for r in some:
            alike[_unprecise(key, r)].add(key)
    for key in [k for k in runs if k[6] is None]:
        left: list[Result] = []
        for r in runs.pop(key):
            others = alike[_unprecise(key, r)] - {key}
            (runs[others.pop()] if len(others) == 1 else left).append(r)
        if left:
            runs[key] = left


def _apart(some: Sequence[Result], changed: Sequence[str]) -> list[tuple[str, list[Result]]]:
    """Split runs by recipe, implementation and code; return (values that differ, runs) pairs.

    ``changed`` are the keys in which recipes of this name differ anywhere in the report.
    """
    hashes: dict[str, set[str]] = defaultdict(set)
    for r in some:
        if r.recipe_hash:
            hashes[_settings(r, precision=False)].add(r.recipe_hash)
    kinds: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for r in some:
        # A run that ended before its inputs were hashed joins the only recipe it can have.
        known = hashes[_settings(r, precision=False)]
        recipe = r.recipe_hash or (next(iter(known)) if len(known) == 1 else "")
        kinds[_settings(r, precision=False), recipe, r.code_hash or ""].append(r)
    codes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for settings, recipe, code in kinds:
        codes[settings, recipe].add(code)
    impl = differing(members[0].config.get("impl") for members in kinds.values())
    impl = [k for k in impl if k != "precision"]
    parts, names = [], []
    for (settings, recipe, code), members in kinds.items():
        seen = attention(members[0])
        given = _given(members[0], changed)
        words = words_of(members[0].config.get("recipe"), [k for k in given if k not in MASKS])
        if mapping(members[0].config.get("run")).get("synthetic"):  # and so without an accuracy
            words = [w for w in words if not w.startswith(("eval_", "target_"))]
            words.insert(0, "synthetic data")
        if len(words) > 3:
            words = [f"recipe {recipe[:8] or 'unknown'}"]
        if seen.masked or not MASKS.isdisjoint(given):
            words.insert(0, f"attention {seen.name}")
        words += words_of(members[0].config.get("impl"), impl)[:3]
        if len(codes[settings, recipe]) > 1:
            words.append(f"code {code[:8] or 'unknown'}")
        names.append(words)
        parts.append(members)
    if len(set(map(tuple, names))) < len(names):  # other data or weights
        names = [[*own, f"recipe {recipe[:8] or 'unknown'}"] for own, (_, recipe, _) in
                 zip(names, kinds, strict=True)]  # fmt: skip
    return [(", ".join(own), members) for own, members in zip(names, parts, strict=True)]


def differing(some: Iterable[Any]) -> list[str]:
    """Return the keys whose values differ between the mappings."""
    every = list(map(mapping, some))
    return [
        k
        for k in sorted({k for v in every for k in v})
        if len({json.dumps(v.get(k, BEFORE.get(k)), sort_keys=True) for v in every}) > 1
    ]


def _given(r: Result, keys: Iterable[str]) -> list[str]:
    """Return those of ``keys`` that the user gave; the recipe's name implies the others."""
    known = mapping(r.config.get("origins"))
    return [k for k in keys if known.get(k) not in ("preset", "default")]


def words_of(values: Any, keys: Iterable[str]) -> list[str]:
    """Return ``key value`` for each of ``keys``."""
    chosen = {k: mapping(values).get(k, BEFORE.get(k)) for k in keys}
    return [f"{k} {'unset' if v is None else json.dumps(v)}"[:60] for k, v in chosen.items()]


def mapping(value: Any) -> Mapping[str, Any]:
    """Return ``value``, or an empty mapping if it is none."""
    return value if isinstance(value, Mapping) else {}


class _Anchors:
    """Safe and unique fragment names."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def __call__(self, text: str) -> str:
        base = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:100] or "x"
        name, i = base, 2
        while name in self._taken:
            name, i = f"{base}-{i}", i + 1
        self._taken.add(name)
        return name
