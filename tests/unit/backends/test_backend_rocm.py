# SPDX-License-Identifier: Apache-2.0
"""AMD: sensors through amdsmi, else through the driver's files; no claim of TF32."""

from __future__ import annotations

import sys
import time
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from bertbench.backends.rocm.backend import Rocm
from bertbench.backends.rocm.telemetry import from_amdsmi, from_sysfs, open_sensors
from bertbench.common.errors import Unsupported
from bertbench.common.measure.telemetry import Sampler

ADDRESS = "0000:c1:00"


def _amdgpu(root: Path, files: dict[str, str], card: str = "card1", bus: str = "c1") -> Path:
    """A tree as the amdgpu driver makes it; returns the folder of cards."""
    device = root / "devices" / f"0000:{bus}:00.0"
    for name, text in files.items():
        (device / name).parent.mkdir(parents=True, exist_ok=True)
        (device / name).write_text(f"{text}\n")
    drm = root / "drm"
    (drm / card).mkdir(parents=True)
    (drm / card / "device").symlink_to(device)
    (drm / f"{card}-DP-1").mkdir()  # a connector is no card
    return drm


FILES = {
    "mem_info_vram_used": "4294967296",
    "mem_info_vram_total": "68702699520",
    "gpu_busy_percent": "97",
    "hwmon/hwmon4/name": "amdgpu",
    "hwmon/hwmon4/power1_average": "313000000",
    "hwmon/hwmon4/temp1_input": "46000",
    "hwmon/hwmon4/freq1_input": "1700000000",
    "hwmon/hwmon4/freq2_input": "1600000000",
}


def test_the_drivers_files_are_read_in_their_units(tmp_path: Path) -> None:
    sensors = from_sysfs(ADDRESS, _amdgpu(tmp_path, FILES))
    assert sensors.source == "amdgpu sysfs"
    assert sensors.read() == pytest.approx(
        {
            "power_w": 313.0,
            "memory_used_bytes": 2**32,
            "temperature_c": 46.0,
            "utilization_percent": 97.0,
            "sm_clock_mhz": 1700.0,
            "memory_clock_mhz": 1600.0,
        }
    )


def test_newer_drivers_have_the_power_now_instead_of_its_average(tmp_path: Path) -> None:
    files = {k: v for k, v in FILES.items() if "power1" not in k}
    drm = _amdgpu(tmp_path, {**files, "hwmon/hwmon4/power1_input": "88000000"})
    assert from_sysfs(ADDRESS, drm).read()["power_w"] == pytest.approx(88.0)


def test_a_die_without_a_power_sensor_has_none(tmp_path: Path) -> None:
    files = {k: v for k, v in FILES.items() if "power1" not in k}
    assert "power_w" not in from_sysfs(ADDRESS, _amdgpu(tmp_path, files)).read()


def test_the_card_is_found_by_its_address(tmp_path: Path) -> None:
    drm = _amdgpu(tmp_path, FILES)
    _amdgpu(tmp_path, {"gpu_busy_percent": "3"}, card="card2", bus="c6")
    assert from_sysfs("0000:c6:00", drm).read() == {"utilization_percent": 3.0}
    with pytest.raises(Unsupported, match="0 cards at 0000:ff:00"):
        from_sysfs("0000:ff:00", drm)


def test_a_card_that_vanishes_ends_the_sampling_only(tmp_path: Path) -> None:
    sensors = from_sysfs(ADDRESS, _amdgpu(tmp_path, FILES))
    sampler = Sampler(sensors.read, source=sensors.source, period_s=60.0)
    sampler.start()
    (tmp_path / "devices/0000:c1:00.0/hwmon/hwmon4/power1_average").unlink()
    sampler.stop()
    assert sampler.problem is not None
    assert "power_w: FileNotFoundError" in sampler.problem
    assert sampler.energy_j() is None


class AmdSmiLibraryException(Exception):
    """As amdsmi's: no RuntimeError."""


class FakeAmdSmi(ModuleType):
    """amdsmi 7's functions that are used, with its units and its N/A."""

    AmdSmiTemperatureType = Enum("AmdSmiTemperatureType", "EDGE HOTSPOT")
    AmdSmiTemperatureMetric = Enum("AmdSmiTemperatureMetric", "CURRENT MAX")
    AmdSmiMemoryType = Enum("AmdSmiMemoryType", "VRAM GTT")
    AmdSmiClkType = Enum("AmdSmiClkType", "SYS GFX MEM")

    def __init__(self, power: dict[str, Any], energy: Any = None) -> None:
        super().__init__("amdsmi")
        self.power, self.energy, self.joules = power, energy, 1000.0

    def amdsmi_init(self) -> None:
        pass

    def amdsmi_get_processor_handles(self) -> list[str]:
        return ["first", "second"]

    def amdsmi_get_gpu_device_bdf(self, handle: str) -> str:
        return {"first": "0000:C1:00.0", "second": "0000:C6:00.0"}[handle]

    def amdsmi_get_power_info(self, handle: str) -> dict[str, Any]:
        assert handle == "first"
        return self.power

    def amdsmi_get_energy_count(self, handle: str) -> dict[str, Any]:
        if self.energy is None:
            raise AmdSmiLibraryException("AMDSMI_STATUS_NOT_SUPPORTED")
        return {self.energy: int(self.joules * 1e6 / 15.259), "counter_resolution": 15.259}

    def amdsmi_get_gpu_memory_usage(self, handle: str, kind: Enum) -> int:
        assert kind.name == "VRAM"
        return 2**31

    def amdsmi_get_temp_metric(self, handle: str, kind: Enum, metric: Enum) -> int:
        assert (kind.name, metric.name) == ("HOTSPOT", "CURRENT")
        return 61

    def amdsmi_get_gpu_activity(self, handle: str) -> dict[str, Any]:
        return {"gfx_activity": "N/A", "umc_activity": 12, "mm_activity": "N/A"}

    def amdsmi_get_clock_info(self, handle: str, kind: Enum) -> dict[str, Any]:
        return {"clk": {"GFX": 1700, "MEM": 1600}[kind.name], "max_clk": 2100}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that only a pause moves."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: now.seconds)
    return now


def _open(monkeypatch: pytest.MonkeyPatch, smi: FakeAmdSmi, clock: Any, watts: float) -> Any:
    monkeypatch.setitem(sys.modules, "amdsmi", smi)

    def pause(seconds: float) -> None:
        clock.seconds += seconds
        smi.joules += watts * seconds

    return from_amdsmi(ADDRESS, pause)


WATTS = {"current_socket_power": 300, "average_socket_power": "N/A", "power_limit": 750}


def test_amdsmi_is_read_in_its_units(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    sensors = _open(monkeypatch, FakeAmdSmi(WATTS), clock, watts=300)
    assert sensors.source == "amdsmi"
    assert sensors.read() == {
        "power_w": 300.0,
        "memory_used_bytes": 2**31,
        "temperature_c": 61.0,
        "sm_clock_mhz": 1700.0,
        "memory_clock_mhz": 1600.0,
    }


@pytest.mark.parametrize("key", ["energy_accumulator", "power"])  # since 6.2, and before
def test_an_energy_counter_that_agrees_is_used(
    monkeypatch: pytest.MonkeyPatch, clock: Any, key: str
) -> None:
    sensors = _open(monkeypatch, FakeAmdSmi(WATTS, key), clock, watts=310)
    assert sensors.source == "amdsmi (energy counter)"
    assert sensors.read()["energy_j"] == pytest.approx(1155.0, abs=1e-3)


@pytest.mark.parametrize("watts", [0.0, 100.0, 600.0])
def test_an_energy_counter_that_does_not_move_as_the_power_says_is_left_out(
    monkeypatch: pytest.MonkeyPatch, clock: Any, watts: float
) -> None:
    sensors = _open(monkeypatch, FakeAmdSmi(WATTS, "energy_accumulator"), clock, watts)
    assert "energy_j" not in sensors.read()


def test_average_power_stands_in_for_the_power_now(
    monkeypatch: pytest.MonkeyPatch, clock: Any
) -> None:
    power = {"current_socket_power": "N/A", "average_socket_power": 44}
    assert _open(monkeypatch, FakeAmdSmi(power), clock, 44).read()["power_w"] == 44.0
    unknown = {"current_socket_power": 0xFFFFFFFF, "average_socket_power": "N/A"}
    assert "power_w" not in _open(monkeypatch, FakeAmdSmi(unknown), clock, 44).read()


def test_without_amdsmi_the_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)  # as if it were not installed
    assert open_sensors(ADDRESS, _amdgpu(tmp_path, FILES)).source == "amdgpu sysfs"
    with pytest.raises(Unsupported, match=r"^amdsmi: ModuleNotFoundError.*; .*0 cards at"):
        open_sensors("0000:ff:00", tmp_path / "drm")


def _adapter(**properties: Any) -> Rocm:
    """An instance without a device."""
    adapter = Rocm.__new__(Rocm)
    adapter.device = torch.device("cuda", 0)
    module = SimpleNamespace(get_device_properties=lambda index: SimpleNamespace(**properties))
    adapter.__dict__["module"] = module
    return adapter


def test_the_device_is_known_by_its_address_whatever_is_visible(
    monkeypatch: pytest.MonkeyPatch, clock: Any
) -> None:
    monkeypatch.setattr(Rocm, "module", property(lambda self: self.__dict__["module"]))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setitem(sys.modules, "amdsmi", FakeAmdSmi(WATTS))
    place = {"pci_domain_id": 0, "pci_bus_id": 0xC1, "pci_device_id": 0}
    assert _adapter(name="AMD Instinct MI300X", **place).sensors().source == "amdsmi"
    assert "card's two" in _adapter(name="AMD Instinct MI250X", **place).sensors().source
    with pytest.raises(Unsupported, match="PCI address"):
        _adapter(name="AMD Instinct MI300X").sensors()


def test_it_needs_a_rocm_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    assert Rocm.absent() == "this torch was built without ROCm"
    monkeypatch.setattr(torch.version, "hip", "7.1.25424")
    assert Rocm.absent() is None


def test_tf32_is_not_claimed() -> None:
    notes: dict[str, str] = {}
    assert Rocm.float_precisions(Rocm.__new__(Rocm), notes) == ["fp32"]
    assert "tf32" in notes
    assert Rocm.verified == "documents"
