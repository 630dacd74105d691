# SPDX-License-Identifier: Apache-2.0
"""Write and read the MLPerf training log of a run.

``mlperf_logging.mllog`` writes the lines through a private logger, which leaves the global logging
configuration unchanged. Required keys per round: mlperf_logging,
compliance_checker/training_X/{common,closed_common,closed_bert}.yaml.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mlperf_logging.mllog import constants as key
from mlperf_logging.mllog.mllog import MLLogger

from bertbench.common.errors import BadInput
from bertbench.common.measure.clock import Clock
from bertbench.common.measure.code import PACKAGE
from bertbench.common.training.events import EvalEvent, Observer, RunSummary, StepEvent

TOKEN = ":::MLLOG "
LOG = "result_0.txt"
"""The log's name in a record."""
_EPOCH = {"first_epoch_num": 1, "epoch_count": 1}
_ENDS = frozenset({key.BLOCK_STOP, key.EPOCH_STOP, key.TRAIN_SAMPLES, key.EVAL_SAMPLES})


class MlperfLog(Observer):
    """Writes ``path`` (which must not exist yet), one flushed line per event.

    ``values`` are the hyperparameters in effect, under MLPerf's names. ``mlm_accuracy`` is logged
    as ``eval_accuracy``; as in submissions since v2.0 its ``epoch_num`` is the number of samples
    trained. ``weights`` names the initialised tensors (rounds 1.1 to 2.1 require
    ``bert_tensors(24)``). ``caches_cleared``: the file cache was dropped before the start.
    ``began`` is the reading of ``time.monotonic`` at which initialisation began, if that was before
    this object was made.

    A resumed run gives ``previous``, the log of the run it continues. Its lines up to the
    checkpoint are copied with their times, so that the result is one consistent log whose clock
    includes the interruption, and never goes back. Raises BadInput if that log is missing; events
    raise the error that ended the log early.
    """

    def __init__(
        self,
        path: Path,
        *,
        division: Literal["closed", "open"],
        org: str,
        platform: str,
        status: str,
        seed: int,
        values: Mapping[str, Any],
        weights: Sequence[str] = (),
        caches_cleared: bool = False,
        began: float | None = None,
        previous: Path | None = None,
    ) -> None:
        if previous is not None and not previous.is_file():
            raise BadInput(
                f"{previous} is missing: the log of a resumed run needs the previous one; resume "
                f"from a complete run folder"
            )
        self.files = (path.name,)
        self._logger = logging.Logger("mlperf")  # not getLogger: private
        self._handler = _File(path, mode="x", encoding="utf-8")
        self._logger.addHandler(self._handler)
        # mllog takes root_dir for a pattern, and would otherwise write the user's own path.
        self._log = MLLogger(self._logger, root_dir=re.escape(str(PACKAGE)))
        self._facts = {
            key.SUBMISSION_BENCHMARK: "bert",
            key.SUBMISSION_ORG: org,
            key.SUBMISSION_DIVISION: division,
            key.SUBMISSION_STATUS: status,
            key.SUBMISSION_PLATFORM: platform,
            key.SEED: seed,
            **values,
        }
        self._weights = weights
        self._caches_cleared, self._previous = caches_cleared, previous
        self._clock, self._began = Clock(), began
        self._behind_ms = 0
        """How far the clock was set back since the previous log."""
        self._samples = self._eval_samples = 0
        self._running = False

    def init_start(self) -> None:
        if self._previous is None:
            self._put("event", key.CACHE_CLEAR, self._caches_cleared, at=self._began)
            self._put("start", key.INIT_START, at=self._began)
            for name, value in self._facts.items():
                self._put("event", name, value)

    def init_stop(self) -> None:
        if self._previous is None:
            for tensor in self._weights:
                self._put("event", key.WEIGHTS_INITIALIZATION, metadata={"tensor": tensor})
            self._put("end", key.INIT_STOP)

    def run_start(self, *, step: int, samples: int) -> None:
        self._running, self._samples = True, samples
        if self._previous is not None:
            for line, time_ms in _until(self._previous, samples):
                self._logger.info(line)
                self._behind_ms = max(self._behind_ms, time_ms - int(self._clock.date() * 1e3))
            behind = {"clock_set_back_ms": self._behind_ms} if self._behind_ms else {}
            self._put("event", "resumed", samples, {"step": step, **behind})
            return
        # samples_before marks a log that does not cover the whole training.
        self._put("start", key.RUN_START, metadata={"samples_before": samples} if samples else None)
        self._put("start", key.EPOCH_START, metadata={"epoch_num": samples})
        self._put("start", key.BLOCK_START, metadata=_EPOCH)

    def on_step(self, event: StepEvent) -> None:
        self._samples = event.samples
        self._put(
            "event",
            "tracked_stats",
            {
                "throughput": event.sequences_per_second,
                "step_loss": event.loss,
                "lr": event.learning_rate,
            },
            {"epoch_num": event.samples, "step": event.step},
        )

    def eval_start(self, *, step: int, samples: int) -> None:
        self._put("start", key.EVAL_START, metadata={"epoch_num": samples})

    def on_eval(self, event: EvalEvent) -> None:
        self._samples = event.samples
        at = {"epoch_num": event.samples}
        self._eval_samples = int(event.metrics["num_samples"])
        self._put("event", key.EVAL_ACCURACY, event.metrics["mlm_accuracy"], at)
        self._put("end", key.EVAL_STOP, metadata=at)

    def run_stop(self, *, step: int, samples: int, status: str) -> None:
        self._running = False
        self._put("end", key.BLOCK_STOP, metadata={"first_epoch_num": 1})
        self._put("end", key.EPOCH_STOP, metadata={"epoch_num": samples})
        self._put("event", key.TRAIN_SAMPLES, samples)
        self._put("event", key.EVAL_SAMPLES, self._eval_samples)
        self._put("end", key.RUN_STOP, metadata={"status": status})

    def close(self, summary: RunSummary) -> None:
        try:
            if self._running:  # it ended with an exception
                self.run_stop(step=summary.step, samples=self._samples, status=key.ABORTED)
        finally:
            self._handler.close()
        self._handler.check()

    def _put(
        self, kind: Literal["event", "start", "end"], name: str, value: Any = None,
        metadata: Mapping[str, Any] | None = None, *, at: float | None = None,
    ) -> None:  # fmt: skip
        """Write a line, dated by a clock that a new date of the machine does not move."""
        time_ms = int(self._clock.date(at) * 1e3) + self._behind_ms
        write = getattr(self._log, kind)
        write(name, value, metadata=metadata, time_ms=time_ms, stack_offset=2)
        self._handler.check()


class _File(logging.FileHandler):
    """A log that ends at the line that the disk refused: it has no gaps."""

    problem: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.problem is None:
            super().emit(record)

    def check(self) -> None:
        if self.problem is not None:
            raise self.problem

    def handleError(self, record: logging.LogRecord) -> None:
        self.problem = sys.exc_info()[1]  # not raised: mllog would take it for a line


def bert_tensors(num_layers: int) -> list[str]:
    """Return TensorFlow's names of BERT's pretraining tensors, which rounds 1.1 to 2.1 require."""
    norm, dense = ("LayerNorm/gamma", "LayerNorm/beta"), ("kernel", "bias")
    attention = [f"attention/self/{part}/{t}" for part in ("query", "key", "value") for t in dense]
    attention += [f"attention/output/dense/{t}" for t in dense]
    attention += [f"attention/output/{t}" for t in norm]
    feed_forward = [f"{part}/dense/{t}" for part in ("intermediate", "output") for t in dense]
    feed_forward += [f"output/{t}" for t in norm]
    embeddings = [f"{kind}_embeddings" for kind in ("word", "position", "token_type")]
    return [
        *(f"bert/embeddings/{t}" for t in (*embeddings, *norm)),
        *(
            f"bert/encoder/layer_{i}/{t}"
            for i in range(num_layers)
            for t in attention + feed_forward
        ),
        *(f"bert/pooler/dense/{t}" for t in dense),
        *(f"cls/predictions/transform/dense/{t}" for t in dense),
        *(f"cls/predictions/transform/{t}" for t in norm),
        "cls/predictions/output_bias",
        "cls/seq_relationship/output_weights",
        "cls/seq_relationship/output_bias",
    ]


def log_lines(content: bytes, encoding: str = "latin-1") -> list[str]:
    """Return a log's lines as MLPerf's checkers part them: at ``\\n``, ``\\r`` and both."""
    return re.split(r"\r\n|\r|\n", content.decode(encoding, "replace"))


def read_log(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield line number (from 1) and content of each MLLOG line; None if it is damaged."""
    for number, line in enumerate(lines, 1):
        if TOKEN in line:
            try:
                event = json.loads(line.split(TOKEN)[-1])
                intact = {"key", "value"} <= event.keys() and isinstance(event["metadata"], dict)
                intact = intact and isinstance(event["key"], str)
            except (ValueError, KeyError, AttributeError, RecursionError):
                intact = False
            yield number, event if intact else None


def _until(path: Path, samples: int) -> Iterator[tuple[str, int]]:
    """Yield the lines of a log up to ``samples`` trained, without its end, and their times."""
    lines = log_lines(path.read_bytes(), "utf-8")
    for number, event in read_log(lines):
        if event is None or event["key"] in _ENDS or event["key"] == key.RUN_STOP:
            continue
        if event["metadata"].get("epoch_num", 0) <= samples:
            time_ms = event.get("time_ms")
            yield lines[number - 1], time_ms if isinstance(time_ms, int) else 0
