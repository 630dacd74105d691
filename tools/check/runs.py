# SPDX-License-Identifier: Apache-2.0
"""Run trainings through the suite's own command line, each with a full record."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from bertbench import backends
from bertbench.common.cli.main import main as command_line
from bertbench.common.measure.metric import SHARED
from bertbench.common.results.seals import MANIFEST
from check.device import TINY_PRETRAINING, Check, choose_precision
from check.figure import NotAvailable, SectionReport
from check.section import Failed, alone, apart

for _module in (
    "common.run",
    "benchmarks.bert_pretraining.benchmark",
    "benchmarks.bert_squad.benchmark",
):
    importlib.import_module(f"bertbench.{_module}")  # once for all sections: they are forked

SHOWN = {
    "sequences_per_second": ("", 1.0),
    "real_tokens_per_second": ("", 1.0),
    "padded_tokens_per_second": ("", 1.0),
    "model_flops_per_second": ("TFLOP/s", 1e-12),
    "mfu": ("", 1.0),
    "mfu_calibrated": ("", 1.0),
    "peak_memory_bytes": ("GiB", 2.0**-30),
    "power_w": ("", 1.0),
    "temperature_max_c": ("", 1.0),
    "throttled_s": ("", 1.0),
    "data_wait_s": ("", 1.0),
    "init_s": ("", 1.0),
    "compile_s": ("", 1.0),
}
"""Metrics of a record in the table -> unit there ("": the record's) and factor to it."""
EXPECTED = ("sequences_per_second", "mfu", "mfu_calibrated", "peak_memory_bytes", "power_w")
"""Metrics that the table lists as missing where a run lacks them."""
REPORTS = 6
"""Reports of a run. Few, since each makes the host wait for the device."""
LATER = (
    "median of the reported windows in the later half of the run (a window: sequences trained "
    "between two reports / its seconds)"
)


class RunFailed(Exception):
    """A run did not end with status ok."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A finished run's record."""

    folder: Path
    manifest: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]


@contextlib.contextmanager
def command(arguments: Sequence[str]) -> Iterator[None]:
    """Make this process look like ``bertbench <arguments>``; records keep the command.

    The tool has examined the backend in a separate process before it began. Skip the same
    examination before each run: ten of them would cost a minute.
    """
    with (
        mock.patch.object(sys, "argv", ["bertbench", *arguments]),
        mock.patch.object(backends, "resolve", lambda name, timeout_s=None: backends.load(name)),
    ):
        yield


class _Tee(io.StringIO):
    """Keep the text and pass it on."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str, /) -> int:
        self._stream.write(text)
        return super().write(text)


def run(check: Check, arguments: Sequence[str]) -> RunRecord:
    """Call `bertbench run` with these arguments; return its record.

    Raises RunFailed with the record's reason, or with the refusal if no record was written.
    """
    found = set(check.results.glob(f"*/*/*/{MANIFEST}"))
    whole = ["run", *arguments, "--backend", check.backend, "--skip_checkpoint"]
    whole += ["--output_dir", str(check.results)]
    print(f"$ bertbench {' '.join(whole)}", flush=True)
    errors = _Tee(sys.stderr)
    with command(whole), contextlib.redirect_stderr(errors):
        code = command_line(whole)
    new = set(check.results.glob(f"*/*/*/{MANIFEST}")) - found
    if not new:
        said = errors.getvalue().strip().splitlines() or [f"exit code {code}, and no record"]
        raise RunFailed(said[-1])
    (file,) = new
    manifest = json.loads(file.read_text(encoding="utf-8"))
    if manifest["status"] != "ok":
        raise RunFailed(f"{manifest['status']}: {manifest['reason']}")
    lines = (file.parent / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [entry for entry in map(json.loads, lines) if entry["kind"] == "step"]
    return RunRecord(folder=file.parent, manifest=manifest, steps=steps)


def report_run(
    check: Check, report: SectionReport, label: str, done: RunRecord, known: Mapping[str, str]
) -> None:
    """Report the run's figures under ``label``, with the definitions of its record.

    ``known`` are the notes of the device's capabilities, which section facts already reports.
    """
    metrics = {m["name"]: m for m in done.manifest["metrics"]}
    disputed = {name: ("", 1.0) for name in metrics if name.startswith("mfu_of_")}
    for name, (unit, factor) in (SHOWN | disputed).items():
        if name == "mfu" and disputed:
            continue  # there is one for each of the peaks that sources disagree on
        shown = f"{label}: {_words(name)}"
        metric = metrics.get(name)
        if metric is not None:
            report.figure(
                shown, metric["value"] * factor, unit or metric["unit"], metric["definition"]
            )
        elif name in EXPECTED:
            unit, definition = unit or SHARED[name].unit, SHARED[name].definition
            report.figure(shown, None, unit, definition, _why_missing(name, done, report))
    rates = [s["sequences_per_second"] for s in done.steps if s.get("sequences_per_second")]
    later = statistics.median(rates[len(rates) // 2 :]) if rates else None
    name = f"{label}: sequences per second, later half"
    report.figure(name, later, "sequences/s", LATER, "" if rates else "no window was reported")
    for which, at in (("first", 0), ("last", -1)):
        loss = done.steps[at].get("loss") if done.steps else None
        definition = f"mean training loss of the {which} reported step"
        note = "" if loss is not None else "no step was reported"
        report.figure(f"{label}: {which} loss", loss, "nat", definition, note)
    extras = done.manifest["extras"]
    kernels = ", ".join(f"{k} {v}" for k, v in (extras.get("kernels") or {}).items())
    report.fact(f"{label}: kernels", kernels)
    report.fact(f"{label}: record", done.folder.relative_to(check.folder).as_posix())
    seen = {f"{name}: {why}" for name, why in known.items()}
    for text in done.manifest["notes"]:
        if text not in seen:
            report.fact(f"{label}: note", text)


def _words(name: str) -> str:
    """Return a metric's name in words, without its unit."""
    for unit in ("_bytes", "_s", "_w", "_c"):
        name = name.removesuffix(unit)
    return name.replace("_flops_per_second", "_FLOP_rate").replace("_", " ")


def _why_missing(name: str, done: RunRecord, report: SectionReport) -> str:
    if done.manifest["simulated"]:
        return "the device is simulated"
    if done.manifest.get("extras", {}).get("precision") == "fp8" and name == "mfu_calibrated":
        return "`bertbench calibrate` has no FP8 products; the section parts has"
    return {
        "mfu": "no published peak of this device is known (backends/peaks.toml)",
        "mfu_calibrated": "no calibration of this precision in these results: "
        f"run it with {alone(report.section, True)}",
        "power_w": "the device reports no power: see the run's notes",
        "peak_memory_bytes": "the device reports no peak memory",
    }.get(name, "not in the record")


# -- pretraining ----------------------------------------------------------------------------------
def pretraining_arguments(
    check: Check, precision: str, passes: int, micro: int, steps: int
) -> list[str]:
    """Return recipe and flags of BERT-large on synthetic text of real lengths.

    A step is ``passes`` x ``micro`` sequences.
    """
    return [
        "mlperf_large_768", "--synthetic", "--precision", precision,
        "--global_batch", str(passes * micro), "--micro_batch", str(micro),
        "--max_steps", str(steps), "--log_freq", str(max(1, steps // REPORTS)),
        "--target_mlm_accuracy", "None", *(TINY_PRETRAINING if check.tiny else ()),
    ]  # fmt: skip


def pretrain(
    check: Check,
    report: SectionReport,
    wanted: str,
    passes: int,
    micro: int,
    steps: int,
    *more: str,
) -> None:
    """Do one pretraining run; the sizes are for an 80 GB device, and smaller with --tiny."""
    backend = check.open()
    precision = choose_precision(check, backend, wanted)
    passes, micro = check.size(passes, min(passes, 2)), check.size(micro, max(1, micro // 24))
    steps = check.size(steps, 4)
    arguments = pretraining_arguments(check, precision, passes, micro, steps)
    label = " ".join((precision, f"{passes} x {micro}", *more[1::2]))
    done = run(check, [*arguments, *more])
    report_run(check, report, label, done, backend.capabilities.notes)


def other_kernels(check: Check, report: SectionReport) -> None:
    """Train with each other attention kernel, in processes; raise RunFailed."""
    failed = []
    for name in apart(lambda: _alternatives(check, report)):
        flags = ("--kernels", name)
        try:
            apart(lambda flags=flags: pretrain(check, report, "bf16", 1, 96, 8, *flags))
        except Failed as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise RunFailed("; ".join(failed))


def _alternatives(check: Check, report: SectionReport) -> list[str]:
    """Return the attention kernels but the first that works; raises NotAvailable."""
    backend = check.open()
    precision = choose_precision(check, backend, "bf16")
    usual = backend.ops("auto", precision).name
    others = []
    for name in backend.capabilities.kernels:
        try:
            ops = backend.ops(name, precision)
        except Exception as error:
            report.fact(f"{name} in {precision}", f"not available: {error}")
            continue
        if ops.name == name != usual:
            others.append(name)
    if not others:
        raise NotAvailable(f"{backend.name} has only the attention kernel {usual} in {precision}")
    return others


def inductor(check: Check, report: SectionReport) -> None:
    """Train with torch.compile; raise NotAvailable without inductor."""
    backend = check.open()
    can = backend.capabilities
    if "inductor" not in can.compilers:
        why = can.notes.get("inductor") or can.notes.get("compile") or "its adapter offers none"
        raise NotAvailable(f"{backend.name} has no compiler inductor: {why}")
    pretrain(check, report, "bf16", 1, 96, 30, "--compile", "inductor")
