# SPDX-License-Identifier: Apache-2.0
"""The table of peaks, and the shares of it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from bertbench.backends import peaks
from bertbench.backends.base import PRECISIONS
from bertbench.backends.peaks import BUILT_IN, in_precision, load, of_device, peaks_of
from bertbench.common.errors import BadInput
from bertbench.common.measure.utilisation import CALIBRATION, find_calibration, utilisation

DEVICE = {"backend": "x", "name": "Chip 1", "simulated": False}


def test_every_entry_is_sourced_and_possible() -> None:
    for peak in load(BUILT_IN):
        assert peak.precision in PRECISIONS
        assert peak.source and peak.date[:2] == "20" and peak.definition.startswith("dense")
        assert 1e12 < peak.flops_per_second < 1e16
        by_precision = {
            p.precision: p.flops_per_second
            for p in load(BUILT_IN)
            if (p.device, p.source) == (peak.device, peak.source)
        }
        assert by_precision.get("fp32", 0) <= min(by_precision.values())


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("Tesla T4", "fp16", [65]),
        ("Tesla V100-SXM2-16GB", "fp32", [15.7]),
        ("Tesla V100-PCIE-32GB", "fp16", [112]),
        ("Tesla V100S-PCIE-32GB", "fp16", [130]),
        ("A100-SXM4-40GB", "tf32", [156]),
        ("NVIDIA A100-SXM4-80GB", "bf16", [312]),
        ("NVIDIA A100 80GB PCIe", "bf16", [312]),
        ("NVIDIA A100-PCIE-40GB", "bf16", [312]),
        ("NVIDIA H100 80GB HBM3", "bf16", [989.4]),
        ("NVIDIA H100 PCIe", "bf16", [756]),
        ("NVIDIA H200", "fp16", [989.5]),
        ("NVIDIA L4", "bf16", [121]),
        ("NVIDIA L40S", "bf16", [362.05]),
        ("AMD Instinct MI300X", "bf16", [1307.4]),
        ("Enflame T20", "tf32", [128, 160]),
        ("Iluvatar BI-V100", "fp16", [147]),
        ("Tesla T4", "bf16", []),  # it has no such units
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", []),  # a seventh of one
        ("NVIDIA L40", "bf16", []),
        ("Enflame S60", "fp16", []),
        ("Iluvatar BI-V150", "fp16", []),
    ],
)
def test_devices_are_found_by_the_name_torch_gives_them(name, precision, tera) -> None:
    found = [peak.flops_per_second / 1e12 for peak in peaks_of(name, precision)]
    assert found == pytest.approx(tera)


OWN = """
[[peak]]
device = 'Chip .'
flops_per_second = {fp32 = 1e12}
definition = "dense"
source = "our own sheet"
date = "2026"
[[peak]]
device = 'NVIDIA H100 PCIe'
flops_per_second = {bf16 = 7e14}
definition = "dense, our clocks"
source = "our own sheet"
date = "2026"
"""


def test_an_own_file_adds_and_replaces(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(OWN)
    assert [p.flops_per_second for p in peaks_of("chip 7", "fp32", own)] == [1e12]
    assert peaks_of("chip 7", "fp32") == []
    assert [p.flops_per_second for p in peaks_of("NVIDIA H100 PCIe", "bf16", own)] == [7e14]
    assert [p.flops_per_second for p in peaks_of("NVIDIA H100 PCIe", "tf32", own)] == [378e12]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("fp32", "fp64", "must be a table of fp32"),
        ("1e12", "-1e12", "give FLOP/s"),
        ("1e12", "'many'", "give FLOP/s"),
        ('"dense"', '"sparse"', "only dense"),
        ("'Chip .'", "'Chip ('", "not a regular expression"),
        ('source = "our own sheet"\n', "", "must have"),
        ("[[peak]]", "[[peaks]]", r"only \[\[peak\]\] tables"),
        ("[[peak]]", "[[peak", "cannot be read"),
    ],
)
def test_a_wrong_own_file_is_refused_with_the_reason(tmp_path, old, new, why) -> None:
    own = tmp_path / "own.toml"
    own.write_text(OWN.replace(old, new, 1))
    with pytest.raises(BadInput, match=why):
        load(own)


def test_one_source_gives_mfu_and_two_give_one_each() -> None:
    (one,) = utilisation(
        2 * 494.7e12, devices=8, peaks=peaks_of("NVIDIA H100 80GB HBM3", "bf16"), calibrated=None
    )
    assert (one.name, one.value) == ("mfu", pytest.approx(0.125))
    assert "white paper" in one.definition and "989.4" in one.definition
    two = utilisation(64e12, devices=1, peaks=peaks_of("T20", "tf32"), calibrated=None)
    assert [(m.name, m.value) for m in two] == [
        ("mfu_of_128_tflops", pytest.approx(0.5)),
        ("mfu_of_160_tflops", pytest.approx(0.4)),
    ]
    assert utilisation(1e12, devices=1, peaks=[], calibrated=None) == []
    assert utilisation(None, devices=1, peaks=peaks_of("T20", "tf32"), calibrated=None) == []


def calibration(folder: Path, rate: float = 2e12, **changed) -> Path:
    best = {"model": "large", "layer": "qkv", "product": "forward", "flops_per_second": rate}
    content = {
        "schema_version": 1, "created_utc": "2026-11-21T00:00:00Z", "device": DEVICE,
        "torch": "2.13.0", "threads": 2, "precisions": {"bf16": {"best": best}},
    } | changed  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / CALIBRATION).write_text(json.dumps(content))
    return folder


def test_a_calibration_is_found_for_its_own_device_and_precision_only(tmp_path: Path) -> None:
    first, second = calibration(tmp_path / "a"), calibration(tmp_path / "b", 1e12)
    found = find_calibration([tmp_path / "none", first, second], DEVICE, "bf16")
    assert found is not None and found.flops_per_second == 2e12
    (share,) = utilisation(1e12, devices=2, peaks=[], calibrated=found)
    assert (share.name, share.value) == ("mfu_calibrated", 0.25)
    assert f"a/{CALIBRATION} of 2026-11-21" in share.definition
    assert find_calibration([first], DEVICE, "fp32") is None
    assert find_calibration([first], DEVICE | {"name": "Chip 2"}, "bf16") is None
    assert find_calibration([first], DEVICE | {"simulated": True}, "bf16") is None
    (second / CALIBRATION).write_text("{")
    assert find_calibration([second], DEVICE, "bf16") is None
    calibration(second, schema_version=2)
    assert find_calibration([second], DEVICE, "bf16") is None


@pytest.mark.parametrize(
    "text",
    [
        *(OWN.replace("1e12", n) for n in ("0", "-1", "nan", "inf", "true", "1e-300", "1e40", "1")),
        OWN.replace("1e12", "1" + "0" * 400),
        OWN.replace("1e12", "1" + "0" * 5000),
        OWN.replace("{fp32 = 1e12}", "[1e12]"),
        OWN.replace("{fp32 = 1e12}", "1e12"),
        OWN.replace("{fp32 = 1e12}", "{}"),
        OWN.replace("'Chip .'", "5"),
        OWN.replace("'Chip .'", f"'{'(' * 140}{')' * 140}{'(' * 20}'"),
        OWN.replace("'Chip .'", f"'{'Chip ' * 1000}'"),
        OWN.replace('"2026"', "2026-01-01"),
        "peak = 5",
        "peak = [5]",
        "peak = [[]]",
        "[peak]\ndevice = 'x'",
        "peak = " + "[" * 100_000,
        "\x00",
        "",
    ],
)
def test_a_file_that_gives_no_peak_is_one_line(tmp_path: Path, text: str) -> None:
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(BadInput) as error:
        of_device("chip 7", own)
    assert "own.toml" in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_a_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large").write_bytes(b"#" * (17 << 20))
    for name in ("pipe", "bytes", "large", ".", "none", "../../dev/zero"):
        with pytest.raises(BadInput, match="cannot be read"):
            load(tmp_path / name)
    with pytest.raises(BadInput, match="cannot be read"):
        load(Path("/dev/zero"))


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(a*)*b", "(.*)*(.*)*(.*)*=", "(a|aa)+b"])
def test_an_expression_that_does_not_end_is_refused(
    tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peaks, "_PATIENCE_S", 0.3)
    own = tmp_path / "own.toml"
    own.write_text(OWN.replace("Chip .", pattern))
    begin = time.monotonic()
    with pytest.raises(BadInput, match=r"do not end within 0\.3 s"):
        of_device("a" * 60, own)
    assert time.monotonic() - begin < 5
    monkeypatch.setattr(peaks, "_PATIENCE_S", 30)
    assert of_device("Tesla T4", own) == of_device("Tesla T4")  # where it ends, it counts


def test_the_file_is_needed_at_the_start_only(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(OWN)
    known = of_device("NVIDIA H100 PCIe", own)
    own.unlink()
    assert [p.flops_per_second for p in in_precision(known, "bf16")] == [7e14]
    assert [p.flops_per_second for p in in_precision(known, "tf32")] == [378e12]


@pytest.mark.parametrize(
    "content",
    [
        *(
            dict.fromkeys(["rate"], r)
            for r in (0, -1e12, 1e-300, 1e300, True, "1e12", None, [1e12])
        ),
        {"text": '{"schema_version": NaN}'},
        {"text": "[" * 100_000},
        {"text": '{"a":' * 100_000},
        {"text": "[]"},
        {"text": "5"},
        {"text": "null"},
        {"text": ""},
        {"text": "\x00" * 100},
        {"text": '{"schema_version": 1, "device": []}'},
        {"text": '{"schema_version": 1, "device": "x"}'},
        {"text": '{"schema_version": 1' + "0" * 5000 + "}"},
        {"raw": "NaN"},
        {"raw": "Infinity"},
        {"raw": "1" + "0" * 400},
        {"raw": "1e400"},
        {"precisions": {"bf16": []}},
        {"precisions": {"bf16": {"best": 2e12}}},
        {"precisions": {"bf16": {"best": {}}}},
        {"precisions": 5},
        {"device": None},
    ],
)
def test_a_calibration_that_gives_no_rate_is_passed_over_with_a_note(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    if "rate" in content:
        folder = calibration(tmp_path / "a", content["rate"])
    elif "raw" in content:
        folder = calibration(tmp_path / "a", 123454321)
        file = folder / CALIBRATION
        file.write_text(file.read_text().replace("123454321", content["raw"]))
    elif "text" in content:
        folder = calibration(tmp_path / "a")
        (folder / CALIBRATION).write_text(content["text"])
    else:
        folder = calibration(tmp_path / "a", **content)
    notes: list[str] = []
    good = calibration(tmp_path / "b", 1e12)
    found = find_calibration([folder, good], DEVICE, "bf16", notes)
    assert found is not None and found.flops_per_second == 1e12
    (note,) = notes
    assert "a/calibration.json" in note and "\n" not in note and len(note) < 500
    assert find_calibration([folder], DEVICE, "bf16") is None


def test_a_calibration_that_is_no_file_is_passed_over(tmp_path: Path) -> None:
    for name in ("pipe", "folder"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / CALIBRATION)
    (tmp_path / "folder" / CALIBRATION).mkdir()
    notes: list[str] = []
    assert find_calibration([tmp_path / "pipe", tmp_path / "folder"], DEVICE, "bf16", notes) is None
    assert len(notes) == 2


def test_a_share_above_one_is_doubted() -> None:
    peak = peaks_of("Tesla T4", "fp16")
    (share,) = utilisation(100e12, devices=1, peaks=peak, calibrated=None)
    assert share.value > 1 and share.definition.endswith("not this device's")
