# SPDX-License-Identifier: Apache-2.0
"""A disk that is full at any write of `bertbench data prepare` ends in one line, and no crash."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource, sys
from pathlib import Path
from bertbench.common.errors import BadInput
from bertbench.common.prepare import parts, from_text as prepare
from bertbench.common.prepare.masking import MaskingOptions

parts.PART_BYTES = 20_000
folder, layout = Path(sys.argv[1]), sys.argv[2]
options = prepare.PrepareOptions(
    text=(folder / "text",), output=folder / "out", train_vocab=200, processes=1, num_shards=3,
    format=layout,
    masking=MaskingOptions(max_seq_length=64, max_predictions_per_seq=10, dupe_factor=3),
)
largest, lines = 0, []
for limit in [1, 300, 3000, *range(20_000, 600_000, 20_000), resource.RLIM_INFINITY]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        prepare.prepare(options)
        result = "ok"
    except BadInput as error:
        result = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print((folder / "out" / "manifest.json").exists(), repr(result), flush=True)
"""


def write_text(folder: Path) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(300)]
    sentences = (" ".join(rng.choices(words, k=12)) + " ." for _ in range(2000))
    text = "".join(f"{s}\n" + ("\n" if rng.random() < 0.1 else "") for s in sentences)
    (folder / "text").write_text(text)


@pytest.mark.parametrize("layout", ["varlen", "fixed"])
def test_a_full_disk_is_one_line_and_goes_on_where_it_was(tmp_path: Path, layout: str) -> None:
    write_text(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path), layout],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    *failed, last = done.stdout.splitlines()
    assert last == "True 'ok'"
    early = [line for line in failed if line != last]
    assert len(early) > 5
    for line in early:
        assert line.startswith("False ")
        assert "File too large: raise the limit" in line
        assert "\\n" not in line
    out = tmp_path / "out"
    assert not list(out.rglob(".*.tmp"))
    assert not list(out.rglob("*.partial"))
    assert {path.name for path in out.iterdir()} == {
        *("3_shards_uncompressed", "eval_set_uncompressed", "manifest.json", "vocab.txt"),
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_one_line(tmp_path: Path, number: int) -> None:
    write_text(tmp_path)
    text = (tmp_path / "text").read_text() * 3
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"It is {name}.\nSo.\n\n" + text)
    process = subprocess.Popen(
        [sys.executable, "-c",
         "import sys; from bertbench.common.prepare import parts; parts.PART_BYTES = 10_000;"
         "from bertbench.common.cli.main import main; sys.exit(main())",
         "data", "prepare", "--text", str(tmp_path / "a"), str(tmp_path / "b"),
         "--output", str(tmp_path / "out"), "--train_vocab", "200", "--processes", "2",
         "--dupe_factor", "40"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    work = tmp_path / "out" / ".work"
    end = time.monotonic() + 120
    while not list(work.glob("part-*.json")) and time.monotonic() < end:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    sent = time.monotonic()
    os.killpg(process.pid, number)  # as a terminal does
    _, shown = process.communicate(timeout=60)
    assert time.monotonic() - sent < 20
    assert "Traceback" not in shown
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert shown.splitlines()[-1] == "bertbench data: stopped"
    assert work.is_dir()
    assert not (tmp_path / "out" / "manifest.json").exists()
