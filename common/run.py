# SPDX-License-Identifier: Apache-2.0
"""One run from settings to record: picks the backend, builds the task, trains, writes it down."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from rich.console import Console

from bertbench import backends, benchmarks
from bertbench.backends import peaks
from bertbench.backends.base import Backend, DeviceInfo, Telemetry
from bertbench.common.config.batch_split import AUTO
from bertbench.common.config.recipe import Settings, plain, recipe_hash
from bertbench.common.errors import BertbenchError, Unsupported
from bertbench.common.files import host_cores
from bertbench.common.measure.communication import gradient_all_reduce_s
from bertbench.common.measure.device_facts import device_facts, device_notes, fallback_notes
from bertbench.common.measure.metric import Metric
from bertbench.common.measure.system import system_name
from bertbench.common.measure.utilisation import find_calibration, utilisation
from bertbench.common.results.record import RunRecord
from bertbench.common.training import rehearsal
from bertbench.common.training.checkpoint import Checkpoints, load
from bertbench.common.training.console import ConsoleObserver
from bertbench.common.training.distributed import World
from bertbench.common.training.evaluation import evaluate
from bertbench.common.training.events import Observer, RunSummary
from bertbench.common.training.loop import Outcome, train
from bertbench.common.training.progress import Progress
from bertbench.common.training.resume import find_checkpoint
from bertbench.common.training.summary import reading, summarise
from bertbench.common.training.task import Plan
from bertbench.common.training.tensorboard import TensorBoard, writer_class

EXIT_CODES = {"ok": 0, "interrupted": 130}
"""Every other status is 1."""


def run(settings: Settings) -> int:
    """Run a resolved recipe; returns the exit code (see common/cli/main.py)."""
    world = World.from_env()
    backend = backends.resolve(settings.run.backend)(world.local_rank)
    torch.set_num_threads(settings.impl.num_threads or max(1, host_cores() // world.local_size))
    benchmark = benchmarks.load(settings.preset.benchmark, "benchmark")
    backend.resolve_collective(settings.impl.dist_backend)  # refused with one process, too
    if settings.impl.micro_batch == AUTO:
        rehearsal.check_auto(backend)
    if settings.run.peaks is not None:
        peaks.load(settings.run.peaks)
    if settings.run.tensorboard is not None:
        writer_class()
    if settings.run.dry_run:
        _dry_run(settings, backend, world, benchmark)
        return 0
    with world.joined(backend, settings.impl.dist_backend):
        return Run(settings, backend, world, benchmark).execute()


class Run:
    """The life of one run on one rank. Rank 0 writes the record; the others only train."""

    def __init__(self, settings: Settings, backend: Backend, world: World, benchmark: Any) -> None:
        self.settings, self.backend, self.world = settings, backend, world
        self.benchmark = benchmark
        self.record: RunRecord | None = None
        self.observers: list[Observer] = []
        self.source: Any = None
        self.task: Any = None
        self.telemetry: Telemetry | None = None
        self.progress = Progress()
        self.init_s: float | None = None
        self.began = time.time()
        self.resumed: Path | None = None
        self.devices: list[DeviceInfo] = []
        self.facts: dict[str, Any] = {}

    def execute(self) -> int:
        """Everything, from the first file to the exit code."""
        unexpected: Exception | None = None
        try:
            outcome = self._train()
        except Exception as error:
            if self.record is None:  # nothing was written: the caller says why
                if self.facts and isinstance(error, self.backend.oom_errors):
                    raise rehearsal.DoesNotFit(self._out_of_memory(error)) from error
                raise
            outcome = Outcome(status="failed", reason=str(error), progress=self.progress)
            if isinstance(error, rehearsal.DoesNotFit):
                outcome.status = "oom"
            elif isinstance(error, self.backend.oom_errors):
                outcome.status = "oom"
                outcome.reason = self._out_of_memory(error)
            elif isinstance(error, Unsupported):
                outcome.status = "unsupported"
            elif not isinstance(error, BertbenchError):
                unexpected = error
                outcome.reason = f"{type(error).__name__}: {error}"
        self._close(outcome)
        if unexpected is not None:
            raise unexpected
        return EXIT_CODES.get(outcome.status, 1)

    def _train(self) -> Outcome:
        settings, backend, world = self.settings, self.backend, self.world
        # Rank 0 first: where data has to be made, one process makes it.
        if world.is_main:
            self.source = self.benchmark.prepare(settings)
        world.gather(None)
        if not world.is_main:
            self.source = self.benchmark.prepare(settings)
        division = self.benchmark.division(settings)
        self.resumed = resumed = find_checkpoint(settings)

        begin, self.began = time.perf_counter(), time.time()
        self.task = task = self.benchmark.build(settings, backend, world, self.source)
        plan = task.plan(settings)
        checks = backend.verify_precision(plan.precision)
        choice = None
        if settings.impl.micro_batch == AUTO:
            choice = rehearsal.find_micro_batch(task, backend, world, plan, task.share)
            task.use_micro_batch(choice["chosen"])
        self.devices = devices = world.gather(backend.describe())
        self.telemetry = backend.telemetry()
        self.facts = task.facts() | {"micro_batch_choice": choice}
        self.facts |= device_facts(
            backend, world, device=devices[0], telemetry=self.telemetry, checks=checks,
            dist_backend=settings.impl.dist_backend,
        )  # fmt: skip
        saved = load(resumed) if resumed else None
        if world.is_main:
            self._open_record(task, devices, division, resumed, saved)
        self._rehearse(plan)
        for o in self.observers:
            o.init_stop()
        world.gather(None)
        self.init_s = time.perf_counter() - begin

        notes = task.check_start(
            lambda: evaluate(
                task, backend=backend, world=world, plan=plan, progress=self.progress, observers=[]
            )
        )
        for text in notes:
            for o in self.observers:
                o.note(text)
        checkpoints = None
        if not settings.run.skip_checkpoint:
            folder = world.gather(self.record.path if self.record else None)[0]
            keep = settings.run.keep_n_most_recent_checkpoints
            checkpoints = Checkpoints(folder / "checkpoints", keep)
        backend.reset_peak_memory()
        if self.record is not None:
            self.record.telemetry = self.telemetry
        return train(
            task,
            backend=backend,
            world=world,
            plan=plan,
            observers=self.observers,
            checkpoints=checkpoints,
            progress=self.progress,
            resume=saved,
            telemetry=self.telemetry,
        )

    def _open_record(
        self,
        task: Any,
        devices: list[DeviceInfo],
        division: Literal["closed", "open"] | None,
        resumed: Path | None,
        saved: tuple[Any, Any] | None,
    ) -> None:
        """Create record, console and the benchmark's own log, and tell what was chosen."""
        settings, run = self.settings, self.settings.run
        system = self._system
        self.record = record = RunRecord.create(
            run.output_dir,
            system=system,
            benchmark=settings.preset.benchmark,
            config=settings.as_dict(),
            devices=devices,
            seed=run.seed,
            world_size=self.world.size,
            mlperf=None if division is None else {"division": division, "ruleset": "5.0.0"},
            command=sys.argv[1:],
            resumed_from=str(resumed.parent.parent.name) if resumed else None,
        )
        recipe, plan = task.recipe, task.plan(settings)
        console = ConsoleObserver(
            max_steps=plan.max_steps,
            target=plan.target_value,
            log=record.console,
            console=Console(stderr=run.json, highlight=False, soft_wrap=True),
        )
        self.observers = [console, record]  # so that a failure from here on is told and kept
        own = self.benchmark.observers(
            task, settings, record.path, system=system, began=self.began, resumed=resumed
        )
        if run.tensorboard is not None:
            own = [*own, TensorBoard(run.tensorboard / record.run_id)]
        self.observers = [console, *own, record]
        for o in self.observers:
            o.init_start()
        facts = self.facts
        console.say(
            f"{settings.preset.name}{f' ({division})' if division else ''} on "
            f"{self.backend.name}: {devices[0].name}"
        )
        console.say(f"  record      {record.path}")
        console.say(f"  data        {facts['data']}, seed {run.seed}")
        console.say(
            f"  batch       {recipe.global_batch} = {facts['micro_batch']} sequences x "
            f"{facts['gradient_accumulation_steps']} accumulated x {self.world.size} processes"
        )
        if facts["micro_batch_choice"] is not None:
            tried = facts["micro_batch_choice"]["tried"].items()
            found = ", ".join(f"{size} {'fits' if why == 'fits' else 'not'}" for size, why in tried)
            console.say(f"  tried       micro-batches of full length: {found}")
        kernels = ", ".join(sorted(set(facts["kernels"].values())))
        console.say(f"  compute     {facts['precision']}, kernels {kernels}")
        if why := automatic(self.backend, settings.impl.precision, facts["precision"]):
            console.say(f"              {why}")
        console.say(f"  threads     {torch.get_num_threads()} in each process")
        notes = [
            *settings.notes,
            *task.notes,
            *device_notes(self.backend, devices[0], facts["device_checks"], gelu=recipe.model.gelu),
        ]
        if saved is not None and saved[1]["world_size"] != self.world.size:
            notes.append(
                f"resumed on {self.world.size} processes, saved on {saved[1]['world_size']}: the "
                f"dropout masks from here on are new"
            )
        for text in notes:
            for o in self.observers:
                o.note(text)

    def _identify(self) -> None:
        """Hash recipe and inputs: after the run, since data may not be touched before it."""
        assert self.record is not None
        inputs = {"data": self.source.hash(), "checkpoint": self.source.checkpoint_hash()}
        self.record.identify(
            recipe_hash=recipe_hash(self.settings.recipe, **inputs),
            recipe_kind=type(self.settings.recipe).__name__,
            inputs=inputs,
            global_batch=self.task.recipe.global_batch,
        )

    @property
    def _system(self) -> str:
        count = len({(d.name, d.index) for d in self.devices})
        return self.settings.run.system or system_name(self.devices[0].name, count)

    def _sizes(self) -> rehearsal.Sizes:
        return rehearsal.Sizes(
            micro_batch=self.facts["micro_batch"],
            accumulation=self.facts["gradient_accumulation_steps"],
            eval_batch=self.task.eval_batch_size,
        )

    def _rehearse(self, plan: Plan) -> None:
        """Before the clock starts: does it fit, and what does the host compute in its place?"""
        if not rehearsal.is_worthwhile(self.backend) or not plan.max_steps:
            return
        done = rehearsal.rehearse(self.task, self.backend, self.world, plan, self._sizes())
        self.facts["fallbacks"] = done.fallbacks
        notes = [*done.notes, *fallback_notes(done.fallbacks)]
        for text in notes:
            for o in self.observers:
                o.note(text)

    def _out_of_memory(self, error: BaseException) -> str:
        """What ran out, where, and which setting to lower."""
        evaluating = not self.task.model.training
        where = "an evaluation" if evaluating else "training"
        first = str(error).strip().split("\n")[0]
        hint = rehearsal.advice(self._sizes(), evaluating=evaluating)
        return f"out of device memory in {where}: {first}. {hint}"

    def _close(self, outcome: Outcome) -> None:
        """Finish console, log and record."""
        metrics: list[Metric] = []
        if outcome.train_window is not None:  # every rank got this far, so every rank answers
            sensors = self.world.gather(reading(self.telemetry))
            e2e_s = time.time() - psutil.Process().create_time()
            memory = self.world.gather(self.backend.peak_memory())
            metrics = summarise(
                outcome,
                whole=self.resumed is None,
                init_s=self.init_s,
                e2e_s=e2e_s,
                memory=memory,
                sensors=sensors,
                all_reduce_s=self._all_reduce_s(outcome),
                quality=[m for e in outcome.evals[-1:] for m in self.task.quality(e)],
            )
            metrics += self._utilisation(outcome.train_window.model_flops_per_second)
            problems = {f"rank {i}: {r.problem}" for i, r in enumerate(sensors) if r and r.problem}
            for text in sorted(problems):
                self.facts.setdefault("telemetry_problems", []).append(text)
                for o in self.observers:
                    o.note(f"telemetry stopped, so power and energy are unknown: {text}")
        if self.record is None:
            return
        self._identify()
        self.facts |= self.task.results()
        summary = RunSummary(
            status=outcome.status,
            reason=outcome.reason,
            step=outcome.progress.step,
            samples=outcome.progress.samples,
            metrics=tuple(metrics),
            extras=self.facts,
        )
        for o in self.observers:
            o.close(summary)
        path, status = self.record.path, outcome.status
        if self.settings.run.json:
            print(json.dumps({"record": str(path), "status": status, "reason": outcome.reason,
                              "metrics": {m.name: m.value for m in metrics}}))  # fmt: skip
        else:
            print("\n".join((f"record      {path}", *self.benchmark.closing(path))))
            if status == "interrupted" and (path / "checkpoints").is_dir():
                print(f"to go on    the same command with --resume {path}")

    def _all_reduce_s(self, outcome: Outcome) -> float | None:
        """Of the gradients alone; None where nothing was trained, or somebody waits for the end."""
        if not outcome.steps_done or outcome.status == "interrupted":
            return None
        return gradient_all_reduce_s(
            self.task.model.parameters(),
            world=self.world,
            device=self.backend.device,
            synchronize=self.backend.synchronize,
        )

    def _utilisation(self, flops_per_second: float | None) -> list[Metric]:
        """Shares of the peaks known for this device; none for a simulated one."""
        device, precision = self.devices[0], self.facts["precision"]
        if device.simulated or any(d.name != device.name for d in self.devices):
            return []
        run, world = self.settings.run, self.world
        # Processes of one node may share a device (a host's processor), those of several do not.
        on_each = min(world.local_size, max(1, self.backend.device_count()))
        folders = [run.output_dir / name for name in (self._system, system_name(device.name, 1))]
        return utilisation(
            flops_per_second,
            devices=world.size // world.local_size * on_each,
            peaks=peaks.peaks_of(device.name, precision, run.peaks),
            calibrated=find_calibration(folders, plain(device), precision),
        )


def _dry_run(settings: Settings, backend: Backend, world: World, benchmark: Any) -> None:
    """Say what would run; touches no data and writes nothing."""
    precision = backend.resolve_precision(settings.impl.precision)
    content = {
        "would_run": settings.preset.name,
        "division": benchmark.division(settings),
        "backend": backend.name,
        "device": backend.describe().name,
        "precision": precision,
        "why": automatic(backend, settings.impl.precision, precision),
        "kernels": backend.ops(settings.impl.kernels, precision).name,
        "threads": torch.get_num_threads(),
        **benchmark.split_of(settings, world),
        "settings": settings.as_dict(),
    }
    if settings.run.json:
        print(json.dumps(content, indent=1))
        return
    for key, value in content.items():
        if key != "settings" and value is not None:
            print(f"{key:<14}{value}")
    for name, origin in settings.origins.items():
        if origin in ("flag", "environment"):
            print(f"  --{name} from {origin}")
    for text in settings.notes:
        print(f"note: {text}")


def automatic(backend: Backend, asked: str, chosen: str) -> str | None:
    """Return the reason why ``auto`` chose no 16-bit mode, or None."""
    why = backend.capabilities.notes.get("bf16", "the device has no 16-bit mode")
    lacking = asked == "auto" and chosen not in ("bf16", "fp16")
    return f"--precision auto: no bf16, {why}" if lacking else None
