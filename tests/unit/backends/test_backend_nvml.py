# SPDX-License-Identifier: Apache-2.0
"""NVML's numbers through the real nvidia-ml-py and a stand-in for the driver's library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bertbench.backends.cuda import nvml
from bertbench.backends.cuda.nvml import PATHS, THROTTLING, throttling, without_ids
from bertbench.common.errors import Unsupported

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

ASK = """
import json, os, sys
from bertbench.backends.cuda import nvml
from bertbench.common.errors import Unsupported
from bertbench.common.measure.telemetry import Sampler

def ask(index=0, visible=None, uuid=None, env=(), then=()):
    # Each question has the process's environment to itself: the library reads it at every call.
    for name in [n for n in os.environ if n.startswith("FAKE_NVML")]:
        del os.environ[name]
    os.environ.update(dict(env))
    try:
        sensors, no_power = nvml.open_nvml(index, visible, uuid)
    except Unsupported as error:
        return {"unsupported": str(error)}
    sampler = Sampler(sensors.read, source=sensors.source, period_s=60)
    sampler.start()
    os.environ.update(dict(then))
    sampler.stop()
    return {
        "source": sensors.source, "no_power": no_power, "samples": sampler.samples(),
        "energy_j": sampler.energy_j(), "problem": sampler.problem,
        "driver": nvml.driver_version(),
        "interconnect": nvml.interconnect(index, visible, uuid),
    }

print(json.dumps({name: ask(**question) for name, question in json.load(sys.stdin).items()}))
"""

Answers = dict[str, dict[str, Any]]


def build(folder: Path, *flags: str) -> Path:
    """A folder to put first on the library path."""
    folder.mkdir()
    library = folder / "libnvidia-ml.so.1"
    command = [str(COMPILER), "-Wall", "-Werror", "-shared", "-fPIC", *flags, "-o", str(library)]
    subprocess.run([*command, str(HERE / "fake_nvml.c")], check=True)
    return folder


def ask(folder: Path, questions: dict[str, dict[str, Any]]) -> Answers:
    """One process for all questions, with the library of ``folder``."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("FAKE_NVML")}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps(questions),
        env={**env, "LD_LIBRARY_PATH": str(folder), "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers: Answers = json.loads(done.stdout)
    return answers


FAIL = "FAKE_NVML_FAIL"
READINGS = (
    "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetTemperature", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetCurrentClocksEventReasons",
)  # fmt: skip
PARTIAL = "MIG-dddd4444-0000-0000-0000-000000000000"
SECOND = "GPU-aabb2222-0000-0000-0000-000000000000"
QUESTIONS: dict[str, dict[str, Any]] = {
    "first": {},
    "second": {"index": 1},
    "renumbered": {"index": 0, "visible": "1,0"},
    "by uuid": {"index": 1, "visible": f"0,{SECOND}"},
    "by prefix": {"visible": "GPU-aab"},
    "ambiguous": {"visible": "GPU-aa"},
    "unknown uuid": {"visible": "GPU-ffff9999-0000"},
    "out of range": {"index": 2, "visible": f"{SECOND},0"},
    "no such number": {"index": 0, "visible": "7"},
    # CUDA's number 0 is the fastest card; torch's UUID says that it is NVML's second.
    "other order": {"index": 0, "visible": "0", "uuid": SECOND.removeprefix("GPU-")},
    "uuid not known": {"index": 1, "uuid": "99999999-0000"},
    "no energy": {"env": {FAIL: "nvmlDeviceGetTotalEnergyConsumption=3"}},
    "no permission": {"env": {FAIL: "nvmlDeviceGetTotalEnergyConsumption=4"}},
    "neither": {"env": {FAIL: " ".join(f"{name}=3" for name in READINGS[:2])}},
    "nothing": {"env": {FAIL: " ".join(f"{name}=3" for name in READINGS)}},
    "no mig mode": {"env": {FAIL: "nvmlDeviceGetMigMode=3"}},
    "mig by uuid": {"visible": PARTIAL},
    "mig, older form": {"visible": "MIG-GPU-cccc3333-0000-0000-0000-000000000000/1/0"},
    "mig by number": {"index": 2},
    "lost": {"then": {FAIL: "nvmlDeviceGetPowerUsage=15"}},
    "switched": {"index": 1, "env": {"FAKE_NVML_LINKS": "18"}},
    "bridged": {"env": {"FAKE_NVML_LINKS": "4", "FAKE_NVML_BRIDGE": "1"}},
    "no topology": {"env": {FAIL: "nvmlDeviceGetTopologyCommonAncestor=3"}},
    "no p2p": {"env": {FAIL: "nvmlDeviceGetP2PStatus=3", "FAKE_NVML_LINKS": "18"}},
    "capped": {"env": {"FAKE_NVML_REASONS": "0x5"}},
    "not loaded": {"env": {FAIL: "nvmlInitWithFlags=9"}},
    "mismatch": {"env": {FAIL: "nvmlInitWithFlags=18"}},
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return ask(build(tmp_path_factory.mktemp("nvml") / "lib"), QUESTIONS)


def without_time(sample: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in sample.items() if name != "t"}


FIRST = {
    "energy_j": 158.572, "power_w": 301.25, "utilization_percent": 97.0,
    "memory_used_bytes": 123456789.0, "temperature_c": 41.0, "sm_clock_mhz": 1755.0,
    "memory_clock_mhz": 2619.0, "throttled": 0.0, "throttle_power": 0.0, "throttle_thermal": 0.0,
    "throttle_hardware": 0.0, "throttle_other": 0.0,
}  # fmt: skip


@needs_compiler
def test_every_reading_in_its_unit(answers: Answers) -> None:
    got = answers["first"]
    begin, end = map(without_time, got["samples"])
    assert begin == FIRST  # 157.072 J was read once, to see whether it can be
    assert end == {**FIRST, "energy_j": 160.072}
    assert all(isinstance(value, float) for value in begin.values())
    assert got["energy_j"] == pytest.approx(1.5)
    assert (got["source"], got["no_power"], got["problem"]) == ("nvml (energy)", None, None)
    assert got["driver"] == "580.65.06"
    assert answers["no mig mode"]["source"] == "nvml (energy)"  # a card older than MIG


@needs_compiler
@pytest.mark.parametrize(
    ("question", "watts"),
    [
        ("second", 68.007),
        ("renumbered", 68.007),
        ("by uuid", 68.007),
        ("by prefix", 68.007),
        ("other order", 68.007),
        ("uuid not known", 68.007),
    ],
)
def test_the_card_is_the_one_that_the_process_uses(
    answers: Answers, question: str, watts: float
) -> None:
    assert answers[question]["samples"][0]["power_w"] == watts


@needs_compiler
@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("ambiguous", "NVML does not have device 0: NVMLError_NotFound"),
        ("unknown uuid", "NVML does not have device 0: NVMLError_NotFound"),
        ("no such number", "NVML does not have device 0: NVMLError_InvalidArgument"),
        ("out of range", "device 2 does not exist: 2 visible in 'GPU-...,0'"),
        ("not loaded", "no NVML: the NVIDIA driver is not loaded"),
        ("mismatch", "no NVML: NVMLError_LibRmVersionMismatch"),
        ("nothing", "NVML reports neither energy nor power of this device: NVMLError_NotSupported"),
    ],
)
def test_what_cannot_be_read_says_why_in_one_line(
    answers: Answers, question: str, says: str
) -> None:
    message = answers[question]["unsupported"]
    assert says in message
    assert "\n" not in message
    assert "aabb2222" not in message


@needs_compiler
def test_a_reading_that_is_not_supported_is_a_missing_key(answers: Answers) -> None:
    for question in ("no energy", "no permission"):
        got = answers[question]
        assert without_time(got["samples"][0]) == {
            k: v for k, v in FIRST.items() if k != "energy_j"
        }
        assert (got["source"], got["no_power"]) == ("nvml (power)", None)
    got = answers["neither"]
    assert not {"energy_j", "power_w"} & set(got["samples"][0])
    assert got["samples"][0]["temperature_c"] == 41
    assert got["energy_j"] is None
    assert got["source"] == "nvml (no power)"
    assert got["no_power"].startswith("NVML reports neither energy nor power of this device")


@needs_compiler
@pytest.mark.parametrize(
    ("question", "memory"),
    [("mig by uuid", 1048576.0), ("mig, older form", None), ("mig by number", None)],
)
def test_a_mig_instance_has_no_power_of_its_own(
    answers: Answers, question: str, memory: float | None
) -> None:
    got = answers[question]
    sample = without_time(got["samples"][0])
    assert sample.get("memory_used_bytes") == memory  # never the whole card's
    assert (sample["temperature_c"], sample["sm_clock_mhz"]) == (55, 1410)
    assert not {"power_w", "energy_j", "utilization_percent"} & set(sample)
    assert got["no_power"].startswith("MIG: NVML measures the power of the whole card")


@needs_compiler
def test_a_card_that_is_lost_stops_the_sampling_not_the_training(answers: Answers) -> None:
    got = answers["lost"]
    assert got["problem"] == "nvml (energy): NVMLError_GpuIsLost: GPU is lost"
    assert len(got["samples"]) == 1
    assert got["energy_j"] is None


@needs_compiler
@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("first", "PCIe to 2 of 2 GPUs (PHB 1, SYS 1)"),
        ("switched", "NVLink to 2 of 2 GPUs, 18 links"),
        ("bridged", "NVLink to 1 of 2 GPUs, 4 links; PCIe to 1 of 2 GPUs (SYS 1)"),
        ("no topology", None),
        ("no p2p", None),
        ("mig by uuid", None),
        ("mig by number", None),
    ],
)
def test_how_a_card_reaches_the_others(answers: Answers, question: str, says: str | None) -> None:
    assert answers[question]["interconnect"] == says


@needs_compiler
def test_throttling_comes_from_the_library(answers: Answers) -> None:
    sample = answers["capped"]["samples"][0]
    assert (sample["throttled"], sample["throttle_power"], sample["throttle_thermal"]) == (1, 1, 0)


@needs_compiler
def test_an_older_driver_has_an_older_name_for_throttling(tmp_path: Path) -> None:
    old = build(tmp_path / "old", "-DOLD_NAMES")
    (got,) = ask(old, {"q": {"env": {"FAKE_NVML_REASONS": "0x40"}}}).values()
    assert got["samples"][0]["throttle_thermal"] == 1


def test_a_library_that_does_not_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"not a library")
    (got,) = ask(tmp_path, {"q": {}}).values()
    assert got["unsupported"].startswith("no NVML: libnvidia-ml.so.1 is not found; it comes with")


# -- bits and ids ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        (0x0, set()),
        (0x1, set()),  # idle
        (0x2, set()),  # clocks that an application set
        (0x3, set()),
        (0x4, {"power"}),
        (0x80 | 0x8, {"power", "hardware"}),
        (0x20, {"thermal"}),
        (0x40 | 0x8, {"thermal", "hardware"}),
        (0x10, {"other"}),
        (0x100, {"other"}),
        (1 << 40, {"other"}),  # one that is not known yet
        (0x1FF, {"power", "thermal", "hardware", "other"}),
    ],
)
def test_bits_of_throttling(mask: int, reasons: set[str]) -> None:
    found = throttling(mask)
    assert set(found) == {"throttled", *(f"throttle_{name}" for name in THROTTLING)}
    assert {name for name in THROTTLING if found[f"throttle_{name}"]} == reasons
    assert found["throttled"] == bool(reasons)


def test_the_bits_are_those_of_the_package() -> None:
    import pynvml

    reason = {
        name.removeprefix("nvmlClocksEventReason"): getattr(pynvml, name)
        for name in dir(pynvml)
        if name.startswith("nvmlClocksEventReason")
    }
    assert THROTTLING["power"] == reason["SwPowerCap"] | reason["HwPowerBrakeSlowdown"]
    assert THROTTLING["thermal"] == reason["SwThermalSlowdown"] | reason["HwThermalSlowdown"]
    assert THROTTLING["hardware"] == reason["HwSlowdown"]
    harmless = reason["GpuIdle"] | reason["ApplicationsClocksSetting"]
    assert not any(bits & harmless for bits in THROTTLING.values())


def test_the_levels_are_those_of_the_package() -> None:
    import pynvml

    names = "INTERNAL SINGLE MULTIPLE HOSTBRIDGE NODE SYSTEM".split()
    assert list(PATHS) == [getattr(pynvml, f"NVML_TOPOLOGY_{name}") for name in names]


def test_without_the_library_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise Unsupported("package nvidia-ml-py is not installed")

    monkeypatch.setattr(nvml, "_load", absent)
    assert nvml.interconnect(0, None, None) is None


def test_ids_are_left_out() -> None:
    given = f"{SECOND},3,{PARTIAL},MIG-GPU-cccc3333-0000/1/0"
    assert without_ids(given) == "GPU-...,3,MIG-...,MIG-GPU-..."
    assert without_ids("0,1") == "0,1"
