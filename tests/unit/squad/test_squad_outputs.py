# SPDX-License-Identifier: Apache-2.0
"""The files under the references' names: keys, units, definitions, and what was not measured."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from bertbench.benchmarks.bert_squad.answers import Answers
from bertbench.benchmarks.bert_squad.outputs import Outputs, closing
from bertbench.benchmarks.bert_squad.recipes import PRESETS
from bertbench.benchmarks.bert_squad.scoring import run_script, script_scores
from bertbench.common.config.recipe import Settings
from bertbench.common.errors import BadInput
from bertbench.common.measure.metric import metric
from bertbench.common.training.events import EvalEvent, RunSummary, StepEvent


def made(folder, *, trains=True, resumed=False, **run):
    preset = PRESETS["squad_large_enflame"]
    settings = Settings(
        preset=preset, recipe=preset.recipe, impl=preset.impl, run=replace(preset.run, **run)
    )
    stored = SimpleNamespace(num_examples=90, features=[0] * 100, path=folder / "cache.x")
    task = SimpleNamespace(
        recipe=preset.recipe,
        source=SimpleNamespace(train=stored if trains else None, predict=stored),
        split=SimpleNamespace(micro_batch=4, accumulation=2),
        facts=lambda: SimpleNamespace(init_checkpoint={}, parameters=1234),
        total_steps=4,
        eval_batch_size=8,
        backend_name="gcu",
        answers=Answers(predictions={"q": 'the "end"'}, nbest={"q": [{"text": 'the "end"'}]}),
    )
    return Outputs(task, settings, folder, resumed=resumed)


def step(number, rate, window_steps=1):
    return StepEvent(
        step=number, samples=64 * number, loss=5.0 - number, metrics={}, learning_rate=1e-5,
        grad_norm=None, loss_scale=None, skipped_steps=0, window_steps=window_steps, window_s=1.0,
        sequences_per_second=rate, real_tokens_per_second=1.0, padded_tokens_per_second=1.0,
        data_wait_s=0.0, time_s=float(number),
    )  # fmt: skip


def evaluation(**metrics):
    return EvalEvent(
        step=4, samples=256, metrics={"questions": 90, **metrics}, target_metric="f1",
        target_value=None, reached=False, eval_s=7.0, time_s=20.0,
        inference_sequences_per_second=50.0,
    )  # fmt: skip


def finish(outputs, **named):
    summary = RunSummary(
        status="ok", reason="", step=4, samples=256,
        metrics=tuple(metric(name, value) for name, value in named.items()),
    )  # fmt: skip
    outputs.close(summary)


def read(folder):
    found = []
    for line in (folder / "dllogger.json").read_text().splitlines():
        assert line.startswith("DLLL {")
        found.append(json.loads(line[5:]))
    return found


def test_the_lines_have_the_references_keys_and_units(tmp_path):
    outputs = made(tmp_path, skip_steps=2)
    outputs.init_stop()
    outputs.run_start(step=0, samples=0)
    outputs.on_step(step(2, 1.0, window_steps=2))
    for number, rate in ((3, 30.0), (4, 20.0)):
        outputs.on_step(step(number, rate))
    outputs.eval_start(step=4, samples=256)
    outputs.on_eval(evaluation(exact_match=81.5, f1=88.25))
    finish(
        outputs, run_time_s=100.0, eval_s=7.0, sequences_per_second=24.0,
        sequences_per_second_e2e=2.56,
    )  # fmt: skip
    lines = read(tmp_path)
    about = {line["metric"]: line["metadata"] for line in lines if line["type"] == "METADATA"}
    assert about["e2e_train_time"]["unit"] == "s" and "unit" not in about["F1"]
    assert all(entry["definition"] for entry in about.values())
    parameters = [key for line in lines if line.get("step") == "PARAMETER" for key in line["data"]]
    assert parameters == [
        "Config", "SEED", "loading_checkpoint", "loaded_checkpoint", "model_weights_num",
        "Cached_train features_file", "train_start", "training_samples", "training_features",
        "train_batch_size", "steps", "infer_start", "eval_samples", "eval_features",
        "predict_batch_size",
    ]  # fmt: skip
    steps = [line for line in lines if isinstance(line.get("step"), list) and line["step"]]
    assert [line["step"] for line in steps] == [[1, 2], [1, 3], [2, 4]]
    assert steps[0]["data"] == {"step_loss": 3.0, "learning_rate": 1e-5, "step_fps": 1.0}
    last = {k: v for line in lines if line.get("step") == [] for k, v in line["data"].items()}
    assert last == {
        "e2e_train_time": 93.0, "training_sequences_per_second": 24.0, "final_loss": 1.0,
        "e2e_inference_time": 7.0, "inference_sequences_per_second": 50.0,
        "exact_match": 81.5, "F1": 88.25,
    }  # fmt: skip
    assert set(about) == set(last)
    assert json.loads((tmp_path / "predictions.json").read_text()) == {"q": 'the "end"'}
    assert json.loads((tmp_path / "final_report.json").read_text()) == {
        "model": "bert", "train_batch_size": 8, "epochs": 2.0, "training_step_per_epoch": 2,
        "device": "gcu", "skip_steps": 2, "train_fps_mean": 24.0, "train_fps_min": 20.0,
        "train_fps_max": 30.0, "training_time": "0:01:33", "predict_num_examples": 90,
        "predict_batch_size": 8, "exact_match": 81.5, "f1": 88.25,
    }  # fmt: skip
    assert "Final report:" in "".join(closing(tmp_path))


def test_what_was_not_measured_is_absent(tmp_path):
    outputs = made(tmp_path, trains=False)
    outputs.init_stop()
    outputs.run_start(step=0, samples=0)
    outputs.on_eval(evaluation())
    finish(outputs, run_time_s=10.0, eval_s=7.0)
    named = {k for line in read(tmp_path) if line.get("step") == [] for k in line["data"]}
    assert named == {"e2e_inference_time", "inference_sequences_per_second"}
    report = json.loads((tmp_path / "final_report.json").read_text())
    assert not [key for key in report if key.startswith("train")] and "f1" not in report


def test_the_n_best_answers_are_written_unless_unwanted(tmp_path):
    for wanted in (True, False):
        folder = tmp_path / str(wanted)
        folder.mkdir()
        made(folder, write_nbest=wanted).on_eval(evaluation())
        assert (folder / "predictions.json").is_file()
        assert (folder / "nbest_predictions.json").is_file() == wanted


def test_a_run_that_failed_at_once_still_closes_its_files(tmp_path):
    outputs = made(tmp_path)
    finish(outputs)
    assert read(tmp_path) == [] and not (tmp_path / "predictions.json").exists()


def test_the_second_copy_is_refused_early(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="json_summary"):
        made(tmp_path, json_summary=tmp_path / "file" / "below.json")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("print('article=3')\nprint('{\"f1\": 2, \"HasAns_f1\": 1}')", {"f1": 2, "HasAns_f1": 1}),
        ("import sys; sys.exit('no such key')", {"error": "exit code 1: no such key"}),
        ("print('done')", {"error": "its output does not end with a JSON object but with: done"}),
        ("print('[1, 2]')", {"error": "its output does not end with a JSON object"}),
        ("print('{}')\nprint('and more')", {"error": "its output does not end with a JSON object"}),
        ("pass", {"error": "its output does not end with a JSON object"}),
        # as the official script of v2.0 does
        ("import json; print(json.dumps({'exact': 1, 'f1': 2}, indent=2))", {"exact": 1, "f1": 2}),
        ("import sys; sys.stdout.buffer.write(b'\\xc4\\xe3\\n{\"f1\": 2}')", {"f1": 2}),
        (
            "import json, sys; print(json.dumps({'f1': [open(f).read() for f in sys.argv[1:]]}))",
            {"f1": ["D", "P"]},
        ),
    ],
)  # fmt: skip
def test_a_users_script_is_run_and_the_end_of_its_output_read(tmp_path, code, told):
    for name, content in (("dataset", "D"), ("predictions", "P"), ("script.py", code)):
        (tmp_path / name).write_text(content)
    found = run_script(tmp_path / "script.py", tmp_path / "dataset", tmp_path / "predictions")
    if "error" in told:
        assert found["error"].startswith(told["error"])
    else:
        assert found == told


@pytest.mark.parametrize(
    ("told", "metrics"),
    [
        ('{"exact_match": 1.5, "f1": 2}', {"eval_script_exact_match": 1.5, "eval_script_f1": 2.0}),
        ('{"exact": 1.5, "f1": true}', {"eval_script_exact_match": 1.5}),
        ('{"exact_match": NaN, "f1": Infinity}', {}),
        ('{"accuracy": 3}', {}),
    ],
)
def test_only_numbers_of_a_users_script_are_metrics(tmp_path, told, metrics):
    script = tmp_path / "script.py"
    script.write_text(f"print({told!r})")
    found, everything = script_scores(script, tmp_path / "dataset", {"q": "a"})
    assert found == metrics
    assert ("error" in everything) == (not metrics)
    json.dumps(everything, allow_nan=False)


HELD = "import subprocess; subprocess.Popen(['sleep', '60'])"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("print('{\"f1\": ' * 100_000)", "does not end with a JSON object"),
        ("print('{\"f1\": ' + '[' * 100_000)", "does not end with a JSON object"),
        ("print('{\"f1\": ' + '9' * 5000 + '}')", "does not end with a JSON object"),
        ("print('{\"f1\": 1e999}')", "does not end with a JSON object"),
        ("print('\\x1b[2J\\u202e')", "with: ?[2J?"),
        ("import os; os.close(1); os.close(2)", "does not end with a JSON object"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe')", "does not end with a JSON object"),
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9"),
        ("raise ValueError('no\\nsuch')", "exit code 1: such"),
        ("input()", "exit code 1: EOFError"),
        ("import sys; sys.stdout.write('x' * (64 << 20))", "but with: xxx"),
        ("while True: pass", "it did not end within 0.02 minutes (--eval_script_minutes)"),
        ("while True: print('{}')", "it did not end within 0.02 minutes"),
        (f"{HELD}; import time; time.sleep(60)", "it did not end within 0.02 minutes"),
        (HELD, "does not end with a JSON object"),
        ("import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True: pass", "did not end"),
        ("print('{\"f1\": {\"a\": ' * 1 + '{}' + '}}')", "reports neither"),
        ("print('{\"f1\": ' + '[' * 90 + ']' * 90 + '}')", "reports neither"),
    ],
)
def test_whatever_a_users_script_does_the_run_goes_on_in_time(tmp_path, code, error):
    script = tmp_path / "script.py"
    script.write_text(code)
    minutes = 0.02 if "did not end" in error else 1
    began = time.monotonic()
    found, everything = script_scores(script, tmp_path / "dataset", {"q": "\ud800"}, minutes)
    assert time.monotonic() - began < 20
    assert found == {} and error in everything["error"]
    assert "\n" not in everything["error"] and everything["error"].isprintable()
    assert len(json.dumps(everything, allow_nan=False, indent=1)) < 5000


def test_what_a_users_script_prints_besides_numbers_is_bounded(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json\nprint(json.dumps({'f1': 2.5, **{f'k{i}': 'x' * 999 for i in range(900)}}))"
    )
    found, everything = script_scores(script, tmp_path / "dataset", {"q": "a"})
    assert found == {"eval_script_f1": 2.5} and len(json.dumps(everything)) < 30_000


def test_no_room_for_the_answers_of_a_users_script(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    found, everything = script_scores(tmp_path / "script.py", tmp_path / "dataset", {"q": "a"})
    assert found == {} and "No such file" in everything["error"]


def test_a_script_that_fails_is_told_at_the_end(tmp_path):
    manifest = {"extras": {"scoring": {"eval_script": {"error": "exit code 1: no such key"}}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert closing(tmp_path) == ["--eval_script reported no scores: exit code 1: no such key"]


def test_a_run_that_goes_on_keeps_the_first_parts_lines_in_the_second_copy(tmp_path):
    copy = tmp_path / "copy.json"
    for resumed, kept in ((False, 0), (True, 1), (False, 0)):
        folder = tmp_path / "record"
        folder.mkdir(exist_ok=True)
        before = copy.read_text().count("\n") if copy.exists() else 0
        outputs = made(folder, resumed=resumed, json_summary=copy)
        outputs.init_stop()
        finish(outputs)
        own = (folder / "dllogger.json").read_text().count("\n")
        assert copy.read_text().count("\n") == own + kept * before
