# SPDX-License-Identifier: Apache-2.0
"""What a run says of its device: checks, sensors that fail, shares of the peaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.common.cli import main as cli
from bertbench.common.measure.device_facts import DeviceFacts, device_notes, fallback_notes
from bertbench.common.measure.telemetry import Sampler
from bertbench.common.results.validate import validate
from tests.smoke.conftest import manifest

PEAKS = """
[[peak]]
device = '.*'
flops_per_second = {fp32 = 4e15}
definition = "dense"
source = "made up"
date = "2026"
"""
FLAGS = ["--precision", "fp32", "--eval_iter_samples", "0", "--max_steps", "3"]


def start(runs, *flags: str) -> int:
    command = runs.command(*FLAGS, *flags)
    return cli.main(command[command.index("run") :])


def test_the_record_tells_the_device_and_its_utilisation(runs, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(PEAKS)
    backend = CpuRef()
    best = {"model": "base", "layer": "qkv", "product": "forward", "flops_per_second": 2e15}
    calibration = {
        "schema_version": 1, "created_utc": "2026-11-21T00:00:00Z", "torch": "2.13.0",
        "threads": 1, "device": {"backend": "cpu_ref", "name": backend.describe().name,
                                 "simulated": False},
        "precisions": {"fp32": {"best": best}},
    }  # fmt: skip
    (runs.out / "here").mkdir(parents=True)
    (runs.out / "here" / "calibration.json").write_text(json.dumps(calibration))
    assert start(runs, "--peaks", str(own), "--system", "here") == 0
    (record,) = runs.records()
    found = manifest(record)
    extras = found["extras"]
    assert (extras["backend"], extras["verified"]) == ("cpu_ref", "hardware")
    assert extras["simulated"] is False and extras["collective"] is None
    assert extras["device_checks"]["product_mantissa_bits"] in {"20", "21", "22", "23"}
    assert extras["micro_batch_choice"] is None and extras["fallbacks"] is None
    values = {m["name"]: m["value"] for m in found["metrics"]}
    rate = values["model_flops_per_second"]
    assert rate > 0
    assert values["mfu"] == pytest.approx(rate / 4e15)
    assert values["mfu_calibrated"] == pytest.approx(rate / 2e15)
    texts = {m["name"]: m["definition"] for m in found["metrics"]}
    assert "made up" in texts["mfu"]
    assert "here/calibration.json of 2026-11-21" in texts["mfu_calibrated"]
    assert not [p for p in validate(record) if p.severity == "error"]


def test_a_wrong_file_of_peaks_is_refused_before_anything(runs, tmp_path: Path, capsys) -> None:
    own = tmp_path / "own.toml"
    own.write_text(PEAKS.replace("dense", "sparse"))
    assert start(runs, "--peaks", str(own)) == 2
    assert "only dense rates count" in capsys.readouterr().err
    assert not runs.records()


def test_a_sensor_that_fails_is_told(runs, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([{"power_w": 1.0}])

    def read() -> dict[str, float]:
        try:
            return next(left)
        except StopIteration:
            raise RuntimeError("fell off the bus") from None

    monkeypatch.setattr(
        CpuRef, "telemetry", lambda self, period_s=0.1: Sampler(read, source="fake")
    )
    assert start(runs) == 0
    (record,) = runs.records()
    found = manifest(record)
    assert found["extras"]["telemetry"] == "fake"
    assert found["extras"]["telemetry_problems"] == ["rank 0: fake: fell off the bus"]
    assert any("fell off the bus" in note for note in found["notes"])
    assert not {m["name"] for m in found["metrics"]} & {"power_w", "energy_j", "throttled_s"}


class Untested(CpuRef):
    name, verified = "new", "documents"


def test_notes_say_what_results_are_worth() -> None:
    backend = Untested()
    info = backend.describe()
    checks = {"gelu": "tanh", "gelu_note": "SWITCH=1 gives it"}
    (note,) = [n for n in device_notes(backend, info, {}, gelu="erf") if "untested" in n]
    assert "--backend new" in note
    told = device_notes(backend, info, checks, gelu="erf")
    assert any("computes tanh (SWITCH=1 gives it)" in n for n in told)
    assert not any("GELU" in n for n in device_notes(backend, info, checks, gelu="tanh"))
    facts = DeviceFacts.of(
        backend, device=info, telemetry=None, checks=checks, world_size=2, dist_backend=None
    )
    assert (facts.collective, facts.telemetry) == ("gloo", None)
    assert fallback_notes({}) == fallback_notes(None) == []
    assert fallback_notes({"aten::erf": 3}) == [
        "computed by the host in the device's place, with times in the rehearsal: aten::erf (3)"
    ]
