# SPDX-License-Identifier: Apache-2.0
"""How the figures of one configuration changed from commit to commit.

A configuration has one recipe and data, one implementation, precision, device and system. A version
is a commit with its code, so that uncommitted changes are apart. As in ``compare``, only finished
runs have figures; resumed ones have none, since their times are partial.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bertbench.common.config.recipe import BEFORE
from bertbench.common.report.groups import mapping, recipe_of
from bertbench.common.report.plot import Plot, Series, lines
from bertbench.common.report.words import human
from bertbench.common.results.comparable import FINISHED, Side
from bertbench.common.results.compare import compare_metric
from bertbench.common.results.result import Result
from bertbench.common.results.statistics import Interval, median, median_interval

RATES = ("sequences_per_second", "samples_per_second")
TIME = "time_to_target_s"
MOST_PLOTTED = 8
"""Configurations with plots in the report, those with the newest runs."""
_MOST_NAMES = 6
"""Commits that are named below a plot."""


@dataclass(frozen=True)
class Version:
    """The runs of one commit and code."""

    runs: tuple[Result, ...]

    @property
    def name(self) -> str:
        """The commit's first seven characters, with + for uncommitted changes."""
        manifest = self.runs[0].manifest
        return str(manifest.get("commit") or "unknown")[:7] + "+" * bool(manifest.get("dirty"))

    @property
    def date(self) -> str:
        """The day of the first run, UTC."""
        return str(self.runs[0].created)[:10]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One metric of one version, and its change against the version before that has it."""

    version: Version
    metric: str
    unit: str
    values: tuple[float, ...]
    median: float
    interval: Interval | None
    """95 % interval of the median; None for fewer than six runs."""
    ratio: float | None = None
    """This version / the one before; None for the first, and where a value is not positive."""
    p: float | None = None
    verdict: str = ""
    """better, worse, differs, ~ (not significant); empty for the first."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        manifest = self.version.runs[0].manifest
        return {
            **{name: manifest.get(name) for name in ("commit", "code_hash", "dirty")},
            "first_run_utc": self.version.runs[0].created,
            "n": len(self.values),
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "interval": None if self.interval is None else self.interval._asdict(),
            **{name: getattr(self, name) for name in ("ratio", "p", "verdict")},
        }


@dataclass(frozen=True)
class History:
    """One configuration over its versions, the oldest first."""

    versions: tuple[Version, ...]

    @property
    def first(self) -> Result:
        return self.versions[0].runs[0]

    @property
    def title(self) -> str:
        """Recipe, precision, devices, backend and system."""
        run = dataclasses.replace(
            self.first, manifest={**self.first.manifest, "seed": None}
        )  # a configuration has several
        return f"{run.title} ({run.backend}, {run.system_name})"

    @property
    def metrics(self) -> list[str]:
        """The names of the rate, of the time to the target and of the quality that runs have."""
        runs = [run for version in self.versions for run in version.runs]
        qualities = [q.get("metric") for q in (run.quality for run in runs) if q]
        names = [*RATES, TIME, *(name for name in qualities if isinstance(name, str))]
        return [n for n in dict.fromkeys(names) if any(n in run.metrics for run in runs)]

    def points(self, metric: str, *, tested: bool = True) -> list[Point]:
        """Return the versions that have the metric; without ``tested`` no changes, which cost."""
        found: list[Point] = []
        before: Side | None = None
        for version in self.versions:
            side = Side(version.name, [run for run in version.runs if not run.resumed])
            measured = [run.metrics[metric] for run in side.finished if metric in run.metrics]
            if not measured:
                continue
            values = tuple(float(entry["value"]) for entry in measured)
            point = Point(
                version=version, metric=metric, unit=str(measured[0]["unit"]), values=values,
                median=median(values), interval=median_interval(values),
            )  # fmt: skip
            if tested and before is not None:
                row = compare_metric(metric, before, side)
                point = dataclasses.replace(point, ratio=row.ratio, p=row.p, verdict=row.verdict)
            found.append(point)
            before = side
        return found


def histories(runs: Iterable[Result]) -> list[History]:
    """Return the configurations of finished runs, those with the oldest runs first."""
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Result]]]
    found = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.kind == "run" and run.recipe_hash is not None and run.status in FINISHED:
            manifest = run.manifest
            version = str(manifest.get("commit")), run.code_hash, bool(manifest.get("dirty"))
            found[_configuration(run)][version].append(run)
    return [
        History(tuple(Version(tuple(some)) for some in versions.values()))
        for versions in found.values()
    ]


def _configuration(run: Result) -> tuple[Any, ...]:
    """Return what repeats over commits share; options that came later count as before them."""
    impl = {**BEFORE, **mapping(run.config.get("impl"))}
    recipe = {**BEFORE, **recipe_of(run)}
    return (
        run.simulated, run.benchmark, run.preset, run.recipe_hash, run.system_name,
        run.num_devices, run.world_size, run.device_name, run.cores, run.backend, run.precision,
        mapping(run.config.get("run")).get("synthetic") is True,
        json.dumps([recipe, impl], sort_keys=True, default=str),
    )  # fmt: skip


def plots(runs: Iterable[Result]) -> Iterator[Plot]:
    """Yield each metric of the configurations with two commits or more over their commits."""
    changed = [one for one in histories(runs) if len(one.versions) > 1]
    newest = sorted(changed, key=lambda one: one.versions[-1].runs[-1].run_id, reverse=True)
    for i, one in enumerate(newest[:MOST_PLOTTED]):
        for metric in one.metrics:
            points = one.points(metric, tested=False)
            if len(points) > 1:
                yield _plot(f"history-{i}-{metric.replace('_', '-')}", one, metric, points)


def _plot(ident: str, one: History, metric: str, points: Sequence[Point]) -> Plot:
    every = -(-len(points) // _MOST_NAMES)
    names = [p.version.name if i % every == 0 else "" for i, p in enumerate(points)]
    ends = [p.interval[:2] if p.interval else (min(p.values), max(p.values)) for p in points]
    listed = "; ".join(
        f"{p.version.name} ({p.version.date}): {human(p.median, p.unit)}, "
        f"{len(p.values)} run{'s' * (len(p.values) > 1)}" for p in points[-12:]
    )  # fmt: skip
    series = Series(
        label=metric,
        points=[(float(i), p.median) for i, p in enumerate(points)],
        band=[(float(i), low, high) for i, (low, high) in enumerate(ends)],
    )
    return lines(
        ident,
        f"{one.title}: {metric} over commits",
        f"{metric} of {one.first.benchmark}, {one.title}. {listed}.",
        [series],
        x="commit",
        y=metric,
        from_zero=metric in RATES,
        note="Medians; the band is their 95 % interval, of fewer than six runs the range.",
        tags={"benchmark": one.first.benchmark},
        places=names,
    )
