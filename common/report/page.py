# SPDX-License-Identifier: Apache-2.0
"""Assemble the report and write it as HTML; markdown.py writes it as Markdown."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bertbench.common.config.recipe import CHOSEN
from bertbench.common.measure.metric import SHARED
from bertbench.common.report import figures, history, inference, mlperf, ranking, sparsity, tables
from bertbench.common.report.groups import FILTERS, Entry, Value, entries, mapping
from bertbench.common.report.plot import Plot
from bertbench.common.report.prices import Price, by_device
from bertbench.common.report.published_tables import suite_tables
from bertbench.common.report.tables import MISSED, Table
from bertbench.common.report.words import number, quantity
from bertbench.common.results.store import Damaged, Result

HERE = Path(__file__).parent
TEMPLATES = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
MOST_DETAILED = 40
"""The newest runs get separate plots; this many."""
MOST_READ = 120
"""Runs whose steps are read for the common plots."""
Families = Sequence[Sequence[tuple[int, Entry, Value]]]
DERIVED = {
    "scalability": "rate(N) / (N x rate(1)): same recipe, precision and implementation; computed "
    "by the report from medians",
    "stability": "runs that reached their target / runs made, failures and interruptions included",
}


class RunSection(NamedTuple):
    """The section of one run."""

    run: Result
    anchor: str
    headline: str
    facts: Sequence[tuple[str, str]]
    metrics: Sequence[tuple[str, str, str]]
    plots: Sequence[Plot]


class Group(NamedTuple):
    entry: Entry
    runs: Sequence[RunSection]


class Definition(NamedTuple):
    name: str
    anchor: str
    unit: str
    texts: Sequence[str]
    how: str


@dataclass(frozen=True, kw_only=True)
class PageSection:
    id: str
    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    groups: Sequence[Group] = ()
    plots_first: bool = False
    folded: bool = False
    """Whether only its title shows at first."""
    simulated: bool = False
    answer: bool = False
    """Whether its text is at the top of the page."""


class Report:
    """The content of the report, for HTML and Markdown."""

    def __init__(
        self, results: Sequence[Result], damaged: Sequence[Damaged], prices: Sequence[Price] = ()
    ) -> None:
        """Raise BadInput for ``prices`` of which none, or several, are for one device."""
        every = entries(results)
        self.real = [e for e in every if e.measured and not e.first.simulated]
        self.simulated = [e for e in every if e.measured and e.first.simulated]
        self.published = [e for e in every if not e.measured]
        self.damaged = damaged
        devices = {e.first.device_name for e in (*self.real, *self.simulated)}
        self._prices = by_device(prices, sorted(filter(None, devices)))
        self.results = results
        runs = [r for r in results if r.kind == "run"]
        self._total = len(runs)
        self._detailed = {r.run_id for r in runs[-MOST_DETAILED:]}
        read = _newest([*self.real, *self.simulated])
        self._events = {
            r.run_id: list(r.steps()) for r in runs if r.run_id in self._detailed | read
        }
        self._anchors = {name: f"def-{i}" for i, name in enumerate(self._names())}
        made = [replace(s, plots=[p for p in s.plots if p.seen]) for s in self._sections()]
        self.sections = [s for s in made if s.tables or s.plots or s.groups]

    def _sections(self) -> Iterable[PageSection]:
        answered, real = inference.apart(self.real)
        families = tables.families([*real, *self.published])
        yield from self._measured(real, answered, families)
        yield from self._beside(real, families)
        yield from self._details()

    def _measured(
        self, real: Sequence[Entry], answered: Sequence[Entry], families: Families
    ) -> Iterable[PageSection]:
        ranked = ranking.ranked(real, self._prices)
        asked = inference.ranked(answered, self._prices)
        yield PageSection(
            id="fastest", title="Which device is fastest", answer=True,
            text=ranking.paragraph([*ranked, *asked]),
            tables=_filled(ranking.table(ranked), inference.ranking(asked)),
        )  # fmt: skip
        yield PageSection(
            id="measured", title="Measured", text=self._sampled(),
            tables=_filled(tables.configurations(real), inference.measured(answered)),
            plots=[*figures.learning(real, self._events), *figures.speed(real, self._events)],
        )  # fmt: skip
        split = figures.time_split(real)
        yield PageSection(
            id="scaling", title="Scaling and time",
            tables=_filled(tables.scaling([f for f in families if f[0][1].measured])),
            plots=[*figures.scaling(families), *([split] if split else [])], plots_first=True,
        )  # fmt: skip
        yield PageSection(
            id="history", title="History", folded=True,
            text="Configurations that ran on two commits or more, over their commits in the order "
            "of their first runs. `bertbench history` tests each change.",
            plots=[*history.plots(r for e in self.real for r in e.results)],
        )  # fmt: skip
        yield PageSection(
            id="sparsity", title="Sparse attention",
            text="Runs with an attention mask beside the dense run with the same settings. "
            "All other tables list runs with different masks separately.",
            plots=[*sparsity.plots(real, self.published)],
        )  # fmt: skip

    def _beside(self, real: Sequence[Entry], families: Families) -> Iterable[PageSection]:
        both = [*real, *self.published]
        names = enumerate(sorted({e.benchmark for e in both}))
        systems = mlperf.published(self.published)
        rivals = mlperf.comparable(real, systems)
        apart = {e.anchor for e in systems}
        beside = [e for e in both if e.anchor not in apart]
        yield PageSection(
            id="beside", title="Beside published figures",
            text="Published figures as their sources state them, most without a definition. Each "
            "links to its source and the doubts about it.",
            tables=_filled(*(tables.beside(i, name, beside) for i, name in names)),
            plots=[*figures.learning(self.published, {}, "published")],
        )  # fmt: skip
        yield PageSection(
            id="mlperf-systems", title="Beside MLPerf's published systems", folded=not rivals,
            text="All systems of MLPerf Training's BERT, recomputed from their public logs; these "
            "are not official results. "
            + ("" if rivals else "No run here has their workload (target, sequence length and "
               "first checkpoint), so none is compared with them."),
            tables=_filled(mlperf.table(rivals, systems)),
            plots=[*mlperf.plots(rivals, systems)], plots_first=True,
        )  # fmt: skip
        yield PageSection(
            id="suites", title="Tables in the format of other suites", folded=True,
            text="The same results in the columns of other benchmark suites. A table without a "
            "run shows its publisher's figures.",
            tables=suite_tables(both, _scalability(families)),
        )  # fmt: skip

    def _details(self) -> Iterable[PageSection]:
        failed = _filled(tables.failures(self.real, self.damaged))
        yield PageSection(id="failed", title="What went wrong", tables=failed)
        yield PageSection(
            id="runs", title="Runs", folded=True, groups=self._groups(self.real),
            text=f"Every run with its metrics, settings and notes. {self._left_out()}".strip(),
        )  # fmt: skip
        fake = self.simulated
        yield PageSection(
            id="simulated", title="Simulated runs", simulated=True, folded=True,
            text="These devices do not exist. The figures are not results, and no table above "
            "includes them.",
            tables=[ranking.simulated(t) for t in _filled(
                ranking.table(ranking.ranked(fake, self._prices)), tables.configurations(fake),
                tables.failures(fake, ()),
            )],
            plots=[*figures.learning(fake, self._events, "simulated")],
            groups=self._groups(fake),
        )  # fmt: skip
        yield PageSection(
            id="sources", title="Sources",
            text="The published figures by source, with their definitions where stated and the "
            "doubts about them. None was measured here.",
            tables=tables.published(self.published),
        )  # fmt: skip

    @property
    def facts(self) -> list[tuple[str, str]]:
        """(name, value) pairs of the page's head."""
        runs = [r for e in self.real for r in e.results]
        found = [
            ("runs", str(len(runs))),
            ("configurations", str(len(self.real))),
            ("ended", tables.counts(r for r in runs if not r.running)),
            ("running", str(sum(r.running for r in runs))),
            ("simulated, apart", str(sum(e.made for e in self.simulated))),
            ("damaged records", str(len(self.damaged))),
            ("published figures", str(len(self.published))),
            ("newest", max((r.created or "" for r in runs), default="")[:10]),
        ]
        return [(k, v) for k, v in found if v not in ("", "0") or k == "runs"]

    @property
    def systems(self) -> str:
        """The first three device names, for the heading."""
        names = list(dict.fromkeys(e.first.device_name or e.first.system_name for e in self.real))
        shown = ", ".join(name[:60] for name in names[:3])
        return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown

    @property
    def filters(self) -> list[tuple[str, str, list[str]]]:
        """(key, name, values) of the menus."""
        every = [*self.real, *self.simulated, *self.published]
        return [(key, key.capitalize(), sorted({e.tags[key] for e in every})) for key in FILTERS]

    @property
    def definitions(self) -> list[Definition]:
        """The metrics' definitions from the records; several if runs disagree."""
        stated: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        how: dict[str, dict[str, Any]] = {}
        for e in (*self.real, *self.simulated):
            for r in e.results:
                for name, m in r.metrics.items():
                    stated[name][str(m.get("definition", ""))] += 1
                    how[name] = m
        found = []
        for name, anchor in self._anchors.items():
            m = how.get(name) or (SHARED[name]._asdict() if name in SHARED else {})
            texts = sorted(stated[name], key=lambda t, n=name: -stated[n][t])  # type: ignore[misc]
            common = DERIVED.get(name) or (SHARED[name].definition if name in SHARED else "")
            notes = [t[len(common) + 2 :] for t in texts if common and t.startswith(f"{common}; ")]
            texts = [t for t in texts if not common or not t.startswith(f"{common}; ")]
            if common and common not in texts:
                texts.insert(0, common)
            if notes:
                shown = " | ".join(notes[:6]) + (" | ..." if len(notes) > 6 else "")
                texts.append(f"Noted in records: {shown}")
            parts = [f"{k}: {m[k]}" for k in ("clock", "scope") if m.get(k)]
            if m.get("direction") in ("higher", "lower"):
                parts.insert(0, f"{m['direction']} is better")
            unit = str(m.get("unit", ""))
            found.append(
                Definition(name, anchor, "" if unit == "1" else unit, texts[:6], "; ".join(parts))
            )
        return found

    def _names(self) -> list[str]:
        used = {n for r in self.results if r.kind == "run" for n in r.metrics}
        return [*(n for n in SHARED if n in used), *sorted(used - set(SHARED)), *DERIVED]

    def _sampled(self) -> str:
        """Return a note on the runs that the plots leave out."""
        if self._total <= MOST_READ:
            return ""
        return (
            f"The plots over samples, time and steps show {len(self._events):,} of "
            f"{self._total:,} runs, the newest of each configuration; the tables show all."
        )

    def _left_out(self) -> str:
        if self._total <= MOST_DETAILED:
            return ""
        return (
            f"Only the newest {MOST_DETAILED} of {self._total:,} have separate plots; for others "
            f"run bertbench report on their folders alone."
        )

    def _groups(self, some: Sequence[Entry]) -> list[Group]:
        return [Group(e, [self._run(e, r) for r in e.results]) for e in some]

    def _run(self, e: Entry, r: Result) -> RunSection:
        anchor, plots = e.anchors[r.run_id], []
        if r.run_id in self._detailed:
            plots = [*figures.own_speed(anchor, e.style, self._events[r.run_id])]
            plots += figures.sensors(r, anchor, r.telemetry())
            plots = [p for p in plots if p.seen]
        rate, quality = r.value("sequences_per_second"), r.quality
        samples = r.value("samples_per_second")
        headline = [] if r.seed is None else [f"seed {r.seed}"]
        if rate is not None:
            headline.append(f"{number(rate)} sequences/s")
        if samples is not None:
            headline.append(f"{number(samples)} samples/s")
        if quality and quality.get("value") is not None:
            headline.append(f"{quality.get('metric')} {number(float(quality['value']))}")
        return RunSection(
            r,
            anchor,
            ", ".join(headline),
            _facts(r),
            [
                (name, quantity(float(m["value"]), str(m["unit"])), self._anchors[name])
                for name, m in r.metrics.items()
            ],
            plots,
        )


def _filled(*made: Table) -> list[Table]:
    return [table for table in made if table.rows]


def _newest(some: Sequence[Entry]) -> set[str]:
    """Return the ids of the runs whose steps are read: the newest of each configuration."""
    if not some:
        return set()
    each = max(1, MOST_READ // len(some))
    if sum(e.made for e in some) <= MOST_READ:
        each = MOST_READ
    kept = sorted((r.run_id for e in some for r in e.results[-each:]), reverse=True)
    return set(kept[:MOST_READ])


def _facts(r: Result) -> list[tuple[str, str]]:
    """Return a run's facts besides its metrics."""
    m, extras = r.manifest, mapping(r.manifest.get("extras"))
    settings = {k: v for part in ("recipe", "impl", "run") for k, v in r.config[part].items()}
    given = [
        f"{k} {settings.get(k)}"
        for k, origin in mapping(r.config.get("origins")).items()
        if origin in (*CHOSEN, "environment") and k != "output_dir"
    ]
    packages = mapping(mapping(r.system.get("software")).get("packages"))
    notes = m.get("notes")
    facts = (
        ("Ended", r.reason),
        ("Began", r.created),
        ("Devices", f"{r.num_devices} x {r.device_name or r.system_name}"),
        ("Processes", None if r.world_size == r.num_devices else r.world_size),
        ("Precision", r.precision),
        ("Model", inference.model(r)),
        ("Batch", r.global_batch and f"{r.global_batch} sequences a step"),
        ("Data", extras.get("data")),
        ("Recipe hash", r.recipe_hash),
        ("Code", " ".join(str(x) for x in (r.code_hash, m.get("commit")) if x)
                 + (" (changed since the commit)" if m.get("dirty") else "")),
        ("torch", packages.get("torch")),
        ("Given", ", ".join(given)),
        ("Sensors", extras.get("telemetry")),
        ("Notes", "\n".join(str(n) for n in notes) if isinstance(notes, list) else None),
    )  # fmt: skip
    return [(k, str(v)) for k, v in facts if v]


def _scalability(families: Families) -> dict[str, Value]:
    known = {}
    for family in families:
        n0, _, base = family[0]
        for n, e, v in family:
            share = v.median / base.median / (n / n0)
            if n0 == 1 and e.measured:
                known[e.anchor] = Value(share, share, share, 1, "1", v.missed)
    return known


def html(report: Report) -> str:
    """Return one HTML file with its style and script; its policy forbids every other."""
    css = (HERE / "report.css").read_text(encoding="utf-8")
    js = (HERE / "report.js").read_text(encoding="utf-8")
    contents = [(s.id, s.title) for s in report.sections] + [("definitions", "Definitions")]
    return TEMPLATES.get_template("report.html.j2").render(
        css=Markup(css),
        js=Markup(js),
        css_hash=_hash(css),
        js_hash=_hash(js),
        report=report,
        contents=contents,
        missed=MISSED,
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
