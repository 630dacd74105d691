# SPDX-License-Identifier: Apache-2.0
"""docs/adding-a-backend.md, followed step by step in a fresh checkout and environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "adding-a-backend.md"
EXAMPLE = ROOT / "tests" / "example_backend"
ADAPTER = "bertbench-acme/acme_bertbench.py"

QUICK = "probe or describe or vocabulary or beyond or units or (ten_steps and fp32)"
"""The contract tests that are run here: some of each kind, to save time."""


def blocks() -> list[tuple[str, str]]:
    """The page's blocks: language and text, in order."""
    return re.findall(r"^```(bash|python)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


def test_the_adapter_shown_is_the_example_package() -> None:
    shown = [text for language, text in blocks() if language == "python"]
    assert shown == [f"# {ADAPTER}\n" + (EXAMPLE / "src" / "acme_bertbench.py").read_text()]


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A checkout, and the variables of an environment of its own in which Acme's package is.

    The environment sees what this one has installed, and is empty itself.
    """
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    site = environment / "lib" / version / "site-packages"
    outer = sysconfig.get_path("purelib")
    (site / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")
    shutil.copy(EXAMPLE / "src" / "acme_torch.py", site)
    command = environment / "bin" / "bertbench"
    command.write_text(f'#!/bin/sh\nexec "{environment}/bin/python" -m bertbench "$@"\n')
    command.chmod(0o755)
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("backends", "benchmarks", "common", "tests", "pyproject.toml", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    variables = {
        **os.environ,
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONPATH": str(folder),
        "PYTEST_ADDOPTS": f"-k '{QUICK}' -p no:cacheprovider",
        "BERTBENCH_PROBE_TIMEOUT": "300",  # the simulated device may have to be compiled
        "OMP_NUM_THREADS": "1",
    }
    variables.pop("PYTEST_XDIST_WORKER", None)
    yield folder, variables


def test_the_page_leads_to_passing_contract_tests(
    checkout: tuple[Path, dict[str, str]],
) -> None:
    folder, variables = checkout
    said = ""
    for language, text in blocks():
        if language == "python":
            target = folder / text.split("\n")[0].removeprefix("# ")
            assert target.is_file(), "the skeleton has no file of that name"
            target.write_text(text.partition("\n")[2])
            continue
        for command in text.splitlines():
            done = subprocess.run(
                ["sh", "-c", command], cwd=folder, env=variables, capture_output=True, text=True
            )
            said += f"$ {command}\n{done.stdout}{done.stderr}"
            assert done.returncode == 0, said
    for expected in (
        "acme: ok (2 devices)",
        "collective   acccl",
        "on a simulator (this device is simulated)",
        "telemetry    acme_torch.sensors",
        " passed",
    ):
        assert expected in said, said
