# SPDX-License-Identifier: Apache-2.0
"""What an inference run has found: its metrics, and the extras of its record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from bertbench.backends.base import DeviceInfo
from bertbench.benchmarks.bert_inference.options import InferenceSettings
from bertbench.benchmarks.bert_inference.scoring import Questions
from bertbench.benchmarks.bert_squad.scoring import quality
from bertbench.common.config.recipe import plain
from bertbench.common.measure.clock import command_began
from bertbench.common.measure.metric import Metric, metric
from bertbench.common.mlperf import loadgen
from bertbench.common.training.summary import Reading, sensor_metrics
from bertbench.engines.exported import Exported

_KEPT = ("effective_", "result_", "early_stopping_")
"""Keys of LoadGen's detail log whose values the manifest repeats."""


@dataclass
class Found:
    """What the tests have found so far."""

    engine: dict[str, Any] = field(default_factory=dict)
    load_s: float | None = None
    expected: dict[str, float] = field(default_factory=dict)
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    results: dict[str, loadgen.TestResult] = field(default_factory=dict)
    scoring: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    sensors: Reading | None = None
    """Of the device, during the performance test."""

    def metrics(self, settings: InferenceSettings, began: float) -> Iterator[Metric]:
        """Yield all metrics; ``began`` is the reading of ``time.monotonic`` at run_start."""
        yield metric("run_time_s", time.monotonic() - began)
        yield metric("e2e_time_s", time.monotonic() - command_began())
        if self.load_s is not None:
            yield metric("init_s", self.load_s, note="loading the model into the engine")
        if "accuracy" in self.tests:
            yield metric("eval_s", self.tests["accuracy"]["seconds"], note="the accuracy test")
        if "performance" in self.results:
            yield from loadgen.metrics(self.results["performance"], settings.recipe.scenario)
        if self.sensors is not None and "performance" in self.results:
            yield from sensor_metrics([self.sensors])
        yield from quality({n: self.scoring[n] for n in ("exact_match", "f1") if self.scoring})
        if self.peak_memory_bytes is not None:
            text = "the largest resident memory of the engine's process"
            named = metric("peak_memory_bytes", self.peak_memory_bytes)
            yield replace(named, scope="per-process", definition=text)

    def extras(self, settings: InferenceSettings, exported: Exported) -> dict[str, Any]:
        """Return the manifest's extras, as JSON values."""
        about = {n: v for n, v in plain(exported).items() if n != "folder"}
        return {
            "precision": precision_of(exported, self.engine),
            "parameters": exported.parameters,
            "model_bytes": exported.size,
            "profile": settings.recipe.profile,
            "export": about,
            "engine": self.engine,
            "tests": self.tests,
            "expected": self.expected,
            "loadgen": {
                test: {k: v for k, v in result.values.items() if k.startswith(_KEPT)}
                for test, result in self.results.items()
            },
            **({"scoring": self.scoring} if self.scoring else {}),
            **({"audit": self.audit} if self.audit else {}),
        }


def precision_of(exported: Exported, engine: dict[str, Any]) -> str:
    """Return the precision in which an engine computes the model."""
    return exported.quantization or str(engine.get("precision", "fp32"))


def opening(
    settings: InferenceSettings, exported: Exported, questions: Questions,
    engine: dict[str, Any], device: DeviceInfo,
) -> Iterator[str]:  # fmt: skip
    """Yield the lines that a run begins with: scenario, model, questions and batches."""
    recipe, impl = settings.recipe, settings.impl
    yield f"{recipe.scenario} ({recipe.profile} profile) on {device.runtime}: {device.name}"
    kind = ", ".join(filter(None, (precision_of(exported, engine), exported.weight_sparsity)))
    yield f"model       {exported.folder}: {exported.parameters:,} parameters, {kind}"
    samples = len(questions.inputs)
    yield f"questions   {questions.file}: {samples:,} samples"
    padding = "all padded" if impl.padded else "by length"
    yield (
        f"batches     of up to {impl.batch_tokens:,} tokens, {padding}; {impl.num_threads} "
        f"threads on {engine['provider']}"
    )
    if exported.quantization is not None and engine["linear_int8"] is not None:
        total = engine["linear_int8"] + engine["linear_float"]
        yield f"in INT8     {engine['linear_int8']} of {total} linear layers of the encoder"
