# SPDX-License-Identifier: Apache-2.0
"""The reference scripts' output files, under their names, in the record of the run.

==========================  ======================================================================
predictions.json            question id to answer
nbest_predictions.json      question id to its best answers, with probability and logits
dllogger.json               lines ``DLLL {...}`` as NVIDIA's DLLogger writes them
final_report.json           what Enflame's scripts print as "Final report:"
==========================  ======================================================================

Keys and units are the references'; ``DEFINITIONS``, also written into dllogger.json, defines the
numbers. The references leave warm-up steps out of the numerator but not out of the time, and do
not synchronise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from bertbench.benchmarks.bert_squad.layout import opened
from bertbench.benchmarks.bert_squad.recipes import SquadOptions
from bertbench.common.config.recipe import Settings
from bertbench.common.files import write_atomic
from bertbench.common.measure.clock import Clock
from bertbench.common.results.record import MANIFEST, hide_home
from bertbench.common.training.events import EvalEvent, Observer, RunSummary, StepEvent

if TYPE_CHECKING:
    from bertbench.benchmarks.bert_squad.task import SquadTask

PREDICTIONS, NBEST = "predictions.json", "nbest_predictions.json"
DLLOGGER, REPORT = "dllogger.json", "final_report.json"

_UNITS = {
    "e2e_train_time": "s",
    "training_sequences_per_second": "sequences/s",
    "e2e_inference_time": "s",
    "inference_sequences_per_second": "sequences/s",
}
DEFINITIONS = {
    "e2e_train_time": "first step to last, checkpoints included; without reading files, building "
    "the model and evaluating",
    "training_sequences_per_second": "features trained behind the skipped steps / the seconds of "
    "those steps, synchronised at both ends, checkpoints and evaluations excluded",
    "final_loss": "of the last step: mean of start's and end's cross-entropy over the global batch",
    "e2e_inference_time": "features on the host to scores, all ranks",
    "inference_sequences_per_second": "features through the model behind the skipped batches / "
    "their seconds, synchronised at both ends; all ranks together",
    "exact_match": "percent of all questions, as the official script",
    "F1": "percent, mean over all questions, as the official script",
}


class Outputs(Observer):
    """Writes the files above into ``folder``, and DLLogger's lines to --json_summary as well.

    Raises OSError where a file cannot be written; the others are, and so are later events.
    """

    files = (PREDICTIONS, NBEST, DLLOGGER, REPORT)

    def __init__(
        self, task: SquadTask, settings: Settings, folder: Path, *, resumed: bool = False
    ) -> None:
        self._task, self._settings, self._folder = task, settings, folder
        self._run = cast("SquadOptions", settings.run)
        self._clock = Clock()
        self._began = self._clock.date()
        self._files: list[IO[str]] = [(folder / DLLOGGER).open("w", encoding="utf-8")]
        if self._run.json_summary is not None:
            # A resumed run keeps the first part's lines.
            self._files.append(opened(self._run.json_summary, "a" if resumed else "w"))
        self._loss: float | None = None
        self._first = 0
        self._rates: list[float] = []
        self._evaluation: EvalEvent | None = None

    def init_stop(self) -> None:
        for name, definition in DEFINITIONS.items():
            about = {"definition": definition}
            if name in _UNITS:
                about["unit"] = _UNITS[name]
            self._line(type="METADATA", metric=name, metadata=about)
        facts = self._task.facts()
        self._parameter(Config=json.dumps(self._settings.as_dict()))
        self._parameter(SEED=self._run.seed)
        if facts.init_checkpoint is not None:
            self._parameter(loading_checkpoint=True)
            self._parameter(loaded_checkpoint=True)
        self._parameter(model_weights_num=facts.parameters)

    def run_start(self, *, step: int, samples: int) -> None:
        source, split = self._task.source, self._task.split
        self._first = step
        if source.train is not None:
            if source.train.path is not None:
                self._parameter(**{"Cached_train features_file": str(source.train.path)})
            self._parameter(train_start=True)
            self._parameter(training_samples=source.train.num_examples)
            self._parameter(training_features=len(source.train.features))
            self._parameter(train_batch_size=split.micro_batch * split.accumulation)
            self._parameter(steps=self._task.total_steps)

    def on_step(self, event: StepEvent) -> None:
        self._loss = event.loss
        counted = event.step - event.window_steps - self._first >= self._run.skip_steps
        if counted and event.sequences_per_second is not None:
            self._rates.append(event.sequences_per_second)
        data = {"step_loss": event.loss, "learning_rate": event.learning_rate}
        if event.sequences_per_second is not None:
            data["step_fps"] = event.sequences_per_second
        self._log([self._epoch(event.samples), event.step], data)

    def eval_start(self, *, step: int, samples: int) -> None:
        predict = self._task.source.predict
        if predict is not None:
            self._parameter(infer_start=True)
            self._parameter(eval_samples=predict.num_examples)
            self._parameter(eval_features=len(predict.features))
            self._parameter(predict_batch_size=self._task.eval_batch_size)

    def on_eval(self, event: EvalEvent) -> None:
        self._evaluation, answers = event, self._task.answers
        if answers is not None:
            contents: dict[str, Any] = {PREDICTIONS: answers.predictions}
            if self._run.write_nbest:
                contents[NBEST] = answers.nbest
            for name, content in contents.items():
                write_atomic(self._folder / name, json.dumps(content, indent=4) + "\n")

    def close(self, summary: RunSummary) -> None:
        named = {metric.name: metric.value for metric in summary.metrics}
        try:
            self._log_end(named)
            for file in self._files:
                file.close()
        finally:
            write_atomic(self._folder / REPORT, json.dumps(self.report(named), indent=4) + "\n")

    def _log_end(self, named: Mapping[str, float]) -> None:
        evaluation = self._evaluation
        if "sequences_per_second_e2e" in named:
            data: dict[str, Any] = {"e2e_train_time": named["run_time_s"] - named["eval_s"]}
            if "sequences_per_second" in named:
                data["training_sequences_per_second"] = named["sequences_per_second"]
            self._log([], data | {"final_loss": self._loss})
        if evaluation is not None:
            inference = {"e2e_inference_time": evaluation.eval_s}
            if (rate := evaluation.inference_sequences_per_second) is not None:
                inference["inference_sequences_per_second"] = rate
            self._log([], inference)
            if "f1" in evaluation.metrics:
                found = evaluation.metrics
                self._log([], {"exact_match": found["exact_match"], "F1": found["f1"]})

    def report(self, named: Mapping[str, float]) -> dict[str, Any]:
        """Return Enflame's final report, without values that were not measured.

        ``train_fps_mean`` is our sequences_per_second; minimum and maximum are of single reports.
        """
        task, r = self._task, self._task.recipe
        report: dict[str, Any] = {"model": "bert"}
        if task.source.train is not None:
            report["train_batch_size"] = task.split.micro_batch * task.split.accumulation
            report["epochs"] = r.num_train_epochs
            report["training_step_per_epoch"] = -(
                -len(task.source.train.features) // r.global_batch
            )
        report["device"] = task.backend_name
        report["skip_steps"] = self._run.skip_steps
        if "sequences_per_second" in named:
            report["train_fps_mean"] = named["sequences_per_second"]
            if self._rates:
                report["train_fps_min"] = min(self._rates)
                report["train_fps_max"] = max(self._rates)
        if "sequences_per_second_e2e" in named:
            report["training_time"] = _clock(named["run_time_s"] - named["eval_s"])
        if self._evaluation is not None:
            found = self._evaluation.metrics
            report["predict_num_examples"] = int(found["questions"])
            report["predict_batch_size"] = task.eval_batch_size
            report |= {name: found[name] for name in ("exact_match", "f1") if name in found}
        return report

    def _epoch(self, samples: int) -> int:
        train = self._task.source.train
        return samples // len(train.features) if train is not None else 0

    def _parameter(self, **data: Any) -> None:
        self._log("PARAMETER", data)

    def _log(self, step: list[int] | str, data: Mapping[str, Any]) -> None:
        self._line(type="LOG", step=step, data=data)

    def _line(self, **values: Any) -> None:
        now = self._clock.date()
        head = {
            "timestamp": str(now),
            "datetime": datetime.fromtimestamp(now, timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f"),
            "elapsedtime": str(now - self._began),
        }
        text = hide_home("DLLL " + json.dumps(head | values)) + "\n"
        failures = []
        for file in [*self._files]:
            try:
                file.write(text)
                file.flush()
            except (OSError, ValueError) as error:
                self._files.remove(file)  # it ends here: a log has no gaps
                failures.append(error)
        if failures:
            raise failures[0]


def closing(folder: Path) -> list[str]:
    """Return the lines that a terminal shows at the end."""
    lines = []
    if (folder / PREDICTIONS).is_file():
        lines.append(f"predictions {folder / PREDICTIONS}")
    if (folder / MANIFEST).is_file():
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        script = manifest["extras"].get("scoring", {}).get("eval_script", {})
        if "error" in script:
            lines.append(f"--eval_script reported no scores: {script['error']}")
    if (folder / REPORT).is_file():
        lines.append(f"Final report:\n{(folder / REPORT).read_text(encoding='utf-8').rstrip()}")
    return lines


def _clock(seconds: float) -> str:
    """Return h:mm:ss."""
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"
