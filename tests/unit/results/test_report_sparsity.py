# SPDX-License-Identifier: Apache-2.0
"""Sparse attention in records, comparisons and the report: to the digit, and never mixed."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertbench.common.cli.compare import main as compare_main
from bertbench.common.config.recipe import hash_values
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.report.groups import entries
from bertbench.common.report.page import Report
from bertbench.common.report.plot import Plot, Series, lines
from bertbench.common.report.sparsity import COLUMNS, plots
from bertbench.common.report.tables import Table, families
from bertbench.common.results.attention import attention
from bertbench.common.results.comparable import differences, load_side
from bertbench.common.results.store import Result, load_results
from tests.unit.results.constructed import make_run

MODEL = {"num_hidden_layers": 2, "hidden_size": 64}
STAR, STRIDED = (100 * (1 - nnz / 128**2) for nnz in (634, 4852))
SEARCH = {"search": "structured", "lamb": None, "target_sparsity": 0.9}


def record(
    root: Path,
    mask: str | None = None,
    values: dict[str, float] | None = None,
    *,
    task: str | None = None,
    facts: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    inputs: dict[str, Any] | None = None,
    **changed: Any,
) -> Path:
    """A run with a mask; the first of ``values`` is its quality."""
    values = values or {"mlm_accuracy": 0.5, "sequences_per_second": 10.0}
    if mask is not None and facts is None:
        known = AttentionMask.of(mask)
        facts = {"attention_mask": {"mask": known.text, "hash": known.hash, "length": 128,
                                    "sparsity_ratio": known.sparsity_ratio(128)}}  # fmt: skip
    facts = facts or {}
    content = {"model": MODEL, "max_seq_length": 128, "attention_mask": mask, "task": task}
    content |= recipe or {}
    known_inputs = {"data": f"of {task}", "checkpoint": "c0ffee00" * 8} | (inputs or {})
    if "attention_mask" in facts:
        known_inputs["attention_mask"] = facts["attention_mask"]["hash"]
    name = next(iter(values))
    return make_run(
        root,
        values,
        recipe_hash=hash_values("Toy", content, known_inputs),
        inputs=known_inputs,
        quality={"metric": name, "value": values[name], "target": None, "reached": None},
        config={"recipe": content, "origins": dict.fromkeys(content, "flag")},
        **{"extras": {"precision": "bf16", "backend": "accel", **facts}} | changed,
    )


def loaded(root: Path) -> list[Result]:
    found, damaged = load_results([root], references=False)
    assert not damaged
    return found


def content(root: Path, references: bool = False) -> tuple[dict[str, Plot], dict[str, Table]]:
    report = Report(*load_results([root], references=references))
    return (
        {p.title: p for p in plots(report.real, report.published)},  # those of one point, too
        {t.id: t for s in report.sections for t in s.tables},
    )


# -- the attention of a run --------------------------------------------------------------------


def test_names_are_of_patterns_files_facts_and_goals(tmp_path: Path) -> None:
    file = {"mask": "all layers the same", "hash": "ab" * 32, "length": 128}
    file["sparsity_ratio"] = 0.9
    record(tmp_path, facts={})
    record(tmp_path, "star")
    record(tmp_path, "somebody/masks/dam_s.json", facts={"attention_mask": file})
    record(tmp_path, "x.json", facts={"attention_mask": file | {"name": "DAM\x07_s"}})
    record(tmp_path, recipe=SEARCH, facts={"mask_search": {"length": 128, "sparsity_ratio": 0.89}})
    record(tmp_path, recipe=SEARCH | {"target_sparsity": None, "lamb": 1e-4})
    record(tmp_path, "y.json", facts={"attention_mask": {"hash": 3, "sparsity_ratio": 7}})
    found = [attention(r) for r in loaded(tmp_path)]
    assert [str(a) for a in found] == [
        "dense, sparsity ratio 0.00 %",
        f"star, sparsity ratio 96.13 % at 128 tokens, hash {AttentionMask.of('star').hash[:8]}",
        "dam_s 90.0 % (abababab), sparsity ratio 90.00 % at 128 tokens",
        "DAM?_s, sparsity ratio 90.00 % at 128 tokens, hash abababab",
        "structured search, target 90 %, sparsity ratio 89.00 % at 128 tokens",
        "structured search, lambda 0.0001, sparsity ratio unknown",
        "y.json, sparsity ratio unknown, hash 3",
    ]
    assert found[2] == found[3] != found[1], "a mask is its content"
    assert [a.searched for a in found] == [False, False, False, False, True, True, False]


def test_a_pattern_has_its_hash_before_it_is_recorded(tmp_path: Path) -> None:
    record(tmp_path, "star", facts={})
    record(tmp_path, "star")
    record(tmp_path, "no such", facts={})
    early, late, unknown = map(attention, loaded(tmp_path))
    assert early == late and early.sparsity_ratio is None and unknown.key == "no such"


# -- apart: groups and comparisons --------------------------------------------------------------


def test_runs_of_different_masks_are_apart_and_named(tmp_path: Path) -> None:
    """By content: two names of one mask are one configuration, one name of two masks is two."""
    one, other = ({"attention_mask": {"hash": h * 32, "length": 128, "sparsity_ratio": 0.9}}
                  for h in ("ab", "cd"))  # fmt: skip
    record(tmp_path, "a.json", facts=one)
    record(tmp_path, "folder/b.json", facts=one)
    record(tmp_path, "a.json", facts=other)
    record(tmp_path)
    found = entries(loaded(tmp_path))
    assert sorted(len(e.results) for e in found) == [1, 1, 2]
    assert sorted(e.workload for e in found) == [
        "toy (attention a 90.0 % (abababab))",
        "toy (attention a 90.0 % (cdcdcdcd))",
        "toy (attention dense)",
    ]  # fmt: skip
    assert len({e.workload for e in found}) == 3


def test_a_lone_masked_run_is_named_as_such(tmp_path: Path) -> None:
    record(tmp_path, "star")
    (e,) = entries(loaded(tmp_path))
    assert e.workload == "toy (attention star)" and e.sparsity == pytest.approx(STAR)


def test_scaling_does_not_mix_masks(tmp_path: Path) -> None:
    for n in (1, 2):
        for hash_ in ("ab", "cd")[:n]:
            facts = {"attention_mask": {"hash": hash_ * 32, "sparsity_ratio": 0.9}}
            record(tmp_path, "a.json", facts=facts, world_size=n, system=f"{n}x")
    (family,) = families(entries(loaded(tmp_path)))
    assert len({e.attention.key for _, e, _ in family}) == 1


def test_compare_shows_both_masks_and_sparsities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "a")
    record(tmp_path / "b", "star")
    sides = [load_side(str(tmp_path / name)) for name in "ab"]
    assert any(
        re.fullmatch(
            r"attention: dense, sparsity ratio 0\.00 % against "
            r"star, sparsity ratio 96\.13 % at 128 tokens, hash [0-9a-f]{8}", line,
        )
        for line in differences(*sides)
    )  # fmt: skip
    assert compare_main([str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "star, sparsity ratio 96.13 %" in "".join(capsys.readouterr())
    record(tmp_path / "b", "strided")
    mixed = differences(sides[0], load_side(str(tmp_path / "b")))
    assert any(line.startswith("attention: ") and "mixes star" in line for line in mixed)


def test_searches_with_one_goal_compare_though_they_find_other_masks(tmp_path: Path) -> None:
    for side in "ab":
        facts = {"mask_search": {"hash": side * 64, "length": 128, "sparsity_ratio": 0.9}}
        record(tmp_path / side, recipe=SEARCH, facts=facts)
    assert differences(*(load_side(str(tmp_path / side)) for side in "ab")) == []


# -- together: the figures ----------------------------------------------------------------------


def test_quality_and_relative_throughput_over_sparsity(tmp_path: Path) -> None:
    for mask, accuracy, rate in ((None, 0.5, 8.0), ("star", 0.45, 6.0), ("strided", 0.48, 10.0)):
        for more in (0, 2):
            values = {"mlm_accuracy": accuracy, "sequences_per_second": rate + more}
            record(tmp_path, mask, values, seed=more)
    facts = {"mask_search": {"length": 128, "sparsity_ratio": 0.8}}
    record(tmp_path, recipe=SEARCH, facts=facts)
    record(tmp_path, "star", system="2x", precision="fp32",
           extras={"precision": "fp32", "backend": "accel", "attention_mask":
                   {"hash": "a", "sparsity_ratio": 0.7}})  # fmt: skip
    drawn, _ = content(tmp_path)
    base = "bert_pretraining, 2 x 64: "
    assert list(drawn) == [
        base + name + " over sparsity"
        for name in ("mlm_accuracy", "throughput / dense throughput", "sequences/s")
    ]
    quality, relative, rate = drawn.values()
    ours, other = "1 x Card 1, bf16", "1 x Card 1, fp32"
    assert quality.columns == ("mask", "sparsity ratio, %", "mlm_accuracy", "of")
    assert sorted(quality.rows) == sorted([
        ("strided", "70.39", "0.48", ours), ("star", "96.13", "0.45", ours),
        ("structured search, target 90 %", "80", "0.5", ours), ("star", "70", "0.5", other),
    ])  # fmt: skip
    assert "dense 0.5<" in quality.svg and "Dense: 0.5." in quality.desc
    # Medians 9 (dense), 7 and 11; a search's speed is not that of its mask.
    assert relative.rows == [
        ("strided", "70.39", "1.222", ours), ("star", "96.13", "0.7778", ours),
    ]  # fmt: skip
    assert [(r[0], r[2]) for r in rate.rows] == [("star", "10")], "no dense run on that system"
    assert 'class="line"' not in quality.svg, "masks are no sequence"


def test_another_length_task_data_or_model_is_another_figure(tmp_path: Path) -> None:
    record(tmp_path, "star", preset="same")
    record(tmp_path, recipe={"max_seq_length": 64})
    record(tmp_path, recipe={"model": {**MODEL, "hidden_size": 32}})
    record(tmp_path, inputs={"data": "other"})
    drawn, _ = content(tmp_path)
    assert all("dense" not in p.svg for t, p in drawn.items() if "mlm_accuracy" in t)
    assert list(drawn) == ["bert_pretraining, 2 x 64: mlm_accuracy over sparsity",
                           "bert_pretraining, 2 x 64: sequences/s over sparsity"]  # fmt: skip


def test_other_settings_are_no_dense_peer(tmp_path: Path) -> None:
    record(tmp_path, "star")
    record(tmp_path, recipe={"max_steps": 9})
    drawn, _ = content(tmp_path)
    assert not any("throughput" in title for title in drawn)


def test_a_report_without_masks_has_no_sparsity_figure(tmp_path: Path) -> None:
    record(tmp_path)
    assert content(tmp_path, references=True)[0] == {}


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=40), st.text(max_size=30))
def test_any_points_and_names_make_a_plot(points: list[tuple[float, float]], name: str) -> None:
    one = Series(label="s", points=points, names=dict.fromkeys(points, f"<{name}"))
    made = lines("p", "t", "d", [one], x="x", y="y", targets=[(1.0, "dense")])
    assert "nan" not in made.svg.replace(name, "") and "inf" not in made.svg.replace(name, "")
    assert "<<" not in made.svg


def test_names_do_not_overlap() -> None:
    points = [(90 + i % 3, 80 + i / 10) for i in range(30)]
    one = Series(label="s", points=points, names=dict.fromkeys(points, "bigbird"))
    made = lines("p", "t", "d", [one], x="x", y="y")
    places = re.findall(r'class="point s0" x="([\d.]+)" y="([\d.]+)"', made.svg)
    boxes = [(float(x), float(y)) for x, y in places]
    assert 3 <= len(boxes) < 30 and "only in the values" in made.note
    width = 6.6 * len("bigbird")
    for i, (x, y) in enumerate(boxes):
        assert all(abs(x - u) >= width - 0.2 or abs(y - v) >= 12.8 for u, v in boxes[:i])


# -- GLUE ---------------------------------------------------------------------------------------
SCORES = dict(zip(COLUMNS, (82.0, 83.0, 87.0, 90.0, 92.0, 55.0, 86.0, 88.0, 64.0), strict=True))


def glue(root: Path, mask: str | None, less: float, tasks: list[str], **changed: Any) -> None:
    for task in tasks:
        names = [name for name in COLUMNS if name.split("_")[0] == task]
        values = {name: SCORES[name] - less for name in names}
        record(root, mask, values, task=task, benchmark="glue", **changed)


TASKS = ["mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte"]


def test_nine_columns_and_their_mean_only_if_all_are_there(tmp_path: Path) -> None:
    glue(tmp_path, None, 0.0, TASKS)
    glue(tmp_path, "star", 2.0, TASKS)
    glue(tmp_path, "star", 4.0, ["rte"], recipe={"learning_rate": 1.0})
    glue(tmp_path, "strided", 1.0, TASKS[:-1])
    glue(tmp_path, "star", 3.0, ["rte"], inputs={"checkpoint": "beef" * 16})
    drawn, tables = content(tmp_path, references=True)
    table = tables["sparsebert"]
    assert [c.name for c in table.columns] == ["Attention", "Sparsity", *COLUMNS.values(), "Mean"]
    ours = {(r.cells[0].text, r.cells[0].note[-8:]): r.cells for r in table.rows
            if r.kind == "measured"}  # fmt: skip
    assert len(ours) == 4 and sum(r.kind == "published" for r in table.rows) == 14
    dense, star = ours["dense", "c0ffee00"], ours["star", "c0ffee00"]
    assert [c.sort for c in dense[1:]] == [0.0, *SCORES.values(), fmean(SCORES.values())]
    assert star[1].sort == pytest.approx(STAR)
    assert star[10].sort == 61.0 and star[10].note == "60 to 62, 2 recipes"
    assert star[11].sort == pytest.approx(fmean(SCORES.values()) - 2 - 1 / 9)
    for other in (ours["strided", "c0ffee00"], ours["star", "beefbeef"]):
        assert other[11].text == "" and other[11].sort is None, "blank unless all nine are there"
    assert ours["strided", "c0ffee00"][10].text == ""
    mean = drawn["GLUE: mean of nine columns over sparsity"]
    assert [r[0] for r in mean.rows[:1]] == ["star"] and len(mean.rows) == 1 + 14
    assert mean.rows[1][:3] == ("Strided", "70.4", "79.5")


def test_published_points_are_beside_and_marked(tmp_path: Path) -> None:
    glue(tmp_path, "strided", 1.0, ["rte"])
    drawn, _ = content(tmp_path, references=True)
    (plot,) = (p for title, p in drawn.items() if "rte over" in title)
    assert plot.rows[0][:3] == ("strided", "70.39", "63")
    theirs = [r for r in plot.rows if r[3].startswith("published: SparseBERT (ICML 2021)")]
    assert len(theirs) == 14 and ("Star", "96.1", "60.3") in {r[:3] for r in theirs}
    assert plot.svg.count('class="m diamond"') == 14 and "published, of other models" in plot.note
