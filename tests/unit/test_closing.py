# SPDX-License-Identifier: Apache-2.0
"""The end of a run: whatever fails after the last step, its result is in a valid record."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_pretraining.benchmark import BertPretraining
from bertbench.benchmarks.bert_pretraining.data import PretrainingSource
from bertbench.benchmarks.bert_pretraining.task import PretrainingTask
from bertbench.common import files
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.exchange.export_checks import check_sound
from bertbench.common.mlperf.log import MlperfLog
from bertbench.common.results import closing, record
from bertbench.common.results.closing import Closing
from bertbench.common.results.record import RunRecord
from bertbench.common.results.seals import incomplete
from bertbench.common.results.store import load_results
from bertbench.common.results.validate import validate
from bertbench.common.run import run
from bertbench.common.training.console import ConsoleObserver
from bertbench.common.training.progress import Outcome

TINY = """--synthetic --hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2
    --intermediate_size 32 --vocab_size 64 --max_seq_length 16 --max_predictions_per_seq 3
    --max_position_embeddings 16 --global_batch 4 --max_steps 2 --log_freq 1 --kernels plain
    --precision fp32 --backend cpu_ref --num_threads 1 --skip_checkpoint --system box""".split()


class Killed(BaseException):
    """What no handler of the product catches, as SIGKILL."""


def train(out: Path, *flags: str) -> int:
    return run(resolve("mini", [*TINY, "--output_dir", str(out), *flags])).exit_code


def content(out: Path) -> dict[str, Any]:
    (folder,) = out.glob("box/*/*")
    assert not [p for p in validate(folder) if p.severity == "error"]
    (result,), damaged = load_results([out], references=False)
    assert not damaged and result.status == "ok" and result.metrics["run_time_s"]["value"] > 0
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    assert (manifest["status"], manifest["step"]) == ("ok", 2)
    return manifest


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


GONE = FileNotFoundError(errno.ENOENT, "No such file or directory", "gone.hdf5")
FULL = OSError(errno.ENOSPC, "No space left on device")
CUT = incomplete("result_0.txt")
FAULTS: list[tuple[Any, str, Any, str]] = [
    (PretrainingSource, "hash", GONE, "the hash of the data is unknown: gone.hdf5: No such file"),
    (PretrainingSource, "checkpoint_hash", GONE, "the hash of the checkpoint is unknown"),
    (CpuRef, "device_count", RecursionError("too deep"), "MFU is unknown: RecursionError: too"),
    (closing, "utilisation", ZeroDivisionError("division by zero"), "MFU is unknown: ZeroDiv"),
    (closing, "utilisation", BadInput("p.toml: gone"), "MFU is unknown: p.toml: gone"),
    (closing, "reading", ValueError("NaN"), "sensors are unknown: ValueError: NaN"),
    (closing, "summarise", KeyError("x"), "metrics of all processes are unknown: KeyError"),
    (CpuRef, "peak_memory", OSError(5, "Input/output error"), "peak memory is unknown: Input"),
    (closing, "gradient_all_reduce_s", RuntimeError("left"), "gradient_all_reduce_s is unknown"),
    (World, "gather", RuntimeError("Connection closed"), "sensors and memory of all processes"),
    (PretrainingTask, "results", SystemExit(3), "results are unknown: SystemExit: 3"),
    (MlperfLog, "close", FULL, "result_0.txt is not complete: No space left on device"),
    (ConsoleObserver, "close", UnicodeError("odd"), "ConsoleObserver: UnicodeError: odd"),
    (BertPretraining, "closing", KeyError("script"), ""),
    (BertPretraining, "closing", KeyboardInterrupt(), ""),
]


@pytest.mark.parametrize(
    ("flags", "name"),
    [((), "model_flops_per_second"), (("--attention_mask", "star"), "effective_flops_per_second")],
)
def test_utilisation_is_of_the_flops_that_the_masked_model_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], name: str
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(closing, "utilisation", lambda rate, **_: asked.append(rate) or [])
    assert train(tmp_path, *flags) == 0
    found = {m["name"]: m["value"] for m in content(tmp_path)["metrics"]}
    assert asked == [found[name]]
    assert ("effective_flops_per_second" in found) == bool(flags)
    assert found[name] < found["model_flops_per_second"] or not flags


def test_the_console_prints_few_figures_and_the_record_has_all(tmp_path: Path, capsys: Any) -> None:
    assert train(tmp_path) == 0
    printed = capsys.readouterr().out
    (folder,) = tmp_path.glob("box/*/*")
    for text in (printed, (folder / "console.log").read_text()):
        assert "ok: max_steps reached, 8 samples in" in text and "\n  speed     " in text
        assert "e2e_time_s" not in text and "reference machine" not in text
    assert {m["name"] for m in content(tmp_path)["metrics"]} >= {"e2e_time_s", "data_wait_s"}
    command, own = printed.splitlines()[-2:]
    assert command.startswith("next ") and own.startswith("MLPerf log ")


@pytest.mark.parametrize(("owner", "name", "error", "note"), FAULTS)
def test_a_failure_after_the_last_step_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: Any, note: str
) -> None:
    metrics = Closing.metrics

    def ends(self: Closing, *values: Any, **named: Any) -> Any:
        monkeypatch.setattr(owner, name, raising(error))  # from here on, and not in training
        return metrics(self, *values, **named)

    monkeypatch.setattr(Closing, "metrics", ends)
    assert train(tmp_path) == 0
    assert [n for n in content(tmp_path)["notes"] if note in n]


@pytest.mark.parametrize(
    ("results", "missing"),
    [
        ({"odd": nested(5000)}, "odd is not in the record"),
        ({"odd": 10**5000}, "odd is not in the record"),
        ({"odd": object()}, "odd is not in the record"),
        ({"odd": "x" * 2_000_000}, "odd is not in the record: it is too large"),
        ({"odd": float("nan"), "\x1b[2J": {1, 2}}, "?[2J is not in the record"),
    ],
)
def test_results_that_cannot_be_written_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: dict[str, Any], missing: str
) -> None:
    monkeypatch.setattr(PretrainingTask, "results", lambda _: results | {"good": 1})
    assert train(tmp_path) == 0
    manifest = content(tmp_path)
    assert manifest["extras"]["good"] == 1
    assert [n for n in manifest["notes"] if n.startswith(missing)]


def test_a_calibration_that_is_damaged_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "calibration.json").write_text("[" * 100_000)
    assert train(tmp_path) == 0
    content(tmp_path)


def test_only_known_plain_files_are_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def litter(self: Closing, record: RunRecord, *others: Any) -> str | None:
        (record.path / "folder").mkdir()
        (record.path / "link").symlink_to("/dev/zero")
        os.mkfifo(record.path / "pipe")
        (record.path / ".odd name\n").write_text("x")
        (record.path / "telemetry.jsonl").mkdir()
        return finish(self, record, *others)

    finish = Closing.finish
    monkeypatch.setattr(Closing, "finish", litter)
    assert train(tmp_path) == 0
    (folder,) = tmp_path.glob("box/*/*")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {
        "config.json", "console.log", "result_0.txt", "settings.toml", "steps.jsonl", "system.json",
    }  # fmt: skip
    assert any(
        n == "not part of the record: .odd name?, folder, link, pipe, telemetry.jsonl"
        for n in manifest["notes"]
    )
    folder.chmod(0o755)
    (folder / "telemetry.jsonl").rmdir()
    found = {p.file for p in validate(folder) if p.severity == "error"}
    assert {"folder", "link", "pipe"} <= found  # as validate says, until removed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["metrics", "identify", "finish"])
def test_a_signal_after_the_last_step_does_not_interrupt_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, moment: str
) -> None:
    before, work = signal.getsignal(number), getattr(Closing, moment)

    def signalled(*values: Any, **named: Any) -> Any:
        for _ in range(2):
            os.kill(os.getpid(), number)
        return work(*values, **named)

    monkeypatch.setattr(Closing, moment, signalled)
    assert train(tmp_path) == 0
    assert "provisional" not in content(tmp_path)
    assert signal.getsignal(number) == before


def test_a_second_interrupt_ends_one_part_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(_: Any) -> str:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not interrupted")

    monkeypatch.setattr(PretrainingSource, "hash", hangs)
    assert train(tmp_path) == 0
    manifest = content(tmp_path)
    assert "data" not in manifest["inputs"] and "provisional" not in manifest
    assert "the hash of the data is unknown: KeyboardInterrupt" in manifest["notes"]


@pytest.mark.parametrize("moment", ["metrics", "identify", "finish"])
def test_a_kill_after_the_last_step_leaves_a_valid_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    work = getattr(Closing, moment)

    def killed(self: Closing, *values: Any, **named: Any) -> Any:
        if values[-1] is None:  # the identity of the provisional record
            return work(self, *values, **named)
        raise Killed

    monkeypatch.setattr(Closing, moment, killed)
    with pytest.raises(Killed):
        train(tmp_path)
    assert content(tmp_path)["provisional"] is True
    (folder,) = tmp_path.glob("box/*/*")
    assert any("was killed between" in p.text for p in validate(folder))
    with (folder / "console.log").open("a") as log:
        log.write("what the end of a run appends is not sealed yet\n")
    content(tmp_path)
    with (folder / "steps.jsonl").open("r+") as steps:
        steps.write(" ")
    assert any("checksum" in p.text for p in validate(folder) if p.severity == "error")


@pytest.mark.parametrize(("allowed", "code"), [(1, 0), (0, 1)])
def test_a_record_that_can_no_longer_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, allowed: int, code: int
) -> None:
    """The provisional one is kept; without it the run says that it is lost, and exits with 1."""
    seal, left = RunRecord.seal, [allowed]

    def full(self: RunRecord, *values: Any, **named: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            monkeypatch.setattr(record, "write_atomic", raising(FULL))
        seal(self, *values, **named)

    monkeypatch.setattr(RunRecord, "seal", full)
    assert train(tmp_path, "--json") == code
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert answer["metrics"]["run_time_s"] > 0
    if code == 0:
        assert content(tmp_path)["provisional"] and answer["status"] == "ok"
        return
    assert answer["status"] == "failed" and "No space left on device" in answer["reason"]
    assert "cannot be written" in err and "Traceback" not in err
    (folder,) = tmp_path.glob("box/*/*")
    assert json.loads((folder / "manifest.json").read_text())["status"] == "interrupted"
    assert not [p for p in validate(folder) if p.severity == "error"]


def test_an_observer_that_fails_in_training_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MlperfLog, "on_step", raising(FULL))
    assert train(tmp_path) == 0
    assert content(tmp_path)["notes"].count(f"{CUT}No space left on device") == 1


def test_a_log_ends_at_the_line_that_the_disk_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def step(self: MlperfLog, event: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(self._handler, "flush", raising(FULL) if event.step == 1 else str)
            on_step(self, event)

    on_step = MlperfLog.on_step
    monkeypatch.setattr(MlperfLog, "on_step", step)
    assert train(tmp_path) == 0
    (folder,) = tmp_path.glob("box/*/*")
    assert '"step": 2' not in (folder / "result_0.txt").read_text()
    assert f"{CUT}No space left on device" in content(tmp_path)["notes"]
    found = [(p.severity, p.text) for p in validate(folder) if p.file == "result_0.txt"]
    assert found == [
        ("note", f"no valid MLPerf log, and no submission: {CUT}No space left on device")
    ]
    with pytest.raises(BadInput, match="runs whose MLPerf log could not be written"):
        check_sound(load_results([folder], references=False)[0])
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_full_disk_in_training_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, kept: int
) -> None:
    write, left = files.Lines.write, [kept]

    def full(self: files.Lines, text: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise FULL
        write(self, text)

    monkeypatch.setattr(files.Lines, "write", full)
    assert train(tmp_path) == 1
    (folder,) = tmp_path.glob("box/*/*")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "failed" and "No space left on device" in manifest["reason"]
    assert not [p for p in validate(folder) if p.severity == "error"]
    assert "Traceback" not in "".join(capfd.readouterr())


def test_lines_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = files.Lines(tmp_path / "x")
    lines.write("one")
    real = lines._file

    class Half:
        def __init__(self) -> None:
            self.calls = 0

        def write(self, data: memoryview) -> int:
            self.calls += 1
            if self.calls > 1:
                raise FULL
            return real.write(data[:2]) or 0

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    lines._file = Half()  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space"):
        lines.write("two")
    assert (tmp_path / "x").read_text() == "one\n"


def test_a_thread_that_trains_on_after_a_loss_is_held(tmp_path: Path) -> None:
    """The other rank came back while the record was closed: no step may follow in it."""
    training = threading.Thread(target=closing.Halted().on_step, args=(None,), daemon=True)
    training.start()
    training.join(0.3)
    assert training.is_alive()


def test_a_peer_that_has_left_costs_no_result() -> None:
    notes: list[str] = []
    from bertbench.common.training.events import Observer
    from bertbench.common.training.progress import Progress, merge_windows

    class Notes(Observer):
        def note(self, text: str) -> None:
            notes.append(text)

    class Left:
        def gather(self, value: Any) -> list[Any]:
            raise RuntimeError("Connection closed by peer")

    assert merge_windows(Left(), None, [Notes()]) is None  # type: ignore[arg-type]
    assert notes == [
        "the rates of all processes are unknown: RuntimeError: Connection closed by peer"
    ]
    assert Outcome(status="ok", reason="", progress=Progress()).train_window is None


@pytest.mark.parametrize(
    "printed",
    ["'{\"f1\": ' + '[' * 100000", "'{\"f1\": ' + '9' * 5000 + '}'", "'{\"f1\": 1e999}'",
     "'[1]'", "''", "'{\"f1\": \"\\x1b[2J\"'"],
)  # fmt: skip
def test_an_evaluation_script_may_print_anything(tmp_path: Path, printed: str) -> None:
    from bertbench.benchmarks.bert_squad.scoring import script_scores

    script = tmp_path / "script.py"
    script.write_text(f"print({printed})")
    metrics, reported = script_scores(script, script, {})
    assert metrics == {} and reported["error"].isprintable()
