# SPDX-License-Identifier: Apache-2.0
"""MLflow and Weights & Biases: what is sent, and that no tracker's failure ends a run."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from bertbench.benchmarks import resolve
from bertbench.common.cli.main import main
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.measure.metric import Metric
from bertbench.common.report import tracking
from bertbench.common.report.tracking import Tracker, check, observers
from bertbench.common.training.events import RunSummary
from tests.unit.test_closing import TINY
from tests.unit.test_record import eval_event, step_event

RATE = Metric(
    name="sequences_per_second", value=16.0, unit="sequences/s", direction="higher", clock="wall",
    scope="run", definition="sequences / s",
)  # fmt: skip
SUMMARY = RunSummary(status="ok", reason="target reached", step=6, samples=48, metrics=(RATE,))


class Kept:
    """A client that keeps what it is sent."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int]] = []
        self.ended: list[tuple[dict[str, float], dict[str, str], int]] = []

    def log(self, values: Any, step: int) -> None:
        self.logged.append((dict(values), step))

    def end(self, values: Any, facts: Any, step: int) -> None:
        self.ended.append((dict(values), dict(facts), step))


def watch_a_run(tracker: Any) -> None:
    tracker.on_step(step_event(3, 3))
    tracker.on_eval(eval_event(6, 0.4))
    tracker.close(SUMMARY)


def test_what_is_sent(tmp_path: Path) -> None:
    client = Kept()
    watch_a_run(Tracker(lambda: client, tmp_path / "run"))
    (step, at), (evaluation, then) = client.logged
    assert (at, then) == (3, 6)
    assert step["train/loss"] == 2.0 and step["speed/sequences_per_second"] == 16.0
    assert "train/loss_scale" not in step  # not measured
    assert evaluation["eval/mlm_accuracy"] == 0.4 and evaluation["eval/target"] == 0.5
    facts = {"status": "ok", "reason": "target reached", "record": str(tmp_path / "run")}
    assert client.ended == [({"sequences_per_second": 16.0}, facts, 6)]


def test_a_slow_tracker_holds_neither_a_step_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "OPENING_S", 0.01)
    monkeypatch.setattr(tracking, "GRACE_S", 0.01)
    free = threading.Event()

    def never() -> Any:
        free.wait(60)
        raise OSError(110, "Connection timed out")

    tracker = Tracker(never, tmp_path)
    tracker.on_step(step_event(3, 3))  # comes back at once
    with pytest.raises(TimeoutError, match="has not taken the whole run"):
        tracker.close(SUMMARY)
    free.set()


@pytest.mark.parametrize(
    ("track", "wrong"),
    [("mlflow", "must be mlflow:URI"), ("wandb:", "must be mlflow:URI"),
     ("neptune:x", "must be mlflow:URI"), ("mlflow:https://me:word@host", "leave the password")],
)  # fmt: skip
def test_what_cannot_be_a_tracker_is_refused(track: str, wrong: str) -> None:
    with pytest.raises(BadInput, match=wrong) as caught:
        check(resolve("mini", ["--track", track]).run)
    assert "word" not in str(caught.value).replace("password", "").replace("PASSWORD", "")


@pytest.mark.parametrize("track", ["mlflow:runs", "wandb:project"])
def test_without_the_package_one_line_says_so(
    track: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, track.partition(":")[0], None)
    flags = [*TINY, "--output_dir", str(tmp_path / "out"), "--track", track]
    assert main(["run", "mini", *flags]) == 2
    told = capsys.readouterr().err
    assert "pip install 'bertbench[track]'" in told
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Unsupported):
        check(resolve("mini", ["--track", track]).run)


def test_a_tracker_that_fails_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SystemExit, as of a client without a key."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)

    def fail(*_: Any) -> Any:
        raise SystemExit("no key")

    monkeypatch.setitem(tracking.CLIENTS, "wandb", fail)
    flags = [*TINY, "--output_dir", str(tmp_path), "--track", "wandb:project"]
    assert main(["run", "mini", *flags]) == 0
    (file,) = tmp_path.glob("*/*/*/manifest.json")
    content = json.loads(file.read_text())
    assert content["status"] == "ok"
    told = "Tracker: RuntimeError: --track failed, the record is complete without it: SystemExit"
    assert [note for note in content["notes"] if note.startswith(told)] == [f"{told}: no key"]


@pytest.mark.parametrize("status", ["ok", "below_quality", "failed", "interrupted"])
def test_mlflow_has_the_whole_run(status: str, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="the package mlflow-skinny is an extra")
    from mlflow.tracking import MlflowClient

    place = tmp_path / "store"
    settings = resolve("mini", ["--track", f"mlflow:{place}", "--seed", "7"])
    (tracker,) = observers(settings, tmp_path / "a_run")
    tracker.on_step(step_event(3, 3))
    tracker.on_eval(eval_event(6, 0.4))
    tracker.close(RunSummary(status=status, reason="", step=6, samples=48, metrics=(RATE,)))
    client = MlflowClient(tracking_uri=place.as_uri())
    experiment = client.get_experiment_by_name("bert_pretraining")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "a_run"
    assert run.info.status == {"failed": "FAILED", "interrupted": "KILLED"}.get(status, "FINISHED")
    assert run.data.params["run.seed"] == "7" and run.data.params["preset"] == "mini"
    assert run.data.params["recipe.global_batch"] == str(settings.recipe.global_batch)
    assert run.data.metrics["sequences_per_second"] == 16.0
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [3]
    assert run.data.tags["status"] == status
    assert run.data.tags["record"] == str(tmp_path / "a_run")


def test_wandb_takes_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the package wandb is an extra")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = resolve("mini", ["--track", "wandb:bert", "--seed", "7"])
    (tracker,) = observers(settings, tmp_path / "a_run")
    watch_a_run(tracker)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-a_run.wandb")
    content = file.read_bytes()
    for text in (b"train/loss", b"eval/mlm_accuracy", b"sequences_per_second", b"target reached"):
        assert text in content
