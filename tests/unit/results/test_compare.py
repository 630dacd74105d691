# SPDX-License-Identifier: Apache-2.0
"""Comparing groups of runs: figures to the digit, refusals with their reason, exit codes."""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertbench.common.cli.main import main as cli
from bertbench.common.errors import BadInput
from bertbench.common.report.comparison import render
from bertbench.common.results.comparable import load_side
from bertbench.common.results.compare import Comparison, compare
from bertbench.common.results.store import earlier_precisions
from bertbench.common.results.validate import validate
from tests.unit.results.constructed import described, device, make_run, seal

RATE = "sequences_per_second"
BASE = [100.0, 103.0, 97.0, 107.0, 94.0, 101.0]


def group(root: Path, rates: Sequence[float], **changed: Any) -> Path:
    for seed, rate in enumerate(rates, 42):
        make_run(root, {RATE: rate} | changed.get("also", {}), seed=seed,
                 **{k: v for k, v in changed.items() if k != "also"})  # fmt: skip
    return root


def of(lhs: Path, rhs: Path, **options: Any) -> Comparison:
    return compare(load_side(str(lhs)), load_side(str(rhs)), **options)


def row(found: Comparison, name: str = RATE) -> Any:
    (result,) = [row for row in found.rows if row.name == name]
    return result


def test_the_figures_to_the_digit(tmp_path: Path) -> None:
    doubled = [2 * value for value in BASE]
    found = of(group(tmp_path / "a", BASE), group(tmp_path / "b", doubled))
    rate = row(found)
    assert (rate.lhs.median, rate.lhs.n, rate.lhs.low, rate.lhs.high) == (100.5, 6, 94.0, 107.0)
    assert (rate.rhs.median, rate.rhs.n, rate.rhs.low, rate.rhs.high) == (201.0, 6, 188.0, 214.0)
    quotients = sorted(r / e for r, e in itertools.product(doubled, BASE))
    assert rate.ratio == 2.0 == quotients[17] == quotients[18]
    assert rate.interval == (quotients[5], quotients[30], 1 - 38 / 924)
    assert rate.p == 2 / 924
    assert (rate.verdict, rate.judged, rate.regression) == ("better", True, False)
    assert found.exit_code == 0 and not found.differences
    text = render(found, 100)
    assert f"{RATE}  A 100.5/s (n=6, 94/s to 107/s)" in text and "n=6, 188/s to 214/s" in text
    assert f"{quotients[5]:.4g}-{quotients[30]:.4g}" in text and "0.0022" in text


def test_a_regression_is_significant_and_beyond_the_threshold(tmp_path: Path) -> None:
    a, b = group(tmp_path / "a", BASE), group(tmp_path / "b", [value / 2 for value in BASE])
    assert row(of(a, b)).verdict == "worse"
    assert (of(a, b).exit_code, of(b, a).exit_code) == (1, 0)
    said = "worse by more than 1 % and significant: sequences_per_second"
    assert said in render(of(a, b), 100)
    assert of(a, b, threshold=50.0).exit_code == 0
    assert of(a, b, threshold=49.9).exit_code == 1


def test_lower_is_better_for_times(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for seed, value in enumerate(BASE):
        make_run(a, {"time_to_target_s": value}, seed=seed)
        make_run(b, {"time_to_target_s": value * 2}, seed=seed)
    assert row(of(a, b), "time_to_target_s").verdict == "worse" and of(a, b).exit_code == 1
    assert row(of(b, a), "time_to_target_s").verdict == "better" and of(b, a).exit_code == 0


def test_what_is_not_significant_shows_its_raw_ratio(tmp_path: Path) -> None:
    found = of(group(tmp_path / "a", [100.0] * 3), group(tmp_path / "b", [50.0] * 3))
    rate = row(found)
    assert (rate.ratio, rate.p, rate.verdict, rate.interval) == (0.5, 0.1, "~", None)
    assert found.exit_code == 0
    text = render(found, 120)
    assert "~ 0.5" in text and "indicative" in text
    assert "3 and 3 runs cannot show a difference: their smallest possible p is 0.1" in text


def test_one_run_a_side(tmp_path: Path) -> None:
    found = of(group(tmp_path / "a", [100.0]), group(tmp_path / "b", [80.0]))
    assert (row(found).ratio, row(found).p, found.exit_code) == (0.8, 1.0, 0)
    assert "A 100/s (n=1)" in render(found)


def test_only_what_is_judged_decides(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for seed, value in enumerate(BASE):
        make_run(a, {RATE: 1.0, "init_s": value, "temperature_max_c": value}, seed=seed)
        make_run(b, {RATE: 1.0, "init_s": value * 3, "temperature_max_c": value * 3}, seed=seed)
    found = of(a, b)
    assert row(found, "init_s").verdict == "worse" and not row(found, "init_s").judged
    assert row(found, "temperature_max_c").verdict == "differs"
    assert found.exit_code == 0
    named = of(a, b, metrics=["init_s"])
    assert [r.name for r in named.rows] == ["init_s"] and named.exit_code == 1
    with pytest.raises(BadInput, match="no run has the metric 'speed'; choose from: stability"):
        of(a, b, metrics=["speed"])


def test_quality_stands_beside_speed_and_is_judged(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for seed in range(6):
        for root, value in ((a, 0.72), (b, 0.36)):
            quality = {"metric": "acc", "value": value, "target": None, "reached": False,
                       "samples": 1}  # fmt: skip
            make_run(root, {"init_s": 1.0, RATE: 1.0, "acc": value}, seed=seed, quality=quality)
    found = of(a, b)
    assert [r.name for r in found.rows] == ["stability", RATE, "acc", "init_s"]
    assert row(found, "acc").ratio == 0.5 and found.exit_code == 1


def test_failed_runs_are_counted_and_have_no_rate(tmp_path: Path) -> None:
    a = group(tmp_path / "a", BASE)
    b = group(group(tmp_path / "b", BASE[:2]), [1.0] * 3, status="failed")
    group(b, [99.0], status="below_quality")
    found = of(a, b)
    assert found.rhs.statuses == {"failed": 3, "ok": 2, "below_quality": 1}
    assert row(found).rhs.n == 3 and row(found).rhs.low == 99.0
    stability = row(found, "stability")
    assert (stability.lhs.median, stability.rhs.median, stability.ratio) == (1.0, 2 / 6, 2 / 6)
    # 6 and 2 of 12 reached: as uneven or more are 6:2 and 2:6.
    assert stability.p == 2 * math.comb(6, 4) / math.comb(12, 4)
    text = render(found, 400)
    assert "6 runs: 3 failed, 2 ok, 1 below_quality" in text and "6/6" in text and "2/6" in text
    assert "1 runs missed their target" in text


def test_stability_alone_can_be_asked_for(tmp_path: Path) -> None:
    a, b = group(tmp_path / "a", BASE), group(tmp_path / "b", BASE)
    assert of(a, b, metrics=["stability"]).exit_code == 0
    worse = group(tmp_path / "c", BASE, status="oom")
    assert of(a, worse, metrics=["stability"]).exit_code == 1


def test_runs_that_all_fail_are_a_regression(tmp_path: Path) -> None:
    a = group(tmp_path / "a", BASE)
    b = group(tmp_path / "b", BASE, status="oom")
    assert row(of(a, b), "stability").p == 2 / 924
    assert of(a, b).exit_code == 1
    few = of(group(tmp_path / "c", BASE[:1]), group(tmp_path / "d", BASE[:1], status="oom"))
    assert few.exit_code == 2 and "no judged metric was measured" in render(few)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"recipe_hash": "f" * 16, "config": {"recipe": {"model": {"layers": 4}, "lr": 2}}},
         "recipe: 0123456789abcdef against ffffffffffffffff (layers None against 4; lr None"),
        ({"precision": "fp32"}, "precision: bf16 against fp32"),
        ({"extras": {}}, "precision: bf16 against unknown"),
        ({"world_size": 2}, "processes: 1 against 2"),
        ({"inputs": {"data": "d2"}}, "data: d1 against d2"),
        ({"inputs": {}, "config": {"run": {"synthetic": True}}}, "data: d1 against synthetic"),
        ({"devices": [device(simulated=True)]}, "devices: real against simulated"),
        ({"benchmark": "bert_squad"}, "benchmark: bert_pretraining against bert_squad"),
    ],
)  # fmt: skip
def test_what_is_not_the_same_is_refused(
    tmp_path: Path, changed: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = group(tmp_path / "a", BASE), group(tmp_path / "b", BASE, **changed)
    found = of(a, b)
    assert found.exit_code == 2 and any(d.startswith(said) for d in found.differences)
    assert "not comparable:" in render(found) and "median" not in render(found)
    forced = of(a, b, force=True)
    assert forced.exit_code == 0
    heading = render(forced, 400).split("median")[0]
    assert "NOT THE SAME BENCHMARK" in heading and said in heading
    assert cli(["compare", str(a), str(b), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert not told["comparable"] and told["rows"] == [] and told["exit_code"] == 2


def test_a_group_that_mixes_is_refused(tmp_path: Path) -> None:
    a = group(group(tmp_path / "a", BASE), BASE, precision="fp16")
    found = of(a, a)
    assert found.exit_code == 2 and "mixes bf16, fp16" in found.differences[0]


def test_a_run_that_never_knew_its_recipe_is_only_counted(tmp_path: Path) -> None:
    a = group(tmp_path / "a", BASE)
    make_run(a, status="interrupted", finished=False, recipe_hash=None, extras={}, inputs={})
    found = of(a, a)
    assert found.exit_code == 0 and found.lhs.statuses["interrupted"] == 1


def test_other_code_is_warned_about(tmp_path: Path) -> None:
    a = group(tmp_path / "a", BASE)
    b = group(tmp_path / "b", BASE, code_hash="0" * 16, config={"impl": {"kernels": "plain"}})
    make_run(b, {RATE: 100.0}, resumed_from="x", earlier_precisions=[], code_hash="0" * 16)
    found = of(a, b)
    assert found.exit_code == 0
    assert "warning: the code differs: fedcba9876543210 against 0000000000000000" in found.notes
    assert "implementation: kernels None against plain" in found.notes
    assert any("1 resumed runs" in note for note in found.notes)
    assert any("6 runs are on both sides" in note for note in of(a, a).notes)


@pytest.mark.parametrize(
    ("dtype", "note"),
    [("fp32", []), ("bf16", ["implementation: reduce_dtype fp32 against bf16"])],
)
def test_a_record_from_before_a_field_has_the_value_of_then(
    tmp_path: Path, dtype: str, note: list[str]
) -> None:
    before = group(tmp_path / "a", BASE)
    now = group(tmp_path / "b", BASE, config={"impl": {"reduce_dtype": dtype}})
    notes = of(before, now).notes
    assert [text for text in notes if text.startswith("implementation")] == note


def test_other_definitions_and_units_are_not_passed_over(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for root, unit, text in ((a, "bytes", "by torch"), (b, "bytes", "by the system")):
        entry = described("peak_memory_bytes", 5.0, unit=unit, definition=text)
        folder = make_run(root, {RATE: 1.0})
        manifest = folder / "manifest.json"
        content = json.loads(manifest.read_text())
        odd = described("power_w", 5.0, unit="W" if root is a else "mW")
        content["metrics"] += [entry, odd]
        manifest.write_text(json.dumps(content))
        seal(folder)
    found = of(a, b)
    assert any("peak_memory_bytes has different definitions: by the system | by torch" in note
               for note in found.notes)  # fmt: skip
    assert (row(found, "power_w").unit, row(found, "power_w").p) == ("W | mW", None)


def test_damaged_records_are_named_and_left_out(tmp_path: Path) -> None:
    a = group(tmp_path / "a", BASE)
    (make_run(a, {RATE: 1.0}) / "config.json").write_text("{")
    found = of(a, group(tmp_path / "b", BASE))
    assert len(found.lhs.runs) == 6
    assert any(note.startswith("left out: ") for note in found.notes)
    assert "1 damaged left out" in render(found, 400)


def test_patterns_and_what_names_nothing(tmp_path: Path) -> None:
    group(tmp_path / "a", BASE)
    group(tmp_path / "b", BASE)
    assert len(load_side(f"{tmp_path}/*/1x-card").runs) == 12
    assert len(load_side(f"{tmp_path}/a/**/2026*").runs) == 6
    with pytest.raises(BadInput, match="no such folder or match"):
        load_side(f"{tmp_path}/x*")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no run there"):
        of(tmp_path / "empty", tmp_path / "a")
    broken = group(tmp_path / "c", [1.0])
    next(broken.rglob("manifest.json")).write_text("")
    with pytest.raises(BadInput, match="1 damaged; "):
        of(tmp_path / "a", broken)


def test_values_without_ratio_are_judged_by_their_medians(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for seed in range(6):
        make_run(a, {"throttled_s": 0.0}, seed=seed)
        make_run(b, {"throttled_s": 5.0}, seed=seed)
    found = of(a, b, metrics=["throttled_s"])
    assert (row(found, "throttled_s").ratio, found.exit_code) == (None, 1)
    assert of(b, a, metrics=["throttled_s"]).exit_code == 0
    assert of(a, a, metrics=["throttled_s"]).rows[0].verdict == "~"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = group(tmp_path / "a", BASE), group(tmp_path / "b", [v / 2 for v in BASE])
    assert cli(["compare", str(a), str(b)]) == 1
    assert "0.5" in capsys.readouterr().out
    assert cli(["compare", str(a), str(b), "--json", "--metric", RATE, "--threshold", "60"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"][0]["ratio"] == 0.5 and told["lhs"]["statuses"] == {"ok": 6}
    assert set(told["methods"]) == {"groups", "runs", "ratio", "interval", "p"}
    assert cli(["compare", str(a), str(b), "--threshold", "-1"]) == 2
    assert cli(["compare", str(a)]) == 2
    assert cli(["compare", str(a), str(tmp_path / "nowhere")]) == 2


NAMES = st.sampled_from([RATE, "time_to_target_s", "power_w", "acc", "\x1b[31m<b>"])
VALUES = st.floats(allow_nan=False, allow_infinity=False) | st.integers()
RUNS = st.lists(
    st.tuples(
        st.dictionaries(NAMES, VALUES, max_size=3),
        st.sampled_from(["ok", "ok", "failed", "below_quality", "interrupted"]),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(RUNS, RUNS, st.booleans())
def test_random_records_are_compared(
    tmp_path_factory: Any, left: list[Any], right: list[Any], force: bool
) -> None:
    root = tmp_path_factory.mktemp("random")
    for name, runs in (("a", left), ("b", right)):
        for values, status in runs:
            make_run(root / name, values, status=status)
    found = of(root / "a", root / "b", force=force)
    text = render(found)
    assert text.replace("\n", "").isprintable()
    again = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert again["exit_code"] == found.exit_code in (0, 1, 2)
    for result in found.rows:
        if result.p is not None:
            assert 0 < result.p <= 1 and result.lhs.low <= result.lhs.median <= result.lhs.high
            assert (result.verdict == "~") or result.p < 0.05


def test_mixed_code_one_seed_and_uncommitted_changes_are_told(tmp_path: Path) -> None:
    for number in range(6):
        make_run(tmp_path / "a", {RATE: 1.0 + number}, code_hash=f"{number % 3:016x}", dirty=True)
    b = group(tmp_path / "b", BASE)
    found = of(tmp_path / "a", b)
    assert found.exit_code == 2
    assert any(text.startswith("code: ") and "mixes" in text for text in found.differences)
    told = "\n".join(found.notes)
    assert "6 runs of code with uncommitted changes" in told
    assert "6 runs have 1 different seeds" in told
    alike = group(tmp_path / "c", BASE, dirty=True, code_hash="0" * 16)
    assert not of(alike, alike).differences  # one version, changed but the same


def test_copies_of_a_run_are_one_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", {RATE: 2.0}, lines='{"kind": "run_start"}\n')
    for number in range(5):
        copy = folder.with_name(f"20260102T00000{number}Z_abcdefa_00000{number}")
        shutil.copytree(folder, copy)
        content = json.loads((copy / "manifest.json").read_text())
        content |= {"run_id": copy.name, "created_utc": "2026-01-03T00:00:00Z", "seed": number}
        (copy / "manifest.json").write_text(json.dumps(content))
        seal(copy)
    side = load_side(str(tmp_path / "a"))
    assert len(side.runs) == 1 and len(side.damaged) == 5
    assert all("is the same run as" in damaged.problem for damaged in side.damaged)
    (tmp_path / "b").mkdir()
    shutil.copytree(side.damaged[0].path, tmp_path / "b" / side.damaged[0].path.name)
    assert any("on both sides" in note for note in of(tmp_path / "a", tmp_path / "b").notes)


def test_a_resume_in_another_precision_is_another_precision(tmp_path: Path) -> None:
    root = tmp_path / "a"
    first = make_run(root, status="interrupted", finished=False, precision="fp32",
                     config={"impl": {"precision": "fp32"}}, extras={})  # fmt: skip
    second = make_run(root, {RATE: 1.0}, resumed_from=first.name,
                      config={"impl": {"precision": "bf16"}})  # fmt: skip
    third = make_run(root, {RATE: 1.0}, resumed_from=second.name,
                     config={"impl": {"precision": "bf16"}})  # fmt: skip
    whole = group(tmp_path / "b", BASE)
    for folder in (second, third):
        found = of(folder, whole)
        assert found.differences == ["precision: bf16 after fp32 against bf16"]
    same = make_run(root, {RATE: 1.0}, resumed_from=third.name + "x", earlier_precisions=["bf16"])
    assert of(same, whole).differences == []
    assert any("resumed" in note for note in of(same, whole).notes)


def test_a_resume_moved_away_from_its_first_part_keeps_the_precision(tmp_path: Path) -> None:
    """The manifest itself has it; an older one says that it is not known."""
    whole = group(tmp_path / "whole", BASE)
    fp32 = make_run(tmp_path / "a", status="interrupted", precision="fp32")
    known = earlier_precisions(fp32, "bf16")
    assert known == {"fp32"} and earlier_precisions(None, "bf16") == frozenset()
    second = make_run(tmp_path / "b", resumed_from=fp32.name, earlier_precisions=sorted(known))
    assert earlier_precisions(second, "bf16") == {"fp32", "bf16"}
    third = make_run(tmp_path / "c", {RATE: 1.0}, resumed_from=second.name,
                     earlier_precisions=["bf16", "fp32"])  # fmt: skip
    assert of(third, whole).differences == ["precision: bf16 after fp32 against bf16"]
    older = make_run(tmp_path / "d", {RATE: 1.0}, resumed_from=second.name)
    assert of(older, whole).differences == ["precision: bf16 after unknown against bf16"]
    assert earlier_precisions(older, "bf16") == {"bf16", "unknown"}
    assert earlier_precisions(tmp_path / "nowhere", "bf16") == {"unknown"}
    made = [p.text for p in validate(third) if "earlier_precisions" in p.text]
    assert made == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"devices": [device(name="Card 2")]}, "device: {} mixes Card 1, Card 2"),
        ({"system": "node-b"}, "system: {} mixes 1x-card, node-b"),
        ({"devices": [device(backend="other")]}, "backend: {} mixes accel, other"),
    ],
)
def test_runs_of_two_machines_are_no_group(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    a, b = group(tmp_path / "a", BASE), group(tmp_path / "b", BASE)
    assert not of(a, b).differences
    make_run(b, {RATE: 2000.0}, seed=99, **changed)
    assert of(a, b).differences == [told.format(b)]


@pytest.mark.parametrize("name", ["x\nlhs: valid", "\x1b[2Jx", "\u202ex", "a\u2028b"])
def test_no_name_forges_a_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good, odd = group(tmp_path / "a", BASE), tmp_path / name
    shutil.copytree(good, odd / "1x-card")
    broken = make_run(tmp_path / "c" / name, {RATE: 1.0})
    (broken / "config.json").write_text("{")
    out = str(tmp_path / "out")
    for words in (
        ["compare", str(good), str(odd)], ["compare", str(good), str(tmp_path / "c")],
        ["compare", str(odd / "none"), str(good)], ["validate", str(odd)],
        ["validate", str(odd / "none")], ["validate", str(tmp_path / "c")],
        ["report", str(odd), str(tmp_path / "c"), "--out", out, "--no_references"],
        ["report", str(odd / "none"), "--out", out], ["watch", "--once", str(odd)],
        ["rcp", str(odd)], ["rcp", str(odd / "none")], ["import-mlperf", str(odd / "none")],
        ["export-mlperf", str(odd), "--out", out, "--org", "A"],
        ["export-mlperf", str(tmp_path / "c"), "--out", out, "--org", "A"],
    ):  # fmt: skip
        cli(words)
        said = capsys.readouterr()
        for line in (said.out + said.err).split("\n"):
            assert line.isprintable() and not line.startswith("lhs: valid"), (words[0], line)


def test_a_run_that_goes_on_is_no_failure(tmp_path: Path) -> None:
    a, b = group(tmp_path / "a", BASE), group(tmp_path / "b", BASE)
    going = make_run(b, status="interrupted", finished=False)
    with (going / "steps.jsonl").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = of(a, b)
        assert found.rhs.statuses == {"ok": 6, "running": 1}
        assert row(found, "stability").rhs.median == 1.0
        with pytest.raises(BadInput, match="no run that has ended"):
            of(a, going)
    assert of(a, b).rhs.statuses == {"ok": 6, "interrupted": 1}
