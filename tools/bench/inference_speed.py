# SPDX-License-Identifier: Apache-2.0
"""Samples/s of exported models: INT8 and FP32, peers, bucketing, and the budget of a batch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.inference_models import LENGTH, export, sample
from bench.inference_peers import FP32, INT8, Peers
from bench.steps import Step
from bench.timing import cell, interleave, spread
from bertbench import engines
from bertbench.benchmarks.bert_inference.batches import Cut, Inputs
from bertbench.benchmarks.bert_inference.sut import Runner
from bertbench.common.errors import Unsupported
from bertbench.common.files import file_sha256
from bertbench.common.measure.system import describe_system
from bertbench.engines.base import Batch, Engine, EngineOptions
from bertbench.engines.exported import Exported

SPEEDUP_GOAL, PEER_GOAL, BUCKETING_GOAL = 3.0, 1.0, 1.8
BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)
DEFAULT_BUDGET = 1024
SHOWN = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
PACKAGES = (
    "onnxruntime", "openvino", "torch", "transformers", "nncf", "optimum-onnx", "mlcommons-loadgen",
)  # fmt: skip
Exports = Mapping[str, Exported]
"""``fp32`` and ``int8``, of the same weights."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all modes measure with."""

    shape: str
    models: Path
    """The folder of the exported models."""
    threads: int
    rounds: int
    predict: Path | None = None
    samples: int = 256
    batch: int = 8
    length: int = LENGTH
    batch_tokens: int = DEFAULT_BUDGET
    engine: str = "onnxruntime"

    def load(self, engine: str, exported: Exported, batch: int) -> Engine:
        """Return the engine with the model; raises Unsupported where it is not installed."""
        return engines.load(engine).load(
            exported,
            EngineOptions(num_threads=self.threads, max_batch=batch, max_length=self.length),
        )

    def export(self, quantization: str | None) -> Exported:
        """Return the shape's model with its random weights."""
        return export(self.shape, quantization, self.models)

    def batches(self, exported: Exported) -> list[Batch]:
        """Return one batch of ``batch`` sequences, all of ``length`` tokens."""
        size = self.batch, self.length
        ids = np.random.default_rng(0).integers(exported.model.vocab_size, size=size)
        segments = np.broadcast_to(np.arange(self.length) >= self.length // 8, ids.shape)
        return [Batch(ids, np.ones_like(ids), segments.astype(np.int64))]


def int8(options: Options) -> dict[str, Any]:
    """Return the speed of INT8 over FP32 on each engine that is installed.

    One batch, all sequences of full length. Hugging Face's FP32 model, with ONNX Runtime's fused
    operators, says whether our FP32 is a fair one.
    """
    exports = {name: options.export(name if name == "int8" else None) for name in ("fp32", "int8")}
    batches = options.batches(exports["int8"])
    steps, missing = own_steps(options, exports, batches)
    others, reasons = Peers(options.shape, batches, options.threads, options.models).make(FP32)
    result = _result("int8", options, steps | others, options.batch)
    seconds = result["seconds"]
    over = {
        f"{shown} INT8": _over(seconds, f"{shown} FP32", f"{shown} INT8")
        for shown in SHOWN.values()
        if f"{shown} INT8" in seconds
    }
    for name in others:
        over[name] = _over(seconds, "ONNX Runtime FP32", name)
    return result | {
        "missing": missing | reasons,
        "column": "x FP32 on the same engine (ours, ONNX Runtime)",
        "over": over,
        **_verdict(
            "INT8 on ONNX Runtime is at least 3.0 times as fast as FP32 on ONNX Runtime, with the "
            "same weights, batch and threads",
            SPEEDUP_GOAL, over.get("ONNX Runtime INT8"),
        ),
    }  # fmt: skip


def peers(options: Options) -> dict[str, Any]:
    """Return the speed of our INT8 model beside what users quantize the same weights with."""
    exports = {"int8": options.export("int8")}
    batches = options.batches(exports["int8"])
    steps, missing = own_steps(options, exports, batches)
    others, reasons = Peers(options.shape, batches, options.threads, options.models).make(INT8)
    result = _result("peers", options, steps | others, options.batch)
    seconds = result["seconds"]
    own = min(steps, key=lambda name: statistics.median(seconds[name]))
    over = {name: _over(seconds, name, own) for name in seconds if name != own}
    fastest = min(others, key=lambda name: statistics.median(seconds[name]), default=None)
    return result | {
        "missing": missing | reasons,
        "peers": INT8,
        "own": own,
        "fastest_peer": fastest,
        "column": f"{own} is x times as fast",
        "over": over,
        **_verdict(
            "our INT8 model on the faster of our engines is not slower than the fastest peer, on "
            "the same batch with the same threads", PEER_GOAL, over.get(fastest),
        ),
    }  # fmt: skip


def bucketing(options: Options) -> dict[str, Any]:
    """Return the speed of Offline's batches, sorted by length, beside ``--padded``.

    Batching and padding are inside the time, as in a run.
    """
    exported = options.export("int8")
    inputs = sample(options.samples, exported, options.predict)
    engine = options.load(options.engine, exported, _largest(inputs, options.batch_tokens))
    cuts = {
        f"padded to {LENGTH}": Cut(tokens=options.batch_tokens, length=LENGTH),
        "sorted by length": Cut(tokens=options.batch_tokens),
    }
    result = _cut(options, "bucketing", inputs, engine, cuts)
    padded, by_length = cuts
    over = {by_length: _over(result["seconds"], padded, by_length)}
    return result | {
        "column": f"x {padded}",
        "over": over,
        **_verdict(
            f"batches of at most {options.batch_tokens:,} tokens, sorted by length, are at least "
            f"1.8 times as fast as with all samples padded to {LENGTH}",
            BUCKETING_GOAL, over[by_length],
        ),
    }  # fmt: skip


def budgets(options: Options) -> dict[str, Any]:
    """Return the speed of Offline's batches by ``--batch_tokens``."""
    exported = options.export("int8")
    inputs = sample(options.samples, exported, options.predict)
    engine = options.load(options.engine, exported, _largest(inputs, max(BUDGETS)))
    result = _cut(
        options, "batch_tokens", inputs, engine,
        {f"{tokens:,}": Cut(tokens=tokens) for tokens in BUDGETS},
    )  # fmt: skip
    default = f"{DEFAULT_BUDGET:,}"
    over = {n: _over(result["seconds"], default, n) for n in result["seconds"] if n != default}
    return result | {"column": f"x the default, {default}", "over": over, "missing": {}}


def own_steps(
    options: Options, exports: Exports, batches: list[Batch]
) -> tuple[dict[str, Step], dict[str, str]]:
    """Return a turn of each export on each engine, and why engines are missing."""
    steps: dict[str, Step] = {}
    missing = {}
    for engine, shown in SHOWN.items():
        for kind, exported in exports.items():
            try:
                loaded = options.load(engine, exported, options.batch)
            except Unsupported as error:
                missing[shown] = str(error)
                continue
            steps[f"{shown} {kind.upper()}"] = _turn(loaded, batches)
    return steps, missing


def _turn(engine: Engine, batches: list[Batch]) -> Step:
    return lambda: [engine.run(batch) for batch in batches]


def _largest(inputs: Inputs, tokens: int) -> int:
    return Cut(tokens=tokens).most(int(inputs.lengths.min()))


def _cut(
    options: Options, mode: str, inputs: Inputs, engine: Engine, cuts: Mapping[str, Cut]
) -> dict[str, Any]:
    """Return the figures of ``inputs`` in the batches of each cut, and how full those are."""
    runners = {name: Runner(engine, inputs, cut, None) for name, cut in cuts.items()}

    def turn(runner: Runner, cut: Cut) -> Step:
        def run() -> None:
            runner.reset()
            for rows in cut.batches(inputs.lengths):
                runner.compute(rows)

        return run

    steps = {name: turn(runners[name], cut) for name, cut in cuts.items()}
    return _result(mode, options, steps, len(inputs)) | {
        "missing": {},
        "engine": engine.describe()["version"],
        "batches": {
            name: {
                "batches": runner.batches,
                "real_share": runner.real_tokens / runner.computed_tokens,
            }
            for name, runner in runners.items()
        },
    }


def _result(mode: str, options: Options, steps: Mapping[str, Step], samples: int) -> dict[str, Any]:
    """Return what all modes report, with the seconds of each variant in each round."""
    before = os.getloadavg()[0]  # of the last minute, with this process
    seconds = interleave(steps, options.rounds)
    return {
        "mode": mode,
        "environment": environment(options),
        "samples": samples,
        "load_before": before,
        "load_after": os.getloadavg()[0],
        "seconds": seconds,
        "samples_per_second": {
            name: spread([samples / s for s in taken]) for name, taken in seconds.items()
        },
    }


def environment(options: Options) -> dict[str, Any]:
    """Return what the figures depend on; a package that is not installed is None."""
    processor = describe_system()["processor"]
    return {
        "processor": processor["model"],
        "cores": processor["cores"],
        "threads": options.threads,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "shape": options.shape,
        "rounds": options.rounds,
        "batch": options.batch,
        "length": options.length,
        "batch_tokens": options.batch_tokens,
        "engine": options.engine,
        "data": "made up, with the lengths of dev-v1.1"
        if options.predict is None
        else {options.predict.name: file_sha256(options.predict)},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _over(seconds: Mapping[str, Sequence[float]], slow: str, fast: str) -> dict[str, float]:
    """Return the ratios slow / fast of the same rounds."""
    return spread([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])


def _verdict(text: str, goal: float, reached: Mapping[str, float] | None) -> dict[str, Any]:
    """Return the goal, its definition, and whether it is reached; None: not measured."""
    ok = None if reached is None else reached["median"] >= goal
    return {"definition": text, "goal": goal, "ok": ok}


def show(result: Mapping[str, Any]) -> str:
    """Return the table of a mode, what was not measured, and the verdict."""
    given = ", ".join(f"{k} {v}" for k, v in result["environment"].items() if v is not None)
    batches = result.get("batches", {})
    cuts = " batches | real tokens |" if batches else ""
    lines = [
        f"{given}.", "", f"| | samples/s | {result['column']} |{cuts}",
        "|---|---|---|" + "--:|--:|" * bool(batches),
    ]  # fmt: skip
    for name, rate in result["samples_per_second"].items():
        ratio = cell(result["over"][name], 2) if name in result["over"] else ""
        line = f"| {name} | {cell(rate, 2)} | {ratio} |"
        if batches:
            cut = batches[name]
            line += f" {cut['batches']:,} | {cut['real_share']:.0%} |"
        lines.append(line)
    lines += [
        f"| {name} | not measured: {reason} | |" for name, reason in result["missing"].items()
    ]
    if "goal" in result:
        word = {True: "reached", False: "missed", None: "not measured"}[result["ok"]]
        lines += ["", f"goal {result['goal']:g}: {word}. Definition: {result['definition']}."]
    return "\n".join(lines)
