# SPDX-License-Identifier: Apache-2.0
"""TensorBoard events: what is written, and one line where the package is missing."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bertbench.benchmarks import resolve
from bertbench.common.cli.main import main
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.report.tensorboard import TensorBoard, writer_class
from bertbench.common.training.events import RunSummary
from tests.unit.test_record import eval_event, step_event

SUMMARY = RunSummary(status="ok", reason="target reached", step=6, samples=48)


class Writer:
    """Keeps what it is told."""

    made: list[Writer]

    def __init__(self, log_dir: str, flush_secs: int) -> None:
        self.folder, self.scalars, self.texts = log_dir, {}, []  # type: ignore[var-annotated]
        self.flushed, self.closed = 0, False
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name, step] = value

    def add_text(self, name: str, text: str, step: int) -> None:
        self.texts.append((name, text, step))

    def flush(self) -> None:
        self.flushed += 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Writer]:
    module: Any = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    Writer.made = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return Writer


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)


def watch_a_run(observer: TensorBoard) -> None:
    observer.on_step(step_event(3, 3))
    observer.note("something")
    observer.on_step(replace(step_event(6, 3), loss=float("nan"), grad_norm=None))
    observer.on_eval(eval_event(6, 0.4))
    observer.close(SUMMARY)


def test_what_is_written(fake: type[Writer], tmp_path: Path) -> None:
    watch_a_run(TensorBoard(tmp_path / "run"))
    (writer,) = fake.made
    assert writer.folder == str(tmp_path / "run")
    assert writer.scalars["train/loss", 3] == 2.0
    assert ("train/loss", 6) not in writer.scalars  # not finite
    assert ("train/grad_norm", 6) not in writer.scalars  # not measured
    assert not any(name == "train/loss_scale" for name, _ in writer.scalars)
    assert writer.scalars["train/mlm_accuracy", 3] == 0.1
    assert writer.scalars["speed/sequences_per_second", 6] == 16.0
    assert writer.scalars["eval/mlm_accuracy", 6] == 0.4
    assert writer.scalars["eval/target", 6] == 0.5
    assert writer.texts == [("note", "something", 3), ("end", "ok: target reached", 6)]
    assert writer.flushed and writer.closed


def test_without_the_package_one_line_says_so(absent: None, tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        TensorBoard(tmp_path)
    text = str(caught.value)
    assert "\n" not in text and "pip install 'bertbench[tensorboard]'" in text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be(
    fake: type[Writer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise NotADirectoryError(20, "Not a directory")

    monkeypatch.setattr(sys.modules["torch.utils.tensorboard"], "SummaryWriter", fail)
    with pytest.raises(BadInput, match="--tensorboard: cannot write into"):
        TensorBoard(tmp_path)


def test_a_run_is_refused_before_it_starts(
    absent: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--backend", "cpu_ref", "--synthetic", "--output_dir", str(tmp_path / "out")]
    assert resolve("mini", ["--tensorboard", "tb"]).run.tensorboard == Path("tb")
    assert main(["run", "mini", *flags, "--tensorboard", str(tmp_path / "tb")]) == 2
    assert "needs the package tensorboard" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_real_events_can_be_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert writer_class().__module__.startswith("torch.")
    watch_a_run(TensorBoard(tmp_path))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(3, 2.0)]
    assert [e.step for e in events.Scalars("speed/sequences_per_second")] == [3, 6]
