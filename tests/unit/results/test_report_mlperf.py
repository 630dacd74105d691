# SPDX-License-Identifier: Apache-2.0
"""The report beside all systems that MLPerf published: which runs are drawn in, and which never."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bertbench.common.report.markdown import text
from bertbench.common.report.mlperf import comparable, family, published
from bertbench.common.report.page import PageSection, Report, html
from bertbench.common.results.store import load_results
from tests.unit.results.constructed import device, make_run

RECIPE = {"max_seq_length": 512, "initial_mlm_accuracy": 0.34085}


def mlperf_run(root: Path, recipe: dict[str, Any] = RECIPE, *, target: float = 0.72) -> None:
    quality = {"metric": "mlm_accuracy", "value": 0.73, "target": target, "reached": True,
               "samples": 80}  # fmt: skip
    make_run(
        root, {"time_to_target_s": 600.0, "sequences_per_second_e2e": 4000.0}, quality=quality,
        preset="mlperf_large_448", world_size=8, config={"recipe": recipe},
        devices=[device(i, name="Card 7-80GB") for i in range(8)],
    )  # fmt: skip


def section(root: Path) -> tuple[Report, PageSection]:
    report = Report(*load_results([root], references=True))
    return report, next(s for s in report.sections if s.id == "mlperf-systems")


def test_a_run_of_mlperfs_recipe_is_drawn_among_all_systems(tmp_path: Path) -> None:
    mlperf_run(tmp_path)
    report, found = section(tmp_path)
    assert not found.folded and [p.id for p in found.plots] == ["mlperf-time", "mlperf-rate"]
    over_devices, over_rounds = found.plots
    systems = published(report.published)
    assert len(systems) > 303
    drawn = [
        e for e in systems
        if (e.first.quality or {})["target"] == 0.72 and e.devices
        and e.first.manifest["division"] != "open" and e.first.manifest["sequence_length"]
    ]  # fmt: skip
    # Logs that were submitted again lie on those of the round before.
    places = {(e.devices, e.first.value("time_to_target_s")) for e in drawn}
    assert len(places) > 220
    assert str(over_devices.svg).count('<path class="m ') == len(places) + 1
    assert 'data-points="1"' in over_devices.svg and "8 x Card 7-80GB" in over_devices.svg
    assert "NVIDIA dgxh100_ngc23.04_pytorch, 8 x NVIDIA H100-SXM5-80GB, round 3.0: 5.468" in (
        over_devices.svg
    )
    beside = re.search(r"8 x Card 7-80GB: 10 min 00 s; (\d+) of (\d+) systems", over_devices.desc)
    times = [e.value("time_to_target_s").median for e in drawn if e.devices == 8]  # type: ignore[union-attr]
    assert beside and int(beside[1]) == sum(t < 600 for t in times) and int(beside[2]) == len(times)
    ticks = re.findall(r'class="tick x"[^>]*>([^<]+)<', str(over_rounds.svg))
    assert ticks == ["1.0", "1.1", "2.0", "2.1", "3.0", "3.1", "4.0", "4.1", "5.0", "here"]
    assert "8 x Card 7-80GB, bf16: 500" in over_rounds.svg  # 4,000 / 8
    (table,) = found.tables
    assert [r.kind for r in table.rows].count("measured") == 1
    assert len(table.rows) == len(systems) + 1


def test_another_target_length_or_start_is_never_compared(tmp_path: Path) -> None:
    mlperf_run(tmp_path, RECIPE | {"max_seq_length": 128})
    mlperf_run(tmp_path, {"max_seq_length": 512})
    mlperf_run(tmp_path, target=0.12)
    report, found = section(tmp_path)
    assert comparable(report.real, published(report.published)) == []
    assert found.folded and "none is compared" in found.text
    assert "Card 7" not in "".join(str(p.svg) + p.desc for p in found.plots)
    assert all(row.kind == "published" for t in found.tables for row in t.rows)
    assert '<details class="fold"><summary><h2 id="mlperf-systems">' in html(report)
    assert "mlperf-systems" in text(report)


def test_published_systems_are_in_one_place(tmp_path: Path) -> None:
    """Not among the other published throughputs, nor taken for a scaling of one system."""
    mlperf_run(tmp_path)
    report, _ = section(tmp_path)
    (beside,) = (s for s in report.sections if s.id == "beside")
    names = " ".join(c.text for t in beside.tables for row in t.rows for c in row.cells)
    assert "Iluvatar" in names and "H100" not in names
    scaling = [p.desc + str(p.svg) for s in report.sections if s.id == "scaling" for p in s.plots]
    assert "H100" not in "".join(scaling)


def test_kinds_of_accelerators() -> None:
    names = {
        "NVIDIA A100-SXM-80GB CTS": "NVIDIA A100", "NVIDIA A100 - PCIe - 80 GB": "NVIDIA A100",
        "NVIDIA Blackwell GPU (B200-SXM-180GB)": "NVIDIA Blackwell GPU B200", "TPU-v4": "TPU v4",
        "NVIDIA GeForce RTX 4090": "NVIDIA GeForce RTX 4090", "Graphcore Bow IPU":
        "Graphcore Bow IPU", "Habana Gaudi2": "Habana Gaudi2", None: "unknown",
    }  # fmt: skip
    assert {name: family(name) for name in names} == names


def test_published_files_of_any_kind_break_nothing(tmp_path: Path) -> None:
    mlperf_run(tmp_path)
    folder = tmp_path / "reference"
    folder.mkdir()
    unit = {"value": 5.0, "unit": "s", "direction": "lower", "definition": "d"}
    row = {"system": "s", "benchmark": "bert_pretraining", "metrics": {"time_to_target_s": unit}}
    quality = {"metric": "mlm_accuracy", "value": None, "target": 0.72, "reached": None}
    odd = [
        row | {"round": "new"}, row | {"round": "1.0"}, row | {"round": ["1.0"]},
        row | {"round": "1.0", "devices": 8, "sequence_length": [512], "quality": quality},
        row | {"round": "1.0", "devices": 8, "sequence_length": 512, "quality": quality,
               "division": "open"},
    ]  # fmt: skip
    content = {"kind": "published", "source": {"title": "t"}, "rows": odd}
    (folder / "odd.json").write_text(json.dumps(content))
    results = [r for r in load_results([tmp_path])[0] if r.path.name in ("odd.json",) or
               r.kind == "run"]  # fmt: skip
    report = Report(results, [])
    (found,) = (s for s in report.sections if s.id == "mlperf-systems")
    assert not found.plots and len(found.tables[0].rows) == 4
    assert "<h1>" in html(report)
