# SPDX-License-Identifier: Apache-2.0
"""The plots of the report: learning, speed, sensors, scaling and time split."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from string import ascii_lowercase
from typing import Any

from bertbench.common.report.groups import Entry, Value
from bertbench.common.report.markers import REFERENCE, STYLES
from bertbench.common.report.plot import Plot, Point, Series, bars, lines
from bertbench.common.report.words import number
from bertbench.common.results.store import Result

MOST_LINES = 12
"""A plot of more runs shows a median with its range per configuration."""
MOST_PUBLISHED = 6
"""Published families in the plot of scaling."""
SENSORS = (
    ("power_w", "Power", "W", 1.0),
    ("temperature_c", "Temperature", "C", 1.0),
    ("sm_clock_mhz", "Clock", "MHz", 1.0),
    ("memory_clock_mhz", "Memory clock", "MHz", 1.0),
    ("memory_used_bytes", "Memory in use", "GiB", 2.0**-30),
    ("utilization_percent", "Utilisation", "%", 1.0),
)
PARTS = ("compute and all else", "data", "communication (by itself)", "evaluation", "checkpoints")
Events = list[dict[str, Any]]


def learning(
    entries: Sequence[Entry], events: Mapping[str, Events], what: str = ""
) -> Iterator[Plot]:
    """Yield accuracy over samples and over time, per recipe, with the target as a line.

    ``what`` begins titles and anchors, to separate simulated and published runs.
    """
    for i, ((benchmark, preset), some) in enumerate(_by_recipe(entries)):
        name = next((e.quality_name for e in some if e.quality_name), "quality")
        goals = {
            float(r.quality["target"])
            for e in some
            for r in e.results
            if r.quality and r.quality.get("target") is not None
        }
        for axis, over, name_x in (
            ("samples", "samples", "sequences trained"),
            ("time_s", "time", "seconds since run_start"),
        ):
            series = _merged(
                some,
                lambda r, a=axis: _evaluations(r, events, a),
                lambda r: _evaluations(r, events, "samples"),
            )
            if any(len(s.points) for s in series):
                best = [f"{s.label} ends at {number(s.points[-1][1])}" for s in series if s.points]
                yield lines(
                    f"{what}learning-{i}-{axis.replace('_', '-')}",
                    f"{what}{': ' if what else ''}{preset}: {name} over {over}",
                    f"{name} of {benchmark}, {preset}, at each evaluation. "
                    f"{_targets_text(goals)} {'; '.join(best[:MOST_LINES])}.",
                    series[:MOST_LINES],
                    x=name_x,
                    y=name,
                    note=_limit_note(series),
                    targets=[(g, f"target {number(g)}") for g in sorted(goals)],
                    tags={"benchmark": benchmark},
                )


def speed(entries: Sequence[Entry], events: Mapping[str, Events]) -> Iterator[Plot]:
    """Yield throughput over steps, per recipe."""
    for i, ((benchmark, preset), some) in enumerate(_by_recipe(entries)):
        series = _merged(some, lambda r: _steps(events.get(r.run_id, ()), "sequences_per_second"))
        runs = [r.run_id for e in some for r in e.results]
        marks = sorted({step for run in runs for step in _evaluated(events.get(run, ()))})
        if any(s.points for s in series):
            yield lines(
                f"speed-{i}",
                f"{preset}: throughput over steps",
                f"Sequences per second of each reported stretch of {benchmark}, {preset}; "
                f"evaluations, which are not in the rate, are marked by {len(marks)} vertical "
                f"lines.",
                series[:MOST_LINES],
                x="step",
                y="sequences/s",
                marks=marks[:60],
                from_zero=True,
                note=f"Vertical lines: evaluations. {_limit_note(series)}".strip(),
                tags={"benchmark": benchmark},
            )


def sensors(run: Result, anchor: str, telemetry: Iterable[Mapping[str, Any]]) -> list[Plot]:
    """Return each sensor of a run over time, with the timed windows shaded."""
    readings = [t for t in telemetry if _number(t.get("t"))]
    if len(readings) < 2:
        return []
    start = float(readings[0]["t"])
    times = [float(t["t"]) - start for t in readings]
    windows = _windows(times)
    plots = []
    for key, name, unit, scale in SENSORS:
        points = [
            (at, float(r[key]) * scale)
            for at, r in zip(times, readings, strict=True)
            if _number(r.get(key))
        ]
        if len(points) > 1:
            values = [v for _, v in points]
            extent = f"{number(min(values))} to {number(max(values))} {unit}"
            plots.append(
                lines(
                    f"{anchor}-{key.replace('_', '-')}",
                    f"{name} over time",
                    f"{name} in {unit}, {extent}, median {number(median(values))}. Shaded: the "
                    f"{len(windows)} stretches of the timed window; sensors are read only there.",
                    [Series(label=name, points=points)],
                    x="seconds since the first reading",
                    y=f"{name}, {unit}",
                    windows=windows[:200],
                    height=200,
                    from_zero=key in ("power_w", "memory_used_bytes"),
                )
            )
    return plots


def own_speed(anchor: str, style: int | str, events: Events) -> Iterator[Plot]:
    """Yield throughput and loss of one run over steps."""
    marks = _evaluated(events)
    for key, name in (("sequences_per_second", "sequences/s"), ("loss", "training loss")):
        points = _steps(events, key)
        if len(points) > 1:
            values = [v for _, v in points]
            yield lines(
                f"{anchor}-{key.replace('_', '-')}",
                f"{name} over steps",
                f"{name} from {number(min(values))} to {number(max(values))}, last "
                f"{number(values[-1])}; {len(marks)} evaluations are marked by vertical lines.",
                [Series(label=name, points=points, style=style)],
                x="step",
                y=name,
                marks=marks[:60],
                height=200,
                from_zero=key != "loss",
            )


def scaling(families: Sequence[Sequence[tuple[int, Entry, Value]]]) -> Iterator[Plot]:
    """Yield throughput over devices with ideal lines, on logarithmic axes."""
    ours = [f for f in families if f[0][1].measured]
    theirs = sorted((f for f in families if not f[0][1].measured), key=lambda f: -f[-1][2].median)
    for i, (some, whose) in enumerate(((ours, "measured"), (theirs[:MOST_PUBLISHED], "published"))):
        series = []
        for j, family in enumerate(some):
            n0, e, base = family[0]
            points = [(float(n), v.median) for n, _, v in family]
            ideal = [(float(n), base.median * n / n0) for n, _, _ in family]
            name = f"{e.first.device_name or e.first.system_name}, {e.workload}, {e.precision}"
            series.append(
                Series(label=name, points=points, style=j % STYLES if e.measured else REFERENCE,
                       href=e.link(), tag="" if e.measured else ascii_lowercase[j])
            )  # fmt: skip
            series.append(Series(label=f"ideal of {name}", points=ideal, style="ideal"))
        if series:
            more = len(theirs) > MOST_PUBLISHED
            left_out = f" The {MOST_PUBLISHED} fastest of {len(theirs)}." * more
            yield lines(
                f"scaling-{i}",
                f"Scaling, {whose}",
                "Sequences per second over devices (processes, on a host's processors); thin "
                "straight lines are ideal scaling from the smallest number.",
                series,
                x="devices",
                y="sequences/s",
                log=True,
                note="Thin straight lines: ideal." + left_out * (i > 0),
            )


def time_split(entries: Sequence[Entry]) -> Plot | None:
    """Return the seconds from run_start to run_stop by activity, as far as recorded."""
    rows = []
    for e in entries:
        whole = e.value("run_time_s")
        if whole is None:
            continue
        found = (e.value(name) for name in ("data_wait_s", "eval_s", "checkpoint_s"))
        parts = [v.median if v else None for v in found]
        parts.insert(1, _communication(e, whole.median))
        rest = max(0.0, whole.median - sum(v for v in parts if v is not None))
        rows.append((f"{e.label} ({number(whole.median, 3)} s)", [rest, *parts]))
    if not rows:
        return None
    return bars(
        "time-split",
        "Where the time went",
        "Shares of the time from run_start to run_stop, medians over the runs of each "
        "configuration. " + "; ".join(
            f"{label}: " + ", ".join(f"{p} {number(v, 3)} s" for p, v in zip(PARTS, values,
                                                                            strict=True)
                                     if v is not None)
            for label, values in rows[:MOST_LINES]
        ),
        rows[:MOST_LINES],
        PARTS,
        unit="s",
        note="Communication: steps x gradient_all_reduce_s, as if it did not overlap with "
        "computation. The first part includes everything that was not measured."
        + (f" {left_out}" if (left_out := _limit_note(rows)) else ""),
    )  # fmt: skip


def _communication(e: Entry, run_time_s: float) -> float | None:
    """Return the seconds of a run's all-reduces without overlap; None if unknown."""
    alone, rate = e.value("gradient_all_reduce_s"), e.value("sequences_per_second_e2e")
    if alone is None or rate is None or not e.first.global_batch:
        return None
    return alone.median * rate.median * run_time_s / e.first.global_batch


def _merged(entries: Sequence[Entry], points: Any, places: Any = None) -> list[Series]:
    """Return a series per run, or per configuration if there are many runs.

    ``points`` returns a run's points. Points of several runs are merged where ``places`` has the
    same x: the evaluation after N samples is at a different second in each run.
    """
    runs = [(e, r, found) for e in entries for r in e.results if (found := points(r))]
    if len(runs) <= MOST_LINES:
        return [
            Series(
                label=_short_label(e, entries) + ("" if r.seed is None else f", seed {r.seed}"),
                points=found,
                style=e.style,
                href=e.anchors.get(r.run_id, e.anchor),
                group=(_short_label(e, entries), e.anchor) if e.made > 1 else None,
                tag="" if e.measured else ascii_lowercase[i],
            )
            for i, (e, r, found) in enumerate(runs)
        ]
    series = []
    for e in entries:
        columns: dict[float, list[Point]] = defaultdict(list)
        n = 0
        for other, r, found in runs:
            if other is e:
                n += 1
                where = (places or points)(r)
                if len(where) == len(found):
                    for (place, _), point in zip(where, found, strict=True):
                        columns[place].append(point)
        # A median over fewer than half of the runs covers other runs than its neighbour.
        kept = sorted(
            (median([x for x, _ in some]), sorted(y for _, y in some))
            for some in columns.values()
            if 2 * len(some) >= n
        )
        if kept:
            series.append(
                Series(
                    label=_short_label(e, entries) + (f", median of {n}" if n > 1 else ""),
                    points=[(x, median(ys)) for x, ys in kept],
                    band=[(x, ys[0], ys[-1]) for x, ys in kept],
                    style=e.style,
                    href=e.anchor,
                )
            )
    return series


def _short_label(e: Entry, among: Sequence[Entry]) -> str:
    """Return device, precision and variant, and the backend if entries ``among`` differ in it."""
    label = ", ".join(filter(None, (e.device, e.first.precision, e.variant)))
    return f"{label}, {e.backend}" if len({x.backend for x in among}) > 1 else label


def _limit_note(series: Sequence[object]) -> str:
    """Return a note on the series or bars that a plot leaves out."""
    left = len(series) - MOST_LINES
    return f"{MOST_LINES} of {len(series)} configurations are drawn." if left > 0 else ""


def _evaluations(r: Result, events: Mapping[str, Events], axis: str) -> list[Point]:
    found = []
    if r.kind != "run":
        evaluations = r.manifest.get("evaluations")
        key = {"time_s": "seconds"}.get(axis, axis)
        for e in evaluations if isinstance(evaluations, list) else ():
            if isinstance(e, Mapping) and _number(e.get(key)) and _number(e.get("value")):
                found.append((float(e[key]), float(e["value"])))
        return found
    for e in events.get(r.run_id, ()):
        if e.get("kind") == "eval" and isinstance(e.get("metrics"), Mapping):
            value = e["metrics"].get(str(e.get("target_metric")))
            if _number(value) and _number(e.get(axis)):
                found.append((float(e[axis]), float(value)))
    return found


def _by_recipe(entries: Iterable[Entry]) -> list[tuple[tuple[str, str], list[Entry]]]:
    """Return (benchmark, recipe) and entries; published ones only with their evaluations."""
    found: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for e in entries:
        if e.measured or isinstance(e.first.manifest.get("evaluations"), list):
            found[e.benchmark, str(e.first.preset) if e.measured else "MLPerf logs"].append(e)
    return sorted(found.items())


def _steps(events: Iterable[Mapping[str, Any]], key: str) -> list[Point]:
    """Return the value of ``key`` over the steps that report it."""
    return [
        (float(e["step"]), float(e[key]))
        for e in events
        if e.get("kind") == "step" and _number(e.get(key)) and _number(e.get("step"))
    ]


def _evaluated(events: Iterable[Mapping[str, Any]]) -> list[float]:
    """Return the steps of the evaluations."""
    return [e["step"] for e in events if e.get("kind") == "eval" and _number(e.get("step"))]


def _windows(times: Sequence[float]) -> list[tuple[float, float]]:
    """Return the spans without a pause above three times the median interval."""
    gaps = [b - a for a, b in itertools.pairwise(times)]
    longest = max(3 * median(gaps), 0.5)
    windows, begin = [], times[0]
    for (a, b), gap in zip(itertools.pairwise(times), gaps, strict=True):
        if gap > longest:
            windows.append((begin, a))
            begin = b
    return [*windows, (begin, times[-1])]


def _targets_text(goals: Iterable[float]) -> str:
    shown = [number(g) for g in sorted(goals)]
    if len(shown) < 2:
        return f"The target is {shown[0]}." if shown else "There is no target."
    return f"The targets are {' and '.join(shown)}."


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
