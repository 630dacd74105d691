# SPDX-License-Identifier: Apache-2.0
"""The styles of series: marker, dash and colour; report.css has the colours and dashes."""

from __future__ import annotations

from markupsafe import Markup, escape

STYLES = 12
"""Styles that differ in marker and dash; six colours, each twice."""
REFERENCE = "ref"
"""Style of published figures: a colour and marker that no measured series has."""
OWN = "own"
"""Style of measured runs among series of published figures."""
_MARKERS = (
    "circle", "square", "triangle", "down", "plus", "cross", "left", "right", "pentagon",
    "hourglass", "bow", "bar",
)  # fmt: skip


def swatch(style: int | str, *, line: bool = True) -> Markup:
    """Return a legend's picture of a style, with its line or as of a scatter."""
    shown = "" if style == "ideal" else marker(style, 14, 6)
    path = '<path class="line" d="M0 6H28"/>' if line else ""
    return Markup(
        '<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true">'
        f'<g class="s{style}">{path}{shown}</g></svg>'
    )


def marker(style: int | str, x: float, y: float, r: float = 4, title: str = "") -> str:
    """Return the path of a marker of radius ``r``, with a text for the pointer."""
    kind = _MARKERS[style % STYLES] if isinstance(style, int) else "diamond"
    d = {
        "circle": f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z",
        "square": f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z",
        "triangle": f"M{x:.1f} {y - r:.1f}l{r} {2 * r}h{-2 * r}Z",
        "down": f"M{x:.1f} {y + r:.1f}l{r} {-2 * r}h{-2 * r}Z",
        "plus": f"M{x - r:.1f} {y:.1f}h{2 * r}M{x:.1f} {y - r:.1f}v{2 * r}",
        "cross": f"M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}",
        "left": f"M{x - r:.1f} {y:.1f}l{2 * r} {-r}v{2 * r}Z",
        "right": f"M{x + r:.1f} {y:.1f}l{-2 * r} {-r}v{2 * r}Z",
        "pentagon": f"M{x:.1f} {y - r:.1f}l{r} {0.8 * r:g}l{-0.4 * r:g} {1.2 * r:g}h{-1.2 * r:g}"
        f"l{-0.4 * r:g} {-1.2 * r:g}Z",
        "hourglass": f"M{x - r:.1f} {y - r:.1f}h{2 * r}l{-2 * r} {2 * r}h{2 * r}Z",
        "bow": f"M{x - r:.1f} {y - r:.1f}v{2 * r}l{2 * r} {-2 * r}v{2 * r}Z",
        "bar": f"M{x - r / 2:.1f} {y - r:.1f}h{r}v{2 * r}h{-r}Z",
        "diamond": f"M{x:.1f} {y - 1.4 * r:.1f}l{r} {1.4 * r:g}l{-r} {1.4 * r:g}"
        f"l{-r} {-1.4 * r:g}Z",
    }[kind]
    text = f"<title>{escape(title)}</title>" if title else ""
    return f'<path class="m {kind}" d="{d}">{text}</path>'
