# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that is cut short by a kill or a full disk never counts."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bertbench.common.errors import BadInput
from bertbench.common.training import checkpoint
from bertbench.common.training.checkpoint import Checkpoints

REPO = Path(__file__).parents[2]

KILLED = """
import os, signal, sys, pathlib, torch
from bertbench.common.training import checkpoint
checkpoints = checkpoint.Checkpoints(pathlib.Path(sys.argv[1]), keep=1)
checkpoints.save(1, {"model": {"w": torch.ones(1000)}}, {"step": 1})
real, left = getattr(checkpoint, sys.argv[2]), int(sys.argv[3])
def dies(*args):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
setattr(checkpoint, sys.argv[2], dies)
checkpoints.save(2, {"model": {"w": torch.zeros(1000)}, "rank_0000": {"r": torch.ones(1)}}, {})
"""


@pytest.mark.parametrize(
    ("where", "count", "latest"),
    [
        ("_save_group", 1, 1),  # nothing written
        ("_save_group", 2, 1),  # one group of two
        ("file_sha256", 1, 1),  # files, no manifest
        ("sync", 1, 1),  # all written, not durable
        ("sync", 6, 2),  # renamed, the old one not deleted yet
    ],
)
def test_a_kill_leaves_a_complete_checkpoint(
    tmp_path: Path, where: str, count: int, latest: int
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), where, str(count)]
    process = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.latest() == tmp_path / f"step_0000000{latest}"
    assert checkpoints.load()[0]["model"]["w"].sum() == (1000 if latest == 1 else 0)
    checkpoints.save(3, {"model": {"w": torch.ones(1)}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]  # and cleans up


def test_a_full_disk_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"model": {"w": torch.ones(2)}}, {})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(BadInput, match=r"No space left on device.*--skip_checkpoint"):
        checkpoints.save(2, {"model": {"w": torch.ones(2)}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert checkpoints.load()[0]["model"]["w"].sum() == 2
