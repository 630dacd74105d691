# SPDX-License-Identifier: Apache-2.0
"""LoadGen's cost over the bare engine: the worker of ``bertbench infer`` beside a plain loop.

A process for each scenario, since LoadGen takes its settings once in a process. In it the worker's
tests and loops over the same batches take turns.
"""

from __future__ import annotations

import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.timing import cell, spread
from bertbench import engines
from bertbench.benchmarks.bert_inference.batches import Cut
from bertbench.benchmarks.bert_inference.worker import Job, _Tests
from bertbench.common.errors import BertbenchError, Unsupported
from bertbench.common.measure.code import PACKAGE
from bertbench.common.mlperf.inference import Scenario
from bertbench.common.mlperf.loadgen import DETAIL, read_detail
from bertbench.engines.base import Batch, Engine, EngineOptions, FloatArray
from bertbench.engines.exported import Exported

if TYPE_CHECKING:  # the child has no torch
    from bench.inference_speed import Options

GOAL = 0.02
STREAM_SHARE = 0.25
"""Of the samples, those that SingleStream asks for."""


class Recorded(Engine):
    """The engine of a run, which keeps the batches of its first test and the seconds in it."""

    name, package, extra = "recorded", "mlperf_loadgen", "onnx"
    under: str
    """The engine's name."""
    last: Recorded

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.kept: list[Batch] | None = None
        self.seconds = 0.0
        Recorded.last = self

    @classmethod
    def check(cls, options: EngineOptions) -> None:
        engines.load(cls.under).check(options)

    @classmethod
    def load(cls, exported: Exported, options: EngineOptions) -> Recorded:
        """As Engine."""
        return cls(engines.load(cls.under).load(exported, options))

    def run(self, batch: Batch) -> tuple[FloatArray, FloatArray]:
        if self.kept is not None:
            self.kept.append(batch)
        began = time.perf_counter()
        found = self.engine.run(batch)
        self.seconds += time.perf_counter() - began
        return found

    def describe(self) -> dict[str, Any]:
        return self.engine.describe()


class Turns:
    """Stands in for the worker's parent: after each of its tests it runs the bare loop."""

    def __init__(self, folder: Path) -> None:
        self._folder: Path | None = folder
        self._batches: list[Batch] = []
        self.rounds: list[dict[str, float]] = []

    def send(self, message: tuple[str, Any]) -> None:
        """Take a message of the worker; ``begin`` and ``end`` come from its main thread."""
        kind, value = message
        engine = Recorded.last
        if kind == "begin":
            engine.seconds, engine.kept = 0.0, None if self._batches else []
        elif kind == "end":
            inside = engine.seconds
            if engine.kept is not None:  # the first test: untimed
                self._batches, engine.kept = engine.kept, None
                return
            assert value["batches"] == len(self._batches), "LoadGen asked for other batches"
            self.rounds.append(self._round(value["seconds"], inside))

    def recv(self) -> Path:
        """Return the folder of LoadGen's files; then wait, as for a parent that lives."""
        if self._folder is not None:
            folder, self._folder = self._folder, None
            self._files = folder
            return folder
        threading.Event().wait()
        raise AssertionError("nobody sets it")

    def _round(self, loadgen_s: float, inside: float) -> dict[str, float]:
        each, run = [], Recorded.last.engine.run
        began = time.perf_counter()
        for batch in self._batches:
            start = time.perf_counter()
            run(batch)
            each.append(time.perf_counter() - start)
        bare_s = time.perf_counter() - began
        found = read_detail(self._files / f"performance_{DETAIL}")
        p50 = found.number("result_50.00_percentile_latency_ns")
        return {
            "loadgen_s": loadgen_s,
            "bare_s": bare_s,
            "outside_engine": 1 - inside / loadgen_s,
            "bare_p50_s": statistics.median(each),
            **({"loadgen_p50_s": p50 * 1e-9} if p50 else {}),
        }


def child() -> None:
    """Take a job and its engine from standard input; print the rounds as JSON."""
    job, Recorded.under, folder = pickle.load(sys.stdin.buffer)
    engines.ENGINES[job.engine] = f"{__name__}:{Recorded.__name__}"
    turns = Turns(folder)
    try:
        _Tests(job, turns).run()  # type: ignore[arg-type]
        print(json.dumps(turns.rounds), flush=True)
    except BertbenchError as error:
        print(json.dumps(str(error)), flush=True)
    os._exit(0)  # a thread waits for ever


def loadgen(options: Options) -> dict[str, Any]:
    """Return LoadGen's cost in Offline and SingleStream, over the engine alone."""
    from bench.inference_models import sample
    from bench.inference_speed import environment

    exported = options.export("int8")
    inputs = sample(options.samples, exported, options.predict)
    cut = Cut(tokens=options.batch_tokens)
    scenarios: dict[Scenario, int] = {
        "Offline": options.samples,
        "SingleStream": max(1, int(options.samples * STREAM_SHARE)),
    }
    result: dict[str, Any] = {
        "mode": "loadgen",
        "environment": environment(options),
        "load_before": os.getloadavg()[0],
        "scenarios": {},
    }
    for scenario, queries in scenarios.items():
        expected = {"min_duration": 1.0, "min_query_count": float(queries)}
        expected |= {"target_qps": 1.0} if scenario == "Offline" else {"target_latency": 1000.0}
        job = Job(
            exported=exported,
            engine=Recorded.name,
            options=EngineOptions(
                num_threads=options.threads, max_length=options.length,
                max_batch=cut.most(int(inputs.lengths.min())),
            ),
            inputs=inputs,
            cut=cut,
            scenario=scenario,
            tests=("performance",) * (options.rounds + 1),
            settings=[],
            expected=expected,
        )  # fmt: skip
        rounds = _measured(job, options.engine)
        result["scenarios"][scenario] = _figures(rounds) | {"samples": queries}
    overhead = result["scenarios"]["Offline"]["overhead"]["median"]
    return result | {
        "load_after": os.getloadavg()[0],
        "definition": "in Offline, the seconds of LoadGen's performance test / the seconds of "
        "engine.run over the same batches, already padded, is at most 1.02: LoadGen, its log, "
        "batching, padding and the answers",
        "goal": GOAL,
        "ok": overhead < GOAL,
    }


def _measured(job: Job, engine: str) -> list[dict[str, float]]:
    """Return the rounds of a job in a process of its own; raises what it failed with."""
    path = [str(Path(__file__).parents[1]), str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    with tempfile.TemporaryDirectory(prefix="bertbench-") as folder:
        done = subprocess.run(
            [sys.executable, "-c", f"from {__name__} import child; child()"],
            input=pickle.dumps((job, engine, Path(folder))),
            capture_output=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
        )
    lines = done.stdout.decode().splitlines()
    if done.returncode or not lines:
        raise BertbenchError(f"the process of LoadGen failed: {done.stderr.decode()[-2000:]}")
    found = json.loads(lines[-1])
    if isinstance(found, str):
        raise Unsupported(found)
    rounds: list[dict[str, float]] = found
    return rounds


def _figures(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Return the spread of each figure over the rounds; ratios are of the same round."""
    found = {
        "rounds": rounds,
        "loadgen_s": spread([r["loadgen_s"] for r in rounds]),
        "bare_s": spread([r["bare_s"] for r in rounds]),
        "overhead": spread([r["loadgen_s"] / r["bare_s"] - 1 for r in rounds]),
        "outside_engine": spread([r["outside_engine"] for r in rounds]),
    }
    if all("loadgen_p50_s" in r for r in rounds):
        for name in ("loadgen_p50_s", "bare_p50_s"):
            found[name] = spread([r[name] for r in rounds])
        found["p50_overhead"] = spread([r["loadgen_p50_s"] / r["bare_p50_s"] - 1 for r in rounds])
    return found


def show(result: dict[str, Any]) -> str:
    """Return the figures of both scenarios, and the verdict."""
    given = ", ".join(f"{k} {v}" for k, v in result["environment"].items() if v is not None)
    lines = [f"{given}.", "", "| | LoadGen | engine alone | LoadGen's cost |", "|---|---|---|---|"]

    def row(name: str, figures: dict[str, Any], kind: str, factor: float, digits: int) -> str:
        both = (
            cell({k: factor * v for k, v in figures[key].items()}, digits)
            for key in (f"loadgen_{kind}s", f"bare_{kind}s")
        )
        over = figures["p50_overhead" if kind else "overhead"]
        return (
            f"| {name} | {' | '.join(both)} | {cell({k: 100 * v for k, v in over.items()}, 2)} % |"
        )

    for scenario, figures in result["scenarios"].items():
        lines.append(row(f"{scenario}, {figures['samples']:,} samples, s", figures, "", 1, 2))
        if "p50_overhead" in figures and scenario == "SingleStream":
            lines.append(row("SingleStream, p50 latency, ms", figures, "p50_", 1e3, 2))
    for scenario, figures in result["scenarios"].items():
        share = cell({k: 100 * v for k, v in figures["outside_engine"].items()}, 2)
        lines.append(f"\n{scenario}: {share} % of LoadGen's test are outside the engine.")
    word = "reached" if result["ok"] else "missed"
    lines += ["", f"goal {result['goal']:g}: {word}. Definition: {result['definition']}."]
    return "\n".join(lines)
