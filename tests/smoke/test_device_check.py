# SPDX-License-Identifier: Apache-2.0
"""tools/device_check.py: the whole of it on the CPU, and what happens when a part goes wrong."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

import backends
from common.cli import main as command_line
from common.cli import resolve

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "device_check.py"
sys.path.insert(0, str(ROOT / "tools"))

tool = importlib.import_module("device_check")
figure = importlib.import_module("check.figure")
section = importlib.import_module("check.section")


# -- the whole of it ------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One call with --tiny on the CPU: its folder, exit code and output."""
    folder = tmp_path_factory.mktemp("check") / "out"
    command = [sys.executable, str(TOOL), "--backend", "cpu_ref", "--tiny", "--output", str(folder)]
    command += ["--budget", "1500"]  # a busy host is no failure
    done = subprocess.run(
        command, cwd=folder.parent, capture_output=True, text=True, timeout=1600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((folder / "result.json").read_text())
    table = (folder / "table.md").read_text()
    return SimpleNamespace(folder=folder, done=done, result=result, table=table)


def rows(table: str, heading: str) -> list[list[str]]:
    """Cells of the Markdown table below a heading."""
    part = table.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_every_section_ran_or_says_what_is_missing(tiny: SimpleNamespace) -> None:
    sections = {s["name"]: s for s in tiny.result["sections"]}
    assert list(sections) == [s.name for s in tool.SECTIONS]
    missing = {name for name, s in sections.items() if s["status"] == "not available"}
    assert all(s["status"] in ("passed", "not available") for s in sections.values()), sections
    assert all(sections[name]["reason"] for name in missing)
    # What every machine can do with the reference backend and the locked packages.
    needed = {"facts", "calibrate", "contract", "pretrain_8x96", "anatomy", "parts", "squad"}
    assert not missing & (needed | {"pretrain_1x96", "pretrain_16x26", "pretrain_fp32", "records"})
    assert {"pretrain_fp16", "pretrain_tf32"} <= missing, "no CPU has them"
    left = {path.name for path in tiny.folder.iterdir()}
    assert {"result.json", "table.md", "profile.txt", "contract.txt", "results"} <= left
    assert "tmp" not in left and not [name for name in left if name.startswith(".")]


def test_figures_are_complete_and_equal_in_table_and_json(tiny: SimpleNamespace) -> None:
    figures = tiny.result["figures"]
    text = tiny.table.split("\n## Definitions\n", 1)[1].split("\n## ", 1)[0]
    definitions = dict(re.findall(r"^(\d+)\. (.+)$", text, re.M))
    shown = {(row[0], row[1]): row[2:] for row in rows(tiny.table, "Figures")}
    assert len(figures) == len(shown) > 100
    for f in figures:
        value, unit, number, note = shown[f["section"], f["name"].replace("|", "\\|")]
        assert f["unit"] and unit == f["unit"]
        assert f["definition"] and definitions[number] == f["definition"]
        assert note == " ".join(f["note"].split()).replace("|", "\\|")
        if f["value"] is None:
            assert value == "not measured" and f["note"]
        else:
            assert float(value.replace(",", "")) == pytest.approx(f["value"], rel=1e-3)
    assert tiny.table in tiny.done.stdout
    assert "NOT MEASUREMENTS" in tiny.table.splitlines()[0]


def test_no_figure_is_called_after_a_precision_that_did_not_run(tiny: SimpleNamespace) -> None:
    have = backends.load("cpu_ref")(0).capabilities.precisions
    lacks = [p for p in ("bf16", "fp16", "tf32") if p not in have]
    assert not [f["name"] for f in tiny.result["figures"] if f["name"].startswith(tuple(lacks))]
    ran = {json.loads(p.read_text())["extras"]["precision"] for p in manifests(tiny.folder)}
    assert ran <= set(have)


def test_the_heading_names_code_software_and_call(tiny: SimpleNamespace) -> None:
    result = tiny.result
    assert re.fullmatch(r"[0-9a-f]{16}", result["code"]["code_hash"])
    assert {"commit", "dirty"} <= set(result["code"])
    assert {"python", "torch", "triton", "transformers", "numpy"} <= set(result["software"])
    assert result["software"]["torch"] and result["argv"][:2] == ["--backend", "cpu_ref"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", result["started_utc"])
    assert result["tiny"] is True and result["simulated"] is False


def manifests(folder: Path) -> list[Path]:
    return sorted(folder.glob("results/*/*/*/manifest.json"))


def test_records_are_valid_and_packed(
    tiny: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    found = manifests(tiny.folder)
    runs = {s["name"] for s in tiny.result["sections"] if s["status"] == "passed"}
    assert len(found) >= len([name for name in runs if name.startswith("pretrain")]) + 1
    assert command_line(["validate", str(tiny.folder / "results")]) == 0, capsys.readouterr().out
    for path in found:
        command = json.loads(path.read_text())["command"]
        assert command[0] == "run" and "--synthetic" in command, "as `bertbench run` was typed"
    with tarfile.open(tiny.folder / "records.tar.gz") as archive:
        packed = {name for name in archive.getnames() if name.endswith("manifest.json")}
    assert packed == {path.relative_to(tiny.folder).as_posix() for path in found}


# -- sections that go wrong -----------------------------------------------------------------------
def good(check: Any, report: Any) -> None:
    report.figure("answer", 42, "1", "of everything")
    print("said")


def bad(check: Any, report: Any) -> None:
    report.figure("before", 1.5, "s", "found before it failed")
    raise RuntimeError("first line\nsecond line")


def lacking(check: Any, report: Any) -> None:
    raise figure.NotAvailable("no such unit")


def crashing(check: Any, report: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leaving(check: Any, report: Any) -> None:
    raise SystemExit(0)


def hanging(check: Any, report: Any) -> None:
    report.figure("before", 1.5, "s", "found before it hung")
    time.sleep(600)


def make(run: Callable[..., None], **changed: Any) -> Any:
    fields = {"name": run.__name__, "summary": "a test's", "expected_s": 1.0, "run": run}
    return section.Section(**fields | changed)


def call(
    monkeypatch: pytest.MonkeyPatch, folder: Path, sections: list[Any], *flags: str
) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Exit code, result.json, and its sections by name."""
    monkeypatch.setattr(tool, "SECTIONS", sections)
    code = tool.main(["--backend", "cpu_ref", "--output", str(folder), *flags])
    result = json.loads((folder / "result.json").read_text())
    return code, result, {s["name"]: s for s in result["sections"]}


def test_a_failing_section_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = [make(f) for f in (bad, crashing, leaving, lacking, good)]
    code, result, sections = call(monkeypatch, tmp_path / "out", parts)
    assert code == 1
    status = {name: s["status"] for name, s in sections.items()}
    assert status == {
        "bad": "failed", "crashing": "failed", "leaving": "failed", "lacking": "not available",
        "good": "passed",
    }  # fmt: skip
    assert sections["bad"]["reason"].startswith("RuntimeError: first line")
    assert "SIGSEGV" in sections["crashing"]["reason"]
    assert sections["lacking"]["reason"] == "no such unit"
    assert "Segmentation fault" in (tmp_path / "out" / "crashing.txt").read_text()
    trace = (tmp_path / "out" / "bad.txt").read_text()
    assert "Traceback" in trace and "second line" in trace
    assert (tmp_path / "out" / "good.txt").read_text() == "said\n"
    found = {(f["section"], f["name"]): f["value"] for f in result["figures"]}
    assert found == {("bad", "before"): 1.5, ("good", "answer"): 42.0}
    printed = capfd.readouterr().out
    assert "RuntimeError: first line" in printed and "Traceback" not in printed


def test_what_is_not_available_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, _, _ = call(monkeypatch, tmp_path / "out", [make(lacking), make(good)])
    assert code == 0


def test_a_hanging_section_is_stopped_and_keeps_its_figures(tmp_path: Path) -> None:
    check = importlib.import_module("check.device").Check(
        backend="cpu_ref", tiny=False, folder=tmp_path
    )
    outcome = section.run_section(make(hanging), check, left_s=1.0)
    assert outcome.status == "failed" and "stopped after 1 s" in outcome.reason
    assert [f.value for f in outcome.figures] == [1.5]


def test_sections_beyond_the_budget_are_reported_as_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = [make(good, expected_s=1000.0), make(lacking), make(bad, expected_s=2000.0)]
    last = make(good, name="last", closing=True)
    flags = ("--budget", "500")
    code, _, sections = call(monkeypatch, tmp_path / "out", [*parts, last], *flags)
    assert code == 0, "a section that did not run cannot fail"
    status = {name: s["status"] for name, s in sections.items()}
    assert status == {
        "good": "skipped", "lacking": "not available", "bad": "skipped", "last": "passed"
    }  # fmt: skip
    assert "1000 s" in sections["good"]["reason"] and "500 s" in sections["good"]["reason"]
    assert sections["good"]["seconds"] is None
    table = rows((tmp_path / "out" / "table.md").read_text(), "Sections")
    assert [row[1] for row in table] == list(status.values())


def test_only_chooses_sections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = [make(good), make(bad), make(lacking)]
    code, _, sections = call(monkeypatch, tmp_path / "out", parts, "--only", "lacking,good")
    assert code == 0 and list(sections) == ["good", "lacking"], "in their usual order"


# -- refusals -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--backend", "cpu_ref", "--only", "facts,nothing"], "unknown section nothing; known: fa"),
        (["--backend", "nothing"], "unknown backend 'nothing'"),
        (["--backend", "cpu_ref", "--budget", "0"], "--budget 0"),
        (["--backend", "cpu_ref", "--nothing"], "--nothing"),
    ],
)
def test_refusals_are_one_line(
    flags: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refused([*flags, "--output", str(tmp_path / "out")], said, capfd)
    assert not (tmp_path / "out").exists()


def refused(arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert tool.main(arguments) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.startswith("device_check: ") and output.err.count("\n") == 1
    assert said in output.err


def test_a_machine_without_a_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reason = "no NVIDIA driver is loaded on this machine"
    monkeypatch.setattr(backends.load("cuda"), "absent", classmethod(lambda cls: reason))
    said = f"backend 'cuda' cannot run here: {reason}; --backend cpu_ref --tiny tries the tool"
    refused(["--output", str(tmp_path / "out")], said, capfd)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text("{}")
    refused(["--backend", "cpu_ref", "--output", str(tmp_path)], "is not empty", capfd)
    assert (tmp_path / "result.json").read_text() == "{}"


def test_the_list_has_every_section_and_its_seconds(capfd: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*(s.name for s in tool.SECTIONS), "sum"]
    assert sum(s.expected_s for s in tool.SECTIONS) <= tool.BUDGET_S, "all fit the usual budget"


# -- what needs a device that is not here ---------------------------------------------------------
@pytest.fixture
def report(tmp_path: Path) -> Any:
    return figure.Report("test", tmp_path / "lines")


def found(report: Any) -> dict[str, Any]:
    report.end("passed")
    figures, _, end = figure.read_report(Path(report._file.name))
    assert end == ("passed", "")
    return {f.name: f for f in figures}


def test_full_size_arguments_are_flags_of_the_recipes() -> None:
    runs = module("runs")
    check = module("device").Check(backend="cpu_ref", tiny=False, folder=Path())
    recipe, *flags = runs.pretraining_arguments(check, "bf16", 8, 96, 14)
    settings = resolve(recipe, flags)
    assert settings.recipe.global_batch == 768 and settings.impl.micro_batch == 96
    assert settings.recipe.model.num_hidden_layers == 24 and settings.recipe.max_steps == 14


def module(name: str) -> ModuleType:
    return importlib.import_module(f"check.{name}")


def test_bf16_is_not_replaced_by_another_precision_but_with_tiny() -> None:
    can = SimpleNamespace(precisions=("fp16", "fp32"), notes={"bf16": "too old"})
    backend = SimpleNamespace(name="old", capabilities=can)
    device = module("device")
    full = device.Check(backend="old", tiny=False, folder=Path())
    with pytest.raises(figure.NotAvailable, match="old does not support bf16: too old"):
        device.choose_precision(full, backend, "bf16")
    assert device.choose_precision(full, backend, "fp16") == "fp16"
    small = device.Check(backend="old", tiny=True, folder=Path())
    assert device.choose_precision(small, backend, "bf16") == "fp32"
    with pytest.raises(figure.NotAvailable, match="tf32"):
        device.choose_precision(small, backend, "tf32")


def event(name: str, us: float, kind: DeviceType = DeviceType.CUDA, **more: Any) -> Any:
    span = SimpleNamespace(elapsed_us=lambda: us)
    return SimpleNamespace(
        name=name, device_type=kind, time_range=span, self_cpu_time_total=us, **more
    )


def test_kernels_are_counted_and_ranked(report: Any) -> None:
    events = [
        event("gemm", 300.0),
        event("gemm", 500.0),
        event("norm", 100.0),
        event("Memcpy HtoD", 50.0),
        event("aten::mm", 7.0, DeviceType.CPU),
        event("a region", 950.0, is_user_annotation=True),
    ]
    module("profile").report_events(report, "step", events)
    figures = found(report)
    assert figures["step: kernels"].value == 3
    assert figures["step: copies and fills"].value == 1
    assert figures["step: kernel time"].value == pytest.approx(0.95)
    first = figures["step: kernel 1, gemm"]
    assert first.value == pytest.approx(0.8) and first.note.startswith("2 calls, 84.2%")
    assert list(figures)[3:] == [
        "step: kernel 1, gemm", "step: kernel 2, norm", "step: kernel 3, Memcpy HtoD"
    ]  # fmt: skip


def test_contract_counts_come_from_pytests_own_file(report: Any) -> None:
    xml = """<testsuites><testsuite>
      <testcase name="a"/><testcase name="b"/>
      <testcase name="c"><failure message="wrong"/></testcase>
      <testcase name="d"><error message="broken"/></testcase>
      <testcase name="e"><skipped message="no tf32"/></testcase>
    </testsuite></testsuites>"""
    assert module("facts").report_contract(report, xml) == ["c", "d"]
    counts = {name: f.value for name, f in found(report).items()}
    assert counts == {"passed": 2, "failed": 2, "skipped": 1}


def test_a_synchronize_that_does_not_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    timing, timers = module("timing"), importlib.import_module("backends.timers")
    now, queued = [0.0], [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(
        timing, "HostTimer", lambda sync: timers.HostTimer(sync, clock.perf_counter)
    )

    def wait(share: float) -> None:
        now[0] += share * queued[0]
        queued[0] *= 1 - share

    def work() -> None:
        queued[0] += 1.0

    right = SimpleNamespace(synchronize=lambda: wait(1.0))
    assert timing.step_seconds(right, work, 5) == pytest.approx(1.0)
    half = SimpleNamespace(synchronize=lambda: wait(0.5))
    with pytest.raises(timing.NotSynchronised):
        timing.step_seconds(half, work, 5)


def test_a_figure_needs_unit_definition_and_a_reason_for_having_no_value(report: Any) -> None:
    for wrong in (("a", 1.0, "", "d"), ("a", 1.0, "s", ""), ("a", None, "s", "d")):
        with pytest.raises(ValueError):
            report.figure(*wrong)
    report.figure("a", float("nan"), "s", "d")
    with pytest.raises(ValueError, match="reported before"):
        report.figure("a", 1.0, "s", "d")
    value = found(report)["a"]
    assert value.value is None and "nan" in value.note
