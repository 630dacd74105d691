# SPDX-License-Identifier: Apache-2.0
"""The report as Markdown: the same tables, without pictures."""

from __future__ import annotations

from bertbench.common.report.page import Report
from bertbench.common.report.tables import MISSED, Table
from bertbench.common.report.words import markdown


def text(report: Report) -> str:
    """Return the report as Markdown: tables, plot descriptions and definitions."""
    out = [f"# bertbench report: {markdown(report.systems) or 'published figures'}", ""]
    out += [f"- {markdown(k)}: {markdown(v)}" for k, v in report.facts]
    out += ["", f"{MISSED}: the runs missed their target. Plots are in report.html."]
    for s in report.sections:
        out += ["", f'<a id="{s.id}"></a>', "", f"## {s.title}"]
        out += ["", markdown(s.text)] if s.text else []
        for t in s.tables:
            out += ["", f"### {markdown(t.title)}", "", markdown(t.intro), "", *rows(t)]
        for p in s.plots:
            out += ["", f"### {markdown(p.title)}", "", markdown(p.desc)]
        for g in s.groups:
            out += ["", f'<a id="{g.entry.anchor}"></a>', "", f"### {markdown(g.entry.label)}", ""]
            for r in g.runs:
                status = r.run.status.replace("_", " ")
                out.append(
                    f'- <a id="{r.anchor}"></a>{markdown(r.run.run_id)}: {status}'
                    + (f", {markdown(r.headline)}" if r.headline else "")
                    + (f" ({markdown(r.run.reason)})" if r.run.reason else "")
                )
    out += ["", "## Definitions", ""]
    for d in report.definitions:
        unit = f" ({markdown(d.unit)})" if d.unit else ""
        out.append(f"- **{markdown(d.name)}**{unit}: " + " / ".join(map(markdown, d.texts)))
    return "\n".join(out) + "\n"


def rows(table: Table, *, links: bool = True) -> list[str]:
    """Return a table's lines; without ``links`` (for other pages) empty columns are left out."""
    kept = [i for i, c in enumerate(table.columns) if c.name != "Logarithmic scale"]
    if not links:
        kept = [i for i in kept if any(row.cells[i].text for row in table.rows)]
    out = ["| " + " | ".join(markdown(table.columns[i].name) for i in kept) + " |"]
    out.append("|" + "|".join("--:" if table.columns[i].numeric else "---" for i in kept) + "|")
    for row in table.rows:
        cells = []
        for i in kept:
            cell = row.cells[i]
            shown = markdown(cell.text)
            if links and cell.href and shown and "://" not in cell.href:
                shown = f"[{shown}](#{cell.href})"
            anchor = row.tags.get("anchor") if links and i == 0 else None
            shown = f'<a id="{anchor}"></a>{shown}' if anchor else shown
            cells.append(f"{shown} ({markdown(cell.note)})" if cell.note else shown)
        out.append("| " + " | ".join(cells) + " |")
    return out
