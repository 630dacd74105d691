# SPDX-License-Identifier: Apache-2.0
"""Standard streams that break, terminals that lack characters, and disks that fill in a run."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from bertbench.common.cli.main import main
from bertbench.common.cli.verbs import VERBS
from bertbench.common.files import OutputLost, Stream
from bertbench.common.results.validate import validate
from bertbench.common.training.console import ConsoleObserver
from bertbench.common.training.events import RunSummary, StepEvent
from tests.unit.test_closing import TINY, content

ROOT = Path(__file__).parents[2]
SHELL = f'"{sys.executable}" -m bertbench '


def full(stream: str = "/dev/full", **options: Any) -> Any:
    return Path(stream).open("w", encoding="utf-8", **options)


class Terminal(io.TextIOWrapper):
    """A terminal that is gone after some writes."""

    def __init__(self, writes: int, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self.left = writes

    def isatty(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(5, "Input/output error")
        return super().write(text)


def test_a_verb_without_memory_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(VERBS["list"].__class__, "load", Mock(side_effect=MemoryError("4 GiB")))
    assert main(["list"]) == 1
    assert capsys.readouterr().err == "bertbench list: out of memory: MemoryError: 4 GiB\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("list > /dev/full", 1, "bertbench list: cannot write to standard output: No space left"),
        ("list >&-", 1, "bertbench list: cannot write to standard output: it is closed"),
        ("list --json > /dev/full", 1, "bertbench list: cannot write"),
        ("help > /dev/full", 1, "bertbench: cannot write"),
        ("compare --help > /dev/full", 1, "bertbench compare: cannot write"),
        ("no_such_verb > /dev/full", 2, "unknown verb"),
        ("list > /dev/full 2>&-", 1, ""),
        ("no_such_verb >&- 2>&-", 2, ""),
        ("no_such_verb 2> /dev/full", 2, ""),
        ("list <&- >&- 2>&-", 1, ""),
    ],
)
def test_a_verb_whose_output_is_lost_ends_in_one_line(words: str, code: int, message: str) -> None:
    done = subprocess.run(
        ["bash", "-c", SHELL + words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.stderr.startswith(message) if message.startswith("bert") else message in done.stderr
    assert not message or len(done.stderr.strip().splitlines()) <= 2


def test_a_reader_that_leaves_in_training_is_a_note(tmp_path: Path) -> None:
    words = " ".join(["run", "mini", *TINY, "--max_steps", "30", "--output_dir", str(tmp_path)])
    done = subprocess.run(
        ["bash", "-c", SHELL + words + " | head -1; echo ${PIPESTATUS[0]}"],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.stdout.splitlines()[1:] == ["0"] and "Traceback" not in done.stderr
    (folder,) = tmp_path.glob("box/*/*")
    assert "step 30/30" in (folder / "console.log").read_text()
    assert json.loads((folder / "manifest.json").read_text())["status"] == "ok"


def test_a_reader_that_leaves_is_no_error_message() -> None:
    done = subprocess.run(
        ["bash", "-c", SHELL + "list | true; echo ${PIPESTATUS[0]}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.stdout, done.stderr) in (("1\n", ""), ("0\n", ""))


def test_a_file_name_that_the_terminal_lacks_is_shown_with_escapes(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/d\xc3\xa4ta-\xff"
    done = subprocess.run(
        [sys.executable, "-m", "bertbench", "validate", name],
        cwd=ROOT, capture_output=True, timeout=120,
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
    )  # fmt: skip
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert b"d\\xe4ta-" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_text_that_an_encoding_lacks_is_written_with_escapes(encoding: str) -> None:
    raw = io.BytesIO()
    stream = Stream(io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    print("\u4e2d\udcff", file=stream, flush=True)
    assert raw.getvalue() == b"\\u4e2d\\udcff\n" and stream.problem is None


def test_a_strict_stream_raises_at_every_write() -> None:
    stream = Stream(full(buffering=1), strict=True)
    for _ in range(2):
        with pytest.raises(OutputLost, match="No space left"):
            stream.write("x\n")
    outer = Stream(stream)
    outer.write("x\n")
    assert outer.problem == "No space left on device"


@pytest.mark.parametrize("flags", [(), ("--json",)])
@pytest.mark.parametrize("kind", ["full", "closed", "gone", "left", "none", "narrow"])
def test_a_terminal_that_breaks_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, flags: tuple[str, ...]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    broken = {
        "full": full, "closed": lambda: closed, "gone": lambda: Terminal(5),
        "left": lambda: os.fdopen(os.dup(writing), "w"), "none": lambda: None,
        "narrow": lambda: Terminal(10**6, "ascii"),
    }[kind]  # fmt: skip
    monkeypatch.setattr(sys, "stdout", broken())
    monkeypatch.setattr(sys, "stderr", broken())
    out = tmp_path / "\u00e9\udcff"
    code = main(["run", "mini", *TINY, "--output_dir", str(out), *flags])
    os.close(writing)
    monkeypatch.undo()
    assert code == 0
    notes = content(out)["notes"]
    assert any("terminal can no longer be written" in n for n in notes) == (kind != "narrow")
    (folder,) = out.glob("box/*/*")
    log = (folder / "console.log").read_text()
    assert "step 2/2" in log and "ok: max_steps reached" in log


def test_a_log_that_breaks_does_not_end_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    lost: list[str] = []
    console = ConsoleObserver(max_steps=1, target=None, log=full(), lost=lost.append)
    console.run_start(step=0, samples=0)
    console.close(RunSummary(status="ok", reason="done", step=1, samples=1))
    assert lost == ["console.log can no longer be written: No space left on device"]
    out = capsys.readouterr().out
    assert out.count("note: console.log can no longer be written") == 2 and "ok: done" in out


STEP = StepEvent(
    step=40, samples=640, loss=7.8364, metrics={"mlm_accuracy": 0.0677}, learning_rate=1.56e-3,
    grad_norm=2.29, loss_scale=65536.0, skipped_steps=1, window_steps=20, window_s=1.0,
    sequences_per_second=20.4, real_tokens_per_second=2274.0, padded_tokens_per_second=None,
    data_wait_s=0.0, time_s=2.0, eta_s=910.0,
)  # fmt: skip


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
def test_a_step_fits_the_terminal_and_the_log_has_all(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    log = io.StringIO()
    ConsoleObserver(max_steps=1200, target=None, log=log).on_step(STEP)
    shown = capsys.readouterr().out.rstrip("\n")
    assert len(shown) <= max(columns, 60) and "\n" not in shown
    assert all(text in shown for text in ("40/1200", "20.4 seq/s", "at most 15:10 left"))
    whole = log.getvalue().rstrip("\n")
    assert "2274 tok/s" in whole and "|g| 2.29" in whole and "scale 65536 skipped 1" in whole
    assert (shown == whole) == (columns == 200)


def test_an_event_file_that_breaks_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hook = threading.excepthook

    class Writer:
        def __init__(self, folder: str, **_: Any) -> None:
            self.folder = folder

        def fail(self, *_: Any) -> None:
            class Worker(threading.Thread):
                __module__ = "tensorboard.summary"

            thread = Worker(target=lambda: 1 / 0)  # fails as the writer's does
            thread.start()
            thread.join()
            raise OSError(28, "No space left on device")

        add_scalar = add_text = flush = close = fail

    for module in ("common.report.tracking", "common.report.tensorboard"):
        monkeypatch.setattr(f"bertbench.{module}.writer_class", lambda: Writer)
    flags = ("--tensorboard", str(tmp_path / "events"), "--output_dir", str(tmp_path / "out"))
    assert main(["run", "mini", *TINY, *flags]) == 0
    notes = content(tmp_path / "out")["notes"]
    assert notes.count("TensorBoard: No space left on device") == 1
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is hook


def test_a_small_disk_ends_a_run_in_one_line(tmp_path: Path) -> None:
    """The kernel refuses every file beyond 24 KiB: steps.jsonl is the first to get there."""
    words = [*TINY, "--max_steps", "200", "--output_dir", str(tmp_path)]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (24 << 10, 24 << 10))

    done = subprocess.run(
        [sys.executable, "-m", "bertbench", "run", "mini", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=240, preexec_fn=limit,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    (folder,) = tmp_path.glob("box/*/*")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "failed" and "File too large" in manifest["reason"]
    assert "can no longer be written" in done.stdout
    assert not [p for p in validate(folder) if p.severity == "error"]
    lines = (folder / "steps.jsonl").read_text()
    assert lines.endswith("\n") and all(json.loads(line) for line in lines.splitlines())
