# SPDX-License-Identifier: Apache-2.0
"""Killed outright, `bertbench data prepare` leaves no process behind and goes on where it was."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil

PROGRAM = """
import sys
from pathlib import Path
from bertbench.common.prepare import parts, from_text as prepare
from bertbench.common.prepare.masking import MaskingOptions

if __name__ == "__main__":
    parts.PART_BYTES = 20_000
    folder, output, processes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    prepare.prepare(prepare.PrepareOptions(
        text=(folder / "text",), output=output, train_vocab=200, processes=processes,
        num_shards=3, masking=MaskingOptions(max_seq_length=64, dupe_factor=3),
    ))
"""
PATIENCE_S = 120


def wait_for(what) -> None:
    """Until ``what()`` is true; a failure after a very long time only."""
    for _ in range(PATIENCE_S * 20):
        if what():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_killed_and_restarted(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(300)]
    (tmp_path / "text").mkdir()
    for number in range(30):
        sentences = (" ".join(rng.choices(words, k=12)) + " ." for _ in range(400))
        text = "".join(f"{s}\n" + ("\n" if rng.random() < 0.1 else "") for s in sentences)
        (tmp_path / "text" / f"{number:02d}").write_text(text)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def start(name: str, processes: int) -> subprocess.Popen:
        arguments = [str(tmp_path), str(tmp_path / name), str(processes)]
        root = Path(__file__).parents[2]
        return subprocess.Popen(
            [sys.executable, str(program), *arguments],
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            cwd=root,
            stderr=subprocess.DEVNULL,
        )

    killed = start("killed", 2)
    work = tmp_path / "killed" / ".work"
    wait_for(lambda: list(work.glob("part-*.json")) or killed.poll() is not None)
    assert killed.poll() is None, "it ended before it could be killed"
    children = psutil.Process(killed.pid).children(recursive=True)
    assert children
    killed.kill()
    killed.wait()
    wait_for(lambda: not any(child.is_running() for child in children))
    assert not (tmp_path / "killed" / "manifest.json").exists()

    assert start("killed", 1).wait() == 0
    assert start("unbroken", 1).wait() == 0
    one, two = (sorted((tmp_path / n).rglob("*.hdf5")) for n in ("killed", "unbroken"))
    assert len(one) == 4
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
