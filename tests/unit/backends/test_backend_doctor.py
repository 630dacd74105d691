# SPDX-License-Identifier: Apache-2.0
"""The doctor meets vendor packages that are broken, missing, hanging, crashing or chatty."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_vendors import FULL, entry_point, offer

from bertbench import backends
from bertbench.backends import probing
from bertbench.common.cli.doctor import render
from bertbench.common.cli.main import main

ROOT = Path(__file__).parents[3]

CHATTY = """
import atexit, logging, os, sys
print("{\\n welcome to the SDK", flush=True)
sys.stdout.write("x" * 300_000)
os.write(1, b"from C, too\\n")
logging.error("not a problem")
atexit.register(os.abort)
"""
VENDORS = {
    "a_missing": (None, FULL),
    "b_import": ("raise ImportError('libabacus.so.2: cannot open\\nsecond line')", FULL),
    "c_oserror": ("raise OSError('driver too old: 1.0, needs 2.0')", "import torch_{name}"),
    "d_exits": ("raise SystemExit('no licence')", "import torch_{name}"),
    "e_leaves": ("import os\nprint('bye now', flush=True)\nos._exit(7)", "import torch_{name}"),
    "f_aborts": ("import os\nos.abort()", "import torch_{name}"),
    "g_segfaults": ("import os\nos.kill(os.getpid(), 11)", "import torch_{name}"),
    "h_chatty": (CHATTY, FULL),
    "i_unusable": (
        "",
        FULL + "    def describe(self): raise RuntimeError('device is busy')",
    ),
}
REASONS = {
    "a_missing": "package torch_a_missing is not installed",
    "b_import": "package torch_b_import failed to load: ImportError: libabacus.so.2: cannot open",
    "c_oserror": "failed to load: OSError: driver too old: 1.0, needs 2.0",
    "d_exits": "failed to load: SystemExit: no licence",
    "e_leaves": "ended with exit code 7 (its last line: bye now)",
    "f_aborts": "crashed with SIGABRT",
    "g_segfaults": "crashed with SIGSEGV",
    "h_chatty": "1 device",
    "i_unusable": "1 device, but it fails when used: RuntimeError: device is busy",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("site")
    for name, (vendor, adapter) in VENDORS.items():
        offer(folder, name, vendor, adapter)
    entry_point(folder, "my-cpu", "bertbench.backends", "cpu_ref", "nowhere:Adapter")
    done = subprocess.run(
        [sys.executable, "-m", "bertbench", "doctor", "--timeout", "300", "--json"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", VENDORS)
def test_each_bad_package_is_one_clear_line(report: dict[str, Any], name: str) -> None:
    answer = next(b for b in report["backends"] if b["name"] == name)
    assert answer["reason"] == REASONS[name]
    assert answer["ok"] == (name == "h_chatty")


def test_the_others_are_examined_all_the_same(report: dict[str, Any]) -> None:
    assert [b["name"] for b in report["backends"]] == [*backends.BUILT_IN, *VENDORS]
    cpu = next(b for b in report["backends"] if b["name"] == "cpu_ref")
    assert (cpu["ok"], cpu["accelerator"], cpu["device_count"]) == (True, False, 1)
    assert (cpu["collective"], cpu["verified"], cpu["simulated"]) == ("gloo", "hardware", False)
    assert cpu["devices"] == {cpu["device"]: 1}
    assert cpu["timer"] == "host-sync"


def test_report_for_people(report: dict[str, Any]) -> None:
    lines = render(report).splitlines()
    for name, reason in REASONS.items():
        own = [line for line in lines if line.strip().startswith((f"{name}:", f"{name} "))]
        assert len(own) == 1, own
        assert reason in own[0]
    for block, verified in (("cpu_ref", "on hardware"), ("h_chatty", "untested")):
        start = next(i for i, line in enumerate(lines) if line.startswith(f"{block}: ok"))
        assert verified in next(line for line in lines[start:] if line.startswith("  verified"))
    text = "\n".join(lines)
    assert "backend 'cpu_ref' of package my-cpu is refused: that name is built in" in text
    for kind in ("devices", "driver", "precisions", "collective", "compilers", "telemetry"):
        assert f"\n  {kind} " in text


def test_what_is_simulated_says_so(report: dict[str, Any]) -> None:
    cpu = next(b for b in report["backends"] if b["name"] == "cpu_ref")
    simulated = {**cpu, "simulated": True, "devices": {"Sim": 8}, "device_count": 8}
    text = render({**report, "backends": [simulated]})
    assert "this device is simulated" in text
    assert "8 x Sim" in text
    assert "this device is simulated" not in render({**report, "backends": [cpu]})


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_hanging_package_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that it started: the package's own child must not live on."""
    pid = tmp_path / "pid"
    offer(
        tmp_path, "sleeper",
        "import subprocess, time\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(1000)",
        "import torch_{name}",
    )  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    answer = probing.examine(["sleeper"], timeout_s=5)["sleeper"]
    assert not answer["ok"]
    assert answer["reason"].startswith("timed out after 5 s")
    deadline = time.monotonic() + 10  # killed; how soon it is gone is the scheduler's business
    while is_running(int(pid.read_text())):
        assert time.monotonic() < deadline, "what the package started is still running"
        time.sleep(0.02)


def test_one_backend_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 says that the one named cannot run."""
    offer(tmp_path, "abacus", "raise SystemExit(1)", "import torch_{name}")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["doctor", "abacus", "--timeout", "300"]) == 1
    said = capsys.readouterr().out
    assert "abacus  failed to load: SystemExit: 1" in said
    assert "cpu_ref" not in said
    assert main(["doctor", "cpu_ref", "--timeout", "300"]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["quantum"], "unknown backend 'quantum'; known: cuda"),
        (["cpuref"], "unknown backend 'cpuref'; did you mean cpu_ref? known: cuda"),
        (["--timeout", "-1"], "above 0"),
        (["--tmeout", "1"], "unknown flag --tmeout; did you mean --timeout"),
    ],
)
def test_refusals(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *args]) == 2
    assert message in capsys.readouterr().err


def test_broken_packages_of_the_vendors_built_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = dict.fromkeys(("gcu", "npu", "hpu"), "raise OSError('libvendor.so: cannot open')")
    broken |= {"musa": "raise SystemExit(3)", "mlu": "import os\nos.abort()"}
    for name, text in broken.items():
        package = backends.load(name).package
        assert package is not None
        if importlib.util.find_spec(package.split(".")[0]) is not None:
            pytest.skip(f"{package} is installed here")
        folder = tmp_path.joinpath(*package.split("."))
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    reasons = {n: a["reason"] for n, a in probing.examine(list(broken), timeout_s=300).items()}
    for name in ("gcu", "npu", "hpu"):
        assert "failed to load: OSError: libvendor.so: cannot open" in reasons[name], reasons
    assert reasons["musa"] == "failed to load: SystemExit: 3"
    assert reasons["mlu"] == "crashed with SIGABRT"


def test_a_broken_torch_is_one_clear_line_too(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: cannot open')")
    done = subprocess.run(
        [sys.executable, "-m", "bertbench", "doctor"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("bertbench doctor: cannot import torch: ")
    assert "libtorch.so: cannot open" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_vendor_package_does_not_take_the_cpu_down(tmp_path: Path) -> None:
    """torch itself imports the packages of its entry points, and fails with them."""
    (tmp_path / "torch_abacus.py").write_text("raise ImportError('half an installation')")
    entry_point(tmp_path, "torch-abacus", "torch.backends", "torch_abacus", "torch_abacus:_load")
    environment = {
        **os.environ, "PYTHONPATH": str(tmp_path), "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"
    }  # fmt: skip

    def go(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
        )

    assert "half an installation" in go("-c", "import torch").stderr
    flags = "--backend cpu_ref --synthetic --dry_run".split()
    done = go("-m", "bertbench", "run", "mini", *flags)
    assert done.returncode == 0, done.stderr
    workers = go("-m", "bertbench.common.launch.torchrun", "--help")
    assert workers.returncode == 0, workers.stderr
