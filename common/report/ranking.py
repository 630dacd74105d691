# SPDX-License-Identifier: Apache-2.0
"""Which device is fastest: a ranking for each workload, and a paragraph on the largest ones.

A workload is one recipe (by its hash) with one target. Its configurations are ranked by the time to
the target, without one by sequences per second. Speed is relative to the fastest: the median of all
quotients of two runs, with its exact 95 % interval from six runs a side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from bertbench.common.report.groups import Entry, Value, mapping, value_of
from bertbench.common.report.prices import Price
from bertbench.common.report.tables import (
    EMPTY,
    Cell,
    Table,
    TableRow,
    columns,
    filled,
    number_cell,
    row,
)
from bertbench.common.report.words import duration, number, quantity
from bertbench.common.results.result import Result
from bertbench.common.results.statistics import ENOUGH, Ratio, ratio

TIME, RATE = "time_to_target_s", "sequences_per_second"
MOST_NAMED = 3
"""Workloads in the paragraph."""
MILLION = 1e6


class Figure(NamedTuple):
    """What a configuration is ranked by."""

    value: Value
    """Seconds, of which fewer are better, or a rate."""
    unranked: str = ""
    """The reason why it has no rank."""
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """A configuration in the ranking of its workload; rank 0: it has none."""

    entry: Entry
    figure: Figure
    rank: int
    fastest: Place | None = None
    price: Price | None = None

    @property
    def value(self) -> Value:
        return self.figure.value

    @cached_property
    def speed(self) -> Ratio | None:
        """The speed relative to the fastest; None if one of them has no comparable value."""
        if self.fastest is None or self.value.unit != self.fastest.value.unit:
            return None
        ours, best = self.value.runs, self.fastest.value.runs
        return ratio(ours, best) if self.value.unit == "s" else ratio(best, ours)

    def of_runs(self, figure: Callable[[Result], float | None], unit: str) -> Value | None:
        """Return the Value of a figure over the runs that reached their end."""
        found = [v for r in self.entry.reached if (v := figure(r)) is not None]
        return value_of(found, unit) if found else None

    @property
    def energy(self) -> Value | None:
        """J per sequence."""
        return self.of_runs(_energy, "J")

    @property
    def cost(self) -> Value | None:
        """The cost of the time to the target."""
        devices, price = self.entry.devices, self.price
        if price is None or not devices:
            return None
        hour = price.per_device_hour * devices / 3600
        return self.of_runs(lambda r: _times(r.value(TIME), hour), price.currency)

    @property
    def cost_of_million(self) -> Value | None:
        """The cost of training a million sequences, evaluations excluded."""
        devices, price = self.entry.devices, self.price
        if price is None or not devices:
            return None
        each = price.per_device_hour * devices / 3600 * MILLION
        return self.of_runs(lambda r: _over(each, r.value(RATE)), price.currency)

    @property
    def doubts(self) -> list[str]:
        """What the figures do not show by themselves."""
        e, best = self.entry, self.fastest
        found = ["simulated: no result"] if e.first.simulated else []
        if not self.rank:
            found.append(self.figure.unranked)
        if self.value.n < ENOUGH:
            found.append(f"{self.value.n} run{'s' * (self.value.n > 1)}: no interval")
        if len(e.reached) < e.made:
            found.append(f"unstable: {len(e.reached)} of {e.made} runs ended well")
        if best and best.entry.precision != e.precision:
            found.append(f"{e.precision}, the fastest {best.entry.precision}")
        within = self.speed and self.speed.interval
        if within and self.rank > 1 and within.low <= 1 <= within.high:
            found.append("perhaps as fast as the fastest")
        return [*found, *self.figure.doubts, *e.cautions]


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _over(amount: float, rate: float | None) -> float | None:
    return amount / rate if rate else None


def _energy(r: Result) -> float | None:
    power, rate = r.value("power_w"), r.value(RATE)
    return None if power is None else _over(power, rate)


def ranked(entries: Iterable[Entry], prices: Mapping[str, Price]) -> list[list[Place]]:
    """Return the places of each workload of training."""
    return places(entries, _workload, _figure, prices)


def places(
    entries: Iterable[Entry],
    workload: Callable[[Entry], Any],
    figure: Callable[[Entry], Figure | None],
    prices: Mapping[str, Price],
) -> list[list[Place]]:
    """Return the places of each workload, the workload with most configurations first.

    A configuration without a figure has no place.
    """
    found: dict[Any, list[Entry]] = defaultdict(list)
    for e in entries:
        found[workload(e)].append(e)
    made = [list(_places(some, figure, prices)) for some in found.values()]
    made.sort(key=lambda some: (-len(some), -sum(p.entry.made for p in some)))
    return [some for some in made if some]


def _workload(e: Entry) -> tuple[Any, ...]:
    recipe = next((r.recipe_hash for r in e.results if r.recipe_hash), None)
    synthetic = bool(mapping(e.first.config.get("run")).get("synthetic"))
    return e.benchmark, e.first.preset, recipe, _target(e), synthetic


def _figure(e: Entry) -> Figure | None:
    """Return the time to the target, or the rate, which without the target reached has no rank."""
    took, rate = e.value(TIME), e.value(RATE)
    if took is not None and not took.missed:
        return Figure(took)
    if rate is None or rate.median <= 0:
        return None
    rate = rate._replace(unit="sequences/s")
    return Figure(rate, "missed the target" * (_target(e) is not None or rate.missed))


def _target(e: Entry) -> float | None:
    known = (r.quality.get("target") for r in e.results if r.quality)
    return next((t for t in known if isinstance(t, (int, float))), None)


def _places(
    some: Sequence[Entry], figure: Callable[[Entry], Figure | None], prices: Mapping[str, Price]
) -> Iterator[Place]:
    known = [(e, found) for e in some if (found := figure(e)) is not None]
    first = [(e, found) for e, found in known if not found.unranked]
    last = [(e, found) for e, found in known if found.unranked]
    first.sort(key=lambda p: (1 if p[1].value.unit == "s" else -1) * p[1].value.median)
    best: Place | None = None
    for i, (e, found) in enumerate([*first, *last]):
        rank = i + 1 if i < len(first) else 0
        price = prices.get(e.first.device_name or "")
        place = Place(e, found, rank, best, price)
        best = best or (place if rank else None)
        yield place


def table(workloads: Sequence[Sequence[Place]]) -> Table:
    """Return a row for each configuration; columns without a value are left out.

    A configuration alone in its workload is left out if it has neither energy nor cost.
    """
    kept = [some for some in workloads if len(some) > 1 or some[0].energy or some[0].price]
    workloads = kept or workloads
    prices = {p.price.text: p.price.device for some in workloads for p in some if p.price}
    named = "; ".join(f"{device}: {text}" for text, device in prices.items())
    return filled(Table(
        id="ranking",
        title="Ranking",
        intro="One workload is one recipe with one target; others are never compared. Speed: "
        "relative to the fastest, over all pairs of runs, with its 95 % interval from six runs a "
        "side. Energy: power / sequences per second. Cost: price x devices x time to the target, "
        f"or / sequences per second; energy is not added.{' Prices: ' * bool(named)}{named}",
        columns=columns(
            "Workload | # Rank | Device | Precision | # Runs | # Time to target | # Sequences/s | "
            "# Speed | Doubts | # Power, W | # J/sequence | # Sequences/J | # Cost to target | "
            "# Cost of 1 M sequences"
        ),
        rows=[_row(p, alone=len(some) == 1) for some in workloads for p in some],
    ))  # fmt: skip


def _row(p: Place, *, alone: bool) -> TableRow:
    e, link, energy = p.entry, p.entry.link(), p.energy
    target = _target(e)
    goal = None if target is None else f"{e.quality_name} {number(target)}"
    took = e.value(TIME)
    each = p.of_runs(lambda r: _over(1.0, _energy(r)), "1/J")
    return row(
        e,
        Cell(e.workload, link, ", ".join(filter(None, (e.benchmark, goal)))),
        Cell(str(p.rank), sort=p.rank) if p.rank and not alone else EMPTY,
        Cell(e.device, "", f"{e.backend}, {e.first.system_name}"),
        Cell(e.precision),
        Cell(str(e.made), e.anchor, sort=e.made),
        EMPTY if took and took.missed else number_cell(took, link, form=duration),
        number_cell(e.value(RATE), link),
        EMPTY if alone else speed_cell(p),
        Cell("; ".join(p.doubts)),
        number_cell(e.value("power_w"), link),
        number_cell(energy, link),
        number_cell(each, link),
        _money(p.cost, link),
        _money(p.cost_of_million, link),
    )


def speed_cell(p: Place) -> Cell:
    """Return the speed relative to the fastest, with its interval."""
    if p.rank == 1:
        return Cell("1", sort=1.0)
    if p.speed is None:
        return EMPTY
    return Cell(number(p.speed.estimate, 3), p.entry.link(), _within(p.speed), p.speed.estimate)


def _within(speed: Ratio, *, inverse: bool = False) -> str:
    """Return a ratio's interval in words, or those of its inverse."""
    if speed.interval is None:
        return ""
    ends = speed.interval[:2]
    ends = (1 / ends[1], 1 / ends[0]) if inverse else ends
    return f"{number(ends[0], 3)} to {number(ends[1], 3)} (95 %)"


def _money(value: Value | None, link: str) -> Cell:
    if value is None:
        return EMPTY
    cell = number_cell(value, link, form=lambda v: number(v, 3))
    return cell._replace(text=f"{cell.text} {value.unit}")


def paragraph(workloads: Sequence[Sequence[Place]]) -> str:
    """Return which device is fastest, by how much, at what energy and cost; with the doubts."""
    placed = [some for some in workloads if some[0].rank]
    compared = [some for some in placed if len(some) > 1]
    told = (compared or placed)[:MOST_NAMED]
    alone = len(placed) - len(compared)
    rest = []
    if more := len(compared or placed) - len(told):
        rest.append(f"{more} more workload{'s are' if more > 1 else ' is'} ranked below.")
    if compared and alone:
        rest.append(f"{alone} workload{'s' * (alone > 1)} had one configuration only.")
    return " ".join([*map(_sentences, told), *rest])


def _sentences(some: Sequence[Place]) -> str:
    best, e = some[0], some[0].entry
    target = _target(e)
    goal = "" if target is None else f" to {e.quality_name} {number(target)}"
    value = best.value
    figure = duration(value.median) if value.unit == "s" else quantity(value.median, value.unit)
    text = f"{e.first.preset}{goal}: {e.device} ({e.precision}) "
    several = f"fastest of {len(some)} configurations" if len(some) > 1 else "only configuration"
    text += f"is the {several} with {figure}"
    if len(some) > 1 and some[1].speed is not None:
        speed, rival = some[1].speed, some[1].entry
        times = f"{number(1 / speed.estimate, 3)} times"
        within = _within(speed, inverse=True)
        text += f", {times}{f' ({within})' if within else ''} the speed of {rival.device} ("
        text += ", ".join(filter(None, (rival.precision, rival.variant))) + ")"
    text += "".join(f", {part}" for part in _amounts(best)) + "."
    doubts = [
        f"{p.entry.device} ({p.entry.precision}): {'; '.join(p.doubts)}"
        for p in some[:2]
        if p.doubts
    ]
    return f"{text} Doubts: {'. '.join(doubts)}." if doubts else text


def _amounts(p: Place) -> Iterator[str]:
    if (energy := p.energy) is not None:
        yield f"{number(energy.median, 3)} J per sequence"
    if p.price is None:
        return
    costs = ((p.cost, "to the target"), (p.cost_of_million, "per million sequences"))
    known = [f"{number(v.median, 3)} {v.unit} {what}" for v, what in costs if v is not None]
    if known:
        yield f"{' and '.join(known)} at {p.price.text}"


def simulated(made: Table) -> Table:
    """Return a table of simulated devices with its own id and title."""
    return replace(made, id=f"simulated-{made.id}", title=f"Simulated: {made.title.lower()}")
