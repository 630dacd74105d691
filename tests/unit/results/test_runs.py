# SPDX-License-Identifier: Apache-2.0
"""The list of runs, the filters that all verbs share, and histories over commits."""

from __future__ import annotations

import csv
import fcntl
import io
import json
from pathlib import Path
from typing import Any

import pytest

from bertbench.common.cli.main import main as cli
from bertbench.common.report import terminal
from bertbench.common.report.history import histories, plots
from bertbench.common.report.page import Report
from bertbench.common.results.store import load_results
from tests.browser.records import figures, quality, steps
from tests.unit.results.constructed import device, make_run

COMMITS = {"old": "29ea4d2" + "a" * 33, "new": "b9d06dd" + "b" * 33}
RATE = "sequences_per_second"


@pytest.fixture
def four(tmp_path: Path) -> list[Path]:
    """Four runs, each with one value that no other has."""
    root = tmp_path / "results"
    return [
        make_run(root, {"time_to_target_s": 137.0}, seed=1, commit=COMMITS["old"],
                 quality=quality(0.6), created_utc="2026-11-20T10:00:00Z"),
        make_run(root, {RATE: 98.35}, preset="large", precision="fp32", seed=2,
                 created_utc="2026-11-21T10:00:00Z", recipe_hash="feedbeef00000000"),
        make_run(root, devices=[device(name="Graphics Card X", backend="other")], seed=3,
                 status="failed", commit=COMMITS["new"], created_utc="2026-11-21T12:00:00Z"),
        make_run(root, {"samples_per_second": 2.0}, benchmark="bert_squad", seed=4,
                 created_utc="2026-11-22T00:00:00Z"),
    ]  # fmt: skip


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert cli(["runs", *words, "--json"]) == 0
    return list(json.loads(capsys.readouterr().out)["runs"])


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("", [1, 2, 3, 4]),
        ("--recipe LARGE", [2]),
        ("--recipe feedbe", [2]),
        ("--recipe feed", None),
        ("--device graphics", [3]),
        ("--backend other", [3]),
        ("--precision fp32", [2]),
        ("--precision fp32 --precision bf16", [1, 2, 3, 4]),
        ("--status failed", [3]),
        ("--seed 4 --seed 1", [1, 4]),
        ("--commit 29EA", [1]),
        ("--benchmark bert_squad", [4]),
        ("--since 2026-11-21", [2, 3, 4]),
        ("--until 2026-11-21", [1, 2, 3]),
        ("--since 2026-11-21T12:00 --until 2026-11-21T12:00:00Z", [3]),
        ("--latest", [4]),
        ("--latest 2", [3, 4]),
        ("--latest 1 --precision fp32", [2]),
        ("--precision fp32 --seed 1", None),
    ],
)
def test_filters(
    four: list[Path], words: str, left: list[int] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(four[0].parents[2])
    if left is None:
        assert cli(["runs", place, *words.split()]) == 2
        return
    found = listed(capsys, place, *words.split())
    assert [run["seed"] for run in found] == left
    assert [run["path"] for run in found] == [str(four[seed - 1]) for seed in left]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--precision fp8", "--precision fp8 leaves none of 4 runs; they have: bf16 (3), fp32 (1)"),
        ("--recipe huge", "--recipe huge leaves none of 4 runs; they have: toy (3), large (1)"),
        ("--precision fp32 --seed 1", "--seed 1 leaves none of 1 run; they have: 2 (1)"),
        ("--commit 777", "--commit 777 leaves none of 4 runs; they have: unknown (2), 29ea4d2 (1)"),
        ("--since 2027-01-01", "dates from 2026-11-20T10:00:00Z to 2026-11-22T00:00:00Z"),
        ("--status good", "--status good: choose from ok, failed, oom"),
        ("--since yesterday", "'yesterday' is not a date as 2026-11-21"),
        ("--since 2026-13-01", "is not a date"),
        ("--latest 0", "'0' is not a number of runs"),
        ("--latest results", "name places before --latest"),
        ("--csv --paths", "three outputs"),
    ],
)  # fmt: skip
def test_what_no_run_has_is_refused(
    four: list[Path], words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["runs", str(four[0].parents[2]), *words.split()]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--device", "--commit", "--recipe", "--since"])
def test_an_empty_filter_is_refused(
    four: list[Path], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a variable of the shell that is not set."""
    assert cli(["runs", str(four[0].parents[2]), flag, ""]) == 2
    assert flag in capsys.readouterr().err


def test_damaged_records_alone_are_no_empty_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (make_run(tmp_path) / "steps.jsonl").write_text("{")
    for words in ([], ["--csv"], ["--paths"]):
        assert cli(["runs", str(tmp_path), *words]) == 1
        said = capsys.readouterr()
        assert said.out == "" and "left out 1 damaged" in said.err


def test_the_default_place(
    four: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(four[0].parents[3])
    assert len(listed(capsys)) == 4
    monkeypatch.chdir(four[0])
    assert cli(["runs"]) == 2 and "results: no such file or folder" in capsys.readouterr().err
    Path("results").mkdir()
    assert cli(["runs"]) == 2 and "no record in results" in capsys.readouterr().err


def test_the_table_for_people(
    four: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert cli(["runs", str(four[0].parents[2])]) == 0
    head, first, second, third, last, count = capsys.readouterr().out.splitlines()
    assert head.split() == ["date", "UTC", "recipe", "device", "prec.", "status", "quality",
                            "time,", "rate"]  # fmt: skip
    assert first.split("  ")[:3] == ["2026-11-20", "10:00", "toy"]
    assert "1 x Card 1" in first and "0.6/0.5" in first and first.endswith("2 min 17 s")
    assert "large" in second and "fp32" in second and second.endswith("98.35/s")
    assert "1 x Graphics Card X" in third and third.endswith("failed")
    assert last.endswith(" 2") and count == "4 runs"


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_line_fits_the_terminal(
    tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make_run(tmp_path, {"time_to_target_s": 754.0}, preset="squad_large_enflame",
             status="below_quality", quality=quality(0.07349), world_size=8,
             devices=[device(i, name="Some Accelerator 80 GB") for i in range(8)])  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns and len(lines) == 3
    assert "12 min 34 s" in lines[1] and "below_quality" in lines[1]
    assert ("bf16" in lines[1]) == (columns == 80)


def test_a_run_that_goes_on_is_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, {RATE: 1.0})
    going = make_run(tmp_path, status="interrupted", finished=False)
    with (going / "steps.jsonl").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (found,) = listed(capsys, str(tmp_path), "--status", "running")
        assert found["path"] == str(going) and found[RATE] is None
    assert [r["status"] for r in listed(capsys, str(tmp_path))] == ["ok", "interrupted"]


def test_tables_and_folders_for_programs(
    four: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(four[0].parents[2])
    (make_run(Path(place), {RATE: 1.0}) / "config.json").write_text("{")
    assert cli(["runs", place, "--csv", "--recipe", "toy"]) == 0
    said = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert [row["seed"] for row in rows] == ["1", "3", "4"]
    assert (rows[0]["quality"], rows[0]["target"], rows[0][RATE]) == ("0.6", "0.5", "")
    assert "left out 1 damaged or copied records (" in said.err
    assert cli(["history", place]) == 0 and "left out 1" in capsys.readouterr().err
    assert cli(["runs", place, "--paths", "--latest", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(path) for path in four[2:]]


def test_text_of_a_record_forges_no_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, {RATE: 1.0}, preset="a\nb\x1b[2J", devices=[device(name="x\u2028y,z")])
    for words in ([], ["--csv"], ["--recipe", "none"]):
        cli(["runs", str(tmp_path), *words])
        said = capsys.readouterr()
        assert all(line.isprintable() for line in (said.out + said.err).split("\n"))


# -- the other verbs -----------------------------------------------------------------------------


def test_verbs_of_many_records_take_the_filters(
    four: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(four[0].parents[2])
    cli(["validate", place, "--precision", "fp32", "--json"])
    assert [row["run"] for row in json.loads(capsys.readouterr().out)] == [str(four[1])]
    out = str(tmp_path / "out")
    report = ["report", place, "--out", out, "--no_references", "--json"]
    assert cli([*report, "--backend", "accel", "--latest", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == 2
    assert cli(["watch", place, "--seed", "2", "--once", "--json"]) == 0
    assert [v["run"] for v in json.loads(capsys.readouterr().out)] == [four[1].name]
    assert cli(["watch", place, "--latest", "3", "--once", "--json"]) == 1  # one had failed
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert cli(["rcp", place, "--recipe", "large"]) == 2
    assert "the recipe large" in capsys.readouterr().err
    words = ["export-mlperf", place, "--out", out, "--org", "A", "--status", "onprem"]
    assert cli([*words, "--seed", "9"]) == 2
    assert "--seed 9 leaves none of 4 runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["export-weights", "--output", "out"], ["export-onnx", "--output", "out"],
     ["sparsity", "check"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_verb_of_one_record_needs_exactly_one(
    four: list[Path], words: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(four[0].parents[3])
    assert cli(words) == 2
    said = capsys.readouterr().err
    assert "4 runs are left: name one, filter further, or take the newest (--latest)" in said
    assert said.index(four[3].name) < said.index(four[0].name)  # newest first
    assert cli([*words, "--precision", "bf16"]) == 2
    assert "3 runs are left" in capsys.readouterr().err
    for one, chosen in ((["--latest"], four[3]), (["--precision", "fp32"], four[1])):
        assert cli([*words, *one]) == 2  # it has no checkpoint
        said = capsys.readouterr().err
        assert chosen.name in said and "runs are left" not in said


# -- tables that fit -----------------------------------------------------------------------------


def test_a_table_drops_columns_only_where_it_must() -> None:
    rows = [["name", "empty", "x", "y"], ["a" * 20, "", "1", "2"], ["b", "", "33", "4"]]
    wide = terminal.table(rows, 80, drop=(3, 2), shrink=(0,))
    assert wide[0].split() == ["name", "x", "y"] and wide[2] == f"{'b':<20}  33  4"
    cut = terminal.table(rows, 20, drop=(3, 2), shrink=(0,))
    assert cut[1] == "a" * 12 + "~  1   2"
    fewer = terminal.table(rows, 12, drop=(3, 2), shrink=(0,))
    assert fewer == [
        "name      x",
        "aaaaaaa~  1".replace("aaaaaaa~", "a" * 7 + "~"),
        "b         33",
    ]


# -- histories -----------------------------------------------------------------------------------


@pytest.fixture
def commits(tmp_path: Path) -> Path:
    """Two commits and changed code of one configuration, and another with one commit."""
    root = tmp_path / "results"
    for i in range(6):
        make_run(root, {RATE: 100.0 + i, "mlm_accuracy": 0.6}, seed=i, commit=COMMITS["old"],
                 quality=quality(0.6), config={"impl": {}})  # fmt: skip
    for i in range(6):
        make_run(root, {RATE: 50.0 + i, "mlm_accuracy": 0.6}, seed=i, commit=COMMITS["new"],
                 quality=quality(0.6), code_hash="0" * 16,
                 config={"impl": {"reduce_dtype": "fp32"}})  # fmt: skip
    make_run(root, {RATE: 50.0}, commit=COMMITS["new"], code_hash="1" * 16, dirty=True)
    make_run(root, {RATE: 1.0}, commit=COMMITS["new"], resumed_from="x", earlier_precisions=[],
             code_hash="0" * 16)  # fmt: skip
    make_run(root, status="failed", commit="c" * 40)
    make_run(root, {RATE: 7.0}, commit=COMMITS["old"], precision="fp32")
    return root


def test_a_configuration_over_its_commits(commits: Path) -> None:
    both = histories(load_results([commits], references=False)[0])
    assert [len(one.versions) for one in both] == [3, 1]
    (history, _) = both
    assert history.title == "toy, bf16, 1 x Card 1 (accel, 1x-card)"
    assert [v.name for v in history.versions] == ["29ea4d2", "b9d06dd", "b9d06dd+"]
    assert history.metrics == [RATE, "mlm_accuracy"]
    old, new, changed = history.points(RATE)
    assert (old.median, old.interval[:2], old.ratio, old.p) == (102.5, (100.0, 105.0), None, None)
    assert (new.median, len(new.values), new.p, new.verdict) == (52.5, 6, 2 / 924, "worse")
    assert new.ratio == pytest.approx(52.5 / 102.5, rel=0.01)
    assert (changed.values, changed.verdict, changed.interval) == ((50.0,), "~", None)
    assert [point.verdict for point in history.points("mlm_accuracy")] == ["", "~"]
    assert [point.p for point in history.points(RATE, tested=False)] == [None] * 3


def test_the_verb_history(
    commits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["history", str(commits), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    (one,) = content["histories"]
    assert content["single"] == 1 and one["recipe"] == "toy"
    rates = one["metrics"][0]["commits"]
    assert [(c["commit"], c["n"], c["median"], c["verdict"]) for c in rates] == [
        (COMMITS["old"], 6, 102.5, ""), (COMMITS["new"], 6, 52.5, "worse"),
        (COMMITS["new"], 1, 50.0, "~"),
    ]  # fmt: skip
    for columns in (60, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert cli(["history", str(commits)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= columns
        (line,) = [line for line in lines if "worse" in line]
        assert "b9d06dd" in line and "52.5/s" in line and "50/s to 55/s" in line
        assert "-48.8 %" in line
    assert cli(["history", str(commits), "--precision", "fp32"]) == 0
    assert "0 configurations ran on several commits, 1 on one" in capsys.readouterr().out
    assert cli(["history", str(commits), "--precision", "fp8"]) == 2


def test_the_report_plots_histories_of_two_commits_or_more(commits: Path, tmp_path: Path) -> None:
    runs, damaged = load_results([commits], references=False)
    (section,) = [s for s in Report(runs, damaged).sections if s.id == "history"]
    rate, accuracy = section.plots
    assert accuracy.title.endswith("mlm_accuracy over commits")
    assert rate.title == "toy, bf16, 1 x Card 1 (accel, 1x-card): sequences_per_second over commits"
    assert "29ea4d2 (2026-01-02): 102.5/s, 6 runs; b9d06dd (2026-01-02): 52.5/s" in rate.desc
    assert [row[1] for row in rate.rows] == ["102.5", "52.5", "50"]
    make_run(tmp_path / "one", figures(10.0), quality=quality(0.6), lines=steps(10.0))
    alone = load_results([tmp_path / "one"], references=False)
    assert all(s.id != "history" for s in Report(*alone).sections)
    assert not list(plots(alone[0]))
