# SPDX-License-Identifier: Apache-2.0
"""Sensors of Ascend, Cambricon, Moore Threads and Gaudi: captured outputs, fake libraries."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import fake_tools
import pytest
import torch

from bertbench.backends.hpu.telemetry import open_hlml
from bertbench.backends.mlu.telemetry import card, open_cnmon
from bertbench.backends.musa.backend import Musa
from bertbench.backends.npu.telemetry import chips, open_npu_smi, sections
from bertbench.common.errors import Unsupported


# -- npu-smi --------------------------------------------------------------------------------------
@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    fake_tools.on_path(monkeypatch, tmp_path / "bin")
    return tmp_path / "bin"


def _npu_smi(folder: Path, table: str, cards: dict[str, str]) -> Path:
    outputs = {f"info -t common -i {npu}": fake_tools.captured(f) for npu, f in cards.items()}
    return fake_tools.answers(folder, "npu-smi", {"info -m": fake_tools.captured(table), **outputs})


def test_npu_smi_of_a_910b(tools: Path) -> None:
    _npu_smi(tools, "npu_smi_map_910b.txt", {"2": "npu_smi_common_910b.txt"})
    sensors = open_npu_smi(1, "0,2")
    assert (sensors.source, sensors.period_s) == ("npu-smi info -t common", 1.0)
    # The chip's power; 45.2 W is what the controller says.
    assert sensors.read() == {
        "power_w": 69.0,
        "temperature_c": 46.0,
        "utilization_percent": 0.0,
        "sm_clock_mhz": 1000.0,
    }


def test_npu_smi_of_a_card_with_two_chips_and_one_power_sensor(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _npu_smi(tools, "npu_smi_map_310p.txt", {"1": "npu_smi_common_310p.txt"})
    assert open_npu_smi(0, "1").read()["power_w"] == 45.2  # alone on the card
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    read = [open_npu_smi(rank, None).read() for rank in range(2)]
    assert [reading.get("power_w") for reading in read] == [45.2, None]
    assert [reading["temperature_c"] for reading in read] == [60.0, 59.0]


def test_npu_smi_of_a_card_without_sections(tools: Path) -> None:
    _npu_smi(tools, "npu_smi_map_910b.txt", {"0": "npu_smi_common_950.txt"})
    reading = open_npu_smi(0, None).read()
    assert (reading["power_w"], reading["temperature_c"]) == (195.7, 56.0)


def test_the_tables_of_npu_smi() -> None:
    table = chips(fake_tools.captured("npu_smi_map_310p.txt"))
    assert [(c.npu, c.chip, c.logic) for c in table] == [
        ("1", "0", 0),
        ("1", "1", 1),
        ("2", "0", 2),
        ("2", "1", 3),
    ]
    assert list(sections(fake_tools.captured("npu_smi_common_310p.txt"))) == ["", "0", "1", "mcu"]
    with pytest.raises(Unsupported, match="no columns"):
        chips("dcmi module initialize failed. ret is -8005\n")


def test_npu_smi_that_fails_or_does_not_know_the_device(tools: Path) -> None:
    with pytest.raises(Unsupported, match=r"^npu-smi: not found$"):
        open_npu_smi(0, None)
    _npu_smi(tools, "npu_smi_map_910b.txt", {})
    with pytest.raises(Unsupported, match="no chip with logic id 9"):
        open_npu_smi(0, "9")
    with pytest.raises(Unsupported, match="exit code 1: unknown: info -t common -i 0"):
        open_npu_smi(0, None)


# -- cnmon ----------------------------------------------------------------------------------------
def test_cnmon_5(tools: Path) -> None:
    text = fake_tools.captured("cnmon_info_5.txt")
    fake_tools.answers(tools, "cnmon", {"info -c 0": text, "info -c 1": text})
    assert open_cnmon(0, None).read() == {
        "power_w": 44.0,
        "memory_used_bytes": 17320 * 2**20,
        "temperature_c": 78.0,
        "utilization_percent": 66.0,
    }
    reading = open_cnmon(0, "1").read()
    assert (reading["power_w"], reading["temperature_c"]) == (30.0, 51.0)
    # What belongs to a process of the card is not the card's.
    assert card(text, "0")["Physical Memory Usage/Used"] == "17320 MiB"


def test_cnmon_4_has_the_boards_temperature_only(tools: Path) -> None:
    fake_tools.answers(tools, "cnmon", {"info -c 0": fake_tools.captured("cnmon_info_4.txt")})
    reading = open_cnmon(0, None).read()
    assert (reading["power_w"], reading["temperature_c"]) == (38.0, 49.0)


def test_cnmon_of_a_card_with_two_chips(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both chips show the power of the card; CNMON 5.10.13 has 106 W of 250 W twice.
    text = fake_tools.captured("cnmon_info_5.txt").replace("MLU370-X4", "MLU370-X8")
    fake_tools.answers(tools, "cnmon", {"info -c 0": text, "info -c 1": text})
    assert open_cnmon(0, "1").read()["power_w"] == 30.0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    powers = [open_cnmon(rank, "1,0").read().get("power_w") for rank in range(2)]
    assert powers == [None, 44.0]


def test_cnmon_that_fails(tools: Path) -> None:
    with pytest.raises(Unsupported, match=r"^cnmon: not found$"):
        open_cnmon(0, None)
    fake_tools.script(tools / "cnmon", "print('No MLU devices found')")
    with pytest.raises(Unsupported, match="no value in its output"):
        open_cnmon(0, None)


# -- libraries shaped like NVML -------------------------------------------------------------------
class FakeError(Exception):
    """As those of pymtml and pyhlml: no RuntimeError."""


def _mtml() -> ModuleType:
    """The NVML names of pymtml 2.4 for two GPUs, index 0 and 1."""
    mtml = ModuleType("pymtml")
    for name, value in {
        "NVML_TEMPERATURE_GPU": 0,
        "NVML_CLOCK_SM": 1,
        "NVML_CLOCK_MEM": 2,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetHandleByUuid": lambda uuid: {"GPU-b": 1}[uuid],
        "nvmlDeviceGetPowerUsage": lambda device: 25_500 * (device + 1),
        "nvmlDeviceGetMemoryInfo": lambda device: SimpleNamespace(used=2**30, total=2**35),
        "nvmlDeviceGetTemperature": lambda device, kind: 40 + device,
        "nvmlDeviceGetUtilizationRates": lambda device: SimpleNamespace(gpu=70, memory=5),
        "nvmlDeviceGetClockInfo": lambda device, kind: {1: 1600, 2: 1800}[kind],
    }.items():
        setattr(mtml, name, value)
    return mtml


def _musa(monkeypatch: pytest.MonkeyPatch, visible: str | None) -> Musa:
    if visible is None:
        monkeypatch.delenv("MUSA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("MUSA_VISIBLE_DEVICES", visible)
    adapter = Musa.__new__(Musa)
    adapter.device = torch.device("cpu", 0)  # only its index is looked at
    return adapter


def test_pymtml_is_read_in_its_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymtml", _mtml())
    sensors = _musa(monkeypatch, None).sensors()
    assert sensors.source == "pymtml"
    assert sensors.read() == {
        "power_w": 25.5,
        "memory_used_bytes": 2**30,
        "temperature_c": 40.0,
        "utilization_percent": 70.0,
        "sm_clock_mhz": 1600.0,
        "memory_clock_mhz": 1800.0,
    }
    assert _musa(monkeypatch, "1").sensors().read()["power_w"] == 51.0
    assert _musa(monkeypatch, "GPU-b").sensors().read()["power_w"] == 51.0


def test_pymtml_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymtml", None)
    with pytest.raises(Unsupported, match=r"^pymtml: ModuleNotFoundError"):
        _musa(monkeypatch, None).sensors()
    mtml = _mtml()

    def fail() -> None:
        raise FakeError("Library Not Found")

    mtml.nvmlInit = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pymtml", mtml)
    with pytest.raises(Unsupported, match=r"^pymtml: FakeError: Library Not Found$"):
        _musa(monkeypatch, None).sensors()


def test_pyhlml_is_read_in_its_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "pyhlml", fake_tools.hlml(SimpleNamespace(aip=12, memory=1), 2)
    )
    assert open_hlml("3").read() == {
        "power_w": 98.001,
        "energy_j": 5000.0,
        "memory_used_bytes": 2**30,
        "temperature_c": 28.0,
        "utilization_percent": 12.0,
        "sm_clock_mhz": 1600.0,
        "throttled": 1.0,
        "throttle_power": 0.0,
        "throttle_thermal": 1.0,
    }
    monkeypatch.setitem(sys.modules, "pyhlml", fake_tools.hlml(34))
    assert open_hlml("6").read()["utilization_percent"] == 34.0


def test_pyhlml_is_not_asked_for_a_device_that_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hlml = fake_tools.hlml(0)
    monkeypatch.setitem(sys.modules, "pyhlml", hlml)
    with pytest.raises(Unsupported, match="2 devices could be this process's"):
        open_hlml(None)
    with pytest.raises(Unsupported, match="0 devices"):
        open_hlml("0")
    hlml.hlmlDeviceGetCount = lambda: 1  # type: ignore[attr-defined]
    assert open_hlml(None).read()["power_w"] == 98.0
