# SPDX-License-Identifier: Apache-2.0
"""``bertbench export-mlperf`` of inference records: the tree of MLPerf Inference since round 6.0.

    DIR/DIVISION/ORG/
        systems/SYSTEM.json
        results/SYSTEM/{bert-99,bert-99.9}/SCENARIO/
            accuracy/           accuracy.txt, LoadGen's logs, that of the answers truncated
            performance/run_1/  LoadGen's logs
            TEST01/             the compliance test, if it was made; closed requires it
            measurements.json, user.conf, README.md
        documentation/calibration.md    of an INT8 model
        src/                    the code, if it is the code that ran

Source: tools/submission/submission_checker and truncate_accuracy_log.py of mlcommons/inference. The
checker itself is no package; what it requires is checked here before anything is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertbench.common.errors import BadInput
from bertbench.common.exchange.export_checks import refuse
from bertbench.common.exchange.export_mlperf import (
    FIXED,
    NAME,
    appear,
    check_target,
    copy_source,
    source_notes,
)
from bertbench.common.exchange.export_system import (
    FIELDS,
    INFERENCE_FIELDS,
    INFERENCE_STATUSES,
    describe,
)
from bertbench.common.files import shown
from bertbench.common.measure.code import code_hash
from bertbench.common.mlperf.inference import OFFICIAL, REFERENCE_F1, SHARES, TEST01
from bertbench.common.mlperf.loadgen import ACCURACY, DETAIL, SUMMARY, broken_rules, read_detail
from bertbench.common.results.result import Result
from bertbench.common.results.validate import validate

ROUND = "6.1"
REQUIRED = ("SingleStream", "Offline")
"""The scenarios of BERT, which the closed division requires and knows."""
SYSTEM_TYPES = ("datacenter", "edge", "datacenter,edge", "edge,datacenter")
_LARGEST_LOG, _PART = 10 << 10, 4096


def export(
    results: Sequence[Result],
    out: Path,
    org: str,
    *,
    division: str = "open",
    fields: dict[str, str] | None = None,
) -> tuple[Path, list[str]]:
    """Write ``out/division/org`` and return it with notes for the user.

    ``fields`` are the user's fields of the system's description. Raises BadInput for anything that
    cannot be submitted, before anything is written.
    """
    fields = dict(fields or {})
    clash = [name for name in FIXED if name in fields]
    if clash:
        raise BadInput(f"{', '.join(clash)} follows from --org and --division: leave it out")
    check_target(out / division, org)
    runs = {str(r.config["recipe"].get("scenario")): r for r in results}
    _check(results, division)
    first = results[0]
    known = {"submitter": org, "division": division, "system_name": first.system_name}
    names = {**FIELDS, **INFERENCE_FIELDS}
    system, notes = describe(first, fields, known, names=names, statuses=INFERENCE_STATUSES)
    if system["system_type"] not in SYSTEM_TYPES:
        raise BadInput(f"--system_type {shown(system['system_type'])}: {', '.join(SYSTEM_TYPES)}")
    if division == "closed" and "edge" not in system["system_type"]:
        raise BadInput("--system_type datacenter: MLPerf's closed division has BERT in edge only")
    name = system["system_name"]
    if not NAME.fullmatch(name):
        raise BadInput(f"--system_name {shown(name)!r} cannot name a folder: letters, digits, . _")
    own = code_hash() == first.code_hash
    notes += source_notes(results, division, own)

    def build(tree: Path) -> None:
        (tree / "systems").mkdir(parents=True)
        _write(tree / "systems" / f"{name}.json", json.dumps(system, indent=2) + "\n")
        for benchmark in _benchmarks(results):
            for scenario, run in runs.items():
                _scenario(tree / "results" / name / benchmark / scenario, run, division, own)
        if first.precision == "int8":
            (tree / "documentation").mkdir()
            _write(tree / "documentation" / "calibration.md", _CALIBRATION)
        copy_source(tree / "src") if own else (tree / "src").mkdir()
        if not own:
            _write(tree / "src" / "README.md", f"bertbench, {first.manifest['commit']}\n")

    return appear(out / division / org, build, lambda tree: []), notes


# -- what can be submitted -------------------------------------------------------------------------
def _check(runs: Sequence[Result], division: str) -> None:
    """Raise BadInput unless the runs are official, VALID, unaltered, alike and enough."""
    refuse(
        "runs of training and of inference are different submissions; name one kind",
        [str(r.path) for r in runs if not r.exported],
    )
    refuse(
        "runs on simulated devices are not results; leave out",
        [str(r.path) for r in runs if r.simulated],
    )
    profiles = {r.path: r.config["recipe"].get("profile") for r in runs}
    unofficial = [f"{path}: {shown(p)} profile" for path, p in profiles.items() if p != OFFICIAL]
    refuse("no MLPerf results; run again with --profile official", unofficial)
    accepted = ("ok",) if division == "closed" else ("ok", "below_quality")
    refuse(
        f"results that the {division} division does not take",
        [f"{r.path}: {r.status}: {r.reason}" for r in runs if r.status not in accepted],
    )
    tests = ("accuracy", "performance", *((TEST01,) if division == "closed" else ()))
    lacking = [
        f"{r.path}: {test} test"
        for r in runs
        for test in tests
        if f"{test}_{DETAIL}" not in _files(r)
    ]
    refuse("tests that were not made; run again with --mode both --audit TEST01", lacking)
    refuse(
        "invalid records (bertbench validate); run them again",
        [f"{r.path}: {p.file}: {p.text}" for r in runs for p in validate(r.path)
         if p.severity == "error"],
    )  # fmt: skip
    refuse("LoadGen's logs break MLPerf's rules; run again", list(_broken(runs)))
    _check_alike(runs)
    if division == "closed":
        _check_closed(runs)


def _broken(runs: Sequence[Result]) -> list[str]:
    return [
        f"{r.path}: {test}: {text}"
        for r in runs
        for test in ("accuracy", "performance", TEST01)
        if f"{test}_{DETAIL}" in _files(r)
        for text in broken_rules(read_detail(r.path / f"{test}_{DETAIL}"), _scenario_of(r))
    ]


def _check_alike(runs: Sequence[Result]) -> None:
    scenarios = [_scenario_of(r) for r in runs]
    twice = sorted({s for s in scenarios if scenarios.count(s) > 1})
    refuse("one run of each scenario makes a submission; name fewer", twice)
    for what, values in (
        ("system", {r.system_name for r in runs}),
        ("code", {str(r.code_hash) for r in runs}),
        ("model", {str(r.manifest["inputs"].get("checkpoint")) for r in runs}),
        ("engine", {json.dumps(r.extras.get("engine"), sort_keys=True) for r in runs}),
        ("software", {json.dumps(r.system["software"], sort_keys=True) for r in runs}),
    ):
        if len(values) > 1:
            refuse(f"the runs differ in {what}; name runs of one configuration", sorted(values))


def _check_closed(runs: Sequence[Result]) -> None:
    """Raise BadInput for what the closed division forbids: other scenarios and other weights."""
    scenarios = {_scenario_of(r) for r in runs}
    if scenarios != set(REQUIRED):
        raise BadInput(
            f"the closed division has BERT in {' and '.join(REQUIRED)}, and requires both; found "
            f"{', '.join(sorted(scenarios))}: --division open takes any"
        )
    exported = runs[0].exported
    if exported.get("weight_sparsity") is not None or exported.get("step") != 0:
        raise BadInput(
            "the closed division takes MLPerf's reference weights, neither trained further nor "
            "pruned: --division open"
        )


def _scenario_of(run: Result) -> str:
    return str(run.config["recipe"]["scenario"])


def _files(run: Result) -> Mapping[str, Any]:
    return run.manifest.get("files") or {}


def _benchmarks(runs: Sequence[Result]) -> list[str]:
    """Return the benchmarks whose share of F1 all runs reach; the open division sets none."""
    f1 = min(run.value("f1") or 0.0 for run in runs)
    reached = [name for name, share in SHARES.items() if f1 >= share * REFERENCE_F1]
    return reached or [next(iter(SHARES))]


# -- the files -------------------------------------------------------------------------------------
def _scenario(folder: Path, run: Result, division: str, own: bool) -> None:
    """Write one scenario of one benchmark."""
    answers = run.content(f"accuracy_{ACCURACY}")
    scores = {name: run.value(name) for name in ("exact_match", "f1")}
    hashed = f"{json.dumps(scores)}\nhash={hashlib.sha256(answers).hexdigest()}\n"
    _logs(folder / "accuracy", run, "accuracy")
    (folder / "accuracy" / ACCURACY).write_bytes(truncated(answers))
    _write(folder / "accuracy" / "accuracy.txt", hashed)
    _logs(folder / "performance" / "run_1", run, "performance")
    if f"{TEST01}_{DETAIL}" in _files(run):
        _test01(folder / TEST01, run)
    _write(folder / "measurements.json", json.dumps(_measurements(run), indent=2) + "\n")
    (folder / "user.conf").write_bytes(run.content("user.conf"))
    _write(folder / "README.md", _readme(run, division, own))


def _logs(folder: Path, run: Result, test: str) -> None:
    folder.mkdir(parents=True)
    for name in (DETAIL, SUMMARY):
        (folder / name).write_bytes(run.content(f"{test}_{name}"))


def truncated(log: bytes) -> bytes:
    """Return at most 10 KiB of an accuracy log: all, or its first and last 4 KiB."""
    if len(log) <= _LARGEST_LOG:
        return log
    return log[:_PART] + b"\n\n...\n\n" + log[-_PART:]


def _test01(folder: Path, run: Result) -> None:
    """Write the compliance test; where single bits differ, with the scores of both tests."""
    found = run.extras["audit"]
    _logs(folder / "performance" / "run_1", run, TEST01)
    (folder / "accuracy").mkdir()
    (folder / "accuracy" / ACCURACY).write_bytes(run.content(f"{TEST01}_{ACCURACY}"))
    same = not found["different_samples"]
    _write(
        folder / "verify_accuracy.txt",
        f"logged samples: {found['logged_samples']}, different: {found['different_samples']}\n"
        f"TEST {'PASS' if same else 'FAIL'}\n",
    )
    _write(
        folder / "verify_performance.txt",
        f"{found['figure']}: reference {found['performance']}, test {found['audit']}\n"
        f"TEST {'PASS' if found['performance_passed'] else 'FAIL'}\n",
    )
    if not same:
        for name, of in (("baseline", "accuracy_test"), ("compliance", "audit")):
            scores = {score: found[f"{score}_of_{of}"] for score in ("exact_match", "f1")}
            _write(folder / "accuracy" / f"{name}_accuracy.txt", json.dumps(scores) + "\n")
        _write(folder / "accuracy" / "accuracy.txt", json.dumps(scores) + "\n")


def _measurements(run: Result) -> dict[str, str]:
    exported, hashed = run.exported, run.manifest["inputs"].get("checkpoint")
    changes = {"weight_sparsity": "pruning", "quantization": "quantization"}
    made = [f"{exported[key]} {what}" for key, what in changes.items() if exported.get(key)]
    step = exported.get("step")
    return {
        "starting_weights_filename": f"model.onnx of run {exported.get('run')}, sha256 {hashed}",
        "weight_data_types": str(run.precision),
        "weight_transformations": ", ".join(made) or "none",
        "input_data_types": "int64",
        "retraining": "no" if step == 0 else f"yes: {'unknown' if step is None else step} steps",
    }


def _readme(run: Result, division: str, own: bool) -> str:
    command = " ".join(["bertbench", *map(str, run.manifest["command"])])
    source = "in `src/`" if own else f"commit {run.manifest['commit']}"
    return (
        f"# BERT, {_scenario_of(run)}\n\nMLPerf Inference {ROUND}, {division} division. Made with "
        f"bertbench, {source} (hash {run.code_hash}): run {run.run_id}.\n\n"
        f"    bash init.sh\n    {shown(command, 2000)}\n\n"
        "`benchmarks/bert_inference/README.md` of the source describes model, data and engines.\n"
        f"Hashes of questions and model: {shown(json.dumps(run.manifest['inputs']), 400)}\n"
    )


_CALIBRATION = """# Calibration

Weights (-127 to 127) and activations (-128 to 127) are INT8: symmetric, with one scale a tensor.
The scales are those of the exported model; `common/compress/` of the source makes them, and
`benchmarks/bert_squad/README.md` describes the recipe.
"""


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
