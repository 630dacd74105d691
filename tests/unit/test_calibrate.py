# SPDX-License-Identifier: Apache-2.0
"""Calibration: what is measured, by a clock that the test turns, and where it is written."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.common.cli import calibrate
from bertbench.common.cli import main as cli
from bertbench.common.cli.calibrate import effort, render
from bertbench.common.errors import Unsupported
from bertbench.common.measure import calibration
from bertbench.common.measure.calibration import Effort, Product, products
from bertbench.common.measure.utilisation import find_calibration

SMALL = Effort(tokens=64, spans=3, copy_bytes=4096)


class Work:
    """Counts matrix products and copies; a span takes as long as the work in it."""

    def __init__(self) -> None:
        self.seconds_done = 0.0
        self.synchronised = 0

    def mm(self, a, b, *, out):
        assert a.dtype == b.dtype == out.dtype
        out.zero_()
        m, k = a.shape
        rate = 4e12 if a.dtype == torch.bfloat16 else 1e12
        # One product is slower than the others.
        self.seconds_done += 2 * m * k * b.shape[1] / (rate / 2 if k == 4096 else rate)

    def synchronize(self) -> None:
        self.synchronised += 1

    def timer(self) -> Spans:
        return Spans(self)


class Spans:
    clock = "device-event"

    def __init__(self, work: Work) -> None:
        self.work, self.begin, self.found = work, 0.0, []

    def start(self) -> None:
        self.begin = self.work.seconds_done

    def stop(self) -> None:
        self.found.append(self.work.seconds_done - self.begin)

    def seconds(self) -> list[float]:
        return [s or 1.0 for s in self.found]  # a copy is not counted: a second each


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> CpuRef:
    work, backend = Work(), CpuRef()
    monkeypatch.setattr(torch, "mm", work.mm)
    monkeypatch.setattr(backend, "timer", work.timer, raising=False)
    monkeypatch.setattr(backend, "synchronize", work.synchronize, raising=False)
    monkeypatch.setattr(calibration, "VOCABULARY", 32)
    monkeypatch.setattr(calibration, "MOST_CALLS", 3)
    backend.work = work
    return backend


def test_the_shapes_are_those_of_a_step() -> None:
    found = list(products(512))
    assert len(found) == 2 * 5 * 3
    assert Product("large", "qkv", "forward", 512, 3072, 1024) in found
    assert Product("base", "output", "input gradient", 512, 3072, 768) in found
    assert Product("base", "intermediate", "weight gradient", 3072, 768, 512) in found
    assert Product("large", "decoder", "forward", 76, 30528, 1024) in found
    # A layer of BERT-large is 12 H^2 weights.
    large = [p for p in found if p.model == "large" and p.layer != "decoder"]
    for product in ("forward", "input gradient", "weight gradient"):
        work = sum(p.m * p.n * p.k for p in large if p.product == product)
        assert work == 512 * 12 * 1024**2


def test_rates_are_flops_over_seconds_of_synchronised_spans(backend) -> None:
    content = calibration.calibrate(backend, ["fp32"], SMALL)
    (fp32,) = content["precisions"].values()
    rates = {
        (p["model"], p["layer"], p["product"]): p["flops_per_second"] for p in fp32["products"]
    }
    assert rates.pop(("large", "output", "forward")) == pytest.approx(0.5e12)
    assert rates.pop(("large", "intermediate", "input gradient")) == pytest.approx(0.5e12)
    assert all(rate == pytest.approx(1e12) for rate in rates.values())
    assert fp32["best"]["flops_per_second"] == pytest.approx(1e12)
    assert fp32["device_checks"]["product_dtype"] == "float32"
    assert {p["calls"] for p in fp32["products"]} == {3}  # tiny products are repeated
    assert {p["spans"] for p in fp32["products"]} == {3}
    assert backend.work.synchronised >= 3 * 30
    assert content["copy"]["bytes_per_second"] == 2 * 4096
    assert content["clock"] == "device-event"
    assert content["system"]["processor"]["threads"] >= 1


def test_a_precision_that_the_device_lacks_is_refused(backend) -> None:
    with pytest.raises(Unsupported, match="tf32"):
        calibration.calibrate(backend, ["tf32"], SMALL)


def test_the_command_writes_what_runs_look_for(
    tmp_path: Path, monkeypatch, capsys, backend
) -> None:
    monkeypatch.setattr(calibrate.backends, "resolve", lambda name: lambda rank: backend)
    monkeypatch.setattr(calibrate, "effort", lambda backend, quick: SMALL)
    flags = ["--backend", "cpu_ref", "--precision", "fp32", "--output_dir", str(tmp_path)]
    assert cli.main(["calibrate", *flags, "--system", "here"]) == 0
    printed = capsys.readouterr().out
    file = tmp_path / "here" / "calibration.json"
    content = json.loads(file.read_text())
    assert str(file) in printed and "large qkv" in printed and render(content) in printed
    assert list(tmp_path.rglob("*.json")) == [file]
    found = find_calibration([file.parent], content["device"], "fp32")
    assert found is not None and found.flops_per_second == pytest.approx(1e12)
    assert found.torch == torch.__version__
    assert cli.main(["calibrate", *flags, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert Path(again["file"]).exists() and again["schema_version"] == 1


def _measured(monkeypatch: pytest.MonkeyPatch, backend: CpuRef) -> list[object]:
    """The measurements that the command makes from here on."""
    made: list[object] = []
    real = calibrate.calibrate
    monkeypatch.setattr(calibrate.backends, "resolve", lambda name: lambda rank: backend)
    monkeypatch.setattr(calibrate, "effort", lambda backend, quick: SMALL)
    monkeypatch.setattr(calibrate, "calibrate", lambda *args: made.append(args) or real(*args))
    return made


@pytest.mark.parametrize("name", ["../../escaped", "", ".hidden", "/etc/x", "A b"])
def test_a_system_that_cannot_name_a_folder(
    tmp_path: Path, monkeypatch, capsys, backend, name: str
) -> None:
    made = _measured(monkeypatch, backend)
    flags = ["--output_dir", str(tmp_path / "results"), "--system", name]
    assert cli.main(["calibrate", *flags]) == 2
    assert "cannot name a folder of results" in capsys.readouterr().err
    assert made == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file in the way", "folder in the way", "full at last"])
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch, capsys, backend, kind: str
) -> None:
    """Found before the measurement; what the disk refuses only afterwards is printed."""
    made, root = _measured(monkeypatch, backend), tmp_path / "results"
    flags = ["--precision", "fp32", "--output_dir", str(root), "--system", "here"]
    if kind == "full at last":

        def full(path: Path, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(calibrate, "write_atomic", full)
        assert cli.main(["calibrate", *flags]) == 1
        captured = capsys.readouterr()
        assert "large qkv" in captured.out and "No space left" in captured.err
        assert cli.main(["calibrate", *flags, "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["file"] is None
        return
    if kind == "file in the way":
        root.write_text("")
    else:
        (root / "here" / "calibration.json").mkdir(parents=True)
    assert cli.main(["calibrate", *flags]) == 2
    assert "Choose another --output" in capsys.readouterr().err
    assert made == []


def test_a_host_is_measured_with_less(monkeypatch) -> None:
    backend = CpuRef()
    assert effort(backend, False).tokens == 1024
    assert effort(backend, True).tokens == 256
    backend.device = torch.device("meta")
    assert effort(backend, False).tokens == 16384
    info = replace(backend.describe(), simulated=True)
    monkeypatch.setattr(CpuRef, "describe", lambda self: info)
    assert effort(backend, False).tokens == 1024


def test_it_runs_on_this_machine() -> None:
    found = calibration._product(CpuRef(), "fp32", Product("base", "qkv", "forward", 8, 24, 16), 1)
    assert found["flops_per_second"] > 0


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timer_that_reads_what_no_work_takes_gives_no_rate(
    backend, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(Spans, "seconds", lambda self: [seconds for _ in self.found])
    with pytest.raises(Unsupported, match="its timer reads"):
        calibration.calibrate(backend, ["fp32"], SMALL)


@pytest.mark.parametrize("threads", ["0", "-3", "1000000"])
def test_threads_that_cannot_be_are_refused(capsys, threads: str) -> None:
    assert cli.main(["calibrate", "--num_threads", threads]) == 2
    assert "give a number of threads from 1" in capsys.readouterr().err
