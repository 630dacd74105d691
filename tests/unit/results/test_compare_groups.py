# SPDX-License-Identifier: Apache-2.0
"""Comparisons of several groups: by fields, across fields, in any terminal, and their JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bertbench
from bertbench.common.cli.main import main as cli
from bertbench.common.errors import BadInput
from bertbench.common.report.comparison import render
from bertbench.common.results.comparable import differences, group_by, load_side
from bertbench.common.results.compare import compare
from tests.unit.results.constructed import device, make_run
from tests.unit.results.test_compare import BASE, RATE, group


def scaled(factor: float) -> list[float]:
    return [factor * value for value in BASE]


def test_each_group_is_compared_with_the_first(tmp_path: Path) -> None:
    for name, factor in (("a", 1.0), ("b", 2.0), ("c", 0.5)):
        group(tmp_path / name, scaled(factor))
    sides = [load_side(str(tmp_path / name)) for name in "abc"]
    found = compare(*sides)
    rates = [row for row in found.rows if row.name == RATE]
    assert [(row.group, row.ratio, row.verdict) for row in rates] == [
        (1, 2.0, "better"), (2, 0.5, "worse"),
    ]  # fmt: skip
    assert found.exit_code == 1  # any group decides
    assert compare(*sides[:2]).exit_code == 0
    content = found.as_dict()
    assert [side["label"] for side in content["groups"]] == [side.label for side in sides]
    assert (content["lhs"], content["rhs"]) == tuple(content["groups"][:2])
    assert "sequences_per_second (C)" in render(found, 100).splitlines()[-1]
    api = bertbench.compare(*(str(tmp_path / name) for name in "abc"))
    assert api.as_dict()["rows"] == content["rows"]


def test_a_group_that_lacks_the_judged_metrics_is_no_comparison(tmp_path: Path) -> None:
    group(tmp_path / "a", BASE)
    group(tmp_path / "b", BASE)
    for seed in range(6):
        make_run(tmp_path / "c", {"power_w": 1.0}, seed=seed)
    found = compare(*(load_side(str(tmp_path / name)) for name in "abc"))
    assert found.exit_code == 2
    assert [row.name for row in found.rows if row.group == 1] == ["stability", RATE]
    power = [row for row in found.rows if row.name == "power_w"]
    assert [(row.group, row.lhs, row.p) for row in power] == [(2, None, None)]
    assert "power_w  A -" in render(found)


def test_a_mismatch_is_listed_once(tmp_path: Path) -> None:
    group(tmp_path / "a", BASE)
    group(tmp_path / "b", BASE)
    group(tmp_path / "c", BASE, precision="fp32", world_size=2)
    group(tmp_path / "d", BASE, precision="fp32", world_size=2)
    a, b, c, d = (load_side(str(tmp_path / name)) for name in "abcd")
    assert differences(a, b, c, d) == [
        f"precision: bf16 ({a.label}; {b.label}) against fp32 ({c.label}; {d.label})",
        f"processes: 1 ({a.label}; {b.label}) against 2 ({c.label}; {d.label})",
    ]
    assert differences(a, c, across=["precision"]) == ["processes: 1 against 2"]
    assert differences(a, c, d, across=["precision", "processes"]) == []


def test_two_devices_at_their_best_precisions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = group(tmp_path / "a", BASE)
    b = group(tmp_path / "b", scaled(2), precision="fp16", devices=[device(name="Card 2")])
    assert cli(["compare", str(a), str(b)]) == 2
    refused = capsys.readouterr().out
    assert "precision: bf16 against fp16" in refused and "--across" in refused
    assert cli(["compare", str(a), str(b), "--across", "precision,device"]) == 0
    said = capsys.readouterr().out
    assert "compared across precision, device" in said and "NOT THE SAME" not in said
    assert cli(["compare", str(a), str(b), "--across", "precision", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["comparable"] and not content["forced"] and content["across"] == ["precision"]
    assert cli(["compare", str(a), str(b), "--across", "recipe"]) == 2
    assert "no field 'recipe': choose from precision, device" in capsys.readouterr().err
    with pytest.raises(BadInput, match="across 'data': choose from"):
        compare(load_side(str(a)), load_side(str(b)), across=["data"])


def test_within_a_group_nothing_is_compared(tmp_path: Path) -> None:
    a = group(group(tmp_path / "a", BASE), BASE, precision="fp16")
    b = group(tmp_path / "b", BASE)
    found = differences(load_side(str(a)), load_side(str(b)), across=["precision"])
    assert len(found) == 1 and "mixes bf16, fp16" in found[0]


def test_groups_by_a_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group(tmp_path, BASE)
    group(tmp_path, scaled(0.5), precision="fp32")
    words = ["compare", str(tmp_path), "--by", "precision", "--json"]
    assert cli(words) == 1
    content = json.loads(capsys.readouterr().out)
    assert [side["label"] for side in content["groups"]] == ["bf16", "fp32"]
    assert content["comparable"] and content["across"] == ["precision"]
    assert cli([*words[:3], "precision,Precision", "--json"]) == 1
    twice = json.loads(capsys.readouterr().out)
    assert [side["label"] for side in twice["groups"]] == ["bf16", "fp32"]
    assert cli([*words, "--baseline", "fp32"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [side["label"] for side in content["groups"]] == ["fp32", "bf16"]
    assert cli([*words, "--baseline", "fp8"]) == 2
    assert "--baseline fp8: the groups are bf16; fp32" in capsys.readouterr().err
    assert cli([*words, "--precision", "bf16"]) == 2
    assert "needs a baseline and another group; there is only bf16" in capsys.readouterr().err
    assert cli(["compare", str(tmp_path), "--by", "colour"]) == 2
    assert cli(["compare", str(tmp_path), str(tmp_path), "--baseline", "bf16"]) == 2
    assert cli(["compare", str(tmp_path)]) == 2
    assert "--by FIELD" in capsys.readouterr().err


def test_groups_by_two_fields_keep_damaged_records(tmp_path: Path) -> None:
    group(tmp_path, [1.0, 2.0])
    group(tmp_path, [3.0], devices=[device(name="Card 2")], precision="fp32")
    (make_run(tmp_path, {RATE: 9.0}) / "config.json").write_text("{")
    sides = group_by(load_side(str(tmp_path)), ["device", "precision"])
    assert [(side.label, len(side.runs)) for side in sides] == [
        ("Card 1, bf16", 2), ("Card 2, fp32", 1),
    ]  # fmt: skip
    assert [len(side.damaged) for side in sides] == [1, 0]


def test_filters_apply_to_each_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        group(tmp_path / name, BASE)
        group(tmp_path / name, BASE[:1], precision="fp32")
    words = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]
    assert cli(words) == 2
    capsys.readouterr()
    assert cli([*words, "--precision", "bf16"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [len(side["runs"]) for side in content["groups"]] == [6, 6]
    assert cli([*words, "--precision", "fp8"]) == 2
    assert f"{tmp_path / 'a'}: --precision fp8 leaves none of 7 runs" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_it_fits_the_terminal(tmp_path: Path, columns: int) -> None:
    also = {"time_to_target_s": 754.0, "peak_memory_bytes": 2.0**31,
            "inference_sequences_per_second": 12345.678}  # fmt: skip
    for name, factor in (("a", 1.0), ("b", 0.5), ("c", 3.0)):
        group(tmp_path / name, scaled(factor), also=also)
    sides = [load_side(str(tmp_path / name)) for name in "abc"]
    text = render(compare(*sides), columns)
    table = text[text.index("median") :]
    assert max(map(len, table.splitlines())) <= columns
    assert "12 min 34 s" in text and "2 GiB" in text and "inference_sequences_per_second" in text
    assert "regression" in text and "0.5" in text
    assert ("n=6, 47/s to 53.5/s" in text) == (columns == 200)
