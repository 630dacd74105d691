# SPDX-License-Identifier: Apache-2.0
"""A killed run leaves a record that says so."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bertbench.common.cli.validate import main
from bertbench.common.results.validate import validate

REPO = Path(__file__).parents[2]

KILLED = """
import os, pathlib, signal, sys
from bertbench.backends.base import DeviceInfo
from bertbench.common.training.events import RunSummary
from bertbench.common.results import record as module
from bertbench.common.results.record import RunRecord

where, count = sys.argv[2], int(sys.argv[3])
def die():
    os.kill(os.getpid(), signal.SIGKILL)
if where in ("_write_json", "checksum", "sealed"):
    real = getattr(module, where)
    def dies(*args):
        global count
        count -= 1
        if count == 0:
            die()
        return real(*args)
    setattr(module, where, dies)
config = dict(preset="toy", benchmark="b", recipe={}, impl={}, run={}, origins={}, notes=[])
record = RunRecord.create(
    pathlib.Path(sys.argv[1]), system="s", benchmark="b", config=config, seed=1, precision="fp32",
    devices=[DeviceInfo(backend="cpu_ref", name="n", index=0)],
)
record.run_start(step=0, samples=0)
if where == "line":
    record._steps._file.write(b'{"kind": "st')
    die()
record.close(RunSummary(status="failed", reason="x", step=0, samples=0))
"""


@pytest.mark.parametrize(
    ("where", "count", "status"),
    [
        ("_write_json", 3, None),  # before the folder has its name: no record
        ("line", 0, "interrupted"),  # in the middle of a line
        ("checksum", 2, "interrupted"),  # while closing
        ("sealed", 1, "interrupted"),  # just before the final manifest
        ("never", 0, "failed"),
    ],
)
def test_a_kill_leaves_interrupted_or_complete(
    tmp_path: Path, where: str, count: int, status: str | None
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), where, str(count)]
    process = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    expected = 0 if where == "never" else -signal.SIGKILL
    assert process.returncode == expected, process.stderr
    records = [path for path in tmp_path.glob("s/b/*") if not path.name.startswith(".")]
    if status is None:
        assert records == []
        return
    (record,) = records
    manifest = json.loads((record / "manifest.json").read_text())
    assert manifest["status"] == status
    assert (manifest["files"] is None) == (status == "interrupted")
    assert [p for p in validate(record) if p.severity == "error"] == []
    assert main([str(tmp_path)]) == 0
