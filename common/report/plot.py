# SPDX-License-Identifier: Apache-2.0
"""Small SVG plots, readable without scripts and without colour.

Up to twelve series have different markers and dashes, in six colours (Okabe and Ito's, set in
report.css for light and dark mode). Every plot has a title, a description and a table of its
values; a scatter names its points under the pointer instead. All text is escaped.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_lowercase

from markupsafe import Markup, escape

from bertbench.common.report.axis import Axis, drawable
from bertbench.common.report.markers import OWN, STYLES, marker, swatch
from bertbench.common.report.words import number

Point = tuple[float, float]
_Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a text."""
MAX_POINTS = 120
MAX_MARKERS = 32
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 480, 58, 14, 26, 40


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, or set of markers, of a plot."""

    label: str
    points: Sequence[Point]
    style: int | str = 0
    """0 to STYLES - 1, REFERENCE, OWN or "ideal"."""
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high)"""
    href: str = ""
    """Anchor of the record's section."""
    tag: str = ""
    """Written at the last point and in the legend, where series share a style."""
    group: tuple[str, str] | None = None
    """(label, anchor) of the legend's entry that several series share."""
    names: Mapping[Point, str] = field(default_factory=dict)
    """Written beside points where there is room; a named series has no line."""
    hover: Mapping[Point, str] = field(default_factory=dict)
    """Shown under the pointer. Such a series is a scatter: without a line, all points drawn."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A finished plot: the picture, its legend and the values behind it."""

    id: str
    title: str
    desc: str
    svg: Markup
    legend: Sequence[tuple[Markup, str, str]] = ()
    """(swatch, label, anchor)"""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    """The values that the filters select by."""
    seen: bool = True
    """Whether there is something to see: two points that differ, one of them not 0."""


def lines(
    ident: str,
    title: str,
    desc: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    targets: Sequence[Point | tuple[float, str]] = (),
    marks: Sequence[float] = (),
    windows: Sequence[tuple[float, float]] = (),
    log: bool = False,
    from_zero: bool = False,
    note: str = "",
    height: int = 280,
    tags: Mapping[str, str] | None = None,
    places: Sequence[str] = (),
) -> Plot:
    """Return a plot of series over a common x.

    ``targets`` are (value, label) of horizontal lines, ``marks`` x values of vertical ones,
    ``windows`` (from, to) of shaded spans; ``log`` makes both axes logarithmic to base 2. With
    ``places``, x is 0, 1, ... for these names, on an axis that is not logarithmic.
    """
    thin = [
        (s, points) for s in _told_apart(series) if (points := list(s.hover) or thinned(s.points))
    ]
    base = height - _BOTTOM
    h = _horizontal(thin, windows, places, log=log)
    ys = [p[1] for _, points in thin for p in points] + [float(t[0]) for t in targets]
    ys += [v for s, _ in thin for _, *both in s.band for v in both]
    v = Axis(ys + ([0.0] if from_zero and not log else []), base, _TOP, log=log)
    out = [_frame(h, v, x, y, height, places)]
    out += [_window(h(left), h(right), base) for left, right in windows]
    out += [f'<path class="mark" d="M{h(at):.1f} {_TOP}V{base}"/>' for at in marks]
    goals, taken = _targets(targets, v)
    ends = [end for _, end in windows]
    out += [*goals, *(_series(one, points, h, v, ends) for one, points in thin)]
    named = [(one, p) for one, points in thin for p in points if one.names]
    names = _names(named, h, v, taken)
    left_out = " Names that would overlap are only in the values below."
    note = f"{note}{left_out * (len(names) < len(named))}".strip()
    kept = sum(len(points) for _, points in thin)
    total = sum(len(s.points) for s in series)
    if kept < total:
        note = f"{note} {kept:,} of {total:,} points are drawn.".strip()
    return Plot(
        id=ident,
        title=title,
        desc=desc,
        svg=_svg(ident, title, desc, height, [*out, *names]),
        legend=_legend([s for s, _ in thin]),
        columns=(x, *(s.label for s, _ in thin)),
        rows=[] if any(s.hover for s, _ in thin) else _values([points for _, points in thin]),
        note=note,
        tags=tags or {},
        seen=len({p for _, points in thin for p in points}) > 1 and any(ys),
    )


def _window(left: float, right: float, base: int) -> str:
    width = max(1, right - left)
    place = f'x="{left:.1f}" y="{_TOP}" width="{width:.1f}" height="{base - _TOP}"'
    return f'<rect class="window" {place}/>'


def _horizontal(
    thin: Sequence[tuple[Series, Sequence[Point]]],
    windows: Sequence[tuple[float, float]],
    places: Sequence[str],
    *,
    log: bool,
) -> Axis:
    """Return the axis of x, with room beside named points and those of a scatter."""
    xs = [p[0] for _, points in thin for p in points] + [v for w in windows for v in w]
    if any(s.names for s, _ in thin) and xs:
        xs += [min(xs) - (margin := 0.06 * (max(xs) - min(xs))), max(xs) + margin]
    elif log and any(s.hover for s, _ in thin):
        xs += [min(xs) / 1.4, max(xs) * 1.4]
    if places:
        xs = [-0.5, len(places) - 0.5]
    return Axis(xs, _LEFT, _WIDTH - _RIGHT, log=log and not places, tight=True)


def bars(
    ident: str,
    title: str,
    desc: str,
    rows: Sequence[tuple[str, Sequence[float | None]]],
    parts: Sequence[str],
    *,
    unit: str,
    note: str = "",
) -> Plot:
    """Return a plot of one bar per row, divided by ``parts`` into shares; None: unknown."""
    out, pitch = [], 44
    for i, (label, values) in enumerate(rows):
        y, at, total = 6 + i * pitch, 0.0, sum(v for v in values if v is not None)
        shown = label if len(label) <= 66 else f"{label[:63]}..."
        out.append(f'<text class="label" x="0" y="{y + 11}">{escape(shown)}</text>')
        for j, value in enumerate(values):
            if not value or value < 0:
                continue
            width = value / total * _WIDTH
            share = f"{100 * value / total:.0f} %" if width > 44 else ""
            name = f"{label}: {parts[j]} {number(value)} {unit}"
            out.append(
                f'<g class="slice p{j}"><rect x="{at:.1f}" y="{y + 16}" '
                f'width="{max(0.5, width - 1):.1f}" height="18"><title>{escape(name)}</title>'
                f'</rect><text x="{at + 6:.1f}" y="{y + 29.5}">{share}</text></g>'
            )
            at += width
    height = 6 + pitch * len(rows)
    box = '<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true"><g class="slice p{}"><rect '
    return Plot(
        id=ident,
        title=title,
        desc=desc,
        svg=_svg(ident, title, desc, height, out),
        legend=[
            (Markup((box + 'x="6" width="16" height="12"/></g></svg>').format(j)), part, "")
            for j, part in enumerate(parts)
        ],
        columns=("", *(f"{part}, {unit}" for part in parts)),
        rows=[
            (label, *("" if value is None else number(value) for value in values))
            for label, values in rows
        ],
        note=note,
        seen=any(value for _, values in rows for value in values),
    )


def strip(value: float, low: float, high: float, style: int | str) -> Markup:
    """Return a cell's picture of a value on a logarithmic scale with decades as ticks."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)

    def at(x: float) -> float:
        return 8 + (math.log10(x) - first) / (last - first) * 184

    ticks = "".join(f"M{at(10.0**d):.1f} 3V15" for d in range(first, last + 1))
    return Markup(
        f'<svg class="strip" viewBox="0 0 200 18" aria-hidden="true"><path class="grid" d="{ticks}'
        f'M8 9H192"/><g class="s{style}">{marker(style, at(value), 9, 5)}</g></svg>'
    )


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most MAX_POINTS points, with both ends and the extremes of every span."""
    whole = [p for p in points if drawable(p[0]) and drawable(p[1])]
    if len(whole) <= MAX_POINTS:
        return whole
    inner, buckets = whole[1:-1], (MAX_POINTS - 2) // 2
    kept = [whole[0]]
    for i in range(buckets):
        part = inner[i * len(inner) // buckets : (i + 1) * len(inner) // buckets]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return [*kept, whole[-1]]


def _frame(h: Axis, v: Axis, x: str, y: str, height: int, places: Sequence[str]) -> str:
    grid = "".join(f"M{_LEFT} {v(t):.1f}H{_WIDTH - _RIGHT}" for t in v.ticks)
    out = [f'<path class="grid" d="{grid}"/>']
    out += [
        f'<text class="tick y" x="{_LEFT - 7}" y="{v(t) + 4:.1f}">{number(t)}</text>'
        for t in v.ticks
    ]
    base = height - _BOTTOM
    out.append(f'<path class="axis" d="M{_LEFT} {base}H{_WIDTH - _RIGHT}"/>')
    ticks = list(zip(map(float, range(len(places))), places, strict=True))
    ticks = ticks or [(t, number(t)) for t in h.ticks]
    out += [
        f'<text class="tick x" x="{h(t):.1f}" y="{base + 16}">{escape(name)}</text>'
        for t, name in ticks
    ]
    out.append(f'<text class="name x" x="{_WIDTH - _RIGHT}" y="{height - 6}">{escape(x)}</text>')
    out.append(f'<text class="name y" x="0" y="12">{escape(y)}</text>')
    return "".join(out)


def _series(one: Series, points: Sequence[Point], h: Axis, v: Axis, ends: Sequence[float]) -> str:
    """Return a line, broken behind each of ``ends``, with its band and markers."""
    out = [f'<g class="series s{one.style}" data-points="{len(points)}">']
    if one.band:
        there = [f"{h(x):.1f} {v(high):.1f}" for x, _, high in one.band]
        back = [f"{h(x):.1f} {v(low):.1f}" for x, low, _ in reversed(one.band)]
        out.append(f'<path class="band" d="M{"L".join(there + back)}Z"/>')
    if len(points) > 1 and not one.names and not one.hover:
        path, before = [], -1
        for x, y in points:
            stretch = bisect_left(ends, x)
            path.append(f"{'L' if stretch == before else 'M'}{h(x):.1f} {v(y):.1f}")
            before = stretch
        out.append(f'<path class="line" d="{"".join(path)}"/>')
    if one.style != "ideal":
        every = 1 if len(points) <= MAX_MARKERS or one.hover else math.ceil(len(points) / 10)
        for x, y in points[::every]:
            title = one.hover.get((x, y)) or f"{one.label}: {number(x)}, {number(y)}"
            size = 7 if one.style == OWN else 3 if one.hover else 4
            out.append(marker(one.style, h(x), v(y), size, title))
    if one.tag and not one.names:
        x, y = points[-1]
        out.append(f'<text x="{h(x) - 8:.1f}" y="{v(y) - 7:.1f}">{escape(one.tag)}</text>')
    return "".join((*out, "</g>"))


def _targets(targets: Sequence[Point | tuple[float, str]], v: Axis) -> tuple[list[str], list[_Box]]:
    """Return horizontal lines with their labels, and the boxes of both."""
    out, boxes = [], []
    for i, (value, label) in enumerate(targets):
        at, odd = v(float(value)), i % 2  # two targets may lie close to each other
        low, width = at + (15 if at < _TOP + 14 else -5), 7.5 * len(str(label))
        x = _WIDTH - _RIGHT - 4 if odd else _LEFT + 6
        left = x - odd * width
        boxes += [(left, low - 12, left + width, low + 2), (_LEFT, at - 1, _WIDTH, at + 1)]
        side = f'x="{x}"' + odd * ' class="end"'
        out.append(
            f'<g class="target"><path d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/><text {side} '
            f'y="{low:.1f}">{escape(label)}</text></g>'
        )
    return out, boxes


def _names(
    points: Sequence[tuple[Series, Point]], h: Axis, v: Axis, taken: Sequence[_Box]
) -> list[str]:
    """Return the names of points, right of them, left, above or below; none over another.

    ``taken`` are the boxes of other text.
    """
    boxes = [*taken, *((h(x) - 6, v(y) - 6, h(x) + 6, v(y) + 6) for _, (x, y) in points)]
    out = []
    for one, (x, y) in points:
        name = one.names.get((x, y), "")
        width = 7.3 * len(name)  # the widest of usual fonts
        for dx, dy, side in ((8, 4, 0.0), (-8, 4, 1.0), (0, -9, 0.5), (0, 18, 0.5)):
            left, low = h(x) + dx - side * width, v(y) + dy
            if side == 0.5:
                left = min(max(left, _LEFT), _WIDTH - width)
            box = (left, low - 11, left + width, low + 2)
            inside = left >= _LEFT and box[2] <= _WIDTH and v.end <= box[1] and low <= v.start
            if inside and not any(_overlap(box, other) for other in boxes):
                boxes.append(box)
                place = f'x="{left:.1f}" y="{low:.1f}"'
                out.append(f'<text class="point s{one.style}" {place}>{escape(name)}</text>')
                break
    return out


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _svg(ident: str, title: str, desc: str, height: int, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg class="plot" role="img" viewBox="0 0 {_WIDTH} {height}" '
        f'aria-labelledby="{ident}-t {ident}-d"><title id="{ident}-t">{escape(title)}</title>'
        f'<desc id="{ident}-d">{escape(desc)}</desc>{"".join(parts)}</svg>'
    )


def standalone(plot: Plot) -> str:
    """Return a plot as an SVG file of its own, with the style that a report's page has."""
    css = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    start, _, rest = str(plot.svg).partition(">")
    start = start.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    ground = 'width="100%" height="100%" fill="var(--paper)"'
    return f"{start}><style>{css}</style><rect {ground}/>{rest}\n"


def _told_apart(series: Sequence[Series]) -> list[Series]:
    """Return the series with free styles instead of shared ones; with letters where none is free.

    Series of one group share theirs.
    """
    free = [style for style in range(STYLES) if all(s.style != style for s in series)]
    styles: dict[tuple[str, str], int | str] = {}
    for s in series:
        if _identity(s) not in styles:
            taken = isinstance(s.style, int) and s.style in styles.values()
            styles[_identity(s)] = free.pop(0) if taken and free else s.style
    names: dict[int | str, dict[tuple[str, str], str]] = defaultdict(dict)
    for known, style in styles.items():
        names[style][known] = ascii_lowercase[len(names[style]) % 26]
    return [
        replace(
            s,
            style=(style := styles[_identity(s)]),
            tag=names[style][_identity(s)]
            if len(names[style]) > 1 and style != "ideal" and not s.tag
            else s.tag,
        )
        for s in series
    ]


def _identity(s: Series) -> tuple[str, str]:
    """Return what a series shares with those of its group: the legend's label and anchor."""
    return s.group or (s.label, s.href)


def _legend(series: Sequence[Series]) -> list[tuple[Markup, str, str]]:
    """Return one entry per series or group, without the ideal ones."""
    found = {}
    for s in series:
        label, href = _identity(s)
        if s.style != "ideal":
            found[f"{s.tag}  {label}".strip(), href] = swatch(s.style, line=not s.hover)
    return [(picture, label, href) for (label, href), picture in found.items()]


def _values(series: Sequence[Sequence[Point]]) -> list[list[str]]:
    """Return a row per x with a column per series."""
    columns = [dict(points) for points in series]
    xs = sorted({x for column in columns for x in column})
    return [[number(x), *(number(c[x]) if x in c else "" for c in columns)] for x in xs]
