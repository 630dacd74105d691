# SPDX-License-Identifier: Apache-2.0
"""scripts/run_sparse_int8.sh: the order of its steps, what it takes from where, and resuming."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bertbench.benchmarks.bert_inference import pipeline
from bertbench.common.cli.verbs import VERBS


class Commands:
    """Stands in for the commands: writes what they would, and fails where it is asked to."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []
        self.fails: dict[str, tuple[int, str | None]] = {}
        """A word -> exit code, and the record's status where one is left."""

    def __call__(self, words: Sequence[str]) -> int:
        self.seen.append(list(words))
        code, status = next((self.fails[w] for w in words if w in self.fails), (0, "ok"))
        if "--output_dir" in words:
            folder = Path(words[words.index("--output_dir") + 1]) / "system" / "benchmark"
            record = folder / f"run{len(list(folder.glob('*'))):03d}"
            record.mkdir(parents=True)
            if "--resume" not in words:  # a run that had all its steps saves nothing again
                (record / "checkpoints" / "step_00000001").mkdir(parents=True)
            if status is not None:
                (record / "manifest.json").write_text(json.dumps({"status": status}))
        return code

    def names(self) -> list[str]:
        return [next(w for w in words if w in {*VERBS, "-m"}) for words in self.seen]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands()
    monkeypatch.setattr(pipeline, "call", made)
    return made


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "dev.json").write_text("{}")
    return ["--predict_file", str(tmp_path / "dev.json"), "--output", str(tmp_path / "out")]


def after(words: Sequence[str], flag: str) -> str:
    """Return the value of a flag that is given once."""
    assert words.count(flag) == 1
    return words[words.index(flag) + 1]


def test_every_model_is_trained_from_its_start_exported_and_measured(
    commands: Commands, words: list[str], tmp_path: Path
) -> None:
    assert pipeline.main([*words, "--", "--train_file", "t.json", "--backend", "cpu_ref"]) == 0
    trained = [w for w in commands.seen if "-m" in w]
    out = tmp_path / "out"
    starts = [
        w[w.index("--init_checkpoint") + 1] if "--init_checkpoint" in w else "" for w in trained
    ]
    weights = [f"{out}/{name}/weights/model.safetensors" for name in ("dense-fp32", "sparse-fp32")]
    assert starts == ["", weights[0], weights[0], weights[1]]
    assert all(after(w, "--starts_from") == "checkpoint" for w in trained[1:])
    assert "--starts_from" not in trained[0]
    kinds = [(after(w, "--weight_sparsity"), after(w, "--quantization")) for w in trained]
    assert kinds == [("None", "None"), ("None", "int8"), ("2:4", "None"), ("2:4", "int8")]
    assert all(after(w, "--train_file") == "t.json" for w in trained)
    # Each kind of training has its own rate; 2:4's has as many epochs as the recipe.
    assert ["--learning_rate" in w for w in trained] == [False, True, True, True]
    exported = [w for w in commands.seen if "export-onnx" in w]
    assert [Path(w[2]).is_dir() and w[2].split("/")[-5] for w in exported] == [
        "dense-fp32", "dense-int8", "sparse-fp32", "sparse-int8"
    ]  # fmt: skip
    assert sum("sparsity" in w for w in commands.seen) == 2
    measured = [w for w in commands.seen if "infer" in w]
    assert [after(w, "--scenario") for w in measured] == ["Offline"] * 4 + ["SingleStream"] * 4
    assert "report" in commands.seen[-1] and len(commands.seen) == 4 + 4 + 2 + 2 + 8 + 1


def test_the_same_command_does_what_is_left(commands: Commands, words: list[str]) -> None:
    commands.fails["int8"] = (130, None)
    assert pipeline.main(words) == 1
    assert commands.names() == ["-m", "export-onnx", "export-weights", "-m"]
    commands.seen, commands.fails = [], {}
    assert pipeline.main(words) == 0
    first = commands.seen[0]
    assert after(first, "--quantization") == "int8" and after(first, "--resume") == "last"
    assert sum("-m" in w for w in commands.seen) == 3
    exported = next(w for w in commands.seen if "export-onnx" in w)
    assert Path(exported[2]).name == "run000"  # which has the checkpoint
    commands.seen = []
    assert pipeline.main(words) == 0
    assert commands.names() == ["report"]


def test_other_flags_on_the_same_folder_are_refused(
    commands: Commands, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline.main(words) == 0
    assert pipeline.main([*words, "--", "--seed", "2"]) == 2
    said = capsys.readouterr().err
    assert "made by another command" in said and "another --output" in said


def test_an_invalid_measurement_is_reported_and_measured_again(
    commands: Commands, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    commands.fails["SingleStream"] = (1, "failed")
    assert pipeline.main(words) == 1
    assert "dense-int8: SingleStream" in capsys.readouterr().err
    assert "report" in commands.seen[-1]
    commands.seen, commands.fails = [], {}
    assert pipeline.main(words) == 0
    assert commands.names() == [*["infer"] * 4, "report"]


def test_a_missed_target_is_a_result(commands: Commands, words: list[str]) -> None:
    commands.fails["-m"] = (1, "below_quality")
    assert pipeline.main(words) == 0


def test_a_finished_run_replaces_the_dense_training(
    commands: Commands, words: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert pipeline.main([*words, "--dense", str(run)]) == 2  # not a record
    (run / "manifest.json").write_text('{"status": "interrupted"}')
    assert pipeline.main([*words, "--dense", str(run)]) == 2  # still running, or cut off
    (run / "manifest.json").write_text('{"status": "ok"}')
    assert pipeline.main([*words, "--dense", str(run)]) == 0
    assert sum("-m" in w for w in commands.seen) == 3
    assert commands.seen[0][1:3] == ["export-onnx", str(run)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scenarios", "Online"], "--scenarios Online: choose from Offline"),
        (["--predict_file", "none.json"], "none.json: no such file"),
    ],
)
def test_wrong_words_are_refused_before_anything_runs(
    commands: Commands, words: list[str], more: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert pipeline.main([*words, *more]) == 2
    assert message in capsys.readouterr().err
    assert commands.seen == []


def test_a_dry_run_prints_commands_that_the_verbs_know(
    commands: Commands, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline.main([*words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    verbs: set[Any] = {
        line.split("bin/bertbench ")[1].split()[0] for line in lines if "bin/bertbench" in line
    }
    assert commands.seen == [] and verbs <= set(VERBS)


CHILD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)  # a command that saves first
def stop(*_):
    print("saved", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGINT", "SIGTERM"]])
def test_a_signal_never_leaves_the_command_behind(signals: list[str]) -> None:
    """After Ctrl-C, too, SIGTERM goes to the command, and the pipeline waits for it."""
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from bertbench.benchmarks.bert_inference.pipeline import call\n"
        f"call([sys.executable, '-c', {CHILD!r}])\nprint('waited')"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    for name in signals:
        started.send_signal(getattr(signal, name))
        time.sleep(0.5)
    said, _ = started.communicate(timeout=60)
    assert said.startswith("saved") and (signals[0] == "SIGINT" or "waited" in said)
    assert started.returncode != -signal.SIGTERM
