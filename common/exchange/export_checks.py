# SPDX-License-Identifier: Apache-2.0
"""Check that runs can be submitted together: real, complete, unaltered, alike and enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.mlperf.compliance import RULESETS
from bertbench.common.mlperf.log import LOG
from bertbench.common.results.result import Result
from bertbench.common.results.seals import cut_short
from bertbench.common.results.validate import validate


def check_sound(runs: Sequence[Result], ruleset: str | None = None) -> None:
    """Raise BadInput unless the runs are real, complete, unaltered and repeats of each other."""
    if not runs:
        raise BadInput("no runs found: name run folders (results/SYSTEM/BENCHMARK/RUN)")
    if ruleset is not None and ruleset not in RULESETS:
        raise BadInput(
            f"MLPerf round {shown(ruleset)!r} has no BERT: choose from {', '.join(RULESETS)}"
        )
    simulated = [str(run.path) for run in runs if run.simulated]
    refuse("runs on simulated devices are not results; leave out", simulated)
    bad = [
        f"{run.path}: {run.status}" + ("" if run.manifest.get("files") else ", not finished")
        for run in runs
        if run.status not in ("ok", "below_quality") or not run.manifest.get("files")
    ]
    refuse("unfinished runs; leave them out, or run them again", bad)
    without = [str(run.path) for run in runs if run.manifest.get("mlperf") is None]
    refuse("runs without an MLPerf log: not an MLPerf benchmark", without)
    cut = [f"{run.path}: {why}" for run in runs if (why := cut_short(run.manifest, LOG))]
    refuse("runs whose MLPerf log could not be written; run them again", cut)
    blind = [str(run.path) for run in runs if run.quality is None]
    refuse("runs without an evaluation; run with real data", blind)
    wrong = [
        f"{run.path}: {p.file}: {p.text}"
        for run in runs
        for p in validate(run.path, [ruleset] if ruleset else [])
        if p.severity == "error"
    ]
    refuse("invalid records (bertbench validate); run them again", wrong)
    _check_alike(runs)


def check_complete(runs: Sequence[Result]) -> None:
    """Raise BadInput unless the runs have different seeds and the number that MLPerf requires."""
    needed = runs_needed()
    if len(runs) != needed:
        fix = (
            f"run {needed - len(runs)} more (bertbench repeat)"
            if len(runs) < needed
            else "name consecutive runs; selecting the best is forbidden"
        )
        raise BadInput(f"MLPerf requires exactly {needed} BERT runs; found {len(runs)}: {fix}")
    if len({run.seed for run in runs}) < len(runs):
        seeds = ", ".join(str(run.seed) for run in runs)
        raise BadInput(f"the runs must have different seeds (--seed); found {seeds}")
    missed = [str(run.path) for run in runs if run.status == "below_quality"]
    if len(missed) > 1:
        refuse("only one run may miss its target; these did", missed)


def runs_needed() -> int:
    """Return the number of BERT runs that the package checker requires."""
    from mlperf_logging.benchmark_meta import get_result_file_counts

    return int(get_result_file_counts("training")["bert"])


def _check_alike(runs: Sequence[Result]) -> None:
    """Raise BadInput unless system, recipe, code and options are the same."""
    properties: dict[str, Callable[[Result], Any]] = {
        "system": lambda r: r.system_name,
        "recipe (with its data)": lambda r: f"{r.preset} {r.recipe_hash}",
        "code": lambda r: r.code_hash,
        "precision": lambda r: r.precision,
        "number of processes": lambda r: r.world_size,
        "division": lambda r: r.manifest["mlperf"]["division"],
        "MLPerf round": lambda r: r.manifest["mlperf"]["ruleset"],
        "implementation options": lambda r: r.config["impl"],
        "processor": lambda r: r.system["processor"].get("model"),
        "software": lambda r: r.system["software"]["packages"],
        "devices": lambda r: [
            [d.get(key) for key in ("name", "memory_bytes", "driver", "runtime")] for d in r.devices
        ],
    }
    mixed = []
    for what, of in properties.items():
        seen: dict[str, list[str]] = {}
        for run in runs:
            seen.setdefault(json.dumps(of(run), sort_keys=True), []).append(run.run_id)
        if len(seen) > 1:
            each = "; ".join(
                f"{shown(value, 80)} in {len(ids)} ({ids[0]}{', ...' * (len(ids) > 1)})"
                for value, ids in sorted(seen.items(), key=lambda item: -len(item[1]))
            )
            mixed.append(f"{what}: {each}")
    refuse("not repeats of one run; name runs of one configuration", mixed)


def refuse(what: str, lines: Sequence[str]) -> None:
    """Raise BadInput with a finding and the items it concerns, one per line, unless none."""
    if lines:
        raise BadInput(f"{what}:\n" + "\n".join(f"  {shown(line, 600)}" for line in lines))
