# SPDX-License-Identifier: Apache-2.0
"""Runs on the simulated accelerator, as Enflame's GCU: what the record says must be what happened.

Nothing here is a GCU: the records say so, and are no results.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from bertbench.backends.simulated import build
from bertbench.backends.simulated.telemetry import CLOCK_MHZ
from bertbench.common.cli.main import main
from bertbench.common.errors import Unsupported
from bertbench.common.mlperf.compliance import check_log
from tests.smoke.conftest import ROOT, TINY, Runs, lines, manifest
from tests.smoke.test_launcher import NAME, VARIABLES

AS_GCU = {"BERTBENCH_SIMULATE": "gcu", "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started here have the simulated GCU, and none of its knobs."""
    try:
        build.library()
    except Unsupported as error:
        pytest.skip(str(error))
    for name in list(os.environ):
        if name.startswith(("BERTBENCH_SIMULATED_", "ENFLAME_", "TOPS_")) or name in VARIABLES:
            monkeypatch.delenv(name)
    for name, value in AS_GCU.items():
        monkeypatch.setenv(name, value)


def named(record: Path) -> dict[str, float]:
    return {m["name"]: m["value"] for m in manifest(record)["metrics"]}


@pytest.mark.skipif(
    not (ROOT / ".venv" / ".bertbench").is_file(), reason="no .venv made by init.sh"
)
def test_the_launcher_trains_mini_on_two_devices_with_eccl(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NPROC", "2")
    shape = TINY[: TINY.index("--backend")]
    done = subprocess.run(
        ["bash", str(ROOT / NAME), "--recipe", "mini", *shape, "--data", str(runs.data),
         "--output_dir", str(runs.out), "--backend", "gcu", "--dist_backend", "eccl"],
        cwd=ROOT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "launch: 2 x gcu (" in done.stdout
    (record,) = runs.records()

    content = manifest(record)
    assert content["status"] == "ok" and content["step"] == 12 and content["world_size"] == 2
    assert content["simulated"] is True
    losses = [step["loss"] for step in lines(record, "step")]
    assert losses[-1] < losses[0]

    facts = content["extras"]
    assert facts["backend"] == "gcu"
    assert facts["verified"] == "simulator"
    assert facts["precision"] == "bf16"
    assert facts["collective"] == "eccl"
    assert facts["fallbacks"] == {}, "nothing fell back, and that was looked at"
    assert "efml" in facts["telemetry"]
    checks = facts["device_checks"]
    assert (checks["product_dtype"], checks["product_mantissa_bits"]) == ("bfloat16", "7")
    assert checks["gelu"] == "tanh" and "ENFLAME_PT_GELU_ERF_ENABLE" in checks["gelu_note"]
    assert "narrowed" in checks["int64"]

    devices = json.loads((record / "system.json").read_text())["devices"]
    assert [(d["backend"], d["index"], d["simulated"]) for d in devices] == [
        ("gcu", 0, True), ("gcu", 1, True),
    ]  # fmt: skip
    assert named(record)["power_w"] > 0 and named(record)["energy_j"] > 0
    assert named(record)["peak_memory_bytes"] > 0
    assert (record / "telemetry.jsonl").stat().st_size > 0
    assert check_log(record / "result_0.txt", "5.0.0", "open", converged=False) == []

    assert main(["validate", str(record)]) == 1
    assert f"{record}: valid, but SIMULATED: no result" in capsys.readouterr().out
    assert main(["validate", str(record), "--simulated"]) == 0


def test_a_fallback_and_throttling_are_told(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTBENCH_SIMULATED_FALLBACK", "aten::gelu,aten::gelu_backward")
    monkeypatch.setenv("BERTBENCH_SIMULATED_THROTTLE", "1")
    record = runs.run("--backend", "gcu")
    content = manifest(record)
    assert set(content["extras"]["fallbacks"]) == {"aten::gelu", "aten::gelu_backward"}
    assert all(count > 0 for count in content["extras"]["fallbacks"].values())
    assert any("aten::gelu (" in note for note in content["notes"])
    assert content["extras"]["collective"] is None, "one process uses none"
    readings = [json.loads(x) for x in (record / "telemetry.jsonl").read_text().splitlines()]
    assert {reading["sm_clock_mhz"] for reading in readings} == {CLOCK_MHZ / 2}
    assert {reading["temperature_c"] for reading in readings} == {95.0}
    assert {reading["throttled"] for reading in readings} == {1.0}
    [throttled] = [m["value"] for m in content["metrics"] if m["name"] == "throttled_s"]
    assert throttled > 0


def test_lost_telemetry_and_a_missing_precision_are_told(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERTBENCH_SIMULATED_NO_TELEMETRY", "1")
    monkeypatch.setenv("BERTBENCH_SIMULATED_LACKS", "bf16")
    record = runs.run("--backend", "gcu")
    content = manifest(record)
    assert content["status"] == "ok"
    assert content["extras"]["precision"] == "fp16"
    assert content["extras"]["telemetry"] is None
    assert any(note.startswith("power: ") for note in content["notes"])
    assert not {"power_w", "energy_j"} & set(named(record)), "unknown is absent"
    assert any(note.startswith("bf16: ") for note in content["notes"])
    refused = runs.start("--backend", "gcu", "--precision", "bf16")
    said, _ = refused.communicate(timeout=240)
    assert refused.returncode == 2 and "no 'bf16' here" in said and "fp16" in said


def test_running_out_of_memory_is_told_with_the_fix(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BERTBENCH_SIMULATED_MEMORY_BYTES", str(4 * 2**20))
    record = runs.run("--backend", "gcu", "--global_batch", "64", "--micro_batch", "64", code=1)
    content = manifest(record)
    assert content["status"] == "oom"
    assert "Lower --micro_batch: it is 64, the next smaller is 32" in content["reason"]
