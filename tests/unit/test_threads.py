# SPDX-License-Identifier: Apache-2.0
"""Host threads follow affinity, cgroups and OMP_NUM_THREADS, and a busy machine is noted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertbench.common import files
from bertbench.common.cli.main import SPINS, main
from bertbench.common.files import cgroup_cores, host_cores
from bertbench.common.launch import threads
from bertbench.common.launch.threads import OtherWork, host_threads
from bertbench.common.results.scaling import NOT_CREDIBLE, ScalingPoint, as_dict, relate, render


def tree(root: Path, groups: str, **files_of: str) -> Path:
    """A system whose process is in these groups; names have ``__`` for a slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files_of.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_max", ".max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "4:memory:/x\n1:cpu,cpuacct:/jobs/7\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files_of", "expected"),
    [
        ("0::/\n", {"cpu_max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu_max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a__b__cpu_max": "max 100000", "a__cpu_max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a__b__cpu_max": "400000 100000", "a__cpu_max": "300000 100000"}, 3),
        ("0::/../../host/path\n", {"cpu_max": "50000 100000"}, 0.5),  # as a container sees it
        ("0::/gone\n", {}, None),
        ("", {}, None),
        ("no colons\n", {"cpu_max": "1 1"}, None),
        ("0::/\n", {"cpu_max": ""}, None),
        ("0::/\n", {"cpu_max": "many 100000"}, None),
        ("0::/\n", {"cpu_max": "1 0"}, None),
        ("0::/\n", {"cpu_max": "-1 100000"}, None),
    ],
)
def test_limits_of_cgroups_are_read(
    tmp_path: Path, groups: str, files_of: dict[str, str], expected: float | None
) -> None:
    assert cgroup_cores(tree(tmp_path, groups, **files_of)) == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("200000", "100000", 2), ("-1", "100000", None), ("0", "100000", None), ("1", "", None)],
)
def test_limits_of_version_1_are_read(
    tmp_path: Path, quota: str, period: str, expected: float | None
) -> None:
    root = tree(tmp_path, V1)
    folder = root / "sys/fs/cgroup/cpu,cpuacct/jobs/7"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu.cfs_period_us").write_text(period)
    assert cgroup_cores(root) == expected


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, 8), (2.0, 2), (1.5, 1), (0.1, 1), (64.0, 8)]
)
def test_the_cores_are_those_of_the_tightest_limit(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(files, "cgroup_cores", lambda: limit)
    assert host_cores() == expected


@pytest.mark.parametrize(
    ("environment", "local_size", "expected"),
    [
        ({}, 1, 8),
        ({}, 2, 4),
        ({}, 16, 1),
        ({"OMP_NUM_THREADS": "1"}, 1, 1),
        ({"OMP_NUM_THREADS": "3"}, 2, 3),
        ({"OMP_NUM_THREADS": "1"}, 2, 1),
        ({"OMP_NUM_THREADS": " 6,2"}, 1, 6),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, 2, 4),  # torchrun's default
        ({"OMP_NUM_THREADS": "2", "TORCHELASTIC_RUN_ID": "x"}, 2, 2),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, 1, 1),
        *(({"OMP_NUM_THREADS": t}, 1, 8) for t in ("", "0", "-1", "many", "9" * 50, "5000")),
    ],
)
def test_the_variable_counts_where_a_user_set_it(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], local_size: int, expected: int
) -> None:
    monkeypatch.setattr(threads, "host_cores", lambda: 8)
    assert host_threads(local_size, environment) == expected


@pytest.mark.parametrize(
    ("busy", "own", "local_size", "noted"),
    [(0.0, 0.0, 1, False), (40.0, 38.0, 1, False), (40.0, 19.0, 2, False), (40.0, 5.0, 1, True)],
)
def test_other_work_is_noted(
    monkeypatch: pytest.MonkeyPatch, busy: float, own: float, local_size: int, noted: bool
) -> None:
    """Ten seconds on four processors."""
    readings = iter([(0.0, 100.0, 1.0), (10.0, 100.0 + busy, 1.0 + own)])
    monkeypatch.setattr(OtherWork, "_read", lambda self: next(readings))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    found = OtherWork().notes(local_size)
    assert bool(found) == noted
    if noted:
        assert "3.5 of the machine's 4 processors" in found[0]


@pytest.mark.parametrize("readings", [(None, (10.0, 1e6, 1.0)), ((0.0, 1.0, 1.0), None)])
def test_a_system_that_does_not_say_has_no_other_work(
    monkeypatch: pytest.MonkeyPatch, readings: tuple[object, ...]
) -> None:
    each = iter(readings)
    monkeypatch.setattr(OtherWork, "_read", lambda self: next(each))
    assert OtherWork().notes(1) == []


def test_the_work_of_this_process_includes_children_that_still_run() -> None:
    """Those that read the data: they were taken for other work on every idle machine."""
    work = OtherWork()
    busy = "import time; t = time.process_time\nwhile t() < 0.5: pass\nprint(flush=True)\ninput()"
    command = [sys.executable, "-c", busy]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"\n"
        before, after = work._before, work._read()
        assert before is not None and after is not None and after[2] - before[2] >= 0.4
        child.communicate(b"\n")


def test_this_machine_can_be_asked() -> None:
    assert isinstance(OtherWork().notes(1), list)


@pytest.mark.parametrize(("rate", "flagged"), [(210.0, False), (211.0, True), (860.0, True)])
def test_an_efficiency_that_cannot_be_is_flagged(rate: float, flagged: bool) -> None:
    rows = [
        ScalingPoint(devices=n, global_batch=8, rate=r, step_s=8 / r, rates=[r], statuses=["ok"])
        for n, r in ((1, 100.0), (2, rate))
    ]
    relate(rows, weak=False, shares_host=True)
    assert (NOT_CREDIBLE in (rows[1].note or "")) == flagged
    text = render(as_dict(rows, weak=False, synthetic=False, repeats=1))
    assert (f"{rate / 200:.3f}?" in text) == flagged and ("not credible" in text) == flagged
    assert "2*" in text


def test_threads_wait_briefly_unless_the_user_says_how(monkeypatch, capsys):
    for name, value in (("", ""), ("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")):
        for variable in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
            monkeypatch.delenv(variable, raising=False)
        if name:
            monkeypatch.setenv(name, value)
        assert main(["--version"]) == 0
        expected = {"": SPINS, "OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "7"}[name]
        assert os.environ.get("GOMP_SPINCOUNT") == expected
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
