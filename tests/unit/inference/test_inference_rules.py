# SPDX-License-Identifier: Apache-2.0
"""Settings of LoadGen: the arithmetic, MLPerf's rules, and refusals with their line."""

from __future__ import annotations

import pytest

from bertbench.benchmarks.bert_inference import rules
from bertbench.benchmarks.bert_inference.rules import Asked, check_official, read_user_conf
from bertbench.common.errors import BadInput
from bertbench.common.mlperf import inference


@pytest.fixture
def conf(tmp_path):
    def write(*lines: str):
        (tmp_path / "user.conf").write_text("\n".join(lines) + "\n")
        return tmp_path / "user.conf"

    return write


def test_flags_become_milliseconds_and_lines_that_loadgen_reads():
    found = Asked(min_duration_s=0.25, min_queries=7, target_qps=12.5).settings("Server")
    assert {s.key: s.value for s in found} == {
        "min_duration": 250, "min_query_count": 7, "target_qps": 12.5
    }  # fmt: skip
    assert rules.conf_lines(found, {"target_qps": 1.0}, "Server").splitlines() == [
        "bert.Server.target_qps = 12.5",
        "bert.Server.min_duration = 250",
        "bert.Server.min_query_count = 7",
    ]
    assert rules.effective(found, "Server") == {
        "min_duration_ms": 250, "min_query_count": 7, "latency_bound_ms": 130
    }  # fmt: skip


def test_loadgen_reads_the_lines_with_these_meanings(tmp_path):
    """In a process of its own: LoadGen reads mlperf.conf once a process."""
    import subprocess
    import sys

    pytest.importorskip("mlperf_loadgen")
    found = Asked(min_duration_s=0.25, min_queries=7, target_latency_ms=7.5).settings(
        "SingleStream"
    )
    file = tmp_path / "user.conf"
    file.write_text(rules.conf_lines(found, {}, "SingleStream"))
    code = (
        "import sys, mlperf_loadgen as l\ns = l.TestSettings()\n"
        "s.scenario = l.TestScenario.SingleStream\n"
        "assert s.FromConfig(sys.argv[1], 'bert', 'SingleStream', 1) == 0\n"
        "print(s.min_duration_ms, s.min_query_count, s.single_stream_expected_latency_ns)\n"
        "print(s.qsl_rng_seed, s.sample_index_rng_seed, s.schedule_rng_seed)\n"
        "print(s.performance_sample_count_override)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    )
    durations, seeds, samples = done.stdout.splitlines()
    assert durations == "250 7 7500000.0"
    assert tuple(map(int, seeds.split())) == inference.SEEDS["6.0"]
    assert int(samples) == inference.SAMPLES


def test_the_last_line_that_holds_for_bert_and_the_scenario_counts(conf):
    path = conf(
        "# a comment", "*.*.min_duration = 600000", "resnet50.Offline.target_qps = 3",
        "bert.Offline.target_qps = 40  # ours", "*.Server.target_qps = 5",
        "bert.*.min_duration = 700000",
    )  # fmt: skip
    found = {s.key: s.value for s in read_user_conf(path, "Offline")}
    assert found == {"min_duration": 700_000, "target_qps": 40}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("target_qps = 4", "MODEL.SCENARIO.KEY"),
        ("bert.Offlin.target_qps = 4", "unknown scenario"),
        ("bert.Offline.target_qsp = 4", "would ignore target_qsp"),
        ("bert.Offline.target_qps = many", "must be a number"),
        ("bert.Offline.min_duration = 0.5", "whole numbers"),
    ],
)
def test_a_line_that_loadgen_would_misread_is_refused(conf, line, message):
    with pytest.raises(BadInput, match=message) as error:
        read_user_conf(conf("# first", line), "Offline")
    assert "user.conf:2: " in str(error.value)


@pytest.mark.parametrize(
    ("scenario", "line"),
    [
        ("Offline", "*.Offline.min_duration = 599999"),
        ("Offline", "bert.Offline.min_query_count = 10832"),
        ("Offline", "*.*.performance_sample_count_override = 100"),
        ("Offline", "*.Offline.qsl_rng_seed = 1"),
        ("Server", "bert.Server.target_latency = 131"),
        ("Server", "*.Server.target_latency_percentile = 90"),
        ("SingleStream", "*.SingleStream.max_duration = 1000"),
        ("MultiStream", "*.MultiStream.samples_per_query = 4"),
    ],
)
def test_the_official_profile_refuses_what_breaks_the_rules(conf, scenario, line):
    settings = read_user_conf(conf(line), scenario)
    with pytest.raises(BadInput, match="profile non-official") as error:
        check_official(settings, scenario)
    assert line in str(error.value)


def test_the_official_profile_takes_expectations_and_stricter_values(conf):
    lines = ("bert.Server.target_qps = 99", "bert.Server.target_latency = 100",
             "*.Server.min_duration = 600000", "*.Server.min_query_count = 270336")  # fmt: skip
    check_official(read_user_conf(conf(*lines), "Server"), "Server")
    check_official(Asked(target_qps=5).settings("Offline"), "Offline")
    check_official(Asked(target_latency_ms=5).settings("SingleStream"), "SingleStream")


@pytest.mark.parametrize(
    ("scenario", "asked", "message"),
    [
        ("SingleStream", {"target_qps": 5.0}, "has no rate"),
        ("Offline", {"target_latency_ms": 5.0}, "has no latency"),
        ("Offline", {"min_duration_s": -1.0}, "above 0"),
        ("Offline", {"min_duration_s": float("nan")}, "above 0"),
        ("Server", {"target_latency_ms": 7.5}, "whole numbers"),
    ],
)
def test_flags_that_a_scenario_lacks_are_refused(scenario, asked, message):
    with pytest.raises(BadInput, match=message):
        Asked(**asked).settings(scenario)


def test_the_target_is_that_of_bert_99():
    assert pytest.approx(0.99 * 90.874) == inference.TARGET_F1
