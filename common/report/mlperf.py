# SPDX-License-Identifier: Apache-2.0
"""MLPerf Training's published systems: two plots and a table, with the comparable runs of a report.

A run is comparable if its recipe has the systems' target and sequence length and begins from
MLPerf's checkpoint. Systems of the open division are only in the table.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from bertbench.common.report.axis import drawable
from bertbench.common.report.groups import Entry, mapping
from bertbench.common.report.markers import OWN, REFERENCE
from bertbench.common.report.plot import Plot, Point, Series, lines
from bertbench.common.report.tables import Cell, Table, columns, count, number_cell, row
from bertbench.common.report.words import duration, number

TIME, RATE = "time_to_target_s", "sequences_per_second_e2e"
FAMILIES = 9
"""Most kinds of accelerator with a style of their own."""
Place = Callable[[Entry], Point | None]
Workload = tuple[float | None, int | None]
"""Target accuracy and sequence length."""


def published(entries: Sequence[Entry]) -> list[Entry]:
    """Return MLPerf Training's systems: published rows of a round with a time to the target."""
    return [
        e for e in entries
        if not e.measured and e.value(TIME)
        and re.fullmatch(r"\d{1,3}\.\d{1,3}", str(e.first.manifest.get("round")))
    ]  # fmt: skip


def comparable(entries: Sequence[Entry], systems: Sequence[Entry]) -> list[Entry]:
    """Return the measured entries with a workload of ``systems``."""
    known = {(e.benchmark, *_workload(e)) for e in systems}
    return [
        e for e in entries
        if e.measured and (e.benchmark, *_workload(e)) in known and None not in _workload(e)
        and mapping(e.first.config.get("recipe")).get("initial_mlm_accuracy") is not None
    ]  # fmt: skip


def _workload(e: Entry) -> Workload:
    quality = next((r.quality for r in e.results if r.quality), None) or {}
    length = e.first.manifest.get("sequence_length")
    if e.measured:
        length = mapping(e.first.config.get("recipe")).get("max_seq_length")
    return quality.get("target"), length if isinstance(length, int) else None


def plots(own: Sequence[Entry], systems: Sequence[Entry]) -> Iterator[Plot]:
    """Yield time to the target over devices, and a device's rate over the rounds."""
    closed = [e for e in systems if e.first.manifest.get("division") != "open" and e.devices]
    counted = Counter(map(_workload, own or closed)).most_common(1)
    common = counted[0][0] if counted else (None, None)
    closed, own = ([e for e in some if _workload(e) == common] for some in (closed, own))
    if not closed:
        return
    target, length = common
    what = f"BERT to an accuracy of {target} at length {length}"
    several = " Large diamonds: measured here." * bool(own)
    yield lines(
        "mlperf-time", "Time to target over devices, MLPerf Training",
        f"{what}: minutes over accelerators, both logarithmic, of {len(closed)} published systems "
        f"and {len(own)} configurations measured here. {_best(own, closed)}",
        [*_systems(closed, _time), *_own(own, _time)],
        x="devices", y="minutes to target", log=True, tags={"benchmark": "bert_pretraining"},
        note=f"A point is a system; its name shows under the pointer.{several}",
    )  # fmt: skip
    rounds = sorted({str(e.first.manifest["round"]) for e in closed}, key=float)
    places = [*rounds, *(["here"] if own else [])]

    def rate(e: Entry) -> Point | None:
        value, at = e.value(RATE), str(e.first.manifest.get("round") or "here")
        if value is None or not e.devices:
            return None
        return float(places.index(at)), value.median / e.devices

    yield lines(
        "mlperf-rate", "Rate of a device over the rounds, MLPerf Training",
        f"{what}: sequences per second and device, evaluations included, of the systems of rounds "
        f"{rounds[0]} to {rounds[-1]}.",
        [*_systems(closed, rate), *_own(own, rate)],
        x="round", y="sequences/s per device", from_zero=True, places=places,
        tags={"benchmark": "bert_pretraining"}, note=several.strip(),
    )  # fmt: skip


def _time(e: Entry) -> Point | None:
    value = e.value(TIME)
    if value is None or value.missed or not e.devices:
        return None
    return float(e.devices), value.median / 60


def _best(own: Sequence[Entry], systems: Sequence[Entry]) -> str:
    """Return a sentence on each own configuration beside the systems with as many devices."""
    found = []
    for e in own:
        rivals = [p[1] for s in systems if s.devices == e.devices and (p := _time(s))]
        if (mine := _time(e)) and rivals:
            faster = sum(r < mine[1] for r in rivals)
            found.append(f"{e.device}: {duration(60 * mine[1])}; {faster} of {len(rivals)} "
                         f"systems with as many devices are faster.")  # fmt: skip
    return " ".join(found[:6])


def family(name: str | None) -> str:
    """Return a device's name up to its first word with a digit: without memory size and form."""
    words = re.split(r"[\s()_-]+", name or "unknown")
    numbered = [i for i, word in enumerate(words) if re.search(r"\d", word)]
    return " ".join(words[: numbered[0] + 1] if numbered else words)


def _systems(systems: Sequence[Entry], point: Place) -> Iterator[Series]:
    """Yield a scatter for each kind of accelerator, the most frequent first."""
    kinds: dict[str, list[Entry]] = defaultdict(list)
    for e in systems:
        kinds[family(e.first.device_name)].append(e)
    some = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    found = [*some[:FAMILIES], ("others", [e for _, rest in some[FAMILIES:] for e in rest])]
    for i, (name, members) in enumerate(found):
        hover = {p: f"{_name(e)}: {number(p[1])}" for e in members[::-1] if (p := point(e))}
        style = i if i < FAMILIES else REFERENCE
        yield Series(label=name, points=list(hover), style=style, hover=hover)


def _own(own: Sequence[Entry], point: Place) -> Iterator[Series]:
    """Yield a large marker for each configuration measured here."""
    for e in own:
        if (p := point(e)) and drawable(p[1]):
            hover = {p: f"{e.label}: {number(p[1])}"}
            yield Series(label=e.label, points=[p], style=OWN, hover=hover, href=e.link())


def _name(e: Entry) -> str:
    m = e.first.manifest
    return f"{m.get('submitter')} {e.first.system_name}, {e.device}, round {m['round']}"


def table(own: Sequence[Entry], systems: Sequence[Entry]) -> Table:
    """Return time to train of the systems and of comparable runs."""
    rows = []
    for e in (*own, *systems):
        took, m = e.value(TIME), e.first.manifest
        if took is None:
            continue
        origin = [str(m[k]) for k in ("submitter", "division", "software") if m.get(k)]
        cells = (
            Cell(e.first.system_name, e.link(), ", ".join(origin or [e.variant])),
            Cell(f"v{m['round']}" if m.get("round") else ""),
            Cell(e.first.device_name or ""),
            count(e.devices),
            number_cell(took, e.link(), scale=1 / 60),
            number_cell(e.value("samples_to_target"), e.link()),
            number_cell(e.value(RATE, "sequences_per_second"), e.link()),
        )
        rows.append(row(e, *cells))
    rows.sort(key=lambda row: row.cells[4].sort or 0)
    return Table(
        id="mlperf",
        title="In the format of MLPerf Training's results",
        intro="Minutes from run_start to the evaluation that reached the target. Results of the "
        "closed and the open division are not comparable.",
        columns=columns(
            "System | Round | Device | # Devices | # Minutes | # Samples | # Sequences/s with "
            "evaluations"
        ),
        rows=rows,
    )
