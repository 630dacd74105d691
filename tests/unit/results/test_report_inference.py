# SPDX-License-Identifier: Apache-2.0
"""BERT inference in report and compare: what is put beside what."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertbench.common.cli.main import main as cli
from bertbench.common.report.inference import apart, measured, published
from bertbench.common.report.markdown import text
from bertbench.common.report.page import Report, html
from bertbench.common.report.tables import Table
from bertbench.common.results.store import load_results
from tests.unit.results.constructed import make_run
from tests.unit.results.inferences import LARGE, SMALL, infer


def table(root: Path) -> Table:
    return measured(apart(Report(*load_results([root], references=False)).real)[0])


def column(made: Table, name: str) -> list[tuple[str, str]]:
    at = [c.name for c in made.columns].index(name)
    return [(row.cells[at].text, row.cells[at].note) for row in made.rows]


def by_weights(made: Table, name: str) -> dict[str, str]:
    """The first letters of a row's weights -> a column's text."""
    keys = [note[:2] for _, note in column(made, "Weights")]
    return dict(zip(keys, (t for t, _ in column(made, name)), strict=True))


def test_a_sparse_int8_model_stands_beside_the_dense_fp32_one(tmp_path: Path) -> None:
    infer(tmp_path, {"samples_per_second": 10.0, "f1": 88.0, "exact_match": 80.0})
    infer(tmp_path, {"samples_per_second": 14.0, "f1": 88.0, "exact_match": 80.0})
    infer(tmp_path, {"samples_per_second": 36.0, "f1": 87.2}, weights="w1", precision="int8",
          sparsity="2:4", min_duration_ms=2000)  # fmt: skip
    infer(tmp_path, {"samples_per_second": 24.0, "f1": 87.95}, weights="w2", precision="int8")
    infer(tmp_path, {"samples_per_second": 30.0, "f1": 80.0}, weights="w3", precision="int8",
          threads=4)  # fmt: skip
    made = table(tmp_path)
    assert by_weights(made, "Speed-up") == {"w0": "1", "w1": "3", "w2": "2", "w3": "-"}
    assert by_weights(made, "F1 / FP32, %") == {"w0": "100", "w1": "99.09", "w2": "99.94",
                                                "w3": "90.91"}  # fmt: skip
    marks = {note for _, note in column(made, "F1 / FP32, %")}
    assert marks == {"99.9 % reached", "99 % reached", "below 99 %"}
    assert ("2:4", "w1-of-64") in column(made, "Weights")
    assert set(column(made, "Profile")) == {("NOT official", "no MLPerf result")}
    assert set(column(made, "Model, bytes")) == {("88,000,123", "")}
    assert set(column(made, "LoadGen")) == {("VALID", "2 of 2 VALID"), ("VALID", "")}
    assert not {"p90, ms", "Power, W", "MLPerf's latency, ms"} & {c.name for c in made.columns}


def test_streams_are_compared_by_their_latency(tmp_path: Path) -> None:
    stopped = "latency_p90_early_stopping_s"
    infer(tmp_path, {"latency_p90_s": 0.30, stopped: 0.4}, scenario="SingleStream")
    infer(tmp_path, {"latency_p90_s": 0.15, stopped: 0.1}, scenario="SingleStream", weights="w1")
    infer(tmp_path, {"latency_p90_s": 0.15}, scenario="SingleStream", weights="w2",
          precision="int8")  # fmt: skip
    made = table(tmp_path)
    assert by_weights(made, "Speed-up") == {"w0": "1", "w1": "1", "w2": "2"}
    assert by_weights(made, "MLPerf's latency, ms") == {"w0": "400", "w1": "100", "w2": ""}
    assert by_weights(made, "p90, ms")["w0"] == "300"
    assert "Samples/s" not in {c.name for c in made.columns}


@pytest.mark.parametrize(
    "other",
    [{"scenario": "Server"}, {"profile": "official"}, {"shape": LARGE}, {"system": "2x-card"},
     {"inputs": {"data": "others", "checkpoint": "w0"}}, {"metrics": {"result_valid": 0.0}},
     {"precision": "int8"}, {"sparsity": "2:4"}],
)  # fmt: skip
def test_no_speed_up_over_something_else(tmp_path: Path, other: dict) -> None:
    figures = {"samples_per_second": 10.0, **other.pop("metrics", {})}
    infer(tmp_path, figures, **other)
    infer(tmp_path, {"samples_per_second": 20.0}, precision="int8", weights="w1")
    assert by_weights(table(tmp_path), "Speed-up")["w1"] == "-"


def test_the_official_bert_large_has_mlperfs_reference(tmp_path: Path) -> None:
    infer(tmp_path, {"samples_per_second": 4.0, "f1": 90.2}, shape=LARGE, profile="official",
          precision="int8")  # fmt: skip
    infer(tmp_path, {"samples_per_second": 9.0, "f1": 88.0}, shape=SMALL, profile="official",
          weights="w1", precision="int8")  # fmt: skip
    made = table(tmp_path)
    assert by_weights(made, "F1 / FP32, %") == {"w0": "99.26", "w1": "-"}
    rows = published(Report(*load_results([tmp_path])).real + Report(*load_results([])).published)
    own = [row for row in rows.rows if row.kind == "measured"]
    assert [row.cells[3].text for row in own] == ["4"], "BERT-large alone"
    assert any(row.cells[0].text == "NVIDIA DGX A100, 1 x A100, sparse" for row in rows.rows)


def test_an_invalid_result_is_plainly_none(tmp_path: Path) -> None:
    infer(tmp_path, {"samples_per_second": 10.0, "result_valid": 0.0}, status="failed")
    made = table(tmp_path)
    assert column(made, "LoadGen") == [("INVALID", "")]
    assert column(made, "Samples/s") == [("10", "INVALID")]
    assert column(made, "Speed-up") == [("-", "")]


def test_the_page_keeps_training_and_inference_apart(tmp_path: Path) -> None:
    make_run(tmp_path, {"sequences_per_second": 5.0})
    infer(tmp_path, {"samples_per_second": 10.0, "f1": 80.0})
    infer(tmp_path, {"samples_per_second": 10.0}, weights="w9",
          extras={"export": {"model": 3}, "parameters": "<b>", "model_bytes": None})  # fmt: skip
    report = Report(*load_results([tmp_path], references=False))
    sections = {s.id: s for s in report.sections}
    assert [len(t.rows) for t in sections["measured"].tables] == [1, 2]
    assert len(sections["runs"].groups) == 3
    assert "dense, fp32, 88,000,123 bytes, 22,000,000 parameters" in html(report)
    assert "NOT official" in text(report)


def run(*paths: Path, force: bool = False) -> int:
    return cli(["compare", *map(str, paths), *(["--force"] if force else [])])


def test_compare_judges_rate_and_latency(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sides = []
    for name, rate, late in (("a", 10.0, 0.1), ("b", 12.0, 0.2)):
        sides.append(tmp_path / name)
        for i in range(6):
            infer(
                sides[-1],
                {"samples_per_second": rate + i / 100, "latency_p99_s": late + i / 1e3},
                scenario="Server",
                weights=name,
                precision="fp32" if name == "a" else "int8",
            )
    assert run(*sides) == 1
    said = capsys.readouterr().out
    assert "significant: latency_p99_s" in said
    assert "model: fp32, dense, weights a-of-64- against int8, dense, weights b-of-64-" in said
    assert run(sides[1], sides[0]) == 1
    assert "significant: samples_per_second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "reason"),
    [({"scenario": "Server"}, "scenario Offline against Server"),
     ({"profile": "official"}, "profile non-official against official"),
     ({"shape": LARGE}, "model's shape: 6 x 384"),
     ({"inputs": {"data": "others", "checkpoint": "w"}}, "data: questions against others")],
)  # fmt: skip
def test_compare_refuses_another_task(
    tmp_path: Path, capsys: pytest.CaptureFixture, other: dict, reason: str
) -> None:
    sides = [tmp_path / "a", tmp_path / "b"]
    infer(sides[0], {"samples_per_second": 10.0})
    infer(sides[1], {"samples_per_second": 20.0}, **other)
    assert run(*sides) == 2 and reason in " ".join(capsys.readouterr().out.split())
    assert run(*sides, force=True) == 0


def ranked_table(root: Path) -> tuple[Table, str]:
    section = Report(*load_results([root], references=False)).sections[0]
    assert section.id == "fastest"
    return next(t for t in section.tables if t.id == "inference-ranking"), section.text


def test_each_scenario_has_its_ranking_with_its_doubts(tmp_path: Path) -> None:
    infer(tmp_path, {"samples_per_second": 10.0, "f1": 88.0})
    infer(tmp_path, {"samples_per_second": 40.0, "f1": 80.0}, weights="w1", precision="int8")
    infer(tmp_path, {"samples_per_second": 90.0, "result_valid": 0.0}, weights="w2",
          precision="int8", sparsity="2:4")  # fmt: skip
    stopped = "latency_p90_early_stopping_s"
    infer(tmp_path, {stopped: 0.2, "f1": 88.0}, scenario="SingleStream")
    infer(tmp_path, {stopped: 0.1, "f1": 88.0}, scenario="SingleStream", weights="w1",
          precision="int8")  # fmt: skip
    infer(tmp_path, {"samples_per_second": 99.0}, scenario="Server")  # alone: no ranking
    made, answer = ranked_table(tmp_path)
    names = ("Scenario", "Rank", "Precision", "Samples/s", "Latency, ms", "Speed")
    rows = list(zip(*([t for t, _ in column(made, name)] for name in names), strict=True))
    assert rows == [
        ("Offline", "1", "int8", "40", "", "1"),
        ("Offline", "2", "fp32", "10", "", "0.25"),
        ("Offline", "", "int8", "90", "", ""),
        ("SingleStream", "1", "int8", "", "100", "1"),
        ("SingleStream", "2", "fp32", "", "200", "0.5"),
    ]
    doubts = [text for text, _ in column(made, "Doubts")]
    assert all("NOT official: no MLPerf result" in text for text in doubts)
    assert "F1 is 90.91 % of FP32's" in doubts[0] and "INVALID" in doubts[2]
    assert ("offline_non_official: 1 x Card 1 (int8) is the fastest of 3 configurations "
            "with 40 samples/s, 4 times the speed of") in answer  # fmt: skip
    assert "F1 is 90.91 % of FP32's" in answer and "with 0.1 s" in answer


def test_official_and_other_rules_are_ranked_apart(tmp_path: Path) -> None:
    infer(tmp_path, {"samples_per_second": 10.0}, profile="official")
    infer(tmp_path, {"samples_per_second": 40.0}, weights="w1")
    section = Report(*load_results([tmp_path], references=False)).sections[0]
    assert "inference-ranking" not in [t.id for t in section.tables]
