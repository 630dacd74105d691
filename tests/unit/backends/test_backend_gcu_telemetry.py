# SPDX-License-Identifier: Apache-2.0
"""Enflame's sensors against captured outputs of efsmi and fake pyefml modules.

Captured by others, on S60 cards: OLD and NEW are in the comments of zstacklib/utils/gpu.py and
zstacklib/gpu/vendors/enflame.py of zstackio/zstack-utility, PARTIAL in those of a reader of
``efsmi -q -d TEMP,MEMORY,USAGE``. No JSON output was found: JSON is built from the section names of
the text and the only published reader of ``--json-format`` (memory, in MiB without a unit).
"""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bertbench.backends.gcu import telemetry
from bertbench.backends.gcu.telemetry import driver_version, find_sensors
from bertbench.common.errors import Unsupported
from bertbench.common.measure.telemetry import Sampler

MIB = 2**20

OLD = """\
DEV ID 7
    Driver Info
        Ver                     : 1.2.4.12
    Device Info
        Dev Name                : S60
        Dev UUID                : TR1V57100501
        Dev SN                  : C0AAD40510049
        Dev PN                  : EFB-0088000-00
        Dev MFD                 : 2024-10-13
        Health                  : True
    PCIe Info
        Vendor ID               : 1e36
        Device ID               : c035
        Domain                  : 0000
        Bus                     : b1
        Dev                     : 00
        Func                    : 0
        Link Info
        Max Link Speed          : Gen5
        Max Link Width          : X16
        Cur Link Speed          : Gen5
        Cur Link Width          : X16
        Tx Throughput           : 0 MiB/s
        Rx Throughput           : 0 MiB/s
    Clock Info
        Mem CLK                 : 7000 MHz
    Power Info
        Power Capa              : 300 W
        Cur Power               : 102 W
        Dpm Level               : Sleep
    Device Mem Info
        Mem Size                : 42976 MiB
        Mem Usage               : 1129 MiB
        Mem Ecc                 : enable
    Temperature Info
        GCU Temp                : 41 C
    Voltage Info
        VDD GCU                 : 0.702 V
        VDD SOC                 : 0.743 V
        VDD MEMQC               : 1.349 V
    Device Usage Info
        GCU Usage               : 0.0 %
    ECC Mode
        Current                 : Enable
        Pending                 : Enable
    RMA Info
        Flags                   : False
        DBE                     : 0
    Power Cable
        Status                  : Normal
    VPU Info
        Encoder Usage           : 0 %
        Decoder Usage           : 0 %
"""

NEW = """\
-------------------------------------------------------------------------------
---------------------- Enflame System Management Interface ----------------------
--------- Enflame Tech, All Rights Reserved. 2024-2025 Copyright (C) ----------
--------------------------------------------------------------------------------
DEV ID 0
    Driver Info
        Ver                     : 1.4.3.4
    Device Info
        Dev Name                : S60
        Dev UUID                : TR6Y46010302
        Dev SN                  : A0A1650510676
        Dev PN                  : EFB-0088000-00
        Dev MFD                 : 2025-1-6
        Health                  : True
    PCIe Info
        Vendor ID               : 1e36
        Device ID               : c035
        Domain                  : 0000
        Bus                     : 17
        Dev                     : 00
        Func                    : 0
        Link Info
        Max Link Speed          : Gen5
        Max Link Width          : X16
        Cur Link Speed          : Gen3
        Cur Link Width          : X8
        Tx Throughput           : 0 MiB/s
        Rx Throughput           : 0 MiB/s
    Clock Info
        Mem CLK                 : 7000 MHz
    Power Info
        Power Capa              : 300 W
        Cur Power               : 96 W
        Dpm Level               : Sleep
    Device Mem Info
        Total Size              : 42976 MiB
        Reserved Size           : 1129 MiB
        Used Size               : 0 MiB
        Free Size               : 41846 MiB
    Temperature Info
        GCU Temp                : 35 \u2103
    Voltage Info
        VDD GCU                 : 0.702 V
        VDD SOC                 : 0.743 V
        VDD MEMQC               : 1.349 V
    Device Usage Info
        GCU Usage               : 0.0 %
    ECC Mode
        Current                 : Enable
        Pending                 : Enable
    RMA Info
        Flags                   : False
        Total DBE               : 0
    Power Cable
        Status                  : Normal
    VPU Info
        Encoder Usage           : 0 %
        Decoder Usage           : 0 %
    Error Records
        Total Error Count       : 0
        Reset Count             : 0
        Last Reset Date         : N/A
DEV ID 1
    Driver Info
        Ver                     : 1.4.3.4
    Device Info
        Dev Name                : S60
        Dev UUID                : TPUH74190604
    Clock Info
        Mem CLK                 : 7000 MHz
    Power Info
        Power Capa              : 300 W
        Cur Power               : 104 W
        Dpm Level               : Sleep
    BAR2 Mem Info
        Total Size              : 65536 MiB
        Used Size               : 7 MiB
    Device Mem Info
        Total Size              : 42976 MiB
        Reserved Size           : 1129 MiB
        Used Size               : 20480 MiB
        Free Size               : 21367 MiB
    Temperature Info
        GCU Temp                : 45 \u2103
    Device Usage Info
        GCU Usage               : 37.5 %
-------------------------------------------------------------------------------
"""
"""Device 1 is the second capture of the same driver, with the BAR section that some drivers have
(another reader skips it by name) and made busy: its used memory and its usage are not captured."""

PARTIAL = """\
----------------------------------------------------------------------------
------------------- Enflame System Management Interface --------------------
---------- Enflame Tech, All Rights Reserved. 2024 Copyright (C) -----------
----------------------------------------------------------------------------

DEV ID 0
\tDevice Mem Info
\t\tMem Size                : 42976 MiB
\t\tMem Usage               : 1129 MiB
\t\tMem Ecc                 : enable
\tTemperature Info
\t\tGCU Temp                : 34 C
\tDevice Usage Info
\t\tGCU Usage               : 0.0 %
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No pyefml, no efsmi, every device visible."""
    monkeypatch.setitem(sys.modules, "pyefml", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("TOPS_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def efsmi(tmp_path: Path) -> Callable[..., None]:
    """Installs an efsmi that answers in text and, if told to, in JSON."""

    def install(text: str | None = None, devices: Any = None) -> None:
        answers = {"text": text, "json": None if devices is None else {"devices": devices}}
        (tmp_path / "answers.json").write_text(json.dumps(answers))
        tool = tmp_path / "efsmi"
        tool.write_text(
            f"#!{sys.executable}\n"
            "import json, pathlib, sys\n"
            "answers = json.loads((pathlib.Path(__file__).parent / 'answers.json').read_text())\n"
            "if sys.argv[1:] == ['-q']:\n"
            "    answer = answers['text']\n"
            "elif sys.argv[1:3] == ['-q', '-d'] and sys.argv[-1] == '--json-format':\n"
            "    answer = answers['json'] and 'efsmi\\n' + json.dumps(answers['json'])\n"
            "else:\n"
            "    answer = None\n"
            "if answer is None:\n"
            "    sys.exit('unknown option')\n"
            "sys.stdout.buffer.write(answer.encode())\n"
        )
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)

    return install


def test_text_of_driver_1_2(efsmi: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    efsmi(OLD)
    monkeypatch.setenv("TOPS_VISIBLE_DEVICES", "7")
    sensors = find_sensors(0)
    assert sensors.source == "efsmi"
    assert sensors.period_s == 1.0
    assert sensors.read() == {
        "power_w": 102.0,
        "memory_used_bytes": 1129 * MIB,
        "temperature_c": 41.0,
        "utilization_percent": 0.0,
        "memory_clock_mhz": 7000.0,
    }
    assert driver_version(0) == "1.2.4.12"


def test_text_of_driver_1_4(efsmi: Callable[..., None]) -> None:
    efsmi(NEW)
    assert find_sensors(0).read() == {
        "power_w": 96.0,
        "memory_used_bytes": 0.0,
        "temperature_c": 35.0,
        "utilization_percent": 0.0,
        "memory_clock_mhz": 7000.0,
    }
    # The device's own memory, not that of a window onto it.
    assert find_sensors(1).read() == {
        "power_w": 104.0,
        "memory_used_bytes": 20480 * MIB,
        "temperature_c": 45.0,
        "utilization_percent": 37.5,
        "memory_clock_mhz": 7000.0,
    }
    assert driver_version(1) == "1.4.3.4"


def test_a_driver_that_shows_no_power_still_shows_the_rest(efsmi: Callable[..., None]) -> None:
    efsmi(PARTIAL)
    assert find_sensors(0).read() == {
        "memory_used_bytes": 1129 * MIB,
        "temperature_c": 34.0,
        "utilization_percent": 0.0,
    }
    assert driver_version(0) is None


@pytest.mark.parametrize(
    ("text", "watts"), [("102000 mW", 102.0), ("0.102 kW", 102.0), ("-", None), ("N/A", None)]
)
def test_power_in_any_unit_and_asleep(
    efsmi: Callable[..., None], text: str, watts: float | None
) -> None:
    efsmi(NEW.replace(": 96 W", f": {text}"))
    assert find_sensors(0).read().get("power_w") == watts


def test_energy_is_unknown_when_the_card_slept_through_a_reading(
    efsmi: Callable[..., None],
) -> None:
    efsmi(NEW)
    sensors = find_sensors(0)
    seconds = iter((0.0, 1.0, 2.0))
    sampler = Sampler(sensors.read, source=sensors.source, period_s=60, clock=lambda: next(seconds))
    sampler.start()
    efsmi(NEW.replace(": 96 W", ": -"))
    sampler.stop()
    assert [s.get("power_w") for s in sampler.samples()] == [96.0, None]
    assert sampler.energy_j() is None


JSON = [
    {"id": 0, "Device Mem Info": {"Total Size": 49120, "Used Size": 1129, "Free Size": 47991}},
    {
        "id": 3,
        "Device Info": {"Dev UUID": "TR6Y46010302"},
        "Device Mem Info": {"Total Size": "49120", "Used Size": "2258", "Free Size": "46862"},
        "Power Info": {"Power Capa": "300 W", "Cur Power": "150 W"},
        "Temperature Info": {"GCU Temp": 51},
        "Device Usage Info": {"GCU Usage": "12.5 %"},
    },
]


def test_json_comes_before_text(
    efsmi: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    efsmi(NEW, JSON)
    monkeypatch.setenv("TOPS_VISIBLE_DEVICES", "3,0")
    sensors = find_sensors(0)
    assert (sensors.source, sensors.period_s) == ("efsmi --json-format", 1.0)
    assert sensors.read() == {
        "power_w": 150.0,
        "memory_used_bytes": 2258 * MIB,
        "temperature_c": 51.0,
        "utilization_percent": 12.5,
    }


def test_a_source_without_power_gives_way_to_one_that_has_it(efsmi: Callable[..., None]) -> None:
    efsmi(NEW, JSON)
    sensors = find_sensors(0)
    assert sensors.source == "efsmi"
    assert sensors.read()["power_w"] == 96.0


def test_without_power_anywhere_the_first_source_stays(efsmi: Callable[..., None]) -> None:
    efsmi(PARTIAL, JSON)
    sensors = find_sensors(0)
    assert sensors.source == "efsmi --json-format"
    assert sensors.read() == {"memory_used_bytes": 1129 * MIB}


@pytest.mark.parametrize("devices", ["none", [{"no id": 1}], [3]])
def test_json_of_another_shape_is_passed_over(efsmi: Callable[..., None], devices: Any) -> None:
    efsmi(NEW, devices)
    assert find_sensors(0).source == "efsmi"


def test_a_uuid_finds_its_card(efsmi: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    efsmi(NEW)
    monkeypatch.setenv("TOPS_VISIBLE_DEVICES", "GCU-TPUH")
    assert find_sensors(0).read()["power_w"] == 104.0
    monkeypatch.setenv("TOPS_VISIBLE_DEVICES", "GCU-T")
    with pytest.raises(Unsupported, match="2 devices have the id GCU-T"):
        find_sensors(0)


def test_a_slice_has_no_power_of_its_own(
    efsmi: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    efsmi(NEW)
    monkeypatch.setenv("TOPS_VISIBLE_DEVICES", "DRS-1b2c")
    with pytest.raises(Unsupported, match="DRS-1b2c is a slice"):
        find_sensors(0)


def test_a_device_outside_the_tools_output_is_named(efsmi: Callable[..., None]) -> None:
    efsmi(OLD)
    with pytest.raises(Unsupported, match="no device 0 in its output"):
        find_sensors(0)


def test_nothing_installed_is_one_line_that_names_every_source() -> None:
    with pytest.raises(Unsupported) as caught:
        find_sensors(0)
    assert str(caught.value) == (
        "pyefml, pyefml by index: import of pyefml halted; None in sys.modules; "
        "efsmi --json-format, efsmi: not found"
    )
    assert driver_version(0) is None


def test_a_simulated_card_does_not_get_a_real_ones_power(efsmi: Callable[..., None]) -> None:
    efsmi(NEW, JSON)
    with pytest.raises(Unsupported) as caught:
        find_sensors(0, tools=False)
    assert "efsmi" not in str(caught.value)


class Nvml(ModuleType):
    """pyefml as EnflameTechnology/vllm-gcu and torch-gcu use it; numbers as efml.h gives them."""

    def __init__(self) -> None:
        super().__init__("pyefml")
        self.calls: list[str] = []
        self.milliwatts: dict[int, int] = {0: 101_500, 1: 250_250, 3: 300_000}

    def efmlInitV2(self) -> None:
        self.calls.append("efmlInitV2")

    def efmlDeviceGetCount(self) -> int:
        return 4

    def efmlDeviceGetHandleByIndex(self, idx: int) -> str:
        if idx > 3:
            raise RuntimeError("EFML_ERROR_INVALID_ARGUMENT")
        return f"handle {idx}"

    def efmlDeviceGetUUID(self, handle: str) -> bytes:
        return f"GCU-{handle[-1]}a0b".encode()

    def efmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self.milliwatts[int(handle[-1])]

    def efmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(total=48 * 2**30, free=47 * 2**30, used=2**30)

    def efmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return SimpleNamespace(gcu=87, memory=12)

    def efmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        assert sensor == 0
        return 55

    def efmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return {1: 1500, 2: 7000}[kind]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    module = Nvml()
    monkeypatch.setitem(sys.modules, "pyefml", module)
    return module


def test_pyefml_by_handle(nvml: Nvml, efsmi: Callable[..., None]) -> None:
    efsmi(NEW, JSON)
    sensors = find_sensors(1)
    assert (sensors.source, sensors.period_s) == ("pyefml", 0.1)
    assert sensors.read() == {
        "power_w": 250.25,
        "memory_used_bytes": float(2**30),
        "utilization_percent": 87.0,
        "temperature_c": 55.0,
        "sm_clock_mhz": 1500.0,
        "memory_clock_mhz": 7000.0,
    }
    assert nvml.calls == ["efmlInitV2"]


def test_only_the_stand_ins_way_to_tell_throttling_is_believed(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml, "EFML_DPM_LEVEL_ACTIVE", 2, raising=False)
    monkeypatch.setattr(nvml, "efmlDeviceGetDpmLevel", lambda handle: 1, raising=False)
    assert "throttled" not in find_sensors(0).read()
    monkeypatch.setattr(nvml, "SIMULATED", True, raising=False)
    assert find_sensors(0).read()["throttled"] == 1.0


@pytest.mark.parametrize(("value", "watts"), [("3,1", 300.0), ("1,3", 250.25), ("GCU-0a", 101.5)])
def test_pyefml_counts_the_machines_devices(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch, value: str, watts: float
) -> None:
    monkeypatch.setenv("TOPS_VISIBLE_DEVICES", value)
    assert find_sensors(0).read()["power_w"] == watts


def test_the_older_initialiser_is_tried_where_the_newer_fails(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("EFML_ERROR_NOT_SUPPORTED")

    monkeypatch.setattr(nvml, "efmlInitV2", fails)
    monkeypatch.setattr(nvml, "efmlInit", lambda: nvml.calls.append("efmlInit"), raising=False)
    assert find_sensors(0).read()["power_w"] == 101.5
    assert nvml.calls == ["efmlInit"]


def test_a_missing_or_failing_sensor_of_pyefml_is_a_missing_key(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Nvml, "efmlDeviceGetTemperature")
    nvml.milliwatts = {}
    sensors = find_sensors(0)
    assert sensors.source == "pyefml"
    assert {"power_w", "temperature_c"}.isdisjoint(sensors.read())
    nvml.milliwatts = {0: 0}  # no card draws nothing: this means that it is not known
    assert "power_w" not in sensors.read()


def test_a_broken_pyefml_gives_way_to_the_tool(
    efsmi: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pyefml.py").write_text("raise OSError('libefml.so: cannot open shared object')")
    monkeypatch.delitem(sys.modules, "pyefml")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Unsupported, match=r"pyefml by index: libefml\.so: cannot open"):
        find_sensors(0)
    efsmi(NEW)
    assert find_sensors(0).source == "efsmi"


@pytest.mark.parametrize(
    ("total", "used"), [(48 * 2**30, 2**30), (48 * 2**20, 2**20), (49152, 1024)]
)
@pytest.mark.parametrize(("limit", "power"), [(300.0, 150.5), (300_000.0, 150_500.0)])
def test_pyefml_by_index_in_whatever_unit(
    monkeypatch: pytest.MonkeyPatch, total: int, used: int, limit: float, power: float
) -> None:
    module = ModuleType("pyefml")
    started: list[bool] = []
    functions = {
        "efmlInit": lambda: started.append(True),
        "efmlGetDevInfo": lambda i: SimpleNamespace(productName=f"T20 {i}"),
        "efmlGetDevMem": lambda i: SimpleNamespace(vramTotal=total, vramUse=used),
        "efmlGetDevPwr": lambda i: SimpleNamespace(pwr_capability=limit, cur_pwr_consumption=power),
    }
    for name, function in functions.items():
        monkeypatch.setattr(module, name, function, raising=False)
    monkeypatch.setitem(sys.modules, "pyefml", module)
    sensors = find_sensors(0)
    assert sensors.source == "pyefml by index"
    assert started
    assert sensors.read() == {"power_w": 150.5, "memory_used_bytes": float(2**30)}


def test_pyefml_by_index_without_power_leaves_it_to_the_tool(
    monkeypatch: pytest.MonkeyPatch, efsmi: Callable[..., None]
) -> None:
    module = SimpleNamespace(
        efmlGetDevInfo=lambda i: SimpleNamespace(productName="T20"),
        efmlGetDevMem=lambda i: SimpleNamespace(vramTotal=32 * 2**30, vramUse=5),
    )
    monkeypatch.setitem(sys.modules, "pyefml", module)
    assert find_sensors(0).source == "pyefml by index"
    efsmi(OLD.replace("DEV ID 7", "DEV ID 0"))
    assert find_sensors(0).source == "efsmi"


def test_a_tool_that_hangs_is_one_reason(
    efsmi: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def hangs(argv: list[str]) -> str:
        asked.append(list(argv))
        raise RuntimeError("efsmi: no answer in 5 s")

    monkeypatch.setattr(telemetry, "run_tool", hangs)
    with pytest.raises(Unsupported, match=r"efsmi --json-format, efsmi: no answer in 5 s$"):
        find_sensors(0)
    assert asked == [
        ["efsmi", "-q", "-d", "DEVICE,POWER,MEMORY,TEMP,USAGE", "--json-format"],
        ["efsmi", "-q"],
    ]
