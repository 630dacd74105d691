# SPDX-License-Identifier: Apache-2.0
"""Sparse attention in the report: quality and throughput over sparsity, and GLUE's nine columns.

All other tables list runs with different masks separately; these figures bring them together, with
the dense run of the same benchmark, task, model, length and data.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

from bertbench.common.report.groups import (
    MASKS,
    Entry,
    Value,
    differing,
    mapping,
    value_of,
    words_of,
)
from bertbench.common.report.markers import REFERENCE, STYLES
from bertbench.common.report.plot import Plot, Series, lines
from bertbench.common.report.tables import (
    Cell,
    Table,
    TableRow,
    columns,
    number_cell,
    plain_cell,
    row,
)
from bertbench.common.report.words import number
from bertbench.common.results.comparable import FINISHED

RATE = "sequences_per_second"
COLUMNS = {
    "mnli_matched": "MNLI-m", "mnli_mismatched": "MNLI-mm", "qqp": "QQP", "qnli": "QNLI",
    "sst2": "SST-2", "cola": "CoLA", "stsb": "STS-B", "mrpc": "MRPC", "rte": "RTE",
}  # fmt: skip
"""GLUE's scores, and their names in the table."""
MEAN = "mean of nine columns"


class _Named(NamedTuple):
    """A point: the name of a mask, its sparsity ratio in % and a value."""

    name: str
    sparsity: float
    value: float


@dataclass(frozen=True, kw_only=True)
class _Group:
    """What one colour shows: runs that differ in their mask only, or published rows."""

    label: str
    points: Sequence[_Named]
    style: int | str = 0
    href: str = ""
    dense: float | None = None


def plots(entries: Sequence[Entry], published: Sequence[Entry]) -> Iterator[Plot]:
    """Yield quality and throughput over sparsity for each task that has masked runs."""
    for i, some in enumerate(_tasks(entries)):
        title, tags = _title(some[0]), {"benchmark": some[0].benchmark}
        for j, name in enumerate(sorted({e.quality_name for e in some} - {""})):
            own = [e for e in some if e.quality_name == name]
            found = _groups(own, lambda e: _median(e.quality()))
            theirs = _published(published, name, _unit(own, name))
            yield from _drawn(f"sparsity-{i}-{j}", title, name, [*found, *theirs], tags)
        yield from _speeds(f"sparsity-{i}", title, some, tags)
    rows = [r for r in _glue_rows(entries) if r.mean is not None]
    if any(r.first.attention.masked for r in rows):
        means = _mean_groups(rows) + _published(published, "glue_average", "%")
        yield from _drawn("sparsity-glue", "GLUE", MEAN, means, {"benchmark": "glue"})


def _speeds(
    ident: str, title: str, some: Sequence[Entry], tags: Mapping[str, str]
) -> Iterator[Plot]:
    """Yield throughput relative to the dense run; without one, in sequences/s.

    A search is left out: its speed is not that of the mask that it finds.
    """
    found = _groups([e for e in some if not e.attention.searched], lambda e: _median(e.value(RATE)))
    relative = [
        replace(g, dense=1.0, points=[p._replace(value=p.value / g.dense) for p in g.points])
        for g in found
        if g.dense
    ]
    name = "throughput / dense throughput"
    yield from _drawn(f"{ident}-speed", title, name, relative, tags)
    alone = [g for g in found if not g.dense]
    yield from _drawn(f"{ident}-rate", title, "sequences/s", alone, tags)


def _tasks(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return the entries of each benchmark, task, model, length and data that has a mask."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for e in entries:
        recipe = mapping(e.first.config.get("recipe"))
        own = [recipe.get(name) for name in ("model", "task", "max_seq_length")]
        found[json.dumps([e.benchmark, *own, e.first.data_hash], sort_keys=True)].append(e)
    return [some for some in found.values() if any(e.attention.masked for e in some)]


def _title(e: Entry) -> str:
    recipe = mapping(e.first.config.get("recipe"))
    task = recipe.get("task")
    return ", ".join(filter(None, (e.benchmark, str(task or ""), _size(e))))


def _size(e: Entry) -> str:
    """Return a model's layers and width: ``12 x 768``."""
    model = mapping(mapping(e.first.config.get("recipe")).get("model"))
    layers, width = model.get("num_hidden_layers"), model.get("hidden_size")
    return f"{layers} x {width}" if layers and width else ""


def _settings(e: Entry) -> dict[str, Any]:
    """Return the values of recipe and implementation besides those of the mask."""
    recipe, impl = (mapping(e.first.config.get(part)) for part in ("recipe", "impl"))
    kept = {k: v for k, v in recipe.items() if k not in MASKS and k[:7] != "search_"}
    kept.pop("target_weight", None)  # of a search, too
    return {**kept, **{k: v for k, v in impl.items() if k != "precision"}}


def _groups(some: Sequence[Entry], value: Callable[[Entry], float | None]) -> list[_Group]:
    """Return a group for each system, precision and settings, with a masked run's value."""
    found: dict[str, list[tuple[Entry, float]]] = defaultdict(list)
    for e in some:
        known = value(e)
        if known is not None:
            r = e.first
            where = (r.system_name, e.device, e.backend, r.precision, r.world_size)
            found[json.dumps([where, _settings(e)], sort_keys=True)].append((e, known))
    changed = differing(_settings(members[0][0]) for members in found.values())
    groups: list[_Group] = []
    for members in found.values():
        points = [
            _Named(e.attention.name, e.sparsity, v)
            for e, v in members
            if e.attention.masked and e.sparsity is not None
        ]
        if points:
            e = members[0][0]
            label = ", ".join((e.device, e.precision, *words_of(_settings(e), changed)[:3]))
            dense = [v for e, v in members if not e.attention.masked]
            groups.append(
                _Group(label=label, points=points, style=len(groups) % STYLES, href=e.link(),
                       dense=fmean(dense) if dense else None)
            )  # fmt: skip
    return groups


def _published(published: Sequence[Entry], name: str, unit: str) -> list[_Group]:
    """Return the published rows that state a sparsity and a value in the same unit, by source."""
    found: dict[str, list[tuple[Entry, _Named]]] = defaultdict(list)
    for e in published:
        metric = e.first.metrics.get(name)
        value = e.value(name) if metric and metric["unit"] == unit else None
        if e.quality_name == name == "glue_average":
            value = e.quality()
        if value is not None and e.sparsity is not None:
            point = _Named(e.first.system_name.split(", ")[-1], e.sparsity, value.median)
            found[str(e.source.get("title"))].append((e, point))
    return [
        _Group(
            label=f"published: {title}, {rows[0][0].workload}",
            points=[p for _, p in rows],
            style=REFERENCE,
            href=rows[0][0].link(),
        )
        for title, rows in found.items()
    ]


def _drawn(
    ident: str, title: str, name: str, groups: Sequence[_Group], tags: Mapping[str, str]
) -> Iterator[Plot]:
    """Yield the figure, if anything was measured."""
    if all(g.style == REFERENCE for g in groups):
        return
    theirs = any(g.style == REFERENCE for g in groups)
    dense = sorted({g.dense for g in groups if g.dense is not None})
    values = [
        (p.name, number(p.sparsity), number(p.value), g.label)
        for g in groups
        for p in sorted(g.points, key=lambda p: p.sparsity)
    ]
    own = [v for v in values if not v[3].startswith("published: ")]
    said = [f"{mask} at {at} %: {value}" for mask, at, value, _ in own[:12]]
    plot = lines(
        ident,
        f"{title}: {name} over sparsity",
        f"{name} over the sparsity ratio of the attention mask. "
        + "".join(f"Dense: {number(d)}. " for d in dense)
        + f"{'; '.join(said)}.",
        [
            Series(label=g.label, points=[p[1:] for p in g.points], style=g.style, href=g.href,
                   names={p[1:]: _short(p.name) for p in g.points})
            for g in groups
        ],
        x="sparsity ratio of the mask, %",
        y=name,
        note="Diamonds: published, of other models, data splits and hardware." * theirs,
        targets=[(d, f"dense {number(d)}") for d in dense],
        tags=tags,
    )  # fmt: skip
    yield replace(plot, columns=("mask", "sparsity ratio, %", name, "of"), rows=values)


def _short(name: str) -> str:
    """Return a name that fits beside a point: a pattern without parameters, a search's goal."""
    return name.partition(":")[0].split(", ")[-1][:24]


def _median(value: Value | None) -> float | None:
    return None if value is None else value.median


def _unit(some: Sequence[Entry], name: str) -> str:
    return next((r.metrics[name]["unit"] for e in some for r in e.results if name in r.metrics), "")


# -- GLUE ------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class _GlueRow:
    """The runs of one system, model, starting weights and mask on GLUE's tasks."""

    first: Entry
    weights: str
    scores: Mapping[str, tuple[Value, int]]
    """Column -> its value over all runs, and their number of recipes."""

    @property
    def mean(self) -> float | None:
        """The mean of the nine columns; None unless all are there."""
        if len(self.scores) < len(COLUMNS):
            return None
        return fmean(value.median for value, _ in self.scores.values())


def _glue_rows(entries: Sequence[Entry]) -> list[_GlueRow]:
    found: dict[str, list[Entry]] = defaultdict(list)
    for e in entries:
        if e.measured and any(name in r.metrics for name in COLUMNS for r in e.results):
            r, recipe = e.first, mapping(e.first.config.get("recipe"))
            model = [recipe.get(name) for name in ("model", "max_seq_length", "starts_from")]
            where = (r.system_name, e.device, e.backend, e.precision)
            key = [where, model, _weights(e), e.attention.key]
            found[json.dumps(key, sort_keys=True)].append(e)
    rows = []
    for some in found.values():
        scores = {}
        for name in COLUMNS:
            runs = [r for e in some for r in e.results
                    if r.status in FINISHED and name in r.metrics]  # fmt: skip
            if runs:
                value = value_of([float(r.metrics[name]["value"]) for r in runs], "%")
                scores[name] = value, len({r.recipe_hash for r in runs})
        rows.append(_GlueRow(first=some[0], weights=_weights(some[0]), scores=scores))
    return rows


def _weights(e: Entry) -> str:
    """Return the origin of the starting weights and the beginning of their hash."""
    origin = mapping(e.first.config.get("recipe")).get("starts_from")
    found = mapping(e.first.manifest.get("inputs")).get("checkpoint")
    return f"{origin or 'starting'} weights" + (f" {str(found)[:8]}" if found else "")


def _mean_groups(rows: Sequence[_GlueRow]) -> list[_Group]:
    """Return the means by system and model."""
    found: dict[str, list[_GlueRow]] = defaultdict(list)
    for r in rows:
        label = ", ".join(filter(None, (r.first.device, r.first.precision, _size(r.first))))
        found[label].append(r)
    groups: list[_Group] = []
    for label, some in found.items():
        named = [(r.first, r.mean) for r in some if r.mean is not None]
        dense = [mean for e, mean in named if not e.attention.masked]
        points = [
            _Named(e.attention.name, e.sparsity, mean)
            for e, mean in named
            if e.attention.masked and e.sparsity is not None
        ]
        if points:
            groups.append(
                _Group(label=label, points=points, style=len(groups) % STYLES,
                       href=some[0].first.link(), dense=fmean(dense) if dense else None)
            )  # fmt: skip
    return groups


def glue(entries: Sequence[Entry]) -> Table:
    """Return GLUE's nine columns and their mean, by attention."""
    made = [_measured_row(r) for r in _glue_rows(entries)]
    made += [
        _published_row(e)
        for e in entries
        if not e.measured and e.sparsity is not None and any(n in e.first.metrics for n in COLUMNS)
    ]
    return Table(
        id="sparsebert",
        title="In the format of SparseBERT's table",
        intro="GLUE scores in % by attention; sparsity ratio in % of the attention matrix. The "
        "mean is that of the nine numbers, empty unless all are there; of published rows it is as "
        "stated. A score is the median over all runs of a system, model, starting weights and "
        "mask. Published rows are of other hardware, model sizes and splits.",
        columns=columns(" | # ".join(("Attention", "Sparsity", *COLUMNS.values(), "Mean"))),
        rows=made,
    )


def _measured_row(r: _GlueRow) -> TableRow:
    e, cells = r.first, []
    what = (e.device, e.precision, _size(e), r.weights)
    cells = [Cell(e.attention.name, e.link(), ", ".join(filter(None, what))),
             plain_cell(e.sparsity, e.link())]  # fmt: skip
    for name in COLUMNS:
        value, recipes = r.scores.get(name, (None, 0))
        cell = number_cell(value, e.link())
        notes = (cell.note, f"{recipes} recipes" if recipes > 1 else "")
        cells.append(cell._replace(note=", ".join(filter(None, notes))))
    return row(e, *cells, plain_cell(r.mean, e.link()))


def _published_row(e: Entry) -> TableRow:
    link = e.link()
    scores = (number_cell(e.value(name), link) for name in COLUMNS)
    cells = (Cell(e.first.system_name, link, e.workload), plain_cell(e.sparsity, link), *scores)
    return row(e, *cells, number_cell(e.quality("glue_average"), link))
