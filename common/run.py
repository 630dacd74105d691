# SPDX-License-Identifier: Apache-2.0
"""One run from settings to record: chooses the backend, builds the task, trains, records."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bertbench import backends, benchmarks
from bertbench.backends import peaks
from bertbench.backends.base import Backend, DeviceInfo
from bertbench.benchmarks.base import Benchmark
from bertbench.common.choices.dry_run import dry_run
from bertbench.common.choices.opening import chosen, write_settings
from bertbench.common.config.batch_split import AUTO
from bertbench.common.config.recipe import Settings, plain
from bertbench.common.distributed.all_reduce import try_reduction
from bertbench.common.distributed.peers import PeerLost, Peers
from bertbench.common.distributed.sharding import try_sharding
from bertbench.common.distributed.world import World
from bertbench.common.errors import BertbenchError, Unsupported
from bertbench.common.files import Stream, why
from bertbench.common.launch.restarts import announce
from bertbench.common.launch.threads import OtherWork, host_threads
from bertbench.common.masks.attach import RecipeMask, left_out_mask
from bertbench.common.measure.clock import Clock, command_began
from bertbench.common.measure.device_facts import DeviceFacts, device_notes, fallback_notes
from bertbench.common.measure.system import system_name
from bertbench.common.measure.utilisation import find_calibration
from bertbench.common.report import ending, tracking
from bertbench.common.results.closing import Closing, Guarded, Halted, failure
from bertbench.common.results.record import RunRecord
from bertbench.common.results.store import earlier_precisions
from bertbench.common.training import rehearsal
from bertbench.common.training.built import Built
from bertbench.common.training.checkpoint import Checkpoints
from bertbench.common.training.console import ConsoleObserver
from bertbench.common.training.evaluation import evaluate
from bertbench.common.training.events import Observer, RunSummary
from bertbench.common.training.facts import RunFacts
from bertbench.common.training.loop import train
from bertbench.common.training.progress import Outcome, Progress, load_run
from bertbench.common.training.resume import find_checkpoint
from bertbench.common.training.stops import Interruption
from bertbench.common.training.task import Source

EXIT_CODES = {"ok": 0, "interrupted": 130}  # every other status is 1; a lost process, 3


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a run; exit codes are explained in common/cli/main.py."""

    exit_code: int
    record: Path | None
    """Its folder; None for a dry run, and on ranks that write none."""


def run(settings: Settings, *, started: float | None = None) -> Finished:
    """Run a resolved recipe; raises BertbenchError where it is refused before it has a record.

    ``e2e_time_s`` counts from ``started`` (``time.monotonic``; default: the command's start).
    """
    benchmark = benchmarks.load(settings.preset.benchmark)
    benchmark.check(settings)  # first: it is refused the same on every device
    RecipeMask.of(settings.recipe)
    world = World.from_env()
    backend = backends.resolve(settings.run.backend)(world.local_rank)
    torch.set_num_threads(settings.impl.num_threads or host_threads(world.local_size))
    backend.resolve_collective(settings.impl.dist_backend)  # refused with one process, too
    if settings.impl.micro_batch == AUTO:
        rehearsal.check_auto(backend)
    known = peaks.of_device(backend.describe().name, settings.run.peaks)
    tracking.check(settings.run)
    if settings.run.dry_run:
        dry_run(settings, backend, world, benchmark)
        return Finished(0, None)
    with world.joined(backend, settings.impl.dist_backend) as peers:
        notes = try_reduction(backend, world, settings.impl.reduce_dtype)
        notes += try_sharding(backend, world, settings.impl.optimizer_sharding)
        settings = replace(settings, notes=(*settings.notes, *notes))
        code = (it := Run(settings, backend, world, benchmark, started, known)).execute(peers)
    return Finished(code, None if it.record is None else it.record.path)


class Run:
    """The life of one run on one rank. Rank 0 writes the record; the others only train."""

    def __init__(
        self, settings: Settings, backend: Backend, world: World, benchmark: Benchmark,
        started: float | None, known: list[peaks.Peak],
    ) -> None:  # fmt: skip
        self.settings, self.backend, self.world = settings, backend, world
        self.benchmark, self.peaks = benchmark, known
        self.started = command_began() if started is None else started
        self.record: RunRecord | None = None
        self.observers: list[Observer] = []
        self.built: Built | None = None
        self.ended: RunSummary | None = None
        """The result, from the moment that it is in the record."""
        self.progress, self.interruption = Progress(), Interruption()
        self.init_s: float | None = None
        self.clock, self.began, self.other_work = Clock(), time.monotonic(), OtherWork()

    def execute(self, peers: Peers | None = None) -> int:
        """Return the exit code; raises DoesNotFit and other errors before there is a record.

        From the first step to the end of the record, signals wait until they do no harm.
        """
        if peers is not None:
            peers.on_lost, peers.step = self._lost, lambda: self.progress.step
        with contextlib.ExitStack() as stack:
            return self._execute(stack, peers)

    def _execute(self, stack: contextlib.ExitStack, peers: Peers | None) -> int:
        unexpected: BaseException | None = None
        try:
            start = self._start()
            stack.enter_context(self.interruption)
            outcome = start()
        except Exception as caught:
            error = caught if peers is None else peers.explain(caught)
            if self.record is None and (self.world.is_main or self.init_s is None):  # refused
                if self.built is not None and self.backend.ran_out(error):
                    raise rehearsal.DoesNotFit(self._out_of_memory(self.built, error)) from error
                raise error from caught
            outcome = self._failed(error)
            known = isinstance(error, (BertbenchError, OSError)) or self.backend.ran_out(error)
            unexpected = None if known else error
        with self.interruption, self.interruption.held():
            code = self._close(outcome)
        if peers is not None and peers.lost is not None and code == 1:
            code = PeerLost(peers.lost).exit_code
        if unexpected is not None:
            raise unexpected
        return code

    def _start(self) -> Callable[[], Outcome]:
        """Do all that comes before the first step; return the training."""
        source = self._prepare()
        self.began = time.monotonic()
        self.built = built = self._build(source)
        if self.world.is_main:
            self._open_record(built)
        self._rehearse(built)
        for o in self.observers:
            o.init_stop()
        self.world.gather(None)
        self.init_s = time.monotonic() - self.began

        self._check_start(built)
        checkpoints = self._checkpoints()
        self.backend.reset_peak_memory()
        if self.record is not None:
            self.record.telemetry = built.telemetry
        return partial(
            train, built.task, backend=self.backend, world=self.world, plan=built.plan,
            observers=self.observers, checkpoints=checkpoints, progress=self.progress,
            resume=built.saved, telemetry=built.telemetry, interruption=self.interruption,
        )  # fmt: skip

    def _prepare(self) -> Source:
        """Return the data; where it has to be made, rank 0 makes it."""
        source = self.benchmark.prepare(self.settings) if self.world.is_main else None
        self.world.gather(None)
        source = source or self.benchmark.prepare(self.settings)
        self.settings = self.settings.fitted(source.recipe or self.settings.recipe)
        return source

    def _build(self, source: Source) -> Built:
        settings, backend, world = self.settings, self.backend, self.world
        # Rank 0 alone knows which one after a restart, and `last` must be the same for all.
        resumed = world.gather(find_checkpoint(settings) if world.is_main else None)[0]
        task = self.benchmark.build(settings, backend, world, source)
        plan = task.plan(settings)
        checks = backend.verify_precision(plan.precision)
        choice = None
        if settings.impl.micro_batch == AUTO:
            choice = rehearsal.find_micro_batch(task, backend, world, plan, task.share)
            task.use_micro_batch(choice.chosen)
        devices: list[DeviceInfo] = world.gather(backend.describe())
        telemetry = backend.telemetry()
        device = DeviceFacts.of(
            backend,
            device=devices[0],
            telemetry=telemetry,
            checks=checks,
            world_size=world.size,
            dist_backend=settings.impl.dist_backend,
        )
        return Built(
            source=source,
            task=task,
            plan=plan,
            devices=devices,
            telemetry=telemetry,
            facts=RunFacts(task=task.facts(), device=device, micro_batch_choice=choice),
            resumed=resumed,
            saved=load_run(resumed, plan, settings.recipe.global_batch) if resumed else None,
        )

    def _open_record(self, built: Built) -> None:
        """Create record, console and the benchmark's own files, and print the choices."""
        settings, run, resumed = self.settings, self.settings.run, built.resumed
        earlier = resumed.resolve().parent.parent if resumed else None
        division = self.benchmark.division(settings)
        self.record = record = RunRecord.create(
            run.output_dir,
            system=self._system(built),
            benchmark=settings.preset.benchmark,
            config=settings.as_dict(),
            devices=built.devices,
            precision=built.plan.precision,
            seed=run.seed,
            world_size=self.world.size,
            mlperf=None if division is None else {"division": division, "ruleset": "5.0.0"},
            command=sys.argv[1:],
            resumed_from=earlier.name if earlier else None,
            earlier_precisions=earlier_precisions(earlier, settings.impl.precision),
        )
        announce(record.path)
        console = ConsoleObserver(
            max_steps=built.plan.max_steps,
            target=built.plan.target_value,
            log=record.console,
            out=ending.terminal(run),
            lost=record.note,
        )
        self.observers = [console, record]  # so that a failure from here on is shown and kept
        write_settings(settings, record)
        own = self.benchmark.observers(
            built.task, settings, record.path,
            system=self._system(built), began=self.began, resumed=resumed,
        )  # fmt: skip
        record.own.update(name for o in own for name in o.files)
        own = [*own, *tracking.observers(settings, record.path)]
        guarded = [Guarded(o, lambda text: self._note([text])) for o in own]
        self.observers = [console, *guarded, record]
        for o in self.observers:
            o.init_start()
        console.say(
            f"{settings.preset.name}{f' ({division})' if division else ''} on "
            f"{self.backend.name}: {built.devices[0].name}"
        )
        for line in chosen(settings, self.backend, built.facts, record.path):
            console.say(line)
        first, checks = built.devices[0], built.facts.device.device_checks
        notes = device_notes(self.backend, first, checks, gelu=built.task.gelu)
        folders = [run.output_dir / s for s in (self._system(built), system_name(first.name, 1))]
        built.calibrated = find_calibration(folders, plain(first), built.plan.precision, notes)
        notes += self.other_work.notes(self.world.local_size)
        notes += left_out_mask(built.source.init_checkpoint, built.task.mask_now())
        self._note([*settings.notes, *built.task.notes, *notes])
        if built.saved is not None and (before := built.saved[1]["world_size"]) != self.world.size:
            ranks = f"{self.world.size} processes, saved on {before}"
            self._note([f"resumed on {ranks}: the dropout masks from here on are new"])

    def _rehearse(self, built: Built) -> None:
        """Try a step before the clock starts: does it fit, and does the device compute it?"""
        if not rehearsal.is_worthwhile(self.backend) or not built.plan.max_steps:
            return
        done = rehearsal.rehearse(built.task, self.backend, self.world, built.plan, built.sizes())
        built.facts.fallbacks = done.fallbacks
        self._note([*done.notes, *fallback_notes(done.fallbacks)])

    def _check_start(self, built: Built) -> None:
        backend, world, plan = self.backend, self.world, built.plan
        score = partial(evaluate, built.task, backend=backend, world=world, plan=plan,
                        progress=self.progress, observers=[])  # fmt: skip
        self._note(built.task.check_start(score))

    def _checkpoints(self) -> Checkpoints | None:
        run = self.settings.run
        if run.skip_checkpoint:
            return None
        folder: Path = self.world.gather(self.record.path if self.record else None)[0]
        return Checkpoints(folder / "checkpoints", run.keep_n_most_recent_checkpoints)

    def _note(self, notes: list[str]) -> None:
        for text in notes:
            for o in self.observers:
                o.note(text)

    def _system(self, built: Built) -> str:
        count = len({(d.name, d.index) for d in built.devices})
        return self.settings.run.system or system_name(built.devices[0].name, count)

    def _lost(self, reason: str) -> int | None:
        """Close the record where another rank is gone and this one's main thread waits for it.

        That thread would go on if the other came back now.
        """
        trains, self.observers = self.observers, [*self.observers]
        trains[:] = [Halted()]
        self.progress = copy(self.progress)
        if self.record is not None and self.ended is not None:  # the result needs no other rank
            self._note([f"the end of the run is not complete: {reason}"])
            failure(self.record.close, self.ended)
            return EXIT_CODES.get(self.ended.status, 1)
        if self.record is not None:
            self._close(self._failed(PeerLost(reason)))
        return None

    def _failed(self, error: BaseException) -> Outcome:
        """Return the outcome of a run that ``error`` ended."""
        status, reason = "failed", str(error)
        if isinstance(error, rehearsal.DoesNotFit):
            status = "oom"
        elif self.backend.ran_out(error):
            assert self.built is not None
            status, reason = "oom", self._out_of_memory(self.built, error)
        elif isinstance(error, Unsupported):
            status = "unsupported"
        elif isinstance(error, PeerLost):
            reason = f"step {self.progress.step}: {reason}"
        elif not isinstance(error, BertbenchError):
            reason = why(error)
        return Outcome(status=status, reason=reason, progress=self.progress)

    def _out_of_memory(self, built: Built, error: BaseException) -> str:
        """Return what ran out, where, and which setting to lower."""
        where = "an evaluation" if (evaluating := not built.task.model.training) else "training"
        first = str(error).strip().split("\n")[0] or type(error).__name__
        hint = rehearsal.advice(built.sizes(), evaluating=evaluating)
        return f"out of device memory in {where}: {first}. {hint}"

    def _close(self, outcome: Outcome) -> int:
        """Seal the result at once, then measure the rest and finish console, log and record."""
        built, record, rank = self.built, self.record, self.world.rank
        assert built is not None
        end = Closing(
            settings=self.settings,
            backend=self.backend,
            world=self.world,
            built=built,
            peaks=peaks.in_precision(self.peaks, built.plan.precision),
            note=lambda text: self._note([text]),
            interruption=self.interruption,
        )
        measured: dict[str, Any] = {
            "whole": built.resumed is None,
            "init_s": self.init_s,
            "e2e_s": time.monotonic() - self.started,
        }
        summary = RunSummary(
            status=outcome.status,
            reason=outcome.reason,
            step=outcome.progress.step,
            samples=outcome.progress.samples,
        )
        if record is not None:
            own = end.attempt("metrics are unknown", end.local_metrics, outcome, **measured)
            summary = replace(summary, metrics=tuple(own or ()))
            problem = failure(end.seal, record, summary)
            self.ended = summary
        missing = "metrics of all processes are unknown"
        metrics = end.attempt(missing, end.metrics, outcome, **measured)
        if outcome.save is not None and outcome.train_window is not None:  # no process has left
            end.attempt("no checkpoint of the result", outcome.save, self.observers[:1])
        if record is None:
            if outcome.status == "failed":
                print(f"bertbench run: rank {rank}: {outcome.reason}", file=Stream(sys.stderr))
            return EXIT_CODES.get(outcome.status, 1)
        self._note(self.clock.contradictions())
        end.attempt("no vocabulary beside the checkpoints", end.keep_vocabulary, record)
        end.identify(record, built.source)
        built.facts.telemetry_problems = end.problems
        built.facts.results = end.attempt("results are unknown", built.task.results) or {}
        extras: Any = end.attempt("extras are unknown", built.facts.extras) or {}
        measures = summary.metrics if metrics is None else tuple(metrics)
        summary = replace(summary, metrics=measures, extras=extras)
        work = partial(ending.of_run, summary, outcome.evals, built, self.settings)
        summary = replace(summary, lines=end.attempt("no sentence", work, end.recipe_hash) or ())
        last = end.finish(record, self.observers, summary)
        if problem is not None and last is not None:
            summary = replace(
                summary,
                status="failed",
                reason=f"the record {record.path} cannot be written: {last}. The training ended as "
                f"{summary.status}: {summary.reason}",
            )
            print(f"bertbench run: {summary.reason}", file=Stream(sys.stderr))
        found = end.attempt("further files", self.benchmark.closing, record.path) or ()
        end.attempt("the last lines", ending.print_end, self.settings, record.path, summary, found)
        return EXIT_CODES.get(summary.status, 1)
