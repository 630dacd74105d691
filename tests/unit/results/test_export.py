# SPDX-License-Identifier: Apache-2.0
"""An exported tree passes MLPerf's own package checker; what could not be submitted is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bertbench.common.cli.main import main
from bertbench.common.errors import BadInput
from bertbench.common.exchange import export_checks
from bertbench.common.exchange import export_mlperf as export_module
from bertbench.common.exchange.export_mlperf import check_package, export
from bertbench.common.exchange.export_system import (
    FIELDS,
    describe,
    measured,
    read_info,
    status_words,
)
from bertbench.common.mlperf.log import read_log
from bertbench.common.results import record as record_module
from bertbench.common.results.store import load_results
from tests.unit.results.mlperf_runs import CHIP, make
from tests.unit.test_record import forge

CODE = "0123456789abcdef"
ANSWERS = {
    "status": "research", "host_processor_frequency": "3 GHz", "host_storage_type": "NVMe",
    "host_storage_capacity": "1 TB", "host_memory_configuration": "8x 4 GB", "cooling": "air",
    "host_processor_interconnect": "N/A",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _code_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (record_module, export_module):
        monkeypatch.setattr(module, "code_hash", lambda: CODE)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ten")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_module, "code_hash", lambda: CODE)
        for seed in range(10):
            make(root, seed=seed, value=0.5 if seed == 3 else 0.75)
    return root


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here comes before the slow official checkers, or after them."""
    monkeypatch.setattr(export_checks, "validate", lambda path, rulesets: [])
    monkeypatch.setattr(export_module, "check_package", lambda tree, ruleset: [])


def runs(root: Path, count: int = 10, **changed: Any) -> list[Any]:
    for seed in range(count):
        make(root, seed=seed, **changed)
    return load_results([root], references=False)[0]


def refusal(results: list[Any], out: Path, org: str = "Acme", **given: Any) -> str:
    with pytest.raises(BadInput) as caught:
        export(results, out, org, **({"fields": ANSWERS} | given))
    assert not out.exists() or not any(out.iterdir())
    return str(caught.value)


def test_ten_open_runs_pass_the_package_checker(
    ten: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = tmp_path / "info.json"
    info.write_text(json.dumps(ANSWERS))
    out = tmp_path / "out"
    command = ["export-mlperf", str(ten), "--out", str(out), "--org", "Acme"]
    assert main([*command, "--system_info", str(info), "--cooling", "liquid"]) == 0
    assert "no errors" in capsys.readouterr().out
    assert [p.name for p in out.iterdir()] == ["Acme"]
    tree = out / "Acme"
    for ruleset in ("3.1.0", "5.0.0"):
        assert check_package(tree, ruleset) == []

    system = json.loads((tree / "systems" / "test-1x.json").read_text())
    assert set(system) == set(FIELDS) and all(isinstance(v, str) for v in system.values())
    assert system["submitter"] == "Acme" and system["division"] == "open"
    assert system["status"] == "Research, Development, or Internal (RDI)"
    assert system["cooling"] == "liquid"  # a flag before the file
    assert (system["accelerators_per_node"], system["accelerator_model_name"]) == ("0", "N/A")

    folder = tree / "results" / "test-1x" / "bert"
    assert sorted(p.name for p in folder.iterdir()) == [f"result_{n}.txt" for n in range(10)]
    source = tree / "benchmarks" / "bert" / "implementations" / "bertbench"
    assert (source / "source" / "common" / "exchange" / "export_mlperf.py").is_file()
    assert not list(source.rglob("__pycache__"))
    names = [p.name for p in tree.rglob("*")]
    assert not [n for n in names if n.startswith(".") or " " in n]  # repo_checker's rule
    readme = (source / "README.md").read_text()
    for record in sorted(p.parent for p in ten.rglob("manifest.json")):
        manifest = json.loads((record / "manifest.json").read_text())
        assert manifest["run_id"] in readme
        assert manifest["files"]["result_0.txt"]["sha256"] in readme
    assert "bertbench run mini" in readme

    # A tree that was damaged afterwards is seen by the same checker, so that it can fail.
    (folder / "result_4.txt").unlink()
    assert any("found 9, expected 10" in problem for problem in check_package(tree, "5.0.0"))


def test_logs_change_in_labels_that_nobody_chose_and_nowhere_else(
    ten: Path, tmp_path: Path, unchecked: None
) -> None:
    results = load_results([ten], references=False)[0]
    tree, _ = export(results, tmp_path, "Acme", fields=ANSWERS)
    for number, run in enumerate(results):
        before = (run.path / "result_0.txt").read_text().splitlines()
        after = (tree / f"results/test-1x/bert/result_{number}.txt").read_text().splitlines()
        changed = [new for old, new in zip(before, after, strict=True) if old != new]
        events = [e for _, e in read_log(changed) if e is not None]
        assert [(e["key"], e["value"]) for e in events] == [
            ("submission_org", "Acme"),
            ("submission_status", "research"),
        ]


def test_closed_runs_pass_with_the_reference_points(tmp_path: Path) -> None:
    answers = ANSWERS | {"status": "onprem"}
    good = runs(tmp_path / "good", steps=5600, batch=448, division="closed")
    tree, _ = export(good, tmp_path / "out", "Acme", fields=answers)
    assert check_package(tree, "5.0.0") == []
    fast = runs(tmp_path / "fast", steps=4000, batch=448, division="closed")
    text = refusal(fast, tmp_path / "none", fields=answers)
    assert "not written: the package checker refuses it" in text
    assert "RCP Test Failed" in text


def test_everything_missing_is_asked_for_at_once(
    ten: Path, tmp_path: Path, unchecked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["export-mlperf", str(ten), "--out", out, "--org", "Acme", "--json"]) == 2
    printed = capsys.readouterr()
    text = json.loads(printed.out)["error"]
    for name in ANSWERS:
        if name not in ("host_processor_frequency", "host_processor_interconnect"):  # may be known
            assert f"--{name} " in text and FIELDS[name] in text
    assert "--host_processor_model_name" not in text  # measured
    assert "--status" in text  # the log's own was nobody's choice
    assert not (tmp_path / "out").exists()


def test_simulated_runs_are_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    results = runs(tmp_path / "r", 1, devices=[replace(CHIP, simulated=True)])
    assert "runs on simulated devices are not results" in refusal(results, tmp_path / "out")


@pytest.mark.parametrize("status", ["failed", "interrupted", "oom"])
def test_unfinished_runs_are_refused(tmp_path: Path, status: str) -> None:
    results = runs(tmp_path / "r", 1, status=status)
    text = refusal(results, tmp_path / "out")
    assert f"{results[0].path}: {status}" in text and "run them again" in text


def test_altered_records_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "r", seed=1)
    results = load_results([path], references=False)[0]
    forge(path, "result_0.txt", lambda text: text.replace("0.75", "0.76"), reseal=False)
    text = refusal(results, tmp_path / "out")
    assert f"{path}: result_0.txt: differs from its checksum" in text


def test_damaged_records_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(tmp_path / "r", seed=1)
    forge(path, "manifest.json", lambda m: {"schema_version": 1})
    out = str(tmp_path / "out")
    assert main(["export-mlperf", str(path), "--out", out, "--org", "Acme"]) == 2
    assert f"damaged records:\n  {path}: " in capsys.readouterr().err


def test_runs_of_other_benchmarks_are_refused(tmp_path: Path, unchecked: None) -> None:
    results = runs(tmp_path / "r", 1, mlperf=None)
    assert "not an MLPerf benchmark" in refusal(results, tmp_path / "out")
    assert "no runs found" in refusal([], tmp_path / "out")


def test_mixed_runs_are_refused_with_what_differs(tmp_path: Path, unchecked: None) -> None:
    make(tmp_path / "r", seed=10, batch=16)
    make(tmp_path / "r", seed=11, system="other-1x")
    make(tmp_path / "r", seed=12, devices=[CHIP])
    results = runs(tmp_path / "r", 7)
    text = refusal(results, tmp_path / "out")
    assert 'system: "test-1x" in 9' in text and '"other-1x" in 1' in text
    assert "recipe (with its data): " in text and "Chip 9" in text
    assert "code: " not in text


def test_too_few_too_many_and_equal_seeds(tmp_path: Path, unchecked: None) -> None:
    results = runs(tmp_path / "r", 11)
    nine, eleven = (refusal(results[:n], tmp_path / "out") for n in (9, 11))
    assert "exactly 10 BERT runs; found 9: run 1 more" in nine
    assert "found 11" in eleven and "selecting the best is forbidden" in eleven
    again = make(tmp_path / "again", seed=3)
    # By seed: runs made within one second are in no order.
    same = [r for r in results if r.seed < 9] + load_results([again], references=False)[0]
    assert "must have different seeds" in refusal(same, tmp_path / "out")


def test_two_runs_that_missed_are_refused(tmp_path: Path, unchecked: None) -> None:
    for seed in (20, 21):
        make(tmp_path / "r", seed=seed, value=0.5)
    results = runs(tmp_path / "r", 8)
    assert "one run may miss its target; these did" in refusal(results, tmp_path / "out")


def test_what_the_runs_chose_is_not_overruled(tmp_path: Path, unchecked: None) -> None:
    results = runs(tmp_path / "r", org="Bcme", flags=("submission_org", "submission_status"))
    text = refusal(results, tmp_path / "out")
    assert "--org is 'Acme', but the runs were made with --submission_org Bcme" in text
    text = refusal(results, tmp_path / "out", "Bcme")
    assert "--status is 'research', but the runs were made with --submission_status onprem" in text
    answers = {k: v for k, v in ANSWERS.items() if k != "status"}
    tree, _ = export(results, tmp_path / "out", "Bcme", fields=answers)
    assert json.loads((tree / "systems/test-1x.json").read_text())["status"] == (
        "Available on-premise"
    )


def test_names_and_places(ten: Path, tmp_path: Path, unchecked: None) -> None:
    results = load_results([ten], references=False)[0]
    assert "cannot name a folder" in refusal(results, tmp_path / "out", "../x")
    wrong = refusal(results, tmp_path / "out", fields=ANSWERS | {"system_name": "a b"})
    assert "cannot name a folder" in wrong
    assert "MLPerf round '6.0.0' has no BERT" in refusal(results, tmp_path / "out", ruleset="6.0.0")
    assert "leave it out" in refusal(
        results, tmp_path / "out", fields=ANSWERS | {"division": "closed"}
    )
    (tmp_path / "out" / "Acme").mkdir(parents=True)
    with pytest.raises(BadInput, match="choose another --out"):
        export(results, tmp_path / "out", "Acme", fields=ANSWERS)


def test_nothing_is_left_of_an_export_that_failed(
    ten: Path, tmp_path: Path, unchecked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(tree: Path, ruleset: str) -> list[str]:
        assert tree.is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "check_package", stop)
    results = load_results([ten], references=False)[0]
    with pytest.raises(KeyboardInterrupt):
        export(results, tmp_path / "out", "Acme", fields=ANSWERS)
    assert list((tmp_path / "out").iterdir()) == []


def test_other_code_is_told_and_closed_runs_need_it(
    tmp_path: Path, unchecked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = runs(tmp_path / "open")
    closed = runs(tmp_path / "closed", division="closed")
    monkeypatch.setattr(export_module, "code_hash", lambda: "f" * 16)
    tree, notes = export(opened, tmp_path / "out", "Acme", fields=ANSWERS)
    assert any("the source is not included" in note for note in notes)
    assert not list(tree.rglob("source"))
    shutil.rmtree(tmp_path / "out")
    assert "the closed division must publish" in refusal(closed, tmp_path / "out")


def test_accelerators_are_described_as_measured(tmp_path: Path) -> None:
    from dataclasses import replace

    path = make(
        tmp_path,
        seed=1,
        devices=[CHIP, replace(CHIP, index=1)],
        world_size=2,
        readings=({"t": 1.0, "sm_clock_mhz": 900.0}, {"t": 2.0, "sm_clock_mhz": 1410.0}),
    )
    forge(path, "system.json", lambda s: s["environment"].update(LOCAL_WORLD_SIZE="2"))
    (run,) = load_results([path], references=False)[0]
    found = measured(run)
    assert (found["number_of_nodes"], found["accelerators_per_node"]) == ("1", "2")
    assert found["accelerator_model_name"] == "Chip 9"
    assert found["accelerator_memory_capacity"] == "64 GiB"
    assert found["accelerator_frequency"] == "up to 1410 MHz while running"
    assert "driver 1.2" in found["other_software_stack"]
    assert "accelerator_interconnect" not in found
    forge(path, "system.json", lambda s: s["environment"].clear())
    (run,) = load_results([path], references=False)[0]
    assert not {"number_of_nodes", "accelerators_per_node"} & set(measured(run))


def test_a_given_value_that_differs_from_the_measured_is_noted(ten: Path) -> None:
    run = load_results([ten], references=False)[0][0]
    known = {"submitter": "A", "division": "open", "system_name": "s"}
    answers = ANSWERS | {"host_memory_capacity": "1 TB"}
    fields, notes = describe(run, answers, known, statuses=status_words("3.0.0"))
    assert fields["host_memory_capacity"] == "1 TB" and fields["status"] == "research"
    assert any("host_memory_capacity: '1 TB' was given" in note for note in notes)
    with pytest.raises(BadInput, match="choose from onprem, cloud"):
        describe(run, answers | {"status": "soon"}, known)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [("{", "cannot be read as JSON"), ('["a"]', "one JSON object"), ('{"cooling": 1}', "and texts"),
     ('{"colour": "red"}', "no such field: colour")],
)  # fmt: skip
def test_bad_files_of_fields(tmp_path: Path, content: str, wanted: str) -> None:
    (tmp_path / "f").write_text(content)
    with pytest.raises(BadInput, match=wanted):
        read_info(tmp_path / "f")
