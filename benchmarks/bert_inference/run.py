# SPDX-License-Identifier: Apache-2.0
"""One inference run from settings to record: data, the process of the tests, scores, record."""

from __future__ import annotations

import json
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from bertbench.backends.base import DeviceInfo
from bertbench.benchmarks.bert_inference import rules
from bertbench.benchmarks.bert_inference.audit import CONF, audit
from bertbench.benchmarks.bert_inference.batches import Cut
from bertbench.benchmarks.bert_inference.found import Found, opening, precision_of
from bertbench.benchmarks.bert_inference.options import BENCHMARK, InferenceSettings
from bertbench.benchmarks.bert_inference.power import Power
from bertbench.benchmarks.bert_inference.scoring import Questions, read_questions
from bertbench.benchmarks.bert_inference.worker import AUDIT_CONF, USER_CONF, Job, start
from bertbench.benchmarks.bert_squad.answers import AnswerOptions
from bertbench.benchmarks.bert_squad.outputs import PREDICTIONS
from bertbench.common.config.recipe import hash_values, plain
from bertbench.common.errors import BadInput, BertbenchError, Unsupported
from bertbench.common.files import Stream, clock, why, write_atomic
from bertbench.common.measure.system import describe_system, system_name
from bertbench.common.mlperf import inference, loadgen
from bertbench.common.results.record import RunRecord
from bertbench.common.training.console import ConsoleObserver
from bertbench.common.training.events import EvalEvent, RunSummary
from bertbench.common.training.stops import Interruption
from bertbench.common.training.summary import reading
from bertbench.engines.base import EngineOptions
from bertbench.engines.exported import Exported

_LINE_S = 10.0
"""Seconds between lines of progress."""


class _Failed(BertbenchError):
    """Why a run that had begun failed; its record says it."""


class _Interrupted(Exception):
    """A signal asked for the end."""


def run(settings: InferenceSettings, exported: Exported) -> int:
    """Make the tests of ``settings``; return the exit code (common/cli/main.py).

    Raises BadInput or Unsupported where the run is refused before it has a record.
    """
    questions = read_questions(settings.run.predict_file, exported)
    check_samples(settings, questions)
    with Interruption() as interruption:
        return _Run(settings, exported, questions, interruption).execute()


def check_samples(settings: InferenceSettings, questions: Questions) -> None:
    """Raise BadInput where the official profile is asked for on other samples than MLPerf's."""
    count, recipe = len(questions.inputs), settings.recipe
    lengths = {name: getattr(recipe, name) for name in inference.LENGTHS}
    if recipe.profile == "official" and (count, lengths) != (inference.SAMPLES, inference.LENGTHS):
        raise BadInput(
            f"{questions.file.name} at {'/'.join(map(str, lengths.values()))} gives {count:,} "
            f"samples; MLPerf's are the {inference.SAMPLES:,} of dev-v1.1.json at "
            f"{'/'.join(map(str, inference.LENGTHS.values()))}. For others: --profile non-official"
        )


class _Run:
    def __init__(
        self, settings: InferenceSettings, exported: Exported, questions: Questions,
        interruption: Interruption,
    ) -> None:  # fmt: skip
        self._settings, self._exported, self._questions = settings, exported, questions
        self._interruption, self._found = interruption, Found()
        recipe = settings.recipe
        self._answers = AnswerOptions(
            n_best_size=recipe.n_best_size, max_answer_length=recipe.max_answer_length
        )
        self._logits: dict[str, Any] = {}

    def execute(self) -> int:
        """Return the exit code."""
        process, parent = start(self._job())
        try:
            loaded = self._receive(parent, "loaded")
            self._found.engine, self._found.load_s = loaded["engine"], loaded["load_s"]
            record = self._open_record()
            ended = self._tests(record, parent)
            process.kill()  # it writes no more
            process.wait()
            return self._close(record, *ended)
        except _Failed as error:  # before there was a record, as the next
            print(f"bertbench infer: {error}", file=sys.stderr)
            return 1
        except _Interrupted:
            print("bertbench infer: stopped", file=sys.stderr)
            return 130
        finally:
            process.kill()
            process.wait()
            parent.close()

    def _job(self) -> Job:
        recipe, impl, run = self._settings.recipe, self._settings.impl, self._settings.run
        settings = _conf(self._settings)
        inputs = self._questions.inputs
        cut = Cut(tokens=impl.batch_tokens, length=recipe.max_seq_length if impl.padded else None)
        expected: dict[str, float] = {}
        if recipe.profile == "non-official":
            expected["min_query_count"] = 1  # mlperf.conf's is the official sample set's
        elif recipe.scenario == "SingleStream":
            expected["min_query_count"] = 1024
        estimate = {"Offline": "target_qps", "Server": None}.get(recipe.scenario, "target_latency")
        if any(s.key == estimate for s in settings) or run.mode == "accuracy":
            estimate = None
        self._options = EngineOptions(
            provider=impl.provider,
            provider_options=dict(o.split("=", 1) for o in impl.provider_options),
            num_threads=impl.num_threads,
            max_batch=cut.most(int(inputs.lengths.min())),
            max_length=recipe.max_seq_length,
        )
        return Job(
            exported=self._exported,
            engine=impl.engine,
            options=self._options,
            inputs=inputs,
            cut=cut,
            scenario=recipe.scenario,
            tests=(
                *(("accuracy",) if run.mode != "performance" else ()),
                *(("performance",) if run.mode != "accuracy" else ()),
                *((run.audit,) if run.audit else ()),
            ),
            settings=settings,
            expected=expected,
            estimate=estimate,
            warm_up_s=min(5.0, recipe.min_duration_ms / 5000),
            audit_conf=CONF,
        )

    # -- the tests --------------------------------------------------------------------------------
    def _tests(self, record: RunRecord, parent: Connection) -> tuple[str, str]:
        """Follow the tests to their end; return status and reason."""
        self._power.prepare()
        self._began = time.monotonic()
        record.run_start(step=0, samples=0)
        self._console.run_start(step=0, samples=0)
        try:
            parent.send(record.path)
            self._found.expected = self._receive(parent, "ready")["expected"]
            for text in (f"{k} {v:.4g} (not given: ours)" for k, v in self._found.expected.items()):
                self._console.say(text)
            while True:
                kind, value = self._message(parent)
                if kind == "begin":
                    test, begun = value, time.monotonic()
                    self._console.say(f"{test} test begins")
                    printed = begun
                    if test == "performance":
                        self._power.start()
                elif kind == "progress" and time.monotonic() - printed >= _LINE_S:
                    printed = time.monotonic()
                    self._console.say(_progress(test, value, printed - begun))
                elif kind == "end":
                    if value["test"] == "performance":
                        self._power.stop()
                    self._found.tests[value["test"]] = value
                    self._read(record, value["test"])
                elif kind == "done":
                    self._found.peak_memory_bytes = value["peak_memory_bytes"]
                    return self._judge()
        except _Interrupted:
            return "interrupted", f"{self._interruption.name} stopped it"
        except (BertbenchError, OSError) as error:
            return "failed", why(error)

    def _receive(self, parent: Connection, wanted: str) -> dict[str, Any]:
        kind, value = self._message(parent)
        assert kind == wanted, kind
        found: dict[str, Any] = value
        return found

    def _message(self, parent: Connection) -> tuple[str, Any]:
        """Return the next message of the process; raises what it failed with."""
        while not parent.poll(0.2):
            if self._interruption.requested:
                raise _Interrupted
        try:
            kind, value = parent.recv()
        except (EOFError, OSError):
            raise _Failed(
                "the process of the engine and LoadGen died (a crash, or no memory)"
            ) from None
        if kind == "refused":
            raise Unsupported(value)
        if kind == "failed":
            raise _Failed(value)
        return kind, value

    def _read(self, record: RunRecord, test: str) -> None:
        """Read LoadGen's files of a test that has ended."""
        folder, name = record.path, f"{test}_"
        result = loadgen.read_detail(folder / f"{name}{loadgen.DETAIL}")
        self._found.results[test] = result
        for text in result.errors:
            self._note(record, f"LoadGen, {test} test: {text}")
        if test != "performance":
            lengths = self._questions.inputs.lengths
            self._logits[test] = loadgen.read_answers(folder / f"{name}{loadgen.ACCURACY}", lengths)
        if test == "accuracy":
            self._score(record)
        else:
            self._console.say(f"{test} test: {'VALID' if result.valid else 'INVALID'}")

    def _score(self, record: RunRecord) -> None:
        begun = time.monotonic()
        questions, target = self._questions, self._settings.recipe.target_f1
        logits = loadgen.logits_of(self._logits["accuracy"], questions.features.offsets)
        answers = questions.answers(logits, self._answers)
        scores = questions.score(answers)
        write_atomic(record.path / PREDICTIONS, json.dumps(answers.predictions, indent=4) + "\n")
        record.own.add(PREDICTIONS)
        self._found.scoring = scores
        now = time.monotonic()
        event = EvalEvent(
            step=0,
            samples=0,
            metrics={
                "questions": len(answers.predictions),
                **{name: scores[name] for name in ("exact_match", "f1")},
            },
            target_metric="f1",
            target_value=target,
            reached=target is not None and scores["f1"] >= target,
            eval_s=self._found.tests["accuracy"]["seconds"] + now - begun,
            time_s=now - self._began,
        )
        for o in (record, self._console):
            o.on_eval(event)

    def _judge(self) -> tuple[str, str]:
        """Return status and reason: INVALID is failed, whatever the scores are."""
        found, recipe = self._found, self._settings.recipe
        invalid = [f"{t} test: {r.reason}" for t, r in found.results.items() if not r.valid]
        if invalid:
            return "failed", f"LoadGen says INVALID: {'; '.join(invalid)}"
        if inference.TEST01 in found.results:
            found.audit = audit(
                self._questions, self._answers, recipe.scenario,
                (found.results["performance"], found.results[inference.TEST01]),
                (self._logits["accuracy"], self._logits[inference.TEST01]),
            )  # fmt: skip
            if not found.audit["passed"]:
                return "failed", f"TEST01 failed: {json.dumps(found.audit)}"
        said = [f"{recipe.scenario}, {recipe.profile} profile"]
        said += [] if "performance" not in found.results else ["LoadGen says VALID"]
        said += ["TEST01 passed"] if found.audit else []
        if found.scoring:
            said.append(f"F1 {found.scoring['f1']:.5f}")
            if recipe.target_f1 is not None and found.scoring["f1"] < recipe.target_f1:
                said[-1] += f", below the target of {recipe.target_f1:.5f}"
                return "below_quality", "; ".join(said)
        return "ok", "; ".join(said)

    # -- the record -------------------------------------------------------------------------------
    def _open_record(self) -> RunRecord:
        settings, engine = self._settings, self._found.engine
        run, recipe, impl = settings.run, settings.recipe, settings.impl
        processor = describe_system()["processor"]["model"]
        device = DeviceInfo(
            backend=impl.engine,
            name=engine["device"] or processor,
            index=0,
            runtime=f"{impl.engine} {engine['version']}",
            extras={"provider": engine["provider"], "threads": str(engine["num_threads"])},
        )
        record = RunRecord.create(
            run.output_dir,
            system=run.system or system_name(device.name, 1),
            benchmark=BENCHMARK,
            config=settings.as_dict(),
            devices=[device],
            precision=precision_of(self._exported, engine),
            seed=inference.SEEDS["6.0"][0],
            command=sys.argv[1:],
        )
        self._console = ConsoleObserver(
            max_steps=0, target=recipe.target_f1, log=record.console,
            out=Stream(sys.stderr if run.json else sys.stdout), lost=record.note,
        )  # fmt: skip
        self._power = Power.of(impl.engine, self._options)
        if self._power.reason is not None and run.mode != "accuracy":
            self._note(record, f"power: {self._power.reason}")
        record.telemetry = self._power.sampler
        for line in opening(settings, self._exported, self._questions, self._found.engine, device):
            self._console.say(line)
        if recipe.profile != "official":
            self._note(record, "non-official profile: not MLPerf's rules, and no MLPerf result")
        return record

    def _note(self, record: RunRecord, text: str) -> None:
        for o in (record, self._console):
            o.note(text)

    def _close(self, record: RunRecord, status: str, reason: str) -> int:
        """Write the record's end and print it; return the exit code."""
        settings = self._settings
        stop = "success" if status in ("ok", "below_quality") else "aborted"
        self._found.sensors = reading(self._power.sampler)
        record.run_stop(step=0, samples=0, status=stop)
        for file in record.path.glob("*_mlperf_log_trace.json"):
            file.unlink()  # tracing is off: it is empty
        record.own.update(file.name for file in record.path.glob("*_mlperf_log_*"))
        record.own.update((USER_CONF, AUDIT_CONF))
        self._check_seeds(record)
        inputs: dict[str, str | None] = {
            "data": self._questions.hash, "checkpoint": self._exported.hash()
        }  # fmt: skip
        kind, values = type(settings.recipe).__name__, plain(settings.recipe)
        record.identify(
            recipe_hash=hash_values(kind, values, inputs),
            recipe_kind=kind,
            inputs=inputs,
            global_batch=None,
        )
        summary = RunSummary(
            status=status,
            reason=reason,
            step=0,
            samples=0,
            metrics=tuple(self._found.metrics(settings, self._began)),
            extras=self._found.extras(settings, self._exported),
        )
        self._console.close(summary)
        record.close(summary)
        if settings.run.json:
            content = {"record": str(record.path), "status": status, "reason": reason,
                       "profile": settings.recipe.profile,
                       "metrics": {m.name: m.value for m in summary.metrics}}  # fmt: skip
            print(json.dumps(content), flush=True)
        else:
            print(f"record      {record.path}", flush=True)
        return {"ok": 0, "interrupted": 130}.get(status, 1)

    def _check_seeds(self, record: RunRecord) -> None:
        """Note the seeds of another round than this version knows."""
        for result in self._found.results.values():
            seeds = tuple(result.values.get(f"effective_{key}") for key in inference.SEED_KEYS)
            if seeds != inference.SEEDS["6.0"]:
                self._note(record, f"LoadGen's seeds are not those of round 6.0: {seeds}")


def _conf(settings: InferenceSettings) -> list[rules.Setting]:
    """Return the settings of the user.conf or the flags; raises BadInput."""
    run, recipe = settings.run, settings.recipe
    if run.user_conf is not None:
        return rules.read_user_conf(run.user_conf, recipe.scenario)
    return run.asked.settings(recipe.scenario)


def _progress(test: str, samples: int, seconds: float) -> str:
    rate = samples / seconds if seconds else 0.0
    return f"{test} test: {samples:,} samples in {clock(seconds)}, {rate:.1f} samples/s"
