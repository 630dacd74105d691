# SPDX-License-Identifier: Apache-2.0
"""Tables of the report: configurations, published figures, failures and scaling."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from markupsafe import Markup

from bertbench.common.report.axis import drawable
from bertbench.common.report.groups import Entry, Value, ended_well, mapping, recipe_of
from bertbench.common.report.plot import strip
from bertbench.common.report.words import duration, number, quantity
from bertbench.common.results.store import Damaged, Result

RATE = ("sequences_per_second", "sequences_per_second_e2e")
MISSED = "\u2020"
"""Marks a value of runs that missed their target."""


class Cell(NamedTuple):
    """Shows ``text`` and links to ``href``; a number is sorted by ``sort``."""

    text: str
    href: str = ""
    note: str = ""
    """Small print below."""
    sort: float | None = None
    picture: Markup = Markup("")


class Column(NamedTuple):
    name: str
    numeric: bool = False


class TableRow(NamedTuple):
    cells: Sequence[Cell]
    tags: Mapping[str, str]
    kind: str = "measured"
    """``measured``, ``simulated``, ``published`` or ``failed``."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; ``intro`` describes it, and a ``collapsed`` one opens on demand."""

    id: str
    title: str
    intro: str
    columns: Sequence[Column]
    rows: Sequence[TableRow] = field(default_factory=tuple)
    collapsed: bool = False


EMPTY = Cell("")


def filled(table: Table) -> Table:
    """Return the table without numeric columns that are empty in all rows."""
    kept = [
        i for i, c in enumerate(table.columns)
        if not c.numeric or any(row.cells[i].text for row in table.rows)
    ]  # fmt: skip
    rows = [row._replace(cells=[row.cells[i] for i in kept]) for row in table.rows]
    return replace(table, columns=[table.columns[i] for i in kept], rows=rows)


def columns(names: str) -> list[Column]:
    """Return the columns of ``names``, which are divided by bars; ``#`` begins a numeric one."""
    return [Column(n.strip(" #"), "#" in n) for n in names.split("|")]


def row(e: Entry, *cells: Cell) -> TableRow:
    """Return a row with the entry's tags."""
    kind = "published" if not e.measured else "simulated" if e.first.simulated else "measured"
    return TableRow(cells, e.tags, kind)


def plain_cell(value: float | None, href: str = "", note: str = "", digits: int = 4) -> Cell:
    """Return a cell of a number; empty for None."""
    return Cell("" if value is None else number(value, digits), href, note, value)


def number_cell(value: Value | None, href: str, *, scale: float = 1, form: Any = number) -> Cell:
    """Return a cell of a median and its range; empty for None."""
    if value is None:
        return EMPTY
    note = ""
    if form is duration:
        form = partial(duration, beside=value.median * scale)
    if value.n > 1:
        ends = [form(v * scale) for v in (value.low, value.high)]
        note = f"{ends[0]} to {ends[1]}" if ends[0] != ends[1] else f"all {value.n}"
        if value.interval is not None and ends[0] != ends[1]:
            note = " to ".join(form(v * scale) for v in value.interval[:2]) + " (95 %)"
    if value.partial:
        note = ", ".join(filter(None, (note, "resumed: only the last part")))
    text = form(value.median * scale) + (f" {MISSED}" if value.missed else "")
    return Cell(text, href, note, value.median * scale)


def configurations(rows: Sequence[Entry]) -> Table:
    """Return a table with one row per measured configuration."""
    made = []
    for e in rows:
        link = e.link()
        names = ", ".join(filter(None, (e.benchmark, e.quality_name)))
        cells = (
            Cell(e.workload, link, names),
            Cell(e.device, "", f"{e.backend}, {e.first.system_name}"),
            Cell(e.precision),
            Cell(str(e.made), e.anchor, _standing(e), e.made),
            number_cell(e.value("sequences_per_second"), link),
            number_cell(e.value("real_tokens_per_second"), link),
            number_cell(e.value("time_to_target_s"), link, form=duration),
            number_cell(e.quality(), link),
            _stability(e),
            number_cell(e.value("power_w"), link),
            number_cell(e.value("peak_memory_bytes"), link, scale=2**-30),
        )
        made.append(row(e, *cells))
    return Table(
        id="configurations",
        title="Configurations",
        intro="Every measured configuration: medians over its runs, each a separate process, with "
        "the 95 % interval of the median. Fewer than six runs have no interval and are indicative "
        "only; they show the minimum and maximum.",
        columns=columns(
            "Recipe | Device | Precision | # Runs | # Sequences/s | # Real tokens/s | "
            "# Time to target | # Quality | # Stability | # Power, W | # Peak memory, GiB"
        ),
        rows=made,
        collapsed=True,
    )


def _standing(e: Entry) -> str:
    """Return the small print of a number of runs."""
    going = sum(r.running for r in e.results)
    few = "indicative" if e.made <= 5 else ""
    return ", ".join(filter(None, (few, f"{going} running" if going else "", *e.cautions)))


def beside(ident: int, benchmark: str, rows: Sequence[Entry]) -> Table:
    """Return throughput on a common scale: measured rows first, then by speed."""
    rows = [e for e in rows if e.benchmark == benchmark]
    rated = [(e, v) for e in rows if (v := e.value(*RATE)) is not None and v.median > 0]
    rated.sort(key=lambda pair: (not pair[0].measured, -pair[1].median))
    reachable = [v.median for _, v in rated if drawable(v.median)] or [1.0]
    low, high = min(reachable), max(reachable)
    made = []
    for e, v in rated:
        link, shown = e.link(), drawable(v.median)
        scale = strip(v.median, low, high, 0 if e.measured else e.style) if shown else Markup("")
        quality = number_cell(e.quality(), link)
        source = Cell(str(e.source.get("title", "")), link, str(e.source.get("date") or ""))
        cells = (
            Cell(e.device, link),
            Cell(e.workload),
            Cell(e.precision),
            _whole_or_window(e, v),
            Cell("", sort=v.median, picture=scale),
            plain_cell(v.median / e.devices if e.devices else None, link),
            quality._replace(note=e.quality_name if quality.text else ""),
            Cell("measured here") if e.measured else source,
        )
        made.append(row(e, *cells))
    return Table(
        id=f"beside-{ident}",
        title=f"Throughput, measured and published: {benchmark}",
        intro="Sequences trained per second. Compare rows of the same workload only: models, "
        "lengths and data differ, and sources count differently.",
        columns=columns(
            "Device | Workload | Precision | # Sequences/s | # Logarithmic scale | # per device | "
            "# Quality | Source"
        ),
        rows=made,
    )


def _whole_or_window(e: Entry, v: Value) -> Cell:
    """Return the rate's cell, with a note if only the rate over the whole run is known."""
    cell = number_cell(v, e.link())
    if e.value(RATE[0]) is not None:
        return cell
    return cell._replace(note=", ".join(filter(None, (cell.note, "with evaluations"))))


def scaling(families: Sequence[Sequence[tuple[int, Entry, Value]]]) -> Table:
    """Return the efficiency of every family of configurations."""
    made = []
    for family in families:
        n0, _, base = family[0]
        for n, e, v in family:
            gain, link = v.median / base.median, e.link()
            cells = (
                Cell(e.workload, link),
                Cell(e.first.device_name or e.first.system_name),
                Cell(e.precision),
                Cell(str(n), link, sort=n),
                number_cell(v, link),
                plain_cell(gain, link, digits=3),
                plain_cell(gain / (n / n0), link, "" if n0 == 1 else f"against {n0}", 3),
                number_cell(e.value("gradient_all_reduce_s"), link, form=duration),
                Cell(mode(family)),
            )
            made.append(row(e, *cells))
    return Table(
        id="scaling-table",
        title="Scaling",
        intro="Scalability is rate(N) / (N x rate(1)), with the same recipe, precision and "
        "implementation; without a single-device run, the smallest run is the baseline. "
        "All-reduce: a step's gradients alone.",
        columns=columns(
            "Workload | Device | Precision | # N | # Sequences/s | # Speed-up | # Scalability | "
            "# All-reduce | Batch"
        ),
        rows=made,
    )


def families(rows: Iterable[Entry]) -> list[list[tuple[int, Entry, Value]]]:
    """Return (devices or processes, entry, rate) of what ran on two numbers of them or more."""
    found: dict[tuple[Any, ...], dict[int, tuple[int, Entry, Value]]] = defaultdict(dict)
    for e in rows:
        rate = e.value(*RATE)
        n = e.first.world_size if e.measured else e.devices
        if rate is None or not n or rate.median <= 0 or e.first.manifest.get("round"):
            continue  # systems of a round differ in more than their number of devices
        r = e.first
        key: tuple[Any, ...] = (
            e.measured, r.benchmark, same_but_batch(e), e.precision, r.device_name,
            e.backend if e.measured else (str(r.path), e.batch, r.system_name if
                                          r.device_name is None else ""),
        )  # fmt: skip
        found[key].setdefault(n, (n, e, rate))
    return [sorted(f.values(), key=lambda t: t[0]) for f in found.values() if len(f) > 1]


def same_but_batch(e: Entry) -> str:
    """Return recipe and implementation without batch, rate and threads; or the workload."""
    if not e.measured:
        return e.workload
    changed = ("global_batch", "learning_rate", "micro_batch", "num_threads", "max_micro_batch")
    parts = [recipe_of(e.first), mapping(e.first.config.get("impl"))]
    kept = [{k: v for k, v in p.items() if k not in changed} for p in parts if p]
    return f"{e.first.preset} {json.dumps(kept, sort_keys=True)}"


def mode(family: Sequence[tuple[int, Entry, Value]]) -> str:
    """Return ``strong`` for a fixed global batch, ``weak`` for a fixed batch per device."""
    whole = [e.first.global_batch for _, e, _ in family]
    each = [e.batch for _, e, _ in family]
    if whole[0] is not None and len(set(whole)) == 1:
        return "strong"
    if family[0][1].measured:
        each = [w // n if w else None for w, (n, _, _) in zip(whole, family, strict=True)]
    return "weak" if each[0] is not None and len(set(each)) == 1 else "not stated"


def failures(results: Sequence[Entry], damaged: Sequence[Damaged]) -> Table:
    """Return runs that did not end well, and damaged records."""
    made = []
    for e in results:
        for r in e.results:
            if not (ended_well(r) or r.running):
                link = e.anchors.get(r.run_id, e.anchor)
                cells = (
                    Cell(r.status.replace("_", " "), link),
                    Cell(r.reason or "no reason was recorded"),
                    Cell(r.title, link),
                    Cell(r.created or ""),
                )
                made.append(TableRow(cells, e.tags, "failed"))
    for d in damaged:
        cells = (Cell("damaged"), Cell(d.problem), Cell("/".join(d.path.parts[-3:])), EMPTY)
        made.append(TableRow(cells, {}, "failed"))
    return Table(
        id="failures",
        title="Failures, refusals and damaged records",
        intro="Failures count in the stability above. A damaged record counts nowhere.",
        columns=columns("Status | Reason | Run | Began"),
        rows=made,
    )


def published(rows: Sequence[Entry]) -> list[Table]:
    """Return one table per source: figures, stated definitions and doubts."""
    by_source: dict[str, list[Entry]] = defaultdict(list)
    for e in rows:
        if not e.measured:
            by_source[str(e.first.path)].append(e)
    return [_source(i, some) for i, some in enumerate(by_source.values())]


def _source(i: int, rows: Sequence[Entry]) -> Table:
    made = []
    every = Counter(text for e in rows for text in _stated(e))
    shared = {text for text, n in every.items() if n > max(1, len(rows) / 2)}
    for e in rows:
        m, where = e.first.metrics, e.first.manifest.get("where")
        figures = [f"{name} {quantity(float(v['value']), str(v['unit']))}" for name, v in m.items()]
        stated = [text for text in _stated(e) if text not in shared]
        quality = number_cell(e.quality(), "")
        names = ", ".join(filter(None, (e.quality_name, quality.note)))
        cells = (
            Cell(str(e.first.manifest.get("title") or e.first.system_name), note=str(where or "")),
            Cell(task_note(e)),
            Cell("; ".join(figures), note="; ".join(stated)),
            quality._replace(note=names) if quality.text else quality,
            Cell("; ".join(e.doubts)),
        )
        made.append(TableRow(cells, e.tags | {"anchor": e.anchor}, "published"))
    source = rows[0].source
    known = (source.get("url"), source.get("commit"), source.get("date"), source.get("note"))
    return Table(
        id=f"source-{i}",
        title=str(source.get("title") or rows[0].first.path.name),
        intro=" \u00b7 ".join([*(str(k) for k in known if k), *sorted(shared)]),
        columns=columns(
            "What | Workload | Figures, and their definition where one is given | # Quality | "
            "Doubtful because"
        ),
        rows=made,
        collapsed=True,
    )


def _stated(e: Entry) -> list[str]:
    metrics = e.first.metrics.items()
    return [f"{name}: {v['definition']}" for name, v in metrics if v.get("definition")]


def counts(results: Iterable[Result]) -> str:
    """Return the number of runs by status: ``12 ok, 1 oom``."""
    found = Counter(r.status.replace("_", " ") for r in results)
    return ", ".join(f"{n} {status}" for status, n in found.most_common())


def _stability(e: Entry) -> Cell:
    """Return the share of runs that reached their target; empty without a target."""
    if not any(r.quality and r.quality.get("target") is not None for r in e.results):
        return Cell("", note=counts(e.results) if len(e.reached) < e.made else "")
    return share_cell(e)


def share_cell(e: Entry) -> Cell:
    """Return the share of runs that ended well."""
    if not e.made:
        return EMPTY
    share = len(e.reached) / e.made
    return plain_cell(share, e.anchor, f"{len(e.reached)} of {e.made}", 2)


def task_note(e: Entry) -> str:
    """Return workload and precision, for small print."""
    return f"{e.workload}, {e.precision}"


def count(n: int | None) -> Cell:
    """Return a cell of ``n``; empty for None."""
    return Cell("" if n is None else str(n), sort=n)
