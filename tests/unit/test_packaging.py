# SPDX-License-Identifier: Apache-2.0
"""The wheel: one top-level package that works outside a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
SOURCES = (
    "backends",
    "benchmarks",
    "bertbench",
    "common",
    "engines",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for name in SOURCES:  # a copy, because setuptools builds beside the sources
        source = ROOT / name
        if source.is_dir():
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, symlinks=True, ignore=skip)
        else:
            shutil.copy(source, copy / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*PIP, "wheel", *options, "-w", str(folder), str(copy)], check=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run([*PIP, "install", *options, "--target", str(target), str(wheel)], check=True)
    return target


def installed(site: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1", "HOME": os.environ["HOME"]}
    environment["BERTBENCH_PROBE_TIMEOUT"] = "120"  # other tests use the machine, too
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_there_is_one_top_level_package(site: Path) -> None:
    packages = {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")} - {"bin"}
    assert packages == {"bertbench"}
    assert not [p for p in site.rglob("*") if p.is_symlink()]
    for name in ("py.typed", "common/report/report.css", "backends/peaks.toml"):
        assert (site / "bertbench" / name).is_file()


def test_it_is_imported_and_examines_the_machine(site: Path, tmp_path: Path) -> None:
    done = installed(site, tmp_path, "-c", "import bertbench; print(bertbench.__file__)")
    assert done.stdout.startswith(str(site)), done.stderr
    done = installed(site, tmp_path, "-m", "bertbench", "doctor", "cpu_ref", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backends"][0]["ok"]


@pytest.mark.parametrize("what", ["backend", "benchmark"])
def test_the_skeletons_are_in_it(site: Path, tmp_path: Path, what: str) -> None:
    done = installed(site, tmp_path, "-m", "bertbench", f"new-{what}", "abacus")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "bertbench-abacus").rglob("*.py"))
