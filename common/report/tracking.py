# SPDX-License-Identifier: Apache-2.0
"""Send a run to MLflow or Weights & Biases (``--track``), besides its record.

    --track mlflow:URI_OR_DIR       --track wandb:PROJECT

Parameters are the record's configuration, metrics have TensorBoard's names, and the run's end adds
the final metrics by their definitions' names, its status and its record's path. A thread sends: a
slow server takes no time of the run, one that fails or hangs becomes a note. The clients' own
environment variables hold (WANDB_MODE=offline, MLFLOW_TRACKING_TOKEN). The packages are an extra.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from bertbench.common.config.recipe import RunOptions, Settings
from bertbench.common.errors import BadInput, Unsupported, install
from bertbench.common.files import shown, why
from bertbench.common.report.tensorboard import (
    TensorBoard,
    eval_scalars,
    step_scalars,
    writer_class,
)
from bertbench.common.results.comparable import FINISHED
from bertbench.common.training.events import EvalEvent, Observer, RunSummary, StepEvent

OPENING_S, GRACE_S = 20.0, 60.0
"""How long the beginning of a run, before its clock, and its end wait for a tracker."""
_MOST_PARAMS, _LONGEST_PARAM = 100, 500
"""MLflow's limits of one request, and of a value on its older servers."""


class Client(Protocol):
    """A tracker's open run."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send values of a step."""

    def end(self, values: Mapping[str, float], facts: Mapping[str, str], step: int) -> None:
        """Send the final values and the facts, among them ``status``, and close the run."""


class MLflow:
    """A run of the experiment with the benchmark's name, or MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, where: str, name: str, config: Mapping[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        if not _is_address(where):
            # MLflow refuses folders unless it is asked for one; this command asks.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            where = Path(where).resolve().as_uri()
        self._client = MlflowClient(tracking_uri=where)
        group = os.environ.get("MLFLOW_EXPERIMENT_NAME") or str(config["benchmark"])
        known = self._client.get_experiment_by_name(group)
        number = known.experiment_id if known else self._client.create_experiment(group)
        self._id = self._client.create_run(number, run_name=name).info.run_id
        self._params(dict(_flat(config)))

    def _params(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(name, text[:_LONGEST_PARAM]) for name, text in values.items()]
        for i in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._id, params=params[i : i + _MOST_PARAMS])

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics, synchronous=True)

    def end(self, values: Mapping[str, float], facts: Mapping[str, str], step: int) -> None:
        self.log(values, step)
        for name, text in facts.items():
            self._client.set_tag(self._id, name, text)
        status = facts["status"]
        ended = {"interrupted": "KILLED"} | dict.fromkeys(FINISHED, "FINISHED")
        self._client.set_terminated(self._id, status=ended.get(status, "FAILED"))


class Wandb:
    """A run of a project."""

    def __init__(self, where: str, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        # It reads no sensors and no output of a run that is being timed.
        quiet = wandb.Settings(
            console="off", x_disable_stats=True, disable_git=True, save_code=False, login_timeout=10
        )
        self._run = wandb.init(
            project=where, id=name, name=name, config=dict(config), settings=quiet,
            reinit="create_new",
        )  # fmt: skip

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def end(self, values: Mapping[str, float], facts: Mapping[str, str], step: int) -> None:
        self._run.summary.update({**values, **facts})
        self._run.finish(exit_code=int(facts["status"] not in FINISHED))


CLIENTS: dict[str, Callable[[str, str, Mapping[str, Any]], Client]] = {
    "mlflow": MLflow, "wandb": Wandb,
}  # fmt: skip


class Tracker(Observer):
    """Sends a run's events to the client that ``opened`` returns, in a thread.

    The first failure ends the sending; the next event raises it, which the run notes.
    """

    def __init__(self, opened: Callable[[], Client], record: Path) -> None:
        self._opened, self._record = opened, record
        self._queue: queue.SimpleQueue[Callable[[Client], None] | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._send, name="tracker", daemon=True)
        self._begun = threading.Event()
        self._thread.start()
        self._begun.wait(OPENING_S)  # a client takes seconds to import: not of the timed run

    def on_step(self, event: StepEvent) -> None:
        self._put(lambda client: client.log(step_scalars(event), event.step))

    def on_eval(self, event: EvalEvent) -> None:
        self._put(lambda client: client.log(eval_scalars(event), event.step))

    def close(self, summary: RunSummary) -> None:
        known = ((m.name, m.value) for m in summary.metrics)
        values = {name: float(v) for name, v in known if v is not None and math.isfinite(v)}
        facts = {"status": summary.status, "reason": summary.reason, "record": str(self._record)}
        self._put(lambda client: client.end(values, facts, summary.step))
        self._queue.put(None)
        self._thread.join(GRACE_S)
        if self._thread.is_alive():
            raise TimeoutError(f"it has not taken the whole run within {GRACE_S:g} s")
        self._check()

    def _put(self, call: Callable[[Client], None]) -> None:
        self._check()
        self._queue.put(call)

    def _check(self) -> None:
        if self._failure is not None:
            raise RuntimeError(
                f"--track failed, the record is complete without it: {why(self._failure)}"
            )

    def _send(self) -> None:
        try:
            client = self._opened()
            self._begun.set()
            while (call := self._queue.get()) is not None:
                call(client)
        except BaseException as error:  # SystemExit of foreign code among them
            self._failure = error
            self._begun.set()


def check(run: RunOptions) -> None:
    """Raise BadInput or Unsupported, before the run, if an observer that it asks for cannot be."""
    if run.tensorboard is not None:
        writer_class()
    if run.track is not None:
        package, _ = _parsed(run.track)
        if importlib.util.find_spec(package) is None:
            raise Unsupported(f"--track {package} needs the package {package}: {install('track')}")


def observers(settings: Settings, record: Path) -> list[Observer]:
    """Return the observers that a run asks for, of a ``record`` named by the run's id."""
    run, found = settings.run, list[Observer]()
    if run.tensorboard is not None:
        found.append(TensorBoard(run.tensorboard / record.name))
    if run.track is not None:
        package, where = _parsed(run.track)
        config = {k: v for k, v in settings.as_dict().items() if k not in ("origins", "notes")}
        found.append(Tracker(lambda: CLIENTS[package](where, record.name, config), record))
    return found


def _parsed(track: str) -> tuple[str, str]:
    """Return package and place of ``--track``."""
    package, _, where = track.partition(":")
    if package not in CLIENTS or not where:
        raise BadInput(
            f"--track {shown(track)}: must be mlflow:URI, mlflow:FOLDER or wandb:PROJECT"
        )
    if "@" in urlsplit(where).netloc:  # the record has the command line
        raise BadInput(
            "--track: leave the password out of the address: records are published. Set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )
    return package, where


def _is_address(where: str) -> bool:
    return "://" in where or where.startswith(("file:", "databricks"))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return (``recipe.learning_rate``, text) of every value."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)
