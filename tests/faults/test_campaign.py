# SPDX-License-Identifier: Apache-2.0
"""The campaign of faults for a minute (by hand it does thousands), and the library it relies on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import shim
from tests.faults.campaign import KINDS
from tests.faults.hosts import why_not

ROOT = Path(__file__).parents[2]
ARMED = """
import errno, os, signal, sys, time
from pathlib import Path
sys.path[0] = sys.argv[1]
from tests.faults import shim
shim.preloaded()
folder, plan = Path(sys.argv[2]), shim.Plan.shared()

plan.set("write", "errno", errno.ENOSPC, 2, prefix=folder)
plan.arm()
with open(folder / "a", "wb", 0) as file:
    file.write(b"1")
    try:
        file.write(b"2")
    except OSError as error:
        assert error.errno == errno.ENOSPC
    file.write(b"3")
assert (folder / "a").read_bytes() == b"13" and plan.fired == 1
assert os.fsdecode(plan.fired_path) == str(folder / "a")

plan.set("fsync", "errno", errno.EIO, 1, True, folder / "elsewhere")
plan.armed = 1
os.fsync(os.open(folder / "a", os.O_RDWR))
assert not plan.fired and not plan.seen[shim.CALLS.index("fsync")]

plan.set("clock", "clock", -3600, 2, True)
plan.armed = 1
assert -3601 < -time.time() + time.time() < -3599

plan.set("mkdir", "signal", signal.SIGTERM, 1, prefix=folder)
plan.armed = 1
os.mkdir(folder / "b")
"""


def built() -> None:
    try:
        shim.build()
    except RuntimeError as error:
        pytest.skip(str(error))


def survives(script: str, *flags: str) -> None:
    """Do the campaign's first cases; what is not right is in the message."""
    built()
    flags = flags or ("--n", "20", "--seconds", "40")
    done = subprocess.run(
        [sys.executable, script, "--seed", "1", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_the_library_disturbs_the_call_that_it_is_asked_to(tmp_path: Path) -> None:
    built()
    command = [sys.executable, "-c", ARMED, str(ROOT), str(tmp_path.resolve())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -15, done.stderr


def test_faults_are_survived() -> None:
    """Nothing is lost, no number wrong, nothing hangs, no traceback."""
    kinds = [word for kind in KINDS if kind != "hosts" for word in ("--kind", kind)]
    survives("tests/faults/campaign.py", "--n", "20", "--seconds", "40", *kinds)


def test_two_hosts_end_with_the_losses_of_a_run_without_a_fault() -> None:
    """Or their records say that they did not end: killed, stopped, cut off, slow, full."""
    if reason := why_not():
        pytest.skip(reason)
    survives("tests/faults/campaign.py", "--kind", "hosts", "--n", "50", "--jobs", "6")
