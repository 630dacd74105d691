# SPDX-License-Identifier: Apache-2.0
"""Iluvatar: told from NVIDIA, and its sensors read through ixsmi."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import fake_tools
import pytest
import torch

from bertbench.backends.corex.backend import Corex
from bertbench.backends.corex.telemetry import driver_version, open_ixsmi
from bertbench.common.errors import Unsupported
from bertbench.common.measure.telemetry import Sampler


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    fake_tools.on_path(monkeypatch, tmp_path / "bin")
    return tmp_path / "bin"


def corex3() -> list[dict[str, str]]:
    """The captured rows, with the fields that they were asked for."""
    keys = (
        "index name utilization.gpu memory.total memory.used temperature.gpu "
        "power.default_limit power.draw"
    ).split()
    lines = fake_tools.captured("ixsmi_corex3.csv").splitlines()
    rows = [dict(zip(keys, line.split(", "), strict=True)) for line in lines]
    return [row | {"uuid": f"GPU-{row['index']}"} for row in rows]


def test_captured_values_of_corex_3(tools: Path) -> None:
    fake_tools.ixsmi(tools, corex3())
    sensors = open_ixsmi(1, None)
    assert sensors.source == "ixsmi power.draw"
    assert sensors.period_s == 1.0
    assert sensors.read() == {
        "power_w": 6.35,
        "memory_used_bytes": 27996 * 2**20,
        "temperature_c": 36.0,
        "utilization_percent": 0.0,
    }


def test_captured_values_of_a_bi_v150(tools: Path) -> None:
    fake_tools.ixsmi(tools, fake_tools.bi_v150())
    sensors = open_ixsmi(1, None)
    assert sensors.source == "ixsmi gpu.power.draw (power counts the card's two chips)"
    assert sensors.read() == {
        "power_w": 93.0,
        "memory_used_bytes": 116 * 2**20,
        "temperature_c": 30.0,
        "utilization_percent": 0.0,
        "sm_clock_mhz": 1500.0,
        "memory_clock_mhz": 1600.0,
    }
    assert driver_version() == "4.1.0"


def test_the_first_chip_alone_reports_its_card(tools: Path) -> None:
    # ixsmi shows N/A with this chip; the card's power stands with the other one.
    fake_tools.ixsmi(tools, fake_tools.bi_v150())
    assert open_ixsmi(0, None).read()["power_w"] == 93.0
    assert open_ixsmi(0, "2,3").read()["power_w"] == 94.0


@pytest.mark.parametrize("field", ["gpu.power.draw", "power.draw", "board.power.draw"])
@pytest.mark.parametrize("twice", [False, True])
def test_a_run_counts_each_card_once(
    tools: Path, monkeypatch: pytest.MonkeyPatch, field: str, twice: bool
) -> None:
    rows = fake_tools.bi_v150(field)
    if twice:  # another way to show it: the card's power with both chips
        for first, second in zip(rows[::2], rows[1::2], strict=True):
            first[field] = second[field]
    fake_tools.ixsmi(tools, rows)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    watts = [open_ixsmi(rank, "3,1,2").read().get("power_w") for rank in range(3)]
    assert watts == [None, 93.0, 94.0]
    assert open_ixsmi(0, "3,1,2").source == f"ixsmi {field} (power is with the card's other chip)"


def test_chips_are_paired_after_cards_of_another_kind(tools: Path) -> None:
    single = {**fake_tools.bi_v150()[0], "name": "Iluvatar BI-V100", "gpu.power.draw": "54W"}
    rows = [single, *fake_tools.bi_v150()]
    for number, row in enumerate(rows):
        row.update(index=str(number), uuid=f"GPU-{number}")
    fake_tools.ixsmi(tools, rows)
    watts = [open_ixsmi(chip, None).read()["power_w"] for chip in range(5)]
    assert watts == [54.0, 93.0, 93.0, 94.0, 94.0]


def test_a_chip_whose_partner_is_hidden_has_no_power(tools: Path) -> None:
    fake_tools.ixsmi(tools, fake_tools.bi_v150()[:1])
    sensors = open_ixsmi(0, None)
    assert "power_w" not in sensors.read()
    assert sensors.read()["temperature_c"] == 32.0


def test_devices_are_found_by_the_visible_entry(tools: Path) -> None:
    fake_tools.ixsmi(tools, corex3())
    assert open_ixsmi(0, "1").read()["temperature_c"] == 36.0
    assert open_ixsmi(1, "GPU-1,GPU-0").read()["temperature_c"] == 30.0
    with pytest.raises(Unsupported, match="ixsmi lists no device 7"):
        open_ixsmi(0, "7")


def test_a_refusal_may_come_without_an_exit_code(tools: Path) -> None:
    fake_tools.ixsmi(tools, corex3(), refusal=0)
    assert open_ixsmi(1, None).source == "ixsmi power.draw"


def test_without_the_tool_the_reason_is_one_line(tools: Path) -> None:
    with pytest.raises(Unsupported, match=r"^ixsmi: not found$"):
        open_ixsmi(0, None)
    assert driver_version() is None


def test_a_tool_that_answers_nonsense_is_a_reason(tools: Path) -> None:
    fake_tools.script(tools / "ixsmi", "print('No devices were found')")
    with pytest.raises(Unsupported, match=r"ixsmi .*: No devices were found$"):
        open_ixsmi(0, None)


def test_a_tool_that_vanishes_ends_the_sampling_only(tools: Path) -> None:
    path = fake_tools.ixsmi(tools, corex3())
    sensors = open_ixsmi(1, None)
    sampler = Sampler(sensors.read, source=sensors.source, period_s=60.0)
    sampler.start()
    path.unlink()
    sampler.stop()
    assert sampler.problem == "ixsmi power.draw: ixsmi: not found"
    assert sampler.energy_j() is None


def test_a_device_that_leaves_ends_the_sampling(tools: Path) -> None:
    fake_tools.ixsmi(tools, corex3())
    sensors = open_ixsmi(1, None)
    fake_tools.ixsmi(tools, corex3()[1:])
    with pytest.raises(RuntimeError, match="1 devices instead of 2"):
        sensors.read()


def _cuda_module(name: str) -> SimpleNamespace:
    return SimpleNamespace(
        init=lambda: None,
        device_count=lambda: 2,
        get_device_name=lambda index: name,
        get_device_capability=lambda index: (7, 1),
        get_arch_list=list,
    )


@pytest.mark.parametrize(
    ("version", "device", "ok", "reason"),
    [
        ("2.10.0+corex.4.5.0", "Iluvatar BI-V150", True, "2 devices"),
        ("2.10.0", "BI-V100", True, "2 devices"),
        ("2.10.0+cu128", "NVIDIA H100 80GB HBM3", False, "--backend cuda"),
        ("2.10.0+metax3.0", "MetaX C550", False, "MetaX"),
    ],
)
def test_it_is_told_from_others_that_are_called_cuda(
    monkeypatch: pytest.MonkeyPatch, version: str, device: str, ok: bool, reason: str
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.version, "cuda", "10.2")
    monkeypatch.setattr(torch, "get_device_module", lambda _: _cuda_module(device))
    probe = Corex.probe()
    assert probe.ok is ok
    assert reason in probe.reason


def test_a_build_without_cuda_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert Corex.absent() == "this torch was built without CUDA for CoreX"


def test_tf32_is_not_claimed() -> None:
    notes: dict[str, str] = {}
    assert Corex.float_precisions(Corex.__new__(Corex), notes) == ["fp32"]
    assert "tf32" in notes
    assert Corex.tf32_switches  # and switched off for fp32
    assert Corex.verified == "documents"
