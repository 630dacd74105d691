# SPDX-License-Identifier: Apache-2.0
"""``bertbench validate``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bertbench.common.cli.filters import PLACE, add_filters, chosen_folders
from bertbench.common.cli.verbs import parser
from bertbench.common.errors import BadInput
from bertbench.common.files import read_json, shown
from bertbench.common.results.result import identity
from bertbench.common.results.seals import MANIFEST
from bertbench.common.results.statistics import ENOUGH
from bertbench.common.results.store import find_runs
from bertbench.common.results.validate import Problem, validate

_LONGEST = 4096
"""Characters of a path."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the problems of each record; returns 1 unless all are valid results.

    Records of simulated devices count as valid only with ``--simulated``. Raises BadInput for a
    path without records.
    """
    verb = parser("validate", epilog="Exit code: 0 all are valid results, 1 some are not")
    verb.add_argument(
        "runs", nargs="*", type=Path, help=f"run folders, or folders of them (default: {PLACE})"
    )
    verb.add_argument(
        "--ruleset", action="append", default=[], metavar="N.N",
        help="MLPerf round; default: the record's. Repeat it for more",
    )  # fmt: skip
    verb.add_argument(
        "--simulated", action="store_true", help="accept valid records of simulated devices"
    )
    add_filters(verb)
    options = verb.parse_args(argv)
    results: dict[str, list[Problem]] = {}
    for path in chosen_folders(options, options.runs):
        records, damaged = find_runs(path)
        if not path.exists() or not (records or damaged):
            raise BadInput(
                f"no record in {shown(path)}: give a run folder (results/SYSTEM/BENCHMARK/RUN)"
            )
        results.update({str(run): validate(run, options.ruleset) for run in records})
        results.update({str(d.path): [Problem("error", MANIFEST, d.problem)] for d in damaged})
    valid = {run: not any(p.severity == "error" for p in found) for run, found in results.items()}
    manifests = {run: read_json(Path(run) / MANIFEST) for run in results if valid[run]}
    simulated = {run: valid[run] and manifests[run].get("simulated", False) for run in results}
    groups = _groups({run: m for run, m in manifests.items() if not simulated[run]})
    if options.json:
        report = [
            {
                "run": run,
                "valid": valid[run],
                "simulated": simulated[run],
                "repeats": len(groups.get(run, ())),
                "problems": [asdict(p) for p in found],
            }
            for run, found in results.items()
        ]
        print(json.dumps(report, indent=1))
    else:
        for run, found in results.items():
            verdict = "valid, but SIMULATED: no result" if simulated[run] else "valid"
            print(f"{shown(run, _LONGEST)}: {verdict if valid[run] else 'NOT VALID'}")
            for p in found:
                print(f"  {p.severity}: {shown(p.file)}: {shown(p.text, 400)}")
        for group in dict.fromkeys(groups.values()):
            print(_repeats([manifests[run] for run in group]))
    return 0 if all(valid[r] and (options.simulated or not simulated[r]) for r in results) else 1


def _groups(manifests: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return each finished run's repeats: same system, recipe, inputs, code, precision, kernels.

    A copy of a run, also under another name, counts once.
    """
    groups: dict[tuple[Any, ...], list[str]] = {}
    seen: set[str] = set()
    for run, m in manifests.items():
        if m["status"] in ("ok", "below_quality") and identity(m) not in seen:
            seen.add(identity(m))
            same = [m[key] for key in ("system", "recipe_hash", "code_hash", "world_size")]
            kernels = json.dumps(m["extras"].get("kernels"), sort_keys=True)
            key = (*same, m["extras"].get("precision"), kernels)
            groups.setdefault(key, []).append(run)
    return {run: tuple(group) for group in groups.values() for run in group}


def _repeats(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a line on the number of repeats, from their manifests."""
    first, n = runs[0], len(runs)
    seeds = sorted({m["seed"] for m in runs})
    text = f"{n} run{'s' * (n > 1)} of {first['preset']} on {first['system']}"
    text += f" ({first['recipe_hash']}; {sum(m['status'] == 'ok' for m in runs)} ok)"
    if n < ENOUGH:
        text += f": indicative; an interval needs {ENOUGH} runs"
    if dirty := sum(bool(m["dirty"]) for m in runs):
        text += f"; {dirty} of code with uncommitted changes"
    if len(seeds) < n:
        text += f"; only {len(seeds)} different seed{'s' * (len(seeds) > 1)}"
    return shown(text)
