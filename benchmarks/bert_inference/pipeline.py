# SPDX-License-Identifier: Apache-2.0
"""Prune, train, quantise, export and measure: the steps of MLPerf's sparse INT8 BERT, in order.

MLPerf Inference v0.7 (open/NVIDIA, tensorrt_sparse) published such a model and described the way to
it, without scripts. Every step is a command of bertbench, is printed, and is written down when it
has ended: the same command goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertbench.common.errors import BadInput, BertbenchError
from bertbench.common.files import read_json, shown, write_atomic
from bertbench.common.mlperf.inference import SCENARIOS
from bertbench.common.results.seals import MANIFEST

USAGE = """\
bash scripts/run_sparse_int8.sh --predict_file FILE --output DIR [flags] [-- training flags]

Trains a dense model, prunes and quantises it (dense FP32, dense INT8, 2:4 FP32, 2:4 INT8), exports
each to ONNX, and then measures all with MLPerf's LoadGen. The same command resumes. Example:
  bash scripts/run_sparse_int8.sh --predict_file dev-v1.1.json --output sparse_int8 \\
      --infer_flags "--profile non-official --min_duration_s 60" -- --train_file train-v1.1.json"""
RECIPE = "squad_mini"
LEARNING = "--distillation 1 --hidden_dropout 0 --attention_dropout 0"
PRUNING = f"--pruning least_squares {LEARNING} --learning_rate 2e-4"
FINE = f"--calibration mse {LEARNING} --num_train_epochs 0.5 --learning_rate 1.5e-4"
"""Training through INT8 begins with trained weights and learns their answers alone: without
dropout's noise the rounding is all that is left to learn, and a part of an epoch suffices."""

CHECKPOINT = "checkpoints/step_*"
FINISHED = ("ok", "below_quality")


@dataclass(frozen=True, slots=True)
class Model:
    """One of the compared models."""

    name: str
    start: str | None
    """The model whose weights it begins with; None: the recipe's."""
    flags: tuple[str, ...] = ()


DENSE, SPARSE = ("--weight_sparsity", "None"), ("--weight_sparsity", "2:4")
FP32, INT8 = ("--quantization", "None"), ("--quantization", "int8")
MODELS = (  # each says both: the recipe may itself be of a sparse or an INT8 model
    Model("dense-fp32", None, (*DENSE, *FP32)),
    Model("dense-int8", "dense-fp32", (*DENSE, *INT8)),
    Model("sparse-fp32", "dense-fp32", (*SPARSE, *FP32)),
    Model("sparse-int8", "sparse-fp32", (*SPARSE, *INT8)),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command and what it leaves."""

    name: str
    words: tuple[str, ...]
    made: Path
    """The folder of the product, or the one that its record is put into."""
    is_run: bool = False
    resumes: bool = False


class Pipeline:
    """The steps of one output folder."""

    def __init__(self, asked: argparse.Namespace, training: Sequence[str]) -> None:
        self.root: Path = asked.output
        self.predict: Path = asked.predict_file
        self.asked, self.training = asked, tuple(training)
        self.failed: list[str] = []

    def steps(self) -> Iterator[Step]:
        """Yield the steps in order; a later one names what earlier ones have made."""
        given = self.asked.dense
        for model in MODELS:
            folder = self.root / model.name
            if model.start is None and given is not None:
                run = given
            else:
                yield self._training(model, folder / "training")
                run = self._record(folder / "training", CHECKPOINT)
            export, weights = folder / "export", folder / "weights"
            vocab = self.asked.vocab_file
            words = ["export-onnx", str(run), "--output", str(export)]
            words += [] if vocab is None else ["--vocab_file", str(vocab)]
            yield Step(f"{model.name}: export", bertbench(*words), export)
            if any(m.start == model.name for m in MODELS):
                words = ["export-weights", str(run), "--output", str(weights)]
                yield Step(f"{model.name}: weights", bertbench(*words), weights)
            if set(SPARSE) <= set(model.flags):
                words = ["sparsity", "check", str(export)]
                yield Step(f"{model.name}: proof of 2:4", bertbench(*words), export)
        for scenario in self.asked.scenarios:  # models that are compared run one after the other
            for model in MODELS:
                yield self._measuring(model, scenario)
        runs = [str(self.root / m.name) for m in MODELS] + ([] if given is None else [str(given)])
        report = self.root / "report"
        yield Step("report", bertbench("report", *runs, "--output", str(report)), report)

    def _training(self, model: Model, made: Path) -> Step:
        words = [sys.executable, "-m", "bertbench.benchmarks.bert_squad.launch"]
        words += ["--recipe", self.asked.recipe, "--predict_file", str(self.predict)]
        words += [*self.training, *model.flags, "--output_dir", str(made)]
        if model.start is not None:
            weights = self.root / model.start / "weights/model.safetensors"
            words += ["--starts_from", "checkpoint", "--init_checkpoint", str(weights)]
            quantized = set(INT8) <= set(model.flags)
            words += shlex.split(self.asked.quantize_flags if quantized else self.asked.prune_flags)
        return Step(f"{model.name}: training", tuple(words), made, is_run=True, resumes=True)

    def _measuring(self, model: Model, scenario: str) -> Step:
        folder = self.root / model.name
        made = folder / scenario
        words = ["infer", str(folder / "export"), "--predict_file", str(self.predict)]
        words += ["--scenario", scenario, "--output_dir", str(made)]
        words += shlex.split(self.asked.infer_flags)
        return Step(f"{model.name}: {scenario}", bertbench(*words), made, is_run=True)

    def run(self) -> int:
        """Run what is left; return 0, or 1 where a measurement is not valid.

        Raises BadInput for a folder of other settings, BertbenchError for a step that fails.
        """
        for number, step in enumerate(self.steps(), 1):
            state = self.root / "steps" / f"{step.name.replace(': ', '.').replace(' ', '_')}.json"
            if state.is_file():
                self._check_same(state, step)
                print(f"[{number}] {step.name}: done before", flush=True)
                continue
            if self._do(number, step) and step.name != "report":  # which is made anew each time
                state.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(state, json.dumps({"words": step.words}, indent=1) + "\n")
        if self.failed:
            print(f"without a valid result: {', '.join(self.failed)}", file=sys.stderr)
        return 1 if self.failed else 0

    def _do(self, number: int, step: Step) -> bool:
        """Run a step; return whether it is finished for good."""
        words = list(step.words)
        if step.resumes and any(step.made.glob(f"*/*/*/{CHECKPOINT}")):
            words += ["--resume", "last"]
        elif not step.is_run and step.name.endswith(("export", "weights", "report")):
            shutil.rmtree(step.made, ignore_errors=True)  # of a step that did not end
        print(f"[{number}] {step.name}: {shlex.join(words)}", flush=True)
        code = call(words)
        if code and not (step.is_run and code == 1):
            raise BertbenchError(f"{step.name} ended with code {code}; the same command resumes it")
        if not step.is_run:
            return True
        status = status_of(self._record(step.made))
        if status in FINISHED:
            return True
        if step.resumes:
            raise BertbenchError(f"{step.name}: {status}; the same command resumes it")
        self.failed.append(step.name)
        return False

    def _check_same(self, state: Path, step: Step) -> None:
        try:
            before = read_json(state)["words"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{state}: {shown(error)}: delete it to run that step again") from error
        if before != list(step.words):
            raise BadInput(
                f"{step.name} was made by another command ({shlex.join(map(str, before))}): name "
                f"another --output, or delete {state} to run it again"
            )

    @staticmethod
    def _record(folder: Path, holding: str = MANIFEST) -> Path:
        """Return the newest record in an output folder that has a file; before any, its place.

        One that resumed a finished run, to answer the questions, has no checkpoint of its own.
        """
        found = {next(p for p in f.parents if p.parent.parent.parent == folder)
                 for f in folder.glob(f"*/*/*/{holding}")}  # fmt: skip
        return max(found, key=lambda p: p.name, default=folder / "RUN")


def status_of(record: Path) -> str:
    """Return a record's status, or that there is none."""
    try:
        return str(read_json(record / MANIFEST)["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return "no record"


def call(words: Sequence[str]) -> int:
    """Run a command and return its code; SIGINT and SIGTERM let it save and end first."""
    process = subprocess.Popen(words)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        return process.wait()
    except KeyboardInterrupt:  # a terminal's Ctrl-C has reached the command, too
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def bertbench(*words: str) -> tuple[str, ...]:
    """Return the command of a verb."""
    return (str(Path(sys.executable).parent / "bertbench"), *words)


def read(argv: Sequence[str]) -> Pipeline:
    """Return the pipeline that the words ask for; raises BadInput."""
    parser = argparse.ArgumentParser(usage=USAGE, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--predict_file", type=Path, required=True, metavar="FILE", help="SQuAD v1.1: dev-v1.1.json"
    )
    add("--output", type=Path, required=True, metavar="DIR", help="models, records and report")
    add("--recipe", default=RECIPE, metavar="NAME", help="of SQuAD (default: %(default)s)")
    add("--dense", type=Path, metavar="RUN", help="a finished SQuAD run, instead of training one")
    add("--vocab_file", type=Path, metavar="FILE", help="default: the run's")
    add("--scenarios", default="Offline,SingleStream", metavar="A,B", help="(default: %(default)s)")
    add("--prune_flags", default=PRUNING, metavar="'FLAGS'",
        help="of the 2:4 training (default: %(default)s)")  # fmt: skip
    add("--quantize_flags", default=FINE, metavar="'FLAGS'",
        help="of the INT8 trainings (default: %(default)s)")  # fmt: skip
    add("--infer_flags", default="", metavar="'FLAGS'", help="of `bertbench infer`")
    add("--dry-run", action="store_true", help="print the commands and run nothing")
    add(
        "training",
        nargs="*",
        metavar="-- FLAGS",
        help="of every training: --train_file, --backend, ...",
    )
    asked = parser.parse_args(argv)
    asked.scenarios = asked.scenarios.split(",")
    if unknown := [s for s in asked.scenarios if s not in SCENARIOS]:
        raise BadInput(f"--scenarios {unknown[0]}: choose from {', '.join(SCENARIOS)}")
    if not asked.predict_file.is_file():
        raise BadInput(f"--predict_file {shown(asked.predict_file)}: no such file")
    if asked.dense is not None and (status := status_of(asked.dense)) not in FINISHED:
        raise BadInput(f"--dense {shown(asked.dense)}: {status}: give the folder of a finished run")
    return Pipeline(asked, asked.training)


def main(argv: Sequence[str]) -> int:
    """Run the pipeline; return the exit code."""
    try:
        pipeline = read(argv)
        if pipeline.asked.dry_run:
            for step in pipeline.steps():
                print(f"{step.name}: {shlex.join(step.words)}")
            return 0
        return pipeline.run()
    except BertbenchError as error:
        print(f"run_sparse_int8: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    except KeyboardInterrupt:
        print("run_sparse_int8: stopped; the same command resumes", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
