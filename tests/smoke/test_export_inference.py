# SPDX-License-Identifier: Apache-2.0
"""An MLPerf Inference submission: what its checker requires, as far as files can show it.

The records are real ones of a tiny model, in whose logs the figures are replaced by those of an
official run. Source of the rules: tools/submission/submission_checker of mlcommons/inference.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from bertbench.common.cli.main import main
from bertbench.common.config.recipe import hash_values
from bertbench.common.exchange.export_inference import truncated
from bertbench.common.exchange.export_system import FIELDS, INFERENCE_FIELDS
from bertbench.common.mlperf.inference import MIN_QUERIES, TARGET_F1
from bertbench.common.mlperf.loadgen import CLOCK, metrics, read_detail
from tests.smoke.conftest import manifest
from tests.unit.inference.conftest import export  # noqa: F401
from tests.unit.inference.tiny_export import write_questions
from tests.unit.results.constructed import seal

pytest.importorskip("mlperf_loadgen")
pytest.importorskip("onnxruntime")
TESTS = ("accuracy", "performance", "TEST01")
F1_LINE = re.compile(r"^{[\"']exact_match[\"']:\s*[\d.]+,\s*[\"']f1[\"']:\s*([\d.]+)}")
FILLED = {*FIELDS, *INFERENCE_FIELDS} - {
    "host_processor_frequency", "host_processor_caches", "host_processor_interconnect",
    "accelerator_frequency", "accelerator_interconnect_topology", "accelerator_on-chip_memories",
    "hw_notes", "sw_notes", "system_type_detail",
}  # fmt: skip
"""Fields of the system that may not be empty."""


@pytest.fixture(scope="module")
def tiny(export: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # noqa: F811
    """Scenario -> a record with all three tests, under the non-official profile."""
    folder = tmp_path_factory.mktemp("tiny")
    questions = write_questions(folder / "dev.json")
    for scenario, expected in (
        ("Offline", ("--target_qps", "1e4")),
        ("SingleStream", ("--target_latency_ms", "0.01", "--min_queries", "100")),
    ):
        main(["infer", str(export), "--predict_file", str(questions), "--output_dir", str(folder),
              "--num_threads", "1", "--profile", "non-official", "--min_duration_s", "0.05",
              "--scenario", scenario, *expected, "--audit", "TEST01"])  # fmt: skip
    found = (p.parent for p in folder.glob("*/*/*/manifest.json"))
    return {scenario_of(p): p for p in found}


def scenario_of(record: Path) -> str:
    return json.loads((record / "config.json").read_text())["recipe"]["scenario"]


def rewrite(file: Path, changed: dict[str, Any]) -> None:
    """Replace values of a detail log."""
    lines = []
    for line in file.read_text().splitlines():
        head, _, event = line.partition(":::MLLOG ")
        content = json.loads(event)
        if content["key"] in changed:
            content["value"] = changed[content["key"]]
        lines.append(f"{head}:::MLLOG {json.dumps(content)}")
    file.write_text("\n".join(lines) + "\n")


def official(
    record: Path, root: Path, *, f1: float = 90.5, logged: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None, different: int = 0, **changed: Any,
) -> Path:  # fmt: skip
    """Write the record as an official run's below ``root``; ``logged`` are LoadGen's values."""
    folder = root / record.parent.parent.name / record.parent.name / record.name
    shutil.copytree(record, folder)
    for file in (folder, *folder.iterdir()):
        file.chmod(0o755 if file.is_dir() else 0o644)
    m, config = manifest(folder), json.loads((folder / "config.json").read_text())
    scenario = config["recipe"]["scenario"]
    values: dict[str, Any] = {
        "effective_min_duration_ms": 600_000, "effective_accuracy_sample_count": 10_833,
        "result_validity": "VALID", "result_min_duration_met": True, "num_errors": 0,
        "early_stopping_met": True,
        ("effective_samples_per_query" if scenario == "Offline" else "effective_min_query_count"):
        MIN_QUERIES[scenario], **(logged or {}),
    }  # fmt: skip
    for test in TESTS:
        file = folder / f"{test}_mlperf_log_detail.txt"
        rewrite(file, values)
        found = read_detail(file)
        stored = m["extras"]["loadgen"][test]
        stored.update({k: found.values[k] for k in stored if k in found.values})
    performance = read_detail(folder / "performance_mlperf_log_detail.txt")
    derived = [metric.as_dict() for metric in metrics(performance, scenario)]
    m["metrics"] = [x for x in m["metrics"] if x["clock"] != CLOCK] + derived
    for metric in m["metrics"]:
        metric["value"] = {"f1": f1, "exact_match": 84.7}.get(metric["name"], metric["value"])
    reached = f1 >= TARGET_F1
    m["quality"] |= {"value": f1, "target": TARGET_F1, "reached": reached}
    lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "eval":
            line["metrics"]["f1"] = f1
            line |= {"target_value": TARGET_F1, "reached": reached}
        if line["kind"] == "run_stop":
            line["status"] = "success"
    (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config["recipe"] |= {
        "profile": "official", "target_f1": TARGET_F1,
        "min_duration_ms": values["effective_min_duration_ms"],
        "min_query_count": MIN_QUERIES[scenario],
    }  # fmt: skip
    config["preset"] = m["preset"] = scenario.lower()
    m["extras"]["export"] |= {"step": 0, **(model or {})}
    m["extras"]["audit"] = {
        "passed": True, "figure": "f", "performance": 1.0, "audit": 1.0, "logged_samples": 5,
        "performance_passed": True, "accuracy_passed": True, "different_samples": different,
        **{f"{score}_of_{test}": 84.0 for score in ("f1", "exact_match")
           for test in ("accuracy_test", "audit")},
    }  # fmt: skip
    m |= {"status": "ok" if reached else "below_quality", "notes": [], "dirty": False} | changed
    m["recipe_hash"] = hash_values(m["recipe_kind"], config["recipe"], m["inputs"])
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").write_text(json.dumps(m | {"files": None}, indent=1))
    seal(folder)
    return folder


def submit(out: Path, *runs: Path, flags: tuple[str, ...] = ()) -> int:
    about = {name: "N/A" for name in (*FIELDS, *INFERENCE_FIELDS)
             if name not in ("division", "submitter")}  # fmt: skip
    about |= {"system_type": "edge", "status": "onprem", "system_name": "box"}
    out.mkdir(exist_ok=True)
    (out / "info.json").write_text(json.dumps(about))
    return main(["export-mlperf", *map(str, runs), "--out", str(out), "--org", "Lab",
                 "--system_info", str(out / "info.json"), *flags])  # fmt: skip


def value(file: Path, key: str) -> Any:
    """The first value of a detail log, as the checker takes it; None without the key."""
    for line in file.read_text().splitlines():
        if line.startswith(":::MLLOG") and (event := json.loads(line[9:]))["key"] == key:
            return event["value"]
    return None


def check_performance(file: Path, scenario: str) -> None:
    assert value(file, "result_validity") == "VALID" and not value(file, "num_errors")
    assert value(file, "effective_scenario") == scenario
    seeds = [value(file, f"effective_{n}_rng_seed") for n in ("qsl", "sample_index", "schedule")]
    assert seeds == [2085463073848966840, 2747215439041700203, 16159082839903944936]
    assert value(file, "effective_performance_sample_count") >= 10_833
    assert value(file, "effective_min_duration_ms") >= 600_000
    if scenario == "Offline":
        assert value(file, "effective_samples_per_query") >= 10_833
    else:
        assert (
            value(file, "early_stopping_met") and value(file, "effective_min_query_count") >= 1024
        )


def check(tree: Path, division: str) -> list[str]:
    """Hold a tree to the checker's rules; returns the results it has."""
    system = json.loads((tree / "systems" / "box.json").read_text())
    assert all(system[name] for name in FILLED) and {*FIELDS, *INFERENCE_FIELDS} == set(system)
    assert system["status"] in ("available", "preview", "rdi")
    assert (system["division"], system["submitter"]) == (division, "Lab")
    assert (tree / "src" / "common" / "mlperf" / "loadgen.py").is_file()
    results = sorted(tree.glob("results/box/*/*"))
    for folder in results:
        scenario, accuracy = folder.name, folder / "accuracy"
        check_performance(folder / "performance" / "run_1" / "mlperf_log_detail.txt", scenario)
        assert (folder / "performance" / "run_1" / "mlperf_log_summary.txt").stat().st_size
        assert (
            value(accuracy / "mlperf_log_detail.txt", "effective_accuracy_sample_count") == 10_833
        )
        assert (accuracy / "mlperf_log_accuracy.json").stat().st_size <= 10 * 1024
        first, second = (accuracy / "accuracy.txt").read_text().splitlines()
        match = F1_LINE.match(first)
        assert match and re.fullmatch(r"hash=[0-9a-f]{64}", second)
        least = {"bert-99": 0.99, "bert-99.9": 0.999}[folder.parent.name] * 90.874
        assert division == "open" or float(match[1]) >= least
        described = json.loads((folder / "measurements.json").read_text())
        assert all(described[name] for name in (
            "input_data_types", "retraining", "starting_weights_filename", "weight_data_types",
            "weight_transformations"))  # fmt: skip
        assert all((folder / name).stat().st_size for name in ("user.conf", "README.md"))
        if division == "closed":
            check_test01(folder / "TEST01", scenario)
    return [f"{f.parent.name}/{f.name}" for f in results]


def check_test01(folder: Path, scenario: str) -> None:
    run = folder / "performance" / "run_1"
    check_performance(run / "mlperf_log_detail.txt", scenario)
    assert {f.name for f in run.iterdir()} == {"mlperf_log_detail.txt", "mlperf_log_summary.txt"}
    assert "TEST PASS" in (folder / "verify_performance.txt").read_text()
    if "TEST PASS" not in (folder / "verify_accuracy.txt").read_text().splitlines():
        names = ("accuracy.txt", "baseline_accuracy.txt", "compliance_accuracy.txt")
        there = {f.name for f in (folder / "accuracy").iterdir()}
        assert there == {*names, "mlperf_log_accuracy.json"}
        scores = []
        for name in names[1:]:
            match = F1_LINE.match((folder / "accuracy" / name).read_text())
            assert match
            scores.append(float(match[1]))
        assert abs(1 - scores[0] / scores[1]) <= 0.01


def test_a_closed_submission(tiny, tmp_path, capsys):
    runs = [official(record, tmp_path / "r") for record in tiny.values()]
    capsys.readouterr()
    code = main(["validate", *map(str, runs)])
    assert code == 0, capsys.readouterr().out
    assert submit(tmp_path / "out", *runs, flags=("--division", "closed")) == 0
    tree = tmp_path / "out" / "closed" / "Lab"
    assert check(tree, "closed") == ["bert-99/Offline", "bert-99/SingleStream"]
    log = (runs[0] / "accuracy_mlperf_log_accuracy.json").read_bytes()
    place = tree / "results" / "box" / "bert-99" / scenario_of(runs[0]) / "accuracy"
    assert hashlib.sha256(log).hexdigest() in (place / "accuracy.txt").read_text()


def test_an_open_submission_takes_sparse_models_and_one_scenario(tiny, tmp_path):
    model = {"weight_sparsity": "2:4", "quantization": "int8", "step": 700, "run": "r1"}
    run = official(tiny["Offline"], tmp_path / "r", f1=90.8, model=model, different=2)
    assert submit(tmp_path / "out", run) == 0
    tree = tmp_path / "out" / "open" / "Lab"
    assert check(tree, "open") == ["bert-99/Offline", "bert-99.9/Offline"]
    described = json.loads(next(tree.glob("results/*/*/*/measurements.json")).read_text())
    assert described["weight_transformations"] == "2:4 pruning, int8 quantization"
    assert described["retraining"] == "yes: 700 steps"
    check_test01(tree / "results" / "box" / "bert-99" / "Offline" / "TEST01", "Offline")


@pytest.mark.parametrize(
    ("changed", "flags", "message"),
    [
        ({"f1": 89.0}, ("closed",), "the closed division does not take"),
        ({"logged": {"result_validity": "INVALID"}}, ("open",), "LoadGen says INVALID"),
        ({"logged": {"effective_min_duration_ms": 60_000}}, ("open",), "min_duration_ms is 60000"),
        ({"logged": {"effective_qsl_rng_seed": 1}}, ("open",), "qsl_rng_seed is 1, not"),
        ({"logged": {"effective_accuracy_sample_count": 11}}, ("open",), "covers 11 samples"),
        ({"model": {"weight_sparsity": "2:4"}}, ("closed",), "requires both; found Offline"),
        ({"status": "failed"}, ("open",), "failed: "),
        ({}, ("open", "--ruleset", "5.0"), "--ruleset is training's"),
        ({}, ("open", "--system_type", "phone"), "--system_type phone"),
    ],
)
def test_what_is_no_result_is_refused(tiny, tmp_path, capsys, changed, flags, message):
    run = official(tiny["Offline"], tmp_path / "r", **changed)
    assert submit(tmp_path / "out", run, flags=("--division", *flags)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / flags[0] / "Lab").exists()


def test_closed_takes_reference_weights_only(tiny, tmp_path, capsys):
    model = {"weight_sparsity": "2:4"}
    runs = [official(r, tmp_path / "r", model=model) for r in tiny.values()]
    assert submit(tmp_path / "out", *runs, flags=("--division", "closed")) == 2
    assert "reference weights" in capsys.readouterr().err


def test_the_non_official_profile_is_refused(tiny, tmp_path, capsys):
    assert submit(tmp_path / "out", tiny["Offline"]) == 2
    assert "no MLPerf results; run again with --profile official" in capsys.readouterr().err


def test_validate_derives_the_figures_from_the_logs(tiny, tmp_path, capsys):
    run = official(tiny["Offline"], tmp_path / "r")
    m = manifest(run)
    next(x for x in m["metrics"] if x["name"] == "samples_per_second")["value"] *= 2
    (run / "manifest.json").write_text(json.dumps(m, indent=1))
    (run / "predictions.json").write_text("{}")
    seal(run)
    assert main(["validate", str(run)]) == 1
    said = capsys.readouterr().out
    assert "samples_per_second is" in said and "does not answer the 5 questions" in said


def test_a_long_accuracy_log_keeps_its_ends():
    log = bytes(range(256)) * 100
    short = truncated(log)
    assert len(short) <= 10 * 1024 and short.startswith(log[:4096]) and short.endswith(log[-4096:])
    assert truncated(log[:5000]) == log[:5000]
