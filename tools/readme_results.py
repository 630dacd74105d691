# SPDX-License-Identifier: Apache-2.0
"""Write the pages' tables of results, and results/machines.json, from the records in results/.

python tools/readme_results.py           # writes them
python tools/readme_results.py --check   # exits with 1 if they are out of date
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertbench.common.report import markdown
from bertbench.common.report.groups import entries
from bertbench.common.report.page import Report
from bertbench.common.results.attention import attention
from bertbench.common.results.machines import row
from bertbench.common.results.seals import MANIFEST
from bertbench.common.results.store import load_results

ROOT = Path(__file__).resolve().parents[1]
PEERS = "peers"
"""Folder of the comparisons with other software by tools/bench_*."""
MASKS = "masks"
"""Folder of the runs that compare attention masks: their speed was not of interest."""
BEGIN, END = "<!-- results: written by tools/readme_results.py -->", "<!-- end of results -->"
TABLES = ("configurations", "scaling-table")


def committed(results: Path) -> list[Path]:
    """Return the records below ``results`` that git knows: not those of whoever runs this.

    Without git or a checkout (an archive of the source) these are all.
    """
    command = ["git", "-C", str(results), "ls-files", "-z", "--", f"*/{MANIFEST}"]
    try:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    except (OSError, subprocess.CalledProcessError):
        return [results]
    return [file for name in done.stdout.split("\0") if (file := results / name).is_file()]


def of_records(results: Path) -> str:
    """Return the report's tables of measured runs as Markdown, without links."""
    measured = [p for p in committed(results) if (results / MASKS) not in p.parents]
    report = Report(*load_results(measured, references=False))
    found = [t for s in report.sections for t in s.tables if t.id in TABLES and not s.simulated]
    return "\n\n".join("\n".join((t.intro, "", *markdown.rows(t, links=False))) for t in found)


def of_machines(results: Path) -> str:
    """Return results/machines.json: medians of the measured runs that reached their target."""
    measured = [p for p in committed(results) if (results / MASKS) not in p.parents]
    found = []
    for entry in entries(load_results(measured, references=False)[0]):
        time, rate = entry.value("time_to_target_s"), entry.value("sequences_per_second")
        if time is None or rate is None or entry.first.simulated:
            continue
        medians = {
            "samples": statistics.median(r.samples for r in entry.reached if r.samples),
            "time_to_target_s": time.median,
            "sequences_per_second": rate.median,
        }
        found.append(row(entry.first, medians, time.n))
    return json.dumps({"machines": found}, indent=1) + "\n"


def repeated(results: Path) -> str:
    """Return the rows of ``of_records`` that have a confidence interval."""
    rows = of_records(results).split("\n\n")[1].splitlines()
    return "\n".join(row for row in rows if "(indicative" not in row)


def of_squad(results: Path) -> str:
    """Return the tables of tools/bench_squad.py's saved results."""
    from bench import squad_features, squad_quality, squad_speed

    parts = {
        "Sequences per second": ("speed.json", squad_speed.show),
        "EM and F1": ("quality.json", squad_quality.show),
        "Features": ("features.json", squad_features.show),
    }
    return _of_peers(results / PEERS / "squad", parts)


def of_glue(results: Path) -> str:
    """Return the tables of tools/bench_glue.py's saved results."""
    from bench import glue_quality, glue_speed

    parts = {"Sequences per second": ("speed.json", glue_speed.show)}
    for task in ("MNLI", "QNLI", "SNLI"):
        parts[f"Accuracy, {task}"] = (f"{task.lower()}/quality.json", glue_quality.show)
    return _of_peers(results / PEERS / "glue", parts)


def of_masks(results: Path) -> str:
    """Return the table of the runs that continued from the same weights, each under one mask."""
    folder = results / MASKS
    records = [p for p in committed(results) if folder in p.parents]
    runs = load_results(records, references=False)[0]
    goals = {  # of the searches, by the hash of the mask that each found
        run.manifest["extras"]["mask_search"]["hash"]: run.config["recipe"]
        for run in runs
        if attention(run).searched
    }
    found: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        mask = attention(run)
        if not mask.searched:
            goal = goals.get(mask.key)
            name = mask.name
            if goal is not None:
                name = f"**searched**, goal {100 * goal['target_sparsity']:g} %"
                name += ", [CLS] kept" if goal["search_globals"] == "0" else ""
            point = 100 * (mask.sparsity_ratio or 0), run.metrics["mlm_accuracy"]["value"]
            found.setdefault(name, []).append(point)
    lines = [
        "| mask | sparsity ratio, % | seeds | MLM accuracy, mean (lowest to highest) |",
        "|---|--:|--:|--:|",
    ]
    for name, points in sorted(found.items(), key=lambda row: row[1]):
        ratios, scores = zip(*points, strict=True)
        spread = f"{statistics.mean(scores):.4f} ({min(scores):.4f} to {max(scores):.4f})"
        lines.append(f"| {name} | {statistics.mean(ratios):.1f} | {len(scores)} | {spread} |")
    return "\n".join(lines)


def of_sparse(results: Path) -> str:
    """Return the tables of tools/bench_sparse.py's saved results."""
    import bench_sparse

    return _of_peers(
        results / PEERS / "sparse", {"Time and memory": ("speed.json", bench_sparse.tables)}
    )


def of_inference(results: Path) -> str:
    """Return the table of real models, and those of tools/bench_inference.py's saved results."""
    import inference_table
    from bench import inference_loadgen, inference_speed

    def without_environment(content: dict[str, Any]) -> str:
        shown = inference_loadgen if content["mode"] == "loadgen" else inference_speed
        return shown.show(content).split("\n\n", 1)[1]

    parts: dict[str, tuple[str, Any]] = {
        "Four models on SQuAD": ("models.json", inference_table.show)
    }
    for title, name in (
        ("INT8 over FP32, BERT-base", "int8"),
        ("Beside other software", "peers"),
        ("Batches sorted by length", "bucketing"),
        ("Tokens of a batch", "batch_tokens"),
        ("LoadGen's cost", "loadgen"),
    ):
        parts[title] = (f"{name}.json", without_environment)
    return _of_peers(results / PEERS / "inference", parts)


def _of_peers(folder: Path, parts: dict[str, tuple[str, Any]]) -> str:
    shown = []
    for title, (name, show) in parts.items():
        file = folder / name
        if file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            about = content.get("environment", {})
            where = ", ".join(f"{k} {v}" for k, v in about.items() if isinstance(v, str))
            shown += [f"### {title}", *([f"{where}."] if where else []), show(content).strip()]
    return "\n\n".join(shown)


PAGES = {
    "README.md": repeated,
    "docs/results.md": of_records,
    "benchmarks/bert_squad/README.md": of_squad,
    "benchmarks/glue/README.md": of_glue,
    "docs/sparse-attention.md": of_sparse,
    "benchmarks/sparse_bert/README.md": of_masks,
    "benchmarks/bert_inference/README.md": of_inference,
}


def written(readme: str, tables: str) -> str:
    """Return ``readme`` with ``tables`` between its two marks."""
    head, rest = readme.split(BEGIN)
    return f"{head}{BEGIN}\n{tables}\n{END}{rest.split(END)[1]}"


def pages() -> dict[str, Callable[[], str]]:
    """Return each file that this tool writes, and what makes its whole content."""
    results = ROOT / "results"
    whole: dict[str, Callable[[], str]] = {"results/machines.json": lambda: of_machines(results)}
    for name, made in PAGES.items():
        page = ROOT / name
        whole[name] = lambda page=page, made=made: written(page.read_text("utf-8"), made(results))
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args()
    wrong = 0
    for name, made in pages().items():
        page = ROOT / name
        old = page.read_text(encoding="utf-8") if page.is_file() else None
        new = made()
        if old == new:
            continue
        wrong = 1
        if given.check:
            print(f"{name}: it is out of date: run tools/readme_results.py")
        else:
            page.write_text(new, encoding="utf-8")
    return wrong if given.check else 0


if __name__ == "__main__":
    sys.exit(main())
