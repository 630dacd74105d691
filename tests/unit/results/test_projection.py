# SPDX-License-Identifier: Apache-2.0
"""Projection: arithmetic by hand, errors on left-out systems, records, networks, refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bertbench.common.cli.main import main as cli
from bertbench.common.cli.project import main, render_errors
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.results.projection import (
    Base,
    Fit,
    Network,
    Pair,
    System,
    Systems,
    fit,
    pairs,
    project,
    published_systems,
)
from bertbench.common.results.projection_errors import (
    LEFT_OUT,
    LeftOut,
    alike,
    error_table,
    errors,
    interval,
    leave_out,
)
from tests.unit.results.constructed import device, make_run

ROOT = Path(__file__).parents[3]
MLPERF = {
    "target_mlm_accuracy": 0.72, "max_seq_length": 512, "initial_mlm_accuracy": 0.34085,
}  # fmt: skip
FOUND = Fit(4.0, {(): 8.0}, ((256, 2e6), (1024, 4e6), (4096, 8e6)), ((8, 256), (64, 1024)))
ONE = Base("a machine", 8, 256, 0.36)


def system(name: str, devices: int, batch: int, step_s: float, **changed: Any) -> System:
    one = System("3.0", "A", name, "Card", "T", devices, batch, 2e6, batch / step_s, 1.0)
    return replace(one, **changed)


# -- arithmetic -----------------------------------------------------------------------------------


def test_a_step_and_the_time_by_hand() -> None:
    # t = 0.36 s / (256 / 8 + 4) = 10 ms; 64 devices, 1,024: 16 sequences, 4 fixed, 8 exposed.
    row = project(ONE, 64, FOUND, Network("n", 8.0))
    assert (row.devices, row.global_batch, row.samples) == (64, 1024, pytest.approx(4e6))
    assert row.compute_s == pytest.approx(0.16)
    assert row.fixed_s == pytest.approx(0.04)
    assert row.exposed_s == pytest.approx(0.08)
    assert row.evaluation_s is None  # part of a published rate
    assert row.step_s == pytest.approx(0.28)
    assert row.steps == math.ceil(4e6 / 1024)
    assert row.sequences_per_second == pytest.approx(1024 / 0.28)
    assert row.time_s == pytest.approx(4e6 / (1024 / 0.28))


def test_a_link_is_a_ring_whose_base_has_its_own_part() -> None:
    link = Network("l", gradient_bytes=1e9, bandwidth=50e9, latency_s=1e-3, hidden=0.5)
    assert link.exposed_s(8, 9.0) == pytest.approx(0.5 * (2 * 7 / 8 / 50 + 3e-3))
    row = project(ONE, 64, FOUND, link)
    own = link.exposed_s(8, 0.0)
    assert row.compute_s == pytest.approx((0.36 - own) / 36 * 16)
    assert row.exposed_s == pytest.approx(0.5 * (2 * 63 / 64 / 50 + 6e-3))
    with pytest.raises(BadInput, match=r"all-reduce would take .* check --bandwidth_gb_s"):
        project(ONE, 64, FOUND, replace(link, bandwidth=1e9))


def test_evaluations_are_shared_by_all_devices() -> None:
    base = replace(ONE, evaluation_s=1e-3)  # 1 ms for each sequence on 8 devices
    row = project(base, 64, FOUND, Network("n", 0.0))
    assert row.evaluation_s == pytest.approx(1024 * 1e-3 * 8 / 64)
    assert row.step_s == pytest.approx(0.16 + 0.04 + 0.128)


def test_samples_are_straight_on_logarithmic_axes_and_unknown_outside() -> None:
    assert FOUND.samples(512) == pytest.approx(2e6 * math.sqrt(2))
    assert FOUND.samples(4096) == pytest.approx(8e6)
    assert FOUND.samples(255) is FOUND.samples(4097) is None


def test_the_batch_is_the_largest_of_the_nearest_size_that_fits() -> None:
    sizes = ((8, 256), (64, 1024), (64, 512), (512, 4096), (60, 4096))
    found = replace(FOUND, batches=sizes)
    network = Network("n", 8.0)
    assert project(ONE, 64, found, network).global_batch == 1024
    assert project(ONE, 60, found, network).global_batch == 1024 - 1024 % 60  # 4,096 does not fit
    assert project(ONE, 512, found, network).global_batch == 4096
    assert project(ONE, 64, found, network, 2048).global_batch == 2048


def test_without_convergence_the_batch_of_a_device_is_kept() -> None:
    base = replace(ONE, no_time="another recipe")
    row = project(base, 4096 * 8, FOUND, Network("l", gradient_bytes=0.0))
    assert row.global_batch == 256 * 4096
    assert (row.samples, row.steps, row.time_s) == (None, None, None)
    assert (row.compute_s, row.fixed_s) == (pytest.approx(0.36), 0.0)


@pytest.mark.parametrize(
    ("devices", "batch", "kind", "words"),
    [
        (8, None, BadInput, "has 8 itself"),
        (64, 1000, BadInput, "multiple of 64"),
        (64, 8192, BadInput, "with 256 to 4,096"),
        (64, 64, BadInput, "with 256 to 4,096"),
        (8192, None, Unsupported, "no published batch"),
    ],
)
def test_what_no_system_has_shown_is_refused(
    devices: int, batch: int | None, kind: type, words: str
) -> None:
    with pytest.raises(kind, match=words):
        project(ONE, devices, FOUND, Network("n", 8.0), batch)


# -- the fit --------------------------------------------------------------------------------------


def made_up(fixed: float, exposed: dict[str, float]) -> Systems:
    """Systems whose steps follow the model to the digit: 10 ms a sequence."""
    found = []
    for submitter, beyond in exposed.items():
        for name, devices, batch in (("s", 8, 448), ("m", 64, 3072), ("l", 1024, 4096)):
            extra = 0.0 if devices == 8 else beyond
            step_s = 0.01 * (batch / devices + fixed + extra)
            found.append((system(name, devices, batch, step_s, submitter=submitter), False))
    return found


def test_the_fit_finds_the_parameters_of_the_systems() -> None:
    found = fit(made_up(5.0, {"A": 3.0, "B": 20.0, "C": 7.0}))
    assert found.fixed == 5
    assert found.exposed[("B",)] == found.exposed[("B", "Card")] == pytest.approx(20)
    assert found.exposed[()] == pytest.approx(7)
    assert found.network("B").sequences == pytest.approx(20)
    assert found.network("Z", "Card").sequences == pytest.approx(7)
    assert [batch for batch, _ in found.curve] == [448, 3072, 4096]


def test_a_single_system_makes_no_point_of_the_curve_but_above_6144() -> None:
    some = [*made_up(5.0, {"A": 3.0, "B": 2.0}), (system("x", 8, 1000, 1.0), False),
            (system("y", 8, 8000, 1.0), False), (system("z", 8, 448, 1.0), True)]  # fmt: skip
    assert [batch for batch, _ in fit(some).curve] == [448, 3072, 4096, 8000]


def test_pairs_are_of_one_family_and_without_copies() -> None:
    small, large, other = (system("a", 8, 1, 1.0), system("b", 64, 1, 1.0),
                           system("c", 64, 1, 1.0, round="4.0"))  # fmt: skip
    copied = system("d", 128, 1, 1.0)
    found = pairs([(large, False), (small, False), (other, False), (copied, True)])
    assert found == [Pair(small, large)]


# -- the published systems ------------------------------------------------------------------------


def test_which_systems_count() -> None:
    every = published_systems()
    assert (len(every), sum(not copied for _, copied in every)) == (258, 217)
    assert len(pairs(every)) == 69
    assert not [s for s, _ in every if s.round == "0.7" or s.name.endswith("-open")]
    found = fit(every)
    assert found.fixed == 6
    assert (found.curve[0][0], found.curve[-1]) == (240, (16384, 5533304))


def test_half_of_the_left_out_systems_are_within_10_percent() -> None:
    given, chosen = (errors(leave_out("family", own)) for own in (True, False))
    assert (given["systems"], chosen["systems"]) == (68, 69)
    assert given["median"] == pytest.approx(0.079, abs=5e-4)
    assert given["worst"] == pytest.approx(0.393, abs=5e-4)
    assert given["within_10_percent"] == pytest.approx(43 / 68)
    assert chosen["median"] == pytest.approx(0.094, abs=5e-4)
    assert chosen["worst"] == pytest.approx(0.538, abs=5e-4)
    assert chosen["within_10_percent"] == pytest.approx(36 / 69)


@pytest.mark.parametrize("by", LEFT_OUT)
def test_a_left_out_system_cannot_reach_its_own_projection(by: str) -> None:
    """Other figures of the system, and of its group, change nothing but the published side."""
    every = published_systems()
    group = LEFT_OUT[by]
    small, large = next(p for p in pairs(every) if p.large.name == "dgxa100_n8_ngc22.04_pytorch")
    others = [e for e in every if group(e[0]) != group(large)]
    assert large not in [s for s, _ in others] and small not in [s for s, _ in others]
    found = fit(others)
    row = project(Base("b", small.devices, small.batch, small.step_s), large.devices, found,
                  found.network(large.submitter, large.device), large.batch)  # fmt: skip
    (left,) = [x for x in leave_out(by) if x.system == large]
    assert left.time == pytest.approx((row.time_s or 0.0) / large.time_s)


def test_the_page_has_the_errors() -> None:
    page = (ROOT / "docs" / "projection.md").read_text(encoding="utf-8")
    assert render_errors(list(error_table())) in page


def test_the_interval_is_of_systems_of_that_ratio() -> None:
    rows = [LeftOut(system("a", 8, 8, 1.0), ratio, time, 1.0, 1.0)
            for ratio, time in ((2, 0.5), (4, 0.8), (8, 1.0), (8, 1.25), (9, 4.0))]  # fmt: skip
    near = alike(rows, 5)
    assert [row.ratio for row in near] == [4, 8, 8]
    low, high = interval(100.0, near)  # published / projected: 0.8, 1, 1.25
    assert (low, high) == (pytest.approx(84.0), pytest.approx(120.0))
    assert errors(near) == {
        "systems": 3, "median": pytest.approx(0.2), "worst": pytest.approx(0.25),
        "within_10_percent": pytest.approx(1 / 3),
    }  # fmt: skip


# -- the command ----------------------------------------------------------------------------------


def record(root: Path, devices: int, metrics: dict[str, float], /, **changed: Any) -> Path:
    recipe = changed.pop("recipe", MLPERF)
    values = {"global_batch": 32 * devices, "samples": 1000, "extras": {
        "precision": "bf16", "backend": "accel", "parameters": 250_000_000}}  # fmt: skip
    return make_run(root, metrics, world_size=devices,
                    config={"recipe": recipe, "impl": {"reduce_dtype": "bf16"}},
                    **{**values, **changed})  # fmt: skip


def modelled(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_record_with_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = record(tmp_path, 8, {"sequences_per_second": 256 / 0.38, "eval_s": 2.0})
    before = (folder / "manifest.json").read_bytes()
    found = modelled(capsys, "--from", str(folder), "--devices", "64",
                     "--bandwidth_gb_s", "50", "--latency_us", "1000")  # fmt: skip
    assert found["label"] == "modelled, not measured"
    (row,) = found["modelled"]
    own = 2 * 7 / 8 * 500e6 / 50e9 + 3e-3  # 250 M parameters in two bytes
    t = (0.38 - own) / (32 + 6)
    assert row["global_batch"] == 1536  # a published batch of 64 devices up to 64 x 32
    assert row["compute_s"] == pytest.approx(t * 24)
    assert row["exposed_s"] == pytest.approx(2 * 63 / 64 * 500e6 / 50e9 + 6e-3)
    assert row["evaluation_s"] == pytest.approx(1536 * 2.0 / 1000 * 8 / 64)
    assert row["low_s"] < row["high_s"] and row["left_out_systems"] == 34
    assert found["errors"]["left_out_by"] == "submitter"
    assert (folder / "manifest.json").read_bytes() == before


def test_a_scale_run_gives_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, 1, {"sequences_per_second": 100.0})
    record(tmp_path, 4, {"sequences_per_second": 4 * 32 / 0.33, "gradient_all_reduce_s": 0.04,
                         "gradient_all_reduce_bytes": 1e9})  # fmt: skip
    found = modelled(capsys, "--from", str(tmp_path), "--devices", "64")
    assert found["base"]["devices"] == 1
    assert found["network"]["bandwidth"] == pytest.approx(2 * 3 / 4 * 1e9 / 0.04)
    assert found["network"]["hidden"] == pytest.approx(1 - (0.33 - 0.32) / 0.04)
    assert found["modelled"][0]["exposed_s"] == pytest.approx(
        0.25 * 2 * 63 / 64 * 1e9 / (1.5e9 / 0.04)
    )


def test_another_recipe_has_throughput_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record(tmp_path, 1, {"sequences_per_second": 100.0}, recipe={}, preset="mini")
    words = ["--from", str(folder), "--devices", "8", "--network", "100gbe"]
    (row,) = modelled(capsys, *words)["modelled"]
    assert row["time_s"] is row["samples"] is row["low_s"] is None
    assert row["sequences_per_second"] == pytest.approx(256 / (0.32 + 2 * 7 / 8 * 500e6 / 12.5e9))
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "no time to target: no published convergence for the recipe mini" in text
    assert "Evaluations: not included: the records have none." in text


def test_the_table_says_that_it_is_modelled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--from_published", "2.0/dgxa100_ngc22.04_pytorch", "--devices", "64,1024"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("PROJECTION, modelled, not measured (~)\n")
    head = next(line for line in text.splitlines() if line.startswith("devices"))
    modelled_heads = ("samples", "steps", "s/step", "sequences/s", "minutes")
    assert all(f"~{name}" in head for name in modelled_heads)
    assert "  110,291  " in text  # sequences/s, never as 1.1e+05
    assert "on 69 published systems" in text and "median 9.4%, worst 53.8%, 52%" in text
    found = modelled(capsys, "--from_published", "dgxa100_ngc22.04_pytorch", "--devices", "64",
                     "--network", "dell", "--global_batch", "3072")  # fmt: skip
    assert found["network"]["label"] == "median of Dell's published systems"
    assert found["errors"]["systems"] == 68  # at a given batch


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from_published", "dgxa100"], "give one of: dgxa100_"),
        (["--from_published", "nothing like it"], "no such system in the closed division"),
        (["--from_published", "3.0/dgxh100_ngc23.04_pytorch", "--network", "acme"], "submitter"),
        (["--from_published", "dgxh100_ngc23.04_pytorch", "--network", "10gbe"], "bytes of the"),
        (["--from_published", "dgxh100_ngc23.04_pytorch", "--hidden", "0.5"], "belong to a link"),
        (["--from_published", "dgxh100_ngc23.04_pytorch", "--hidden", "2"], "from 0 to 1"),
        (["--from_published", "dgxh100_ngc23.04_pytorch", "--devices", "0"], "--devices 0"),
        (["--devices", "8"], "--from"),
    ],
)
def test_refusals_name_the_flag(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["project", *words]) == 2
    assert message in capsys.readouterr().err


def test_refusals_of_records(tmp_path: Path) -> None:
    def refused(name: str, words: list[str], *folders: Path) -> str:
        with pytest.raises(BadInput) as error:
            main(["--from", *map(str, folders or (tmp_path / name,)), "--devices", "8", *words])
        return str(error.value)

    rate = {"sequences_per_second": 100.0}
    link = ["--bandwidth_gb_s", "5"]
    one = record(tmp_path / "one", 1, rate)
    assert "give --network NAME or --bandwidth_gb_s" in refused("one", [])
    assert "two networks" in refused("one", [*link, "--network", "10gbe"])
    assert "belong to a link" in refused("one", ["--latency_us", "5"])
    record(tmp_path / "failed", 1, rate, status="failed")
    assert "no finished run" in refused("failed", link)
    record(tmp_path / "fake", 1, rate, devices=[device(simulated=True)])
    assert "is simulated" in refused("fake", link)
    other = record(tmp_path / "other", 2, rate, preset="other")
    assert "its preset is other, not toy" in refused("", link, one, other)
    more = record(tmp_path / "more", 1, rate, global_batch=64)
    assert "global batches [32, 64]" in refused("", link, one, more)
    record(tmp_path / "mini", 1, rate, recipe={})
    assert "MLPerf's workload only" in refused("mini", ["--network", "nvidia"])
    bare = {"precision": "bf16", "backend": "accel"}
    record(tmp_path / "bare", 1, rate, extras=bare)
    assert "bytes of the gradients are unknown" in refused("bare", link)
    (tmp_path / "empty").mkdir()
    assert "no record there" in refused("empty", link)
