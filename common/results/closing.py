# SPDX-License-Identifier: Apache-2.0
"""Measure and identify the rest of a run whose training has ended.

The result is there already (``RunRecord.seal``). Nothing here may lose it: every part is tried on
its own, and a part that fails leaves its values unknown and a note.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partialmethod
from typing import Any, ParamSpec, TypeVar

from bertbench.backends.base import Backend
from bertbench.backends.peaks import Peak
from bertbench.common.config.recipe import Settings, recipe_hash
from bertbench.common.distributed.all_reduce import gradient_all_reduce_s, gradient_bytes
from bertbench.common.distributed.world import World
from bertbench.common.errors import BertbenchError
from bertbench.common.files import why
from bertbench.common.measure.metric import Metric, metric
from bertbench.common.measure.utilisation import utilisation
from bertbench.common.results.record import RunRecord
from bertbench.common.results.seals import CHECKPOINTS, VOCABULARY, incomplete
from bertbench.common.training.built import Built
from bertbench.common.training.events import Observer, RunSummary, StepEvent
from bertbench.common.training.progress import Outcome
from bertbench.common.training.stops import Interruption
from bertbench.common.training.summary import reading, summarise
from bertbench.common.training.task import Source

T = TypeVar("T")
P = ParamSpec("P")
FAILURES = (Exception, KeyboardInterrupt, SystemExit)
"""What ends one part; a second Ctrl-C is one of them, and so is the exit of foreign code."""


class Halted(Observer):
    """Holds the thread that trains at its next report, while another one ends the process."""

    def on_step(self, event: StepEvent) -> None:
        threading.Event().wait()


class Guarded(Observer):
    """Passes events on to an observer, whose failures become notes and do not end the run.

    A BertbenchError before ``close`` is an observer's way to end the run.
    """

    def __init__(self, inner: Observer, note: Callable[[str], None]) -> None:
        self._inner, self._note = inner, note
        self.files = inner.files
        self._noted: set[str] = set()

    def pass_on(self, event: str, *values: Any, **named: Any) -> None:
        try:
            getattr(self._inner, event)(*values, **named)
        except FAILURES as error:
            if event != "close" and isinstance(error, (BertbenchError, KeyboardInterrupt)):
                raise
            names, what = self.files, f"{type(self._inner).__name__}: "
            text = f"{incomplete(names[0]) if len(names) == 1 else what}{why(error)}"
            if text not in self._noted:
                self._noted.add(text)
                self._note(text)


for _event in (name for name in vars(Observer) if callable(getattr(Observer, name))):
    if not _event.startswith("_"):
        setattr(Guarded, _event, partialmethod(Guarded.pass_on, _event))


@dataclass(slots=True, kw_only=True)
class Closing:
    """Measures and identifies a run of one rank; every rank calls ``metrics``."""

    settings: Settings
    backend: Backend
    world: World
    built: Built
    peaks: Sequence[Peak]
    """Of one device, in the run's precision."""
    note: Callable[[str], None]
    interruption: Interruption
    """Held by the caller: a second Ctrl-C ends the part that it meets, and no other."""
    failed: list[str] = field(default_factory=list)
    """What the failures of ``attempt`` left out."""
    problems: list[str] = field(default_factory=list)
    """Of the sensors of any rank."""
    recipe_hash: str | None = None
    """Known from ``identify`` on."""

    def attempt(
        self, missing: str, work: Callable[P, T], *args: P.args, **named: P.kwargs
    ) -> T | None:
        """Return what ``work`` returns; where it fails, None, with a note on what is missing."""
        try:
            with self.interruption.held(False):
                return work(*args, **named)
        except FAILURES as error:
            self.failed.append(missing)
            self.note(f"{missing}: {why(error)}")
            return None

    def local_metrics(self, outcome: Outcome, **measured: Any) -> list[Metric]:
        """Return the metrics that need no other process, no file and no user's script."""
        if not outcome.run_s:
            return []
        return summarise(outcome, quality=self._quality(outcome), **measured)

    def metrics(self, outcome: Outcome, **measured: Any) -> list[Metric]:
        """Return all metrics; the ranks meet here if training ended the same way on each."""
        if not outcome.run_s:
            return []
        sensors, memory, all_reduce = self._gathered(outcome)
        quality = self._quality(outcome)
        if outcome.evals:
            last, work = outcome.evals[-1], self.built.task.further_quality
            quality += self.attempt("further scores are unknown", work, last) or []
        found = summarise(outcome, quality=quality, sensors=sensors, memory=memory, **measured)
        self.problems = sorted(
            f"rank {rank}: {r.problem}" for rank, r in enumerate(sensors) if r and r.problem
        )
        for text in self.problems:
            self.note(f"power and energy are unknown: {text}")
        window = outcome.train_window
        rate = window and (window.effective_flops_per_second or window.model_flops_per_second)
        return found + all_reduce + (self.attempt("MFU is unknown", self._utilisation, rate) or [])

    def _quality(self, outcome: Outcome) -> list[Metric]:
        if not outcome.evals:
            return []
        return self.attempt("scores are unknown", self.built.task.quality, outcome.evals[-1]) or []

    def _gathered(self, outcome: Outcome) -> tuple[list[Any], list[Any], list[Metric]]:
        """Return sensors and peak memory of every rank, and the metrics of an all-reduce."""
        mine = (
            self.attempt("sensors are unknown", reading, self.built.telemetry),
            self.attempt("peak memory is unknown", self.backend.peak_memory),
        )
        if outcome.train_window is None:  # a process has left: it would not answer
            return [], [], []
        missing = "sensors and memory of all processes are unknown"
        every = self.attempt(missing, self.world.gather, mine)
        if every is None:
            return [], [], []
        found = None
        if outcome.steps_done and outcome.status != "interrupted":
            found = self.attempt("gradient_all_reduce_s is unknown", self._all_reduce)
        return [sensors for sensors, _ in every], [memory for _, memory in every], found or []

    def _all_reduce(self) -> list[Metric]:
        """Return seconds and bytes of the all-reduce of a step's gradients; none for one rank."""
        gradients = [p for p in self.built.task.model.parameters() if p.requires_grad]
        dtype = self.built.plan.reduce_dtype
        seconds = gradient_all_reduce_s(
            gradients, world=self.world, device=self.backend.device,
            synchronize=self.backend.synchronize, reduce_dtype=dtype,
        )  # fmt: skip
        if seconds is None:
            return []
        note = "" if dtype == "fp32" else f"buckets rounded to {dtype} before, which is not timed"
        return [
            metric("gradient_all_reduce_s", seconds, note=note),
            metric("gradient_all_reduce_bytes", gradient_bytes(gradients, dtype)),
        ]

    def _utilisation(self, flops_per_second: float | None) -> list[Metric]:
        """Return the shares of the peaks known for this device; none for a simulated one."""
        devices, world = self.built.devices, self.world
        if devices[0].simulated or any(d.name != devices[0].name for d in devices):
            return []
        # Processes of one node may share a device (a host's processor), those of several do not.
        on_each = min(world.local_size, max(1, self.backend.device_count()))
        return utilisation(
            flops_per_second,
            devices=world.size // world.local_size * on_each,
            peaks=self.peaks,
            calibrated=self.built.calibrated,
        )

    def keep_vocabulary(self, record: RunRecord) -> None:
        """Copy the data's vocabulary, where it is known, beside the checkpoints, if there are any.

        Raises OSError where that fails.
        """
        vocab, folder = self.built.source.vocab_file, record.path / CHECKPOINTS
        if vocab is not None and vocab.is_file() and folder.is_dir():
            shutil.copyfile(vocab, folder / VOCABULARY)

    def seal(self, record: RunRecord, summary: RunSummary) -> None:
        """Write the result before the rest is measured, which may fail."""
        self.identify(record, None)
        extras: Any = self.attempt("extras are unknown", self.built.facts.extras) or {}
        record.seal(replace(summary, extras=extras))

    def identify(self, record: RunRecord, source: Source | None) -> None:
        """Add the hashes of recipe and inputs; without a source, or its files, of the recipe."""
        mask = self.built.task.attention_mask
        inputs: dict[str, str | None] = {} if mask is None else {"attention_mask": mask.mask.hash}
        hashes = (
            {} if source is None else {"data": source.hash, "checkpoint": source.checkpoint_hash}
        )
        for name, work in hashes.items():
            failed = len(self.failed)
            value = self.attempt(f"the hash of the {name} is unknown", work)
            if len(self.failed) == failed:  # None is a hash, too: that of synthetic data
                inputs[name] = value
        if source is not None:
            for text in (
                self.attempt("changes of data are unknown", self.built.task.closing_notes) or ()
            ):
                self.note(text)
        recipe = self.settings.recipe
        self.recipe_hash = recipe_hash(recipe, **inputs)
        self.attempt(
            "the identity is not in the record yet",
            record.identify,
            recipe_hash=self.recipe_hash,
            recipe_kind=type(recipe).__name__,
            inputs=inputs,
            global_batch=recipe.global_batch,
        )

    def finish(
        self, record: RunRecord, observers: Sequence[Observer], summary: RunSummary
    ) -> str | None:
        """Close all observers, the record last; return why the record could not be written."""
        for o in observers:
            if o is not record:
                self.attempt(type(o).__name__, o.close, summary)
        return failure(record.close, summary)


def failure(work: Callable[P, object], *args: P.args, **named: P.kwargs) -> str | None:
    """Do ``work``, which writes the record; return why that failed."""
    try:
        work(*args, **named)
    except Exception as error:
        return why(error)
    return None
