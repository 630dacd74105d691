# SPDX-License-Identifier: Apache-2.0
"""tools/device_check.py: the whole of it on the CPU, and what happens when a part goes wrong."""

from __future__ import annotations

import gzip
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
from types import SimpleNamespace
from typing import Any

import pytest

from bertbench import backends
from bertbench.common.cli.main import main as command_line

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
    assert list(sections) == [s.name for s in tool.SECTIONS if not s.only]
    missing = {name for name, s in sections.items() if s["status"] == "not available"}
    assert all(s["status"] in ("passed", "not available") for s in sections.values()), sections
    assert all(sections[name]["reason"] for name in missing)
    # What every machine can do with the reference backend and the locked packages.
    needed = {"facts", "calibrate", "contract", "pretrain_8x96", "anatomy", "parts", "squad"}
    assert not missing & (needed | {"pretrain_1x96", "pretrain_16x26", "pretrain_fp32", "records"})
    assert {"pretrain_fp16", "pretrain_tf32"} <= missing, "no CPU has them"
    left = {path.name for path in tiny.folder.iterdir()}
    assert {"result.json", "table.md", "profile.txt", "contract.txt", "results"} <= left
    trace = json.loads(gzip.decompress((tiny.folder / "trace.json.gz").read_bytes()))
    assert any("Input Dims" in e.get("args", {}) for e in trace["traceEvents"])
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


def value(tiny: SimpleNamespace, section: str, end: str) -> dict[str, Any]:
    """The only figure of a section with this end of its name."""
    (found,) = (
        f for f in tiny.result["figures"] if f["section"] == section and f["name"].endswith(end)
    )
    return found


def test_phases_and_profile_are_of_one_batch(tiny: SimpleNamespace) -> None:
    names = ("step, one batch", "forward", "forward and backward", "backward")
    step, forward, both, backward = (value(tiny, "anatomy", f": {name}") for name in names)
    assert len({f["note"] for f in (step, forward, both, backward)}) == 1
    assert re.fullmatch(r"\d+ tokens, sum of squared lengths [\d,]+", step["note"])
    assert backward["value"] == pytest.approx(both["value"] - forward["value"])
    flops = [
        value(tiny, "anatomy", f": {part}: model FLOP rate")["value"] * of["value"]
        for part, of in (("forward", forward), ("backward", backward))
    ]
    assert flops[1] == pytest.approx(2 * flops[0])
    assert "6 different batches" in value(tiny, "anatomy", "step, real lengths")["definition"]


def test_comparison_separates_padding_from_kernels(tiny: SimpleNamespace) -> None:
    pytest.importorskip("transformers")
    assert 0 < value(tiny, "hugging_face", ": padded share of the peer's tokens")["value"] < 0.5
    real, full = (
        value(tiny, "hugging_face", f": ours over Hugging Face, step{length}")["value"]
        for length in ("", ", full length")
    )
    assert f"ours over Hugging Face: {real:.4g}; at full length: {full:.4g}" in tiny.table
    assert (
        "head at every position"
        in value(tiny, "hugging_face", ": Hugging Face, step")["definition"]
    )


def test_summary_repeats_figures(tiny: SimpleNamespace) -> None:
    shown = rows(tiny.table, "Summary")
    assert len(shown) >= 6
    for name, run, rate, mfu, memory, power in shown:
        for cell, end in (
            (rate, "sequences per second"), (mfu, "mfu"), (memory, "peak memory"), (power, "power")
        ):  # fmt: skip
            found = value(tiny, name, f"{run}: {end}")["value"]
            if found is None:
                assert cell == "not measured"
            else:
                assert float(cell.replace(",", "")) == pytest.approx(found, rel=1e-3)
    passed = value(tiny, "contract", "passed")["value"]
    assert f"- contract: passed: {passed:g}; failed: 0; skipped: " in tiny.table
    assert "- anatomy: kernels of a step: not measured; device busy share: not" in tiny.table


def test_names_and_notes_are_in_words(tiny: SimpleNamespace) -> None:
    names = {f["name"].rpartition(": ")[2] for f in tiny.result["figures"]}
    assert {"model FLOP rate", "padded tokens per second"} <= names and "model FLOPs" not in names
    notes = [f["note"] for f in tiny.result["figures"] if f["unit"] == "GB/s" and f["note"]]
    spread = r"slowest and fastest of \d spans: \d+\.\d\d and \d+\.\d\d of the median"
    assert len(notes) >= 9 and all(re.fullmatch(spread, note) for note in notes)
    assert not {f["text"] for f in tiny.result["facts"]} & {"True", "False"}


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
    assert sections["good"]["reason"].endswith("run it with --only good --output OTHER")
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
        (["--list", "--only", "nothing"], "unknown section nothing"),
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


def test_output_that_is_a_file_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("mine")
    refused(["--backend", "cpu_ref", "--output", str(tmp_path / "notes")], "notes is a file", capfd)
    assert (tmp_path / "notes").read_text() == "mine"


def test_the_list_has_every_section_and_its_seconds(capfd: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*(s.name for s in tool.SECTIONS), "sum"]
    usual = sum(s.expected_s for s in tool.SECTIONS if not s.only)
    assert usual <= tool.BUDGET_S, "all fit the usual budget"
    assert lines[-1].split() == ["sum", f"{usual:.0f}", "s"]
    assert tool.main(["--list", "--only", "squad,facts"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["facts", "squad", "sum"]


def test_help_names_the_defaults(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    printed = capfd.readouterr().out
    for default in ("cuda", "device-check", "480"):
        assert f"(default: {default})" in printed
