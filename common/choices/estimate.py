# SPDX-License-Identifier: Apache-2.0
"""The needs of a run before it starts: memory (a model), time and disk, beside what there is.

Nothing is measured here. A time comes from records of the same work on the same device, else from
the reference machines, else from the device's published peak; without any of them it is unknown.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from bertbench.backends import peaks
from bertbench.backends.base import Backend
from bertbench.common.choices import memory
from bertbench.common.config.recipe import Settings, hash_values, plain, recipe_hash
from bertbench.common.distributed.world import World
from bertbench.common.measure.flops import BACKWARD, encoder_flops
from bertbench.common.measure.system import system_name
from bertbench.common.model.config import BertConfig
from bertbench.common.report.words import duration, number, quantity
from bertbench.common.results.comparable import FINISHED
from bertbench.common.results.machines import reference
from bertbench.common.results.result import Result
from bertbench.common.results.statistics import median
from bertbench.common.results.store import load_results
from bertbench.common.training.rehearsal import is_worthwhile
from bertbench.common.training.task import Task

TYPICAL_UTILISATION = (0.25, 0.45)
"""Shares of the peak of BERT-large on A100 in FP16, fine-tuned and pretrained, from the rates that
NVIDIA published: results/reference/nvidia-dle-2021.json and nvidia-dle-2024.json."""
WORK = ("model", "global_batch", "max_seq_length", "max_predictions_per_seq", "attention_mask")
"""Values of a recipe on which its rate depends; others change how long it goes on."""


class Time(NamedTuple):
    """Rates and the time of training, each from lowest to highest; None is unknown."""

    source: str
    sequences_per_second: tuple[float, float] | None = None
    seconds: tuple[float, float] | None = None
    at_most: bool = False
    """Whether the run may reach its target before."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run needs; None is unknown."""

    memory: dict[str, int] | None
    """Bytes of each part on one device (common/choices/memory.py), if all sequences are longest."""
    typical_bytes: int | None
    """The sum for sequences of typical lengths."""
    device_bytes: int | None
    """The device's memory; of a device that is the host, what is free of it."""
    host_bytes: int | None
    """Of all processes of this machine, without the data."""
    host_free_bytes: int
    time: Time
    checkpoint_bytes: int | None
    checkpoints: int
    """That exist at the same time."""
    record_bytes: int | None
    """Median of earlier records of the same work."""
    prepared_data_bytes: int | None
    """0 for synthetic data; else unknown before it is made."""
    disk_free_bytes: int

    @property
    def memory_bytes(self) -> int | None:
        """The sum of the parts."""
        return None if self.memory is None else sum(self.memory.values())

    @property
    def disk_bytes(self) -> int | None:
        """Of the checkpoints and, as far as it is known, the record."""
        if self.checkpoint_bytes is None:
            return None
        return self.checkpoints * self.checkpoint_bytes + (self.record_bytes or 0)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "memory": "modelled",
            "memory_parts_bytes": self.memory,
            "device_memory_bytes": self.memory_bytes,
            "device_memory_typical_bytes": self.typical_bytes,
            "device_memory_there_bytes": self.device_bytes,
            "host_memory_bytes": self.host_bytes,
            "host_memory_free_bytes": self.host_free_bytes,
            "time": self.time._asdict(),
            "checkpoint_bytes": self.checkpoint_bytes,
            "checkpoints": self.checkpoints,
            "record_bytes": self.record_bytes,
            "prepared_data_bytes": self.prepared_data_bytes,
            "disk_bytes": self.disk_bytes,
            "disk_free_bytes": self.disk_free_bytes,
            "warnings": self.warnings(),
        }

    def warnings(self) -> list[str]:
        """Return a line for each need that is larger than what there is."""
        needs = (
            ("device memory", self.memory_bytes, self.device_bytes,
             "a smaller --micro_batch needs less"),
            ("host memory", self.host_bytes, self.host_free_bytes,
             "fewer processes need less"),
            ("disk", self.disk_bytes, self.disk_free_bytes,
             "--keep_n_most_recent_checkpoints, --skip_checkpoint or another --output_dir"),
        )  # fmt: skip
        return [
            f"{what}: {_text(need)} needed, {_text(there)} there: {fix}"
            for what, need, there, fix in needs
            if need is not None and there is not None and need > there
        ]

    def lines(self) -> list[tuple[str, str]]:
        """Return a name and a text for each need."""
        texts = [("memory", "unknown: this benchmark builds no model before it has data")]
        if self.memory is not None:
            parts = ", ".join(f"{name} {_text(size)}" for name, size in self.memory.items() if size)
            there = "" if self.device_bytes is None else f" of {_text(self.device_bytes)}"
            texts = [(
                "memory",
                f"modelled {_text(self.typical_bytes)}, with none but the longest sequences "
                f"{_text(self.memory_bytes)}{there} on each device: {parts}",
            )]  # fmt: skip
        most = f"at most {_about(self.host_bytes)} and the data"
        texts.append(("host memory", f"{most}; {_text(self.host_free_bytes)} are free"))
        texts.append(("time", self._time()))
        kept = f"{self.checkpoints} checkpoints of {_about(self.checkpoint_bytes)}"
        disk = f"{kept if self.checkpoints else 'no checkpoints'}, record "
        disk += f"{_about(self.record_bytes)}, prepared data {_about(self.prepared_data_bytes)}"
        texts.append(("disk", f"{disk}; {_text(self.disk_free_bytes)} are free"))
        return [*texts, *(("warning", text) for text in self.warnings())]

    def _time(self) -> str:
        found = self.time
        text = "unknown"
        if found.seconds is not None:
            at_most = "at most about " if found.at_most else "about "
            text = at_most + " to ".join(dict.fromkeys(map(duration, found.seconds)))
        if found.sequences_per_second is not None:
            rates = dict.fromkeys(number(rate, 3) for rate in found.sequences_per_second)
            text += f" at {' to '.join(rates)} sequences/s"
        return f"{text} ({found.source})"


def estimate(settings: Settings, backend: Backend, world: World, task: Task | None) -> Estimate:
    """Return what the run needs; ``task`` may have fewer layers than the recipe, None: unknown.

    Raises BadInput for a malformed file of ``--peaks``.
    """
    run, device = settings.run, backend.describe()
    model = getattr(settings.recipe, "model", None)
    parts = typical = checkpoint_bytes = None
    if task is not None and isinstance(model, BertConfig):
        layers, synthetic = model.num_hidden_layers, getattr(run, "synthetic", False)
        need = partial(
            memory.needed, layers=layers, micro_batch=task.split.micro_batch,
            eval_batch=None if synthetic else settings.impl.eval_batch_size,
            world_size=world.size, precision=task.precision,
            optimizer_sharding=settings.impl.optimizer_sharding,
        )  # fmt: skip
        counted = memory.count(task, backend)
        parts = need(counted)
        typical = sum(need(memory.count(task, backend, typical=True)).values())
        checkpoint_bytes = 12 * counted.parameters(layers)  # weights and two moments
    process = psutil.Process().memory_info().rss
    apart, free = is_worthwhile(backend), psutil.virtual_memory().available
    own = parts and (parts["weights"] if apart else sum(parts.values()))
    copied = 0 if run.skip_checkpoint else checkpoint_bytes or 0  # while one is written
    here = run.output_dir / (run.system or system_name(device.name, world.size if apart else 1))
    earlier = _earlier(here / settings.preset.benchmark, settings, backend, world)
    time = _time(settings, backend, world, task, earlier)
    sizes = [_size(r) for r in earlier if _size(r)]
    return Estimate(
        memory=parts,
        typical_bytes=typical,
        device_bytes=device.memory_bytes if apart else free,
        host_bytes=None if own is None else world.local_size * (process + own) + copied,
        host_free_bytes=free,
        time=time,
        checkpoint_bytes=0 if run.skip_checkpoint else checkpoint_bytes,
        checkpoints=0 if run.skip_checkpoint else run.keep_n_most_recent_checkpoints + 1,
        record_bytes=round(median(sizes)) if sizes else None,
        prepared_data_bytes=0 if getattr(run, "synthetic", False) else None,
        disk_free_bytes=shutil.disk_usage(_existing(run.output_dir)).free,
    )


def _earlier(folder: Path, settings: Settings, backend: Backend, world: World) -> list[Result]:
    """Return finished records in ``folder`` of the same work, device and precision."""
    if not folder.is_dir():
        return []
    recipe, device = plain(settings.recipe), backend.describe()
    precision = backend.resolve_precision(settings.impl.precision)
    synthetic = bool(getattr(settings.run, "synthetic", False))
    return [
        r
        for r in load_results([folder], references=False)[0]
        if r.status in FINISHED and not r.resumed and r.precision == precision
        and (r.device_name, r.world_size) == (device.name, world.size)
        and (is_worthwhile(backend) or _host(r) in (None, _this_host()))
        and (r.data_hash is None) == synthetic
        and all(r.config["recipe"].get(k) == recipe.get(k) for k in WORK)
    ]  # fmt: skip


def _host(record: Result) -> object:
    """Return what tells processors of one name apart, as virtual machines name them."""
    software = record.system.get("software")
    if not isinstance(software, Mapping) or "torch_threads" not in software:
        return None
    return software["torch_threads"], software.get("torch_cpu_capability")


def _this_host() -> object:
    return torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()


def _time(
    settings: Settings, backend: Backend, world: World, task: Task | None,
    earlier: Sequence[Result],
) -> Time:  # fmt: skip
    """Return the first estimate that a source allows."""
    device = backend.describe()
    rates = [v for r in earlier if (v := r.value("sequences_per_second"))]
    alone = recipe_hash(settings.recipe)
    kind = type(settings.recipe).__name__
    same = [r for r in earlier if hash_values(kind, r.config["recipe"], {}) == alone]
    times = [v for r in same if (v := r.value("run_time_s"))]
    if rates:
        where = f"median of {len(rates)} records of the same work on this device in "
        rate = median(rates)
        limit = (median(times),) * 2 if times else None
        return _limited(settings, Time(f"{where}{settings.run.output_dir}", (rate, rate), limit))
    if device.simulated:
        return Time("a simulated device")
    precision = backend.resolve_precision(settings.impl.precision)
    for recipe in (settings.recipe, settings.preset.recipe):
        known = reference(precision, recipe_alone=recipe_hash(recipe))
        cores = psutil.cpu_count(logical=False)
        alike = known and (known.device, known.devices, known.cores or cores) == (
            device.name, world.size if is_worthwhile(backend) else 1, cores,
        )  # fmt: skip
        if known and not is_worthwhile(backend):  # its runs had a thread for each core
            alike = alike and torch.get_num_threads() == (known.cores or cores)
        if known and alike and _work(recipe) == _work(settings.recipe):
            source = f"median of {known.runs} runs on the reference machine, {known.name}"
            if not is_worthwhile(backend):  # processors of one name differ
                source += "; `bertbench quick` measures this one"
            rate = known.sequences_per_second
            synthetic = getattr(settings.run, "synthetic", False)
            whole = recipe == settings.recipe and not synthetic
            seconds = (known.time_to_target_s,) * 2 if whole else None
            return _limited(settings, Time(source, (rate, rate), seconds))
    known_peaks = peaks.peaks_of(device.name, precision, settings.run.peaks)
    flops = task and _flops_per_sequence(settings, task)
    if not known_peaks or not flops:
        why = "no record of the same work on this device, and no published peak"
        return Time(f"{why}; `bertbench quick` measures mini's rate")
    peak = known_peaks[0].flops_per_second * (world.size if is_worthwhile(backend) else 1)
    low, high = (share * peak / flops for share in TYPICAL_UTILISATION)
    shares = " to ".join(f"{100 * share:g} %" for share in TYPICAL_UTILISATION)
    source = f"{shares} of the published peak {quantity(peak, 'FLOP/s')}, typical for BERT"
    return _limited(settings, Time(source, (low, high)))


def _limited(settings: Settings, found: Time) -> Time:
    """Return ``found`` with the seconds until the last step, where none are known, at its rate."""
    recipe, most = settings.recipe, settings.run.max_minutes
    seconds, at_most = found.seconds, False
    samples = [
        n * each
        for name, each in (("max_steps", recipe.global_batch), ("max_samples_termination", 1))
        if (n := getattr(recipe, name, None)) is not None
    ]
    if seconds is None and samples and found.sequences_per_second is not None:
        low, high = found.sequences_per_second
        seconds, at_most = (min(samples) / high, min(samples) / low), True
    if most is not None and seconds is not None:
        seconds = min(seconds[0], 60 * most), min(seconds[1], 60 * most)
    return found._replace(seconds=seconds, at_most=at_most)


def _flops_per_sequence(settings: Settings, task: Task) -> float | None:
    """Return the model FLOPs of a sequence of typical length; None for another kind of model."""
    model, built = (getattr(r, "model", None) for r in (settings.recipe, task.recipe))
    if not isinstance(model, BertConfig) or not isinstance(built, BertConfig):
        return None
    (batch,) = task.made_up_step(1, 1, typical=True).micro_batches
    lengths = batch.tokens.lengths
    more = encoder_flops(model, lengths) - encoder_flops(built, lengths)
    return float(task.model_flops(batch) + (1 + BACKWARD) * more)


def _work(recipe: Any) -> list[Any]:
    return [getattr(recipe, name, None) for name in WORK]


def _size(result: Result) -> int:
    return sum(entry["bytes"] for entry in (result.manifest.get("files") or {}).values())


def _existing(path: Path) -> Path:
    """Return the folder, or the first above it that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.is_dir())


def _text(size: int | None) -> str:
    if size is None:
        return "unknown"
    small = size < 2**30 / 10
    return f"{number(size / 2**20, 3)} MiB" if small else quantity(size, "bytes")


def _about(size: int | None) -> str:
    return _text(size) if not size else f"about {_text(size)}"
