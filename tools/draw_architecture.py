# SPDX-License-Identifier: Apache-2.0
"""Draw docs/architecture.svg from the product's imports: rooms on floors, one arrow an import.

python tools/draw_architecture.py           # write it
python tools/draw_architecture.py --check   # exit with 1 if the file differs

An arrow that a longer path implies is left out. A room's floor is just below the lowest room that
imports it. Modules that import only each other (errors, files) are the ground under all rooms.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
BOX, HIGH, FLOOR, MARGIN = 116, 34, 74, 24
COLOURS = {"backends": "#fde7c8", "benchmarks": "#d9efd9", "engines": "#e3ddf5"}
Edges = dict[str, set[str]]


def room(module: str) -> str | None:
    """Return the room of a module of the package, or None for the package itself and others."""
    parts = module.split(".")
    place = parts[2:3] if parts[1:2] == ["common"] else parts[1:2]
    return place[0] if parts[0] == "bertbench" and place else None


def imported(node: ast.AST) -> Iterator[str]:
    """Yield the modules that ``node`` imports at run time."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


def read() -> tuple[Edges, set[str]]:
    """Return room -> imported rooms without the ground, and the ground."""
    edges: Edges = {}
    for folder in ("backends", "benchmarks", "common", "engines"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if name := room(".".join(("bertbench", *parts)).removesuffix(".__init__")):
                tree = ast.parse(path.read_text(encoding="utf-8"))
                edges.setdefault(name, set()).update(r for m in imported(tree) if (r := room(m)))
    edges = {name: (seen & edges.keys()) - {name} for name, seen in edges.items()}
    modules = {name for name in edges if (ROOT / "common" / f"{name}.py").is_file()}
    ground = {name for name in modules if edges[name] <= modules}
    return {name: edges[name] - ground for name in edges.keys() - ground}, ground


def below(name: str, edges: Edges) -> set[str]:
    """Return all rooms that ``name`` imports, directly or through others."""
    return edges[name].union(*(below(other, edges) for other in edges[name]))


def floors(edges: Edges) -> dict[str, int]:
    """Return room -> floor: each room just below the lowest that imports it."""

    def depth(name: str) -> int:
        return 1 + max((depth(n) for n, seen in edges.items() if name in seen), default=-1)

    depths = {name: depth(name) for name in edges}
    return {name: max(depths.values()) - deep for name, deep in depths.items()}


def place(paths: list[list[str]], floor: dict[str, int]) -> dict[str, float]:
    """Return room or bend -> x of its centre, near the mean of its neighbours'."""
    bends = {bend for path in paths for bend in path[1:-1]}
    links: Edges = {name: set() for name in sorted(floor)}
    for one, two in (pair for path in paths for pair in pairwise(path)):
        links.setdefault(one, set()).add(two)
        links.setdefault(two, set()).add(one)
    rows: list[list[str]] = [[] for _ in range(1 + max(floor.values()))]
    for name in links:
        rows[floor[name]].append(name)
    x = {name: 900 * (i + 0.5) / len(row) for row in rows for i, name in enumerate(row)}
    for turn in range(60):
        for row in rows if turn % 2 else reversed(rows):
            want = {n: sum(sorted(x[o] for o in links[n])) / (len(links[n]) or 1) for n in row}
            row.sort(key=lambda n, want=want: (want[n], n))  # type: ignore[misc]
            at = [want[n] for n in row]
            for i, (one, two) in enumerate(pairwise(row)):
                room_for = sum((36 if n in bends else BOX + 24) / 2 for n in (one, two))
                at[i + 1] = max(at[i + 1], at[i] + room_for)
            shift = (sum(want.values()) - sum(at)) / len(row)
            x.update({n: a + shift for n, a in zip(row, at, strict=True)})
    left = min(x.values()) - BOX / 2 - MARGIN
    return {n: a - left for n, a in x.items()}


def draw() -> str:
    """Return the picture as SVG."""
    whole, ground = read()
    edges = {n: seen - set().union(*(below(o, whole) for o in seen)) for n, seen in whole.items()}
    floor, paths = floors(edges), []
    for start, end in sorted((a, b) for a, seen in edges.items() for b in seen):
        bends = {f"{start}>{end}@{k}": k for k in range(floor[start] - 1, floor[end], -1)}
        paths.append([start, *bends, end])
        floor |= bends
    x = place(paths, floor)
    base = MARGIN + FLOOR * (1 + max(floor.values()))
    y = {name: base - FLOOR * (1 + floor[name]) for name in x}
    width = max(x.values()) + BOX / 2 + MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" '
        f'viewBox="0 0 {width:.0f} {base + HIGH + MARGIN}" '
        'font-family="sans-serif" font-size="15" text-anchor="middle">',
        '<marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#666"/></marker>',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for path in paths:
        d = f"M{x[path[0]]:.0f} {y[path[0]] + HIGH}"
        for one, two in pairwise(path):
            top, end = y[one] + HIGH, y[two]
            d += f"C{x[one]:.0f} {top + 24} {x[two]:.0f} {end - 24} {x[two]:.0f} {end}"
            d += f"V{end + HIGH}" if two != path[-1] else ""
        out.append(f'<path d="{d}" fill="none" stroke="#888" marker-end="url(#a)"/>')
    boxes = [(n, x[n], y[n], BOX, COLOURS.get(n, "#e3ecf7")) for n in sorted(edges)]
    boxes.append((", ".join(sorted(ground)), width / 2, base, width - 2 * MARGIN, "#eee"))
    for name, middle, top, wide, fill in boxes:
        where = f'x="{middle - wide / 2:.0f}" y="{top}" width="{wide:.0f}" height="{HIGH}"'
        out.append(f'<rect {where} rx="5" fill="{fill}" stroke="#555"/>')
        out.append(f'<text x="{middle:.0f}" y="{top + 22}">{name}</text>')
    return "\n".join((*out, "</svg>", ""))


def main() -> int:
    """Write or check the picture; return the exit code."""
    picture = draw()
    if sys.argv[1:] != ["--check"]:
        PICTURE.write_text(picture, encoding="utf-8")
    elif not PICTURE.is_file() or PICTURE.read_text(encoding="utf-8") != picture:
        print("docs/architecture.svg is outdated: run tools/draw_architecture.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
