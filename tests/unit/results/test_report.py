# SPDX-License-Identifier: Apache-2.0
"""The report's figures to the digit, its links, and that text from records stays text."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import math
import re
import string
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertbench.common.cli.main import main as cli
from bertbench.common.cli.report import main
from bertbench.common.errors import BadInput
from bertbench.common.report.figures import MOST_LINES, learning, sensors, time_split
from bertbench.common.report.groups import entries, value_of
from bertbench.common.report.markdown import rows, text
from bertbench.common.report.markers import STYLES
from bertbench.common.report.page import MOST_DETAILED, MOST_READ, Report, html
from bertbench.common.report.plot import MAX_POINTS, Series, bars, lines, thinned
from bertbench.common.report.tables import (
    Table,
    configurations,
    families,
    mode,
    number_cell,
    scaling,
)
from bertbench.common.report.words import duration, markdown, number, quantity
from bertbench.common.results.store import Result, load_results
from tests.browser.records import HOSTILE, TRICKY, figures, quality, steps, write_results
from tests.unit.results.constructed import device, make_run


def report_on(root: Path, references: bool = False) -> Report:
    return Report(*load_results([root], references=references))


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def cells(table: Table | None) -> list[list[str]]:
    assert table is not None
    return [[cell.text for cell in row.cells] for row in table.rows]


def column(table: Table | None, name: str) -> list[str]:
    assert table is not None
    at = [c.name for c in table.columns].index(name)
    return [row[at] for row in cells(table)]


# -- words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0, "0"), (0.72, "0.72"), (13568, "13,568"), (227.04, "227"), (1234.56, "1,235"),
     (0.000123456, "0.0001235"), (1.5e-7, "1.500e-07"), (3.2e14, "3.200e+14"), (-2.5, "-2.5"),
     (math.nan, "nan"), (9.9999, "10"), (100.0, "100")],
)  # fmt: skip
def test_numbers(value: float, wanted: str) -> None:
    assert number(value) == wanted


def test_units() -> None:
    assert quantity(2.5 * 2**30, "bytes") == "2.5 GiB"
    assert quantity(1.5e12, "FLOP/s") == "1.5 TFLOP/s"
    assert quantity(0.5, "1") == "0.5"
    assert [duration(s) for s in (9.25, 123, 13568)] == ["9.25 s", "2 min 03 s", "3 h 46 min"]
    assert duration(119.2, beside=137.0) == "1 min 59 s" and duration(125.0, beside=100) == "125 s"


def test_the_ends_of_an_interval_have_the_units_of_their_median() -> None:
    times = [110.0, 119.0, 137.0, 140.0, 153.0, 160.0]
    assert number_cell(value_of(times, "s"), "", form=duration)[:3] == (
        "2 min 18 s", "", "1 min 50 s to 2 min 40 s (95 %)"
    )  # fmt: skip
    hours = number_cell(value_of([7000.0, 7300.0, 7400.0], "s"), "", form=duration)
    assert (hours.text, hours.note) == ("2 h 01 min", "1 h 56 min to 2 h 03 min")


def test_markdown_is_inert() -> None:
    told = markdown("a|b\n<b> [x](javascript:y) `c` *d* _e_ https://h # & ~")
    assert "\n" not in told and "<" not in told and "://" not in told
    assert not re.search(r"(?<!\\)[|`*_\[\]~#]", told.replace("&#47;", ""))
    assert markdown("- a") == r"\- a" and markdown("2026-01-02") == "2026-01-02"


# -- plots -----------------------------------------------------------------------------------


def test_thinning_keeps_ends_and_extremes() -> None:
    points = [(float(i), math.sin(i)) for i in range(10_000)]
    points[777] = (777.0, 50.0)
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS and kept == sorted(kept)
    assert kept[0] == points[0] and kept[-1] == points[-1] and points[777] in kept
    assert thinned(points[:5] + [(6.0, math.nan)]) == points[:5]


def test_a_plot_has_title_description_values_and_points() -> None:
    made = lines(
        "p", "T <t>", "D & d", [Series(label="<s>", points=[(1.0, 2.0), (2.0, 4.0)])],
        x="steps", y="rate", targets=[(3.0, "target <3>")], marks=[1.5], windows=[(1.0, 1.5)],
    )  # fmt: skip
    svg = str(made.svg)
    assert '<title id="p-t">T &lt;t&gt;</title>' in svg
    assert '<desc id="p-d">D &amp; d</desc>' in svg and "target &lt;3&gt;" in svg
    assert svg.count('class="m ') == 2 and svg.count('class="mark"') == 1
    assert svg.count('class="window"') == 1 and 'data-points="2"' in svg
    assert made.columns == ("steps", "<s>") and made.rows == [["1", "2"], ["2", "4"]]


@pytest.mark.parametrize("log", [False, True])
@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=300))
def test_any_values_make_a_plot(log: bool, points: list[tuple[float, float]]) -> None:
    made = lines("p", "t", "d", [Series(label="s", points=points)], x="x", y="y", log=log)
    assert "nan" not in str(made.svg) and "inf" not in str(made.svg)


# -- arithmetic ------------------------------------------------------------------------------


def test_medians_stability_and_missed_targets(tmp_path: Path) -> None:
    for rate in (10.0, 13.0, 11.0):
        make_run(tmp_path, figures(rate), quality=quality(0.6))
    make_run(tmp_path, figures(99.0), status="below_quality", quality=quality(0.4))
    make_run(tmp_path, figures(7.0), status="below_quality", quality=quality(0.3), precision="x")
    table = configurations(entries(load_results([tmp_path], references=False)[0]))
    assert column(table, "Sequences/s") == ["11", "7 \u2020"]
    assert column(table, "Stability") == ["0.75", "0"]
    assert column(table, "Runs") == ["4", "1"]
    assert [row.cells[4].note for row in table.rows] == ["10 to 13", ""]
    assert [row.cells[3].note for row in table.rows] == ["indicative, 1 seed", "indicative"]
    assert [row.cells[8].note for row in table.rows] == ["3 of 4", "0 of 1"]


def test_an_interval_from_six_runs_on(tmp_path: Path) -> None:
    for rate in range(1, 10):
        make_run(tmp_path, figures(float(rate)), quality=quality(0.6), seed=rate)
    table = configurations(entries(load_results([tmp_path], references=False)[0]))
    rate = table.rows[0].cells[4]
    assert (rate.text, rate.sort, rate.note) == ("5", 5.0, "2 to 8 (95 %)")
    assert table.rows[0].cells[3].note == ""


def test_scalability_to_the_digit(tmp_path: Path) -> None:
    for n, rate in ((1, 10.0), (2, 18.0), (4, 30.0)):
        config = {"recipe": {"global_batch": 8 * n, "max_steps": 3}}
        make_run(tmp_path, figures(rate), world_size=n, global_batch=8 * n, config=config,
                 recipe_hash=f"{n:016x}", system=f"{n}x-card")  # fmt: skip
    make_run(tmp_path, figures(99.0), world_size=8, config={"recipe": {"max_steps": 4}})
    (family,) = families(entries(load_results([tmp_path], references=False)[0]))
    assert mode(family) == "weak"
    table = scaling([family])
    assert column(table, "N") == ["1", "2", "4"]
    assert column(table, "Speed-up") == ["1", "1.8", "3"]
    assert column(table, "Scalability") == ["1", "0.9", "0.75"]


def test_processes_of_the_host_are_not_devices_but_scale(tmp_path: Path) -> None:
    host = [device(0, backend="cpu_ref")] * 2
    make_run(tmp_path, figures(10.0), devices=host[:1])
    make_run(tmp_path, figures(15.0), devices=host, world_size=2)
    found = entries(load_results([tmp_path], references=False)[0])
    assert {e.device for e in found} == {"1 x Card 1, 2 cores", "1 x Card 1, 2 cores, 2 processes"}
    (family,) = families(found)
    assert mode(family) == "strong"
    assert column(scaling([family]), "Scalability") == ["1", "0.75"]


def test_a_run_without_hash_or_precision_counts_with_its_configuration(tmp_path: Path) -> None:
    config = {"recipe": {"learning_rate": 1}, "impl": {"precision": "amp"}}
    other = {"recipe": {"learning_rate": 2}, "impl": {"precision": "amp"}}
    make_run(tmp_path, figures(1.0), config=config, quality=quality(0.6))
    make_run(tmp_path, figures(2.0), config=other, recipe_hash="1" * 16, quality=quality(0.6))
    make_run(tmp_path, status="interrupted", config=config, recipe_hash=None,
             extras={"backend": "accel"})  # fmt: skip
    found = entries(load_results([tmp_path], references=False)[0])
    assert [(e.workload, e.made) for e in found] == [
        ("toy (learning_rate 1)", 2), ("toy (learning_rate 2)", 1),
    ]  # fmt: skip


def test_what_tells_configurations_apart_is_what_their_users_gave(tmp_path: Path) -> None:
    for i, (most, origin, synthetic) in enumerate(
        [(1200, "preset", False), (450, "flag", False), (1200, "preset", True)]
    ):
        origins = {"max_steps": origin, "seed": "default"}
        config = {"recipe": {"max_steps": most}, "origins": origins,
                  "run": {"seed": 1, "synthetic": synthetic}}  # fmt: skip
        make_run(tmp_path, figures(1.0), config=config, recipe_hash=str(i) * 16)
    found = entries(load_results([tmp_path], references=False)[0])
    assert [e.workload for e in found] == ["toy", "toy (max_steps 450)", "toy (synthetic data)"]


def test_a_record_from_before_a_setting_is_of_its_default(tmp_path: Path) -> None:
    """Or each new setting would part all records from those before it."""
    for impl in ({}, {"optimizer_sharding": "none"}, {"optimizer_sharding": "zero1"}):
        make_run(tmp_path, figures(1.0), config={"recipe": {}, "impl": impl})
    found = entries(load_results([tmp_path], references=False)[0])
    assert [(e.variant, len(e.results)) for e in found] == [
        ('optimizer_sharding "none"', 2), ('optimizer_sharding "zero1"', 1),
    ]  # fmt: skip


def test_where_the_time_went(tmp_path: Path) -> None:
    alone = {"gradient_all_reduce_s": 0.15, "sequences_per_second_e2e": 8.0}  # a step a second
    make_run(tmp_path / "a", figures(10.0) | alone)
    plot = time_split(entries(load_results([tmp_path / "a"], references=False)[0]))
    assert plot is not None
    assert list(plot.rows[0][1:]) == ["60", "5", "15", "20", "0"]
    make_run(tmp_path / "b", figures(10.0))
    plot = time_split(entries(load_results([tmp_path / "b"], references=False)[0]))
    assert plot is not None
    assert list(plot.rows[0][1:]) == ["75", "5", "", "20", "0"], "what is not known is not 0"


def test_windows_are_shaded_and_the_line_is_broken(tmp_path: Path) -> None:
    run = load_results([make_run(tmp_path)], references=False)[0][0]
    readings = [{"t": t / 10, "power_w": 5.0} for t in (*range(10), *range(50, 60))]
    (plot,) = sensors(run, "a", [*readings, {"t": "x"}, {"power_w": 1.0}])
    assert str(plot.svg).count('class="window"') == 2
    line = re.search(r'class="line" d="([^"]*)"', str(plot.svg))
    assert line is not None and line[1].count("M") == 2
    assert sensors(run, "a", []) == []


def test_published_tables_say_what_their_sources_say(tmp_path: Path) -> None:
    by_id = {t.id: t for s in report_on(tmp_path, references=True).sections for t in s.tables}
    first, second = cells(by_id["deepsparkhub-1"]), cells(by_id["deepsparkhub-2"])
    assert ["8 x Iluvatar BI-V100", "227", "13,568 s", "0.72"] in first
    assert second[0][2:6] == ["214", "0.72", "152 x 8", "0.96"] and second[0][7] == "1"
    assert column(by_id["enflame-performance"], "Throughput, sequences/s") == ["12.6", "78.1"]
    assert column(by_id["enflame-accuracy"], "Accuracy, F1 %")[:2] == ["91.2", "91"]
    strided = next(row for row in cells(by_id["sparsebert"]) if "Strided" in row[0])
    assert strided[1:] == [
        "70.4", "81.9", "81.9", "87.1", "89", "91.7", "58.4", "86.6", "86.1", "52.7", "79.5",
    ]  # fmt: skip
    speed = {row[0]: row[1:] for row in cells(by_id["dle-squad"])}
    assert speed["8 x NVIDIA A100 80GB"] == ["32", "469.8", "846.7", "1.8", "7.64", "7.66"]
    assert "4,046" in column(by_id["inference"], "Samples/s")
    assert "32,356" in column(by_id["inference"], "Samples/s")
    assert all(row.kind == "published" for t in by_id.values() for row in t.rows)


def test_published_logs_are_drawn_as_others(tmp_path: Path) -> None:
    row = {
        "system": "s", "benchmark": "bert_pretraining", "metrics": {}, "doubt": [],
        "quality": {"metric": "mlm_accuracy", "value": 0.72, "target": 0.72},
        "evaluations": [{"seconds": 60.0 * i, "samples": 1000 * i, "value": 0.2 * i}
                        for i in range(1, 5)] + [{"seconds": None, "samples": None, "value": 1.0}],
    }  # fmt: skip
    (tmp_path / "reference").mkdir()
    content = {"kind": "mlperf", "source": {"title": "a log"}, "rows": [row]}
    (tmp_path / "reference" / "log.json").write_text(json.dumps(content))
    results, damaged = load_results([tmp_path / "reference" / "log.json"])
    ours = [r for r in results if r.manifest.get("source") == {"title": "a log"}]
    plots = [p for s in Report(ours, damaged).sections for p in s.plots]
    assert [p.title for p in plots] == [
        "published: MLPerf logs: mlm_accuracy over samples",
        "published: MLPerf logs: mlm_accuracy over time",
    ]
    for plot in plots:
        assert str(plot.svg).count('class="m diamond"') == 4
        assert "series sref" in str(plot.svg) and "target 0.72" in str(plot.svg)


def test_a_measured_run_joins_the_known_tables(tmp_path: Path) -> None:
    make_run(tmp_path, figures(10.0), quality=quality(0.6))
    make_run(tmp_path, figures(15.0), quality=quality(0.6), precision="fp32")
    by_id = {t.id: t for s in report_on(tmp_path).sections for t in s.tables}
    assert cells(by_id["deepsparkhub-1"])[0] == ["1 x Card 1", "10", "120 s", "0.6"]
    assert cells(by_id["deepsparkhub-2"])[0][1:] == [
        "1 x Card 1, batch 8, bf16", "10", "0.6", "100 x 1", "", "1 x 1", "1",
    ]  # fmt: skip
    assert cells(by_id["dle-pretraining"])[0][2:5] == ["15", "10", "0.667"]
    assert "enflame-accuracy" not in by_id  # nothing ran, and nobody was asked for


def test_scaling_in_the_shape_of_nvidias_table(tmp_path: Path) -> None:
    for n, rate in ((1, 10.0), (8, 70.0)):
        for whole in (8, 8 * n) if n > 1 else (8,):
            config = {"recipe": {"global_batch": whole}, "impl": {"micro_batch": whole // n}}
            make_run(tmp_path, figures(rate), world_size=n, global_batch=whole, config=config)
    by_id = {t.id: t for s in report_on(tmp_path).sections for t in s.tables}
    assert sorted(row[-1] for row in cells(by_id["dle-pretraining"])) == ["1", "7", "7"]


def test_the_quality_of_a_run_that_was_stopped_is_none(tmp_path: Path) -> None:
    make_run(tmp_path, figures(10.0), quality=quality(0.6))
    for status in ("interrupted", "failed"):
        make_run(tmp_path, figures(10.0), quality=quality(0.001), status=status)
    made = entries(load_results([tmp_path], references=False)[0])
    assert [e.quality().median for e in made] == [0.6] and made[0].made == 3


# -- the page --------------------------------------------------------------------------------


class Tags(HTMLParser):
    """All elements, and the addresses and anchors in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report_on(write_results(tmp_path_factory.mktemp("all") / "results"), references=True)


def test_text_from_records_is_only_text(everything: Report) -> None:
    tags = Tags(html(everything))
    names = [tag for tag, _ in tags.found]
    assert names.count("script") == 1 and names.count("style") == 1
    assert not {"img", "iframe", "object", "embed", "base"} & set(names)
    assert not [a for _, attrs in tags.found for a in attrs if a.startswith("on")]
    assert not [a for _, attrs in tags.found if "style" in attrs for a in attrs]
    for _, attrs in tags.found:
        for key in ("href", "src", "action"):
            address = attrs.get(key)
            assert address is None or address.startswith(("#", "https://", "http://", "data:,"))
    told = "".join(tags.texts)
    assert "window.hacked=1" in told and "{{ 7*7 }}" in told and "49" not in TRICKY


def test_the_markdown_is_only_text(everything: Report) -> None:
    made = text(everything)
    bare = re.sub(r'<a id="[a-z0-9-]+"></a>', "", made)
    assert "<" not in bare, bare[bare.index("<") - 50 :][:150]
    assert not re.search(r"(?<!\\)\]\((?!#)", bare)
    rows = [line for line in made.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in rows]
    starts = [i for i, line in enumerate(rows) if set(line) <= set("|-:")]
    assert len(starts) > 10
    for i in starts:
        j = i
        while j < len(rows) and j + 1 not in starts:
            assert widths[j] == widths[i], rows[j]
            j += 1


def test_every_link_inside_leads_somewhere(everything: Report) -> None:
    tags = Tags(html(everything))
    ids = [attrs["id"] for _, attrs in tags.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = {str(a["href"])[1:] for _, a in tags.found if str(a.get("href", "")).startswith("#")}
    assert wanted - {""} <= set(ids)
    made = text(everything)
    there = set(re.findall(r'<a id="([a-z0-9-]+)">', made))
    assert set(re.findall(r"\]\(#([^)]*)\)", made)) <= there


def test_the_page_asks_for_nothing_and_its_policy_holds(everything: Report) -> None:
    page = html(everything)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None and policy[1].startswith("default-src 'none'")
    for tag in ("style", "script"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert inside is not None
        hashed = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{hashed}'" in policy[1]
    for css in re.findall(r"<style>(.*?)</style>", page, re.DOTALL):
        assert "url(" not in css and "@import" not in css


def test_simulated_runs_are_apart(everything: Report) -> None:
    for section in everything.sections:
        told = json.dumps([cells(t) for t in section.tables])
        assert ("Played card" in told) == section.simulated
    last = [s.id for s in everything.sections]
    assert "simulated" in last and "99" not in dict(everything.facts)["runs"]
    assert "simulated" in html(everything) and "no result" not in dict(everything.facts)


def test_failures_refusals_and_damage_are_rows(everything: Report) -> None:
    (section,) = (s for s in everything.sections if s.id == "failed")
    (table,) = section.tables
    status = column(table, "Status")
    wanted = {"below quality", "oom", "unsupported", "interrupted", "failed", "damaged"}
    assert set(status) == wanted and status.count("failed") == 2 and status.count("damaged") == 1
    assert "out of device memory: lower --micro_batch" in column(table, "Reason")
    assert dict(everything.facts)["damaged records"] == "1"


def test_definitions_come_from_the_records(everything: Report) -> None:
    told = {d.name: d for d in everything.definitions}
    assert told["sequences_per_second"].texts == [
        "sequences trained in the timed window: training only, evaluations and checkpoints "
        "excluded / its seconds"
    ]
    assert {"scalability", "stability", HOSTILE, TRICKY} <= set(told)
    assert "higher is better; clock: host-sync" in told["sequences_per_second"].how


def test_many_runs_cost_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = make_run(tmp_path / "one", figures(10.0), quality=quality(0.6), lines=steps(10.0))
    (one,) = load_results([template], references=False)[0]
    results = [
        Result(one.path, "run", {**one.manifest, "run_id": f"r{i:04}", "seed": i}, one.config,
               one.system)
        for i in range(1000)
    ]  # fmt: skip
    read: list[str] = []
    whole = Result.steps
    monkeypatch.setattr(Result, "steps", lambda self: (read.append(self.run_id), whole(self))[1])
    report = Report(results, [])
    measured = next(s for s in report.sections if s.id == "measured")
    assert len(read) == MOST_READ and f"{MOST_READ} of 1,000 runs" in measured.text
    page = html(report)
    assert page.count('<details class="run"') == 1000
    assert page.count('<svg class="plot"') < 3 * MOST_DETAILED
    assert len(page) < 6_000_000
    (accuracy, *_) = measured.plots
    assert [label for _, label, _ in accuracy.legend] == [
        f"1 x Card 1, bf16, median of {MOST_READ}"
    ]


def test_many_runs_over_time_are_merged_by_their_evaluations(tmp_path: Path) -> None:
    assert MOST_LINES == 12
    for i in range(13):
        make_run(tmp_path, figures(10.0), seed=i, quality=quality(0.6), lines=steps(10.0 / (i + 1)))
    results, _ = load_results([tmp_path], references=False)
    events = {r.run_id: list(r.steps()) for r in results}
    over_samples, over_time = learning(entries(results), events)
    assert over_samples.rows == [["16", "0.2"], ["32", "0.4"], ["48", "0.6"]]
    assert over_time.rows == [["12.2", "0.2"], ["23.4", "0.4"], ["34.6", "0.6"]]  # of the 7th


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = ("notes", "extras", "quality", "mlperf", "samples", "global_batch", "reason", "dirty",
        "created_utc", "commit", "inputs", "preset", "step")  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(st.sampled_from(KEYS), json_values),
    st.lists(st.dictionaries(st.sampled_from(("kind", "step", "samples", "metrics", "loss",
                                              "time_s", "target_metric")), json_values
                             | st.sampled_from(("eval", "step", "mlm_accuracy"))), max_size=4),
    st.dictionaries(st.text(string.printable, min_size=1, max_size=9),
                    st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)  # fmt: skip
def test_no_record_breaks_the_report(
    tmp_path_factory: pytest.TempPathFactory,
    changed: dict[str, Any],
    events: list[dict[str, Any]],
    values: dict[str, float],
) -> None:
    root = tmp_path_factory.mktemp("any")
    told = "".join(json.dumps(e) + "\n" for e in events)
    make_run(root, values, lines=told, quality=changed.pop("quality", quality(0.5)), **changed)
    make_run(root, figures(3.0), status="failed")
    report = report_on(root)
    assert "<h1>" in html(report) and text(report)


# -- the verb --------------------------------------------------------------------------------


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "results", figures(10.0))
    out = tmp_path / "a" / "b"
    assert cli(["report", str(tmp_path / "results"), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"] == 1 and told["published"] > 100 and told["damaged"] == 0
    assert Path(told["html"]).read_text().startswith("<!DOCTYPE html>")
    assert Path(told["markdown"]).read_text().startswith("# bertbench report")
    assert main([str(tmp_path / "results"), "--out", str(out), "--no-references"]) == 0
    assert "1 runs, 0 simulated, 0 published, 0 damaged" in capsys.readouterr().out
    assert "Iluvatar" not in (out / "report.html").read_text()


def test_the_verb_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert cli(["report", str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 2
    assert cli(["report", str(tmp_path)]) == 2
    assert "--out" in capsys.readouterr().err
    with pytest.raises(BadInput, match="no record in"):
        main([str(tmp_path / "empty"), "--out", str(tmp_path / "o"), "--no-references"])
    make_run(tmp_path / "results", figures(10.0))
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot write into.*--out"):
        main([str(tmp_path / "results"), "--out", str(tmp_path / "file")])
    assert not list(tmp_path.glob("o/*"))


def test_rows_for_another_page_have_no_links_and_no_empty_columns(tmp_path: Path) -> None:
    make_run(tmp_path, {"sequences_per_second": 12.5})
    table = configurations(report_on(tmp_path).real)
    linked, plain = rows(table), rows(table, links=False)
    assert "](#" in linked[2] and "Power, W" in linked[0]
    assert "](#" not in plain[2] and "<a" not in plain[2] and "12.5" in plain[2]
    assert "Power, W" not in plain[0] and len({line.count(" | ") for line in plain[::2]}) == 1


@pytest.mark.parametrize("fails", ["write_atomic", "html", "text", "fsync"])
def test_a_failed_report_leaves_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    make_run(tmp_path / "results", figures(10.0))
    words = ["report", str(tmp_path / "results"), "--out", str(tmp_path / "o"), "--no_references"]
    assert cli(words) == 0
    before = contents(tmp_path / "o")
    make_run(tmp_path / "results", figures(99.0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    place = {
        "write_atomic": "cli.report.write_atomic", "html": "report.page.html",
        "text": "report.markdown.text", "fsync": "files.os.fsync",
    }[fails]  # fmt: skip
    monkeypatch.setattr(f"bertbench.common.{place}", full)
    assert cli(words) == (1 if fails in ("html", "text") else 2)  # a page that cannot be made
    assert contents(tmp_path / "o") == before


def test_series_of_one_plot_are_told_apart(tmp_path: Path) -> None:
    """Marker and dash of twelve series; beyond them a letter, in the plot and in the legend."""
    for n in range(12):
        make_run(tmp_path / "other", figures(1.0), preset=f"other{n}", seed=n,
                 lines=steps(1.0), quality=quality(0.6))  # fmt: skip
    for n in range(9):
        for seed in range(1 + (n == 0)):
            make_run(tmp_path / "many", figures(1.0), devices=[device(name=f"Chip {n}")],
                     seed=seed, lines=steps(1.0), quality=quality(0.6))  # fmt: skip
    found = entries(load_results([tmp_path], references=False)[0])
    plots = learning(found, report_on(tmp_path)._events)
    (plot,) = (p for p in plots if p.id.startswith("learning") and len(p.legend) == 9
               and "samples" in p.id)  # fmt: skip
    assert len({str(picture) for picture, _, _ in plot.legend}) == 9
    assert not any(label[1:3] == "  " for _, label, _ in plot.legend)
    many = [Series(label=f"{n}", points=[(0, n)]) for n in range(STYLES)]
    alone = lines("x", "t", "d", many, x="x", y="y")
    assert len({str(picture) for picture, _, _ in alone.legend}) == STYLES == 12
    drawn = [re.findall(r'class="m (\w+)"', str(picture))[0] for picture, _, _ in alone.legend]
    assert len(set(drawn)) == 12, "without colour, too"
    css = (Path(__file__).parents[3] / "common" / "report" / "report.css").read_text()
    dashes = {n: re.findall(rf"\.s{n} \.line {{ (.*?) }}", css) for n in range(STYLES)}
    assert len({str(dash) for dash in dashes.values()}) == 12
    more = lines("x", "t", "d", [*many, Series(label="12", points=[(0, 12)])], x="x", y="y")
    assert [label for _, label, _ in more.legend if "  " in label] == ["a  0", "b  12"]


def test_plots_of_nothing_are_left_out(tmp_path: Path) -> None:
    assert not lines("x", "t", "d", [Series(label="a", points=[(1, 2)])], x="x", y="y").seen
    assert not lines("x", "t", "d", [Series(label="a", points=[(1, 0), (2, 0)])], x="x", y="y").seen
    assert lines("x", "t", "d", [Series(label="a", points=[(1, 0), (2, 1)])], x="x", y="y").seen
    assert not bars("x", "t", "d", [("a", [0.0, None])], ("p", "q"), unit="s").seen
    make_run(tmp_path, figures(1.0), lines=steps(1.0, (0.6,), every=2), quality=quality(0.6))
    report = report_on(tmp_path)
    titles = [p.title for s in report.sections for p in s.plots]
    assert "toy: throughput over steps" in titles
    assert not [t for t in titles if "mlm_accuracy" in t], "one evaluation"
    assert "mlm_accuracy over samples" not in text(report)


def test_versions_of_the_code_are_no_repeats(tmp_path: Path) -> None:
    for n in range(6):
        make_run(tmp_path, figures(10.0 + n), code_hash=f"{n % 3}" * 16, dirty=True)
    table = configurations(entries(load_results([tmp_path], references=False)[0]))
    assert column(table, "Runs") == ["2"] * 3
    for row in table.rows:
        assert row.cells[3].note == "indicative, 1 seed, uncommitted changes"
        assert "code " in row.cells[0].text and "95 %" not in row.cells[4].note


def test_times_of_resumed_runs_are_marked(tmp_path: Path) -> None:
    make_run(tmp_path / "a", figures(10.0) | {"e2e_time_s": 300.0})
    make_run(tmp_path / "a", figures(10.0) | {"e2e_time_s": 7.0}, resumed_from="x", seed=2,
             earlier_precisions=[])  # fmt: skip
    make_run(tmp_path / "b", figures(10.0) | {"e2e_time_s": 7.0}, resumed_from="x", precision="fp9",
             earlier_precisions=[])  # fmt: skip
    report = report_on(tmp_path)
    (table,) = (t for s in report.sections for t in s.tables if t.id == "deepsparkhub-1")
    assert column(table, "E2E") == ["300 s", "7 s"]
    assert [row.cells[2].note for row in table.rows] == ["", "resumed: only the last part"]


def test_a_run_that_goes_on_is_called_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, figures(10.0), quality=quality(0.6))
    going = make_run(tmp_path, status="interrupted", finished=False, seed=9,
                     reason="the process ended without finishing its record")  # fmt: skip
    words = ["report", str(tmp_path), "--out", str(tmp_path / "o"), "--no_references"]
    with (going / "steps.jsonl").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cli(words) == 0
        assert "1 runs, 1 running" in capsys.readouterr().out
        told = (tmp_path / "o" / "report.md").read_text()
        assert "running" in told and "without finishing" not in told and "interrupted" not in told
        report = report_on(tmp_path)
        assert column(configurations(report.real), "Stability") == ["1"]
    assert cli(words) == 0
    assert "interrupted" in (tmp_path / "o" / "report.md").read_text()
