# SPDX-License-Identifier: Apache-2.0
"""The process that holds the engine and LoadGen.

It is a process of its own for three reasons: LoadGen reads its compiled-in mlperf.conf for the
first settings of a process only, and calls a second user.conf an error; a test cannot be stopped
from Python; and a vendor's library that crashes must not take the record with it. It imports no
torch. Messages to the parent: ``(kind, value)``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from bertbench import engines
from bertbench.benchmarks.bert_inference import rules
from bertbench.benchmarks.bert_inference.batches import Cut, Inputs
from bertbench.benchmarks.bert_inference.sut import Runner, Waiting, inline
from bertbench.common.errors import BertbenchError
from bertbench.common.files import why
from bertbench.common.measure.code import PACKAGE
from bertbench.common.mlperf import inference
from bertbench.engines.base import EngineOptions
from bertbench.engines.exported import Exported

USER_CONF, AUDIT_CONF = "user.conf", "audit.config"
_PERIOD_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that the process needs."""

    exported: Exported
    engine: str
    options: EngineOptions
    inputs: Inputs
    cut: Cut
    scenario: inference.Scenario
    tests: tuple[str, ...]
    """accuracy, performance and TEST01, in this order; prefixes of LoadGen's files."""
    settings: list[rules.Setting]
    expected: dict[str, float] = field(default_factory=dict)
    """Settings that hold where ``settings`` lack them."""
    estimate: str | None = None
    """``target_qps`` or ``target_latency`` where the warm-up has to find it."""
    warm_up_s: float = 2.0
    audit_conf: str = ""


def start(job: Job) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start the process and return it with the parent's end of the pipe.

    No process of multiprocessing's: those run the parent's script again, which may not expect it.
    """
    ours, theirs = multiprocessing.Pipe()
    code = f"from {__name__} import main; main({theirs.fileno()})"
    path = os.pathsep.join((str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=2,  # standard output is the parent's result
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # a Ctrl-C is the parent's alone
    )
    theirs.close()
    ours.send(job)
    return process, ours


def main(descriptor: int) -> None:
    """Receive a job, load the engine, run the tests and report.

    After ``loaded`` the parent sends the folder of LoadGen's files, and nothing else.
    """
    parent = Connection(descriptor)
    job: Job = parent.recv()
    try:
        _Tests(job, parent).run()
    except BertbenchError as error:
        parent.send(("refused", str(error)))
    except BaseException as error:
        parent.send(("failed", why(error)))
    # LoadGen's and the engines' threads may still run; the parent has all results.
    os._exit(0)


def _end_with(parent: Connection) -> None:
    """End with the parent: its end of the pipe closes when it dies."""
    with contextlib.suppress(EOFError, OSError):
        parent.recv()
    os._exit(1)


def peak_memory_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """Return this process's largest resident memory; None where the system does not say.

    ``getrusage`` counts the parent's as well, from before this program replaced it.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return None


class _Tests:
    def __init__(self, job: Job, parent: Connection) -> None:
        import mlperf_loadgen

        self._job, self._parent, self._loadgen = job, parent, mlperf_loadgen
        self._sending = threading.Lock()

    def run(self) -> None:
        job = self._job
        began = time.monotonic()
        engine = engines.load(job.engine).load(job.exported, job.options)
        self._send("loaded", {"engine": engine.describe(), "load_s": time.monotonic() - began})
        self._folder: Path = self._parent.recv()  # the record's, which the parent opens now
        threading.Thread(target=_end_with, args=(self._parent,), daemon=True).start()
        self._runner = Runner(engine, job.inputs, job.cut, self._loadgen)
        expected = dict(job.expected) | self._warm_up()
        conf = rules.conf_lines(job.settings, expected, job.scenario)
        (self._folder / USER_CONF).write_text(conf, encoding="utf-8")
        settings = self._settings()
        self._send("ready", {"expected": expected})
        for test in job.tests:
            self._runner.reset()
            self._send("begin", test)
            seconds = self._test(test, settings)
            runner = self._runner
            self._send(
                "end",
                {
                    "test": test, "seconds": seconds, "samples": runner.samples,
                    "batches": runner.batches, "real_tokens": runner.real_tokens,
                    "computed_tokens": runner.computed_tokens,
                },
            )  # fmt: skip
        self._send("done", {"peak_memory_bytes": peak_memory_bytes()})

    def _warm_up(self) -> dict[str, float]:
        """Run batches as the scenario does; return its rate or latency if LoadGen needs it."""
        job, runner = self._job, self._runner
        queries = {"SingleStream": 1, "MultiStream": 8}.get(job.scenario, len(job.inputs))
        rng = np.random.default_rng(0)
        rows = rng.permutation(len(job.inputs))[: min(queries, 1024)]
        batches = [rows[places] for places in job.cut.batches(job.inputs.lengths[rows])]
        runner.compute(batches[0])  # the first run allocates, and may compile
        runner.reset()
        # A batch from every part of the lengths, so that a few give the rate of all.
        rng.shuffle(batches)
        began, done = time.monotonic(), 0
        wanted_s = job.warm_up_s if job.estimate else 0.0
        while (passed := time.monotonic() - began) < wanted_s or not done:
            runner.compute(batches[done % len(batches)])
            done += 1
        if job.estimate == "target_qps":
            # Above what it will do: LoadGen asks for as many samples as this rate needs.
            return {"target_qps": max(1e-3, 1.2 * runner.samples / passed)}
        if job.estimate == "target_latency":
            # Below what it will need: LoadGen prepares as many queries as this latency allows.
            return {"target_latency": max(1e-3, 500 * passed / done * len(batches))}
        return {}

    def _settings(self) -> Any:
        """Return LoadGen's settings: mlperf.conf's, and then those of the user.conf."""
        job, loadgen = self._job, self._loadgen
        settings = loadgen.TestSettings()
        settings.scenario = getattr(loadgen.TestScenario, job.scenario)
        code = settings.FromConfig(str(self._folder / USER_CONF), inference.MODEL, job.scenario, 1)
        if code or not settings.qsl_rng_seed:
            raise BertbenchError(f"LoadGen could not read its settings (code {code})")
        return settings

    def _test(self, test: str, settings: Any) -> float:
        """Run one LoadGen test; return its seconds, as the host's clock has them."""
        job, loadgen = self._job, self._loadgen
        mode = loadgen.TestMode
        settings.mode = mode.AccuracyOnly if test == "accuracy" else mode.PerformanceOnly
        output = loadgen.LogOutputSettings()
        output.outdir, output.prefix = str(self._folder), f"{test}_mlperf_log_"
        output.copy_summary_to_stdout = False
        log = loadgen.LogSettings()
        log.log_output, log.enable_trace = output, False
        audit = self._folder / (AUDIT_CONF if test == inference.TEST01 else "no_audit.config")
        if test == inference.TEST01:
            audit.write_text(job.audit_conf, encoding="utf-8")
        waiting = None
        issue = inline(self._runner, self._failed)
        if job.scenario == "Server":
            waiting = Waiting(self._runner, job.cut.tokens, job.inputs.lengths, self._failed)
            issue = waiting.issue
        count = len(job.inputs)
        sut = loadgen.ConstructSUT(issue, lambda: None)
        qsl = loadgen.ConstructQSL(count, count, lambda rows: None, lambda rows: None)
        stop = threading.Event()
        ticker = threading.Thread(target=self._progress, args=(stop,), daemon=True)
        ticker.start()
        began = time.monotonic()
        loadgen.StartTestWithLogSettings(sut, qsl, settings, log, str(audit))
        seconds = time.monotonic() - began
        stop.set()
        ticker.join()
        if waiting is not None:
            waiting.close()
        loadgen.DestroyQSL(qsl)
        loadgen.DestroySUT(sut)
        return seconds

    def _progress(self, stop: threading.Event) -> None:
        while not stop.wait(_PERIOD_S):
            self._send("progress", self._runner.samples)

    def _send(self, kind: str, value: Any) -> None:
        with self._sending:
            self._parent.send((kind, value))

    def _failed(self, error: BaseException) -> None:
        """Report an error of the engine, and end: LoadGen would wait for the answer for ever."""
        self._send("failed", why(error))
        os._exit(1)
