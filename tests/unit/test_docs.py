# SPDX-License-Identifier: Apache-2.0
"""docs/adding-a-backend.md and adding-a-benchmark.md, followed in a fresh checkout."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-backend.md").read_text()
EXAMPLE = ROOT / "tests" / "example_backend"
ADAPTER = "bertbench-acme/acme_bertbench.py"

BENCHMARK_PAGE = (ROOT / "docs" / "adding-a-benchmark.md").read_text()
QUICK = "probe or describe or vocabulary or beyond or units or (ten_steps and fp32)"
BENCHMARK_QUICK = "recipes or dry_run or flags or made_up"
"""The contract tests that are run here: some of each kind, to save time."""

INIT = f"""\
{shlex.quote(sys.executable)} -m venv --without-pip .venv
lock=core
if [ "${{1:-}}" = --dev ]; then lock=dev; fi
site="$(echo .venv/lib/python*/site-packages)"
cp -a "packages/$lock/." "$site"
echo "$PWD" > "$site/bertbench.pth"
printf '#!/bin/sh\\nexec "%s" -m bertbench "$@"\\n' "$PWD/.venv/bin/python" > .venv/bin/bertbench
chmod +x .venv/bin/bertbench
"""
"""What init.sh does in the container of Acme, offline: links to the packages of a lock."""


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the page's blocks in order: language and text."""
    return re.findall(r"^```(bash|python)\n(.*?)^```$", page, re.M | re.S)


def test_the_adapter_shown_is_the_example_package() -> None:
    shown = [text for language, text in blocks(PAGE) if language == "python"]
    assert shown == [f"# {ADAPTER}\n" + (EXAMPLE / "src" / "acme_bertbench.py").read_text()]


def link_packages(lock: str, folder: Path) -> None:
    """Link what ``init.sh`` installs from a lock, and the vendor's packages, into ``folder``."""
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    locked = {"pip", "torch", *re.findall(r"^([a-z0-9.-]+)==", text, re.M)}
    folder.mkdir(parents=True)
    shutil.copy(EXAMPLE / "src" / "acme_torch.py", folder)
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if name not in locked and not name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
        for top in tops:
            if not (folder / top).is_symlink():
                (folder / top).symlink_to(str(distribution.locate_file(top)))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose init.sh makes a .venv that holds only the packages of a lock."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in (
        *("backends", "benchmarks", "bertbench", "common", "engines"),
        *("tests", "pyproject.toml"),
    ):
        (folder / name).symlink_to(ROOT / name)
    (folder / "init.sh").write_text(INIT)
    for lock in ("core", "dev"):
        link_packages(lock, folder / "packages" / lock)
    return folder


def follow(page: str, folder: Path, quick: str = QUICK) -> subprocess.CompletedProcess[str]:
    """Run the commands of ``page`` as one script and write its Python files."""
    script = ""
    for language, text in blocks(page):
        if language == "python":
            target, _, content = text.removeprefix("# ").partition("\n")
            script += f"test -f {target}  # the skeleton has it\ncat > {target} <<'END'\n"
            script += f"{content}END\n"
        else:
            script += text
    own = ("PYTHONPATH", "VIRTUAL_ENV", "PYTEST_XDIST_WORKER")
    variables = {name: value for name, value in os.environ.items() if name not in own} | {
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTEST_ADDOPTS": f"-k '{quick}' -p no:cacheprovider",
        "BERTBENCH_PROBE_TIMEOUT": "300",  # the simulated device may have to be compiled
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        ["bash", "-ex", "-c", script], cwd=folder, env=variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_the_page_leads_to_passing_contract_tests(checkout: Path) -> None:
    done = follow(PAGE, checkout)
    assert done.returncode == 0, done.stdout
    for expected in (
        "acme: ok (2 devices)",
        "collective   acccl",
        "on a simulator (this device is simulated)",
        "telemetry    acme_torch.sensors",
        " passed",
    ):
        assert expected in done.stdout, done.stdout


def test_a_step_that_the_page_leaves_out_is_missed(checkout: Path) -> None:
    """The environment of these tests has pytest; a checkout without --dev does not."""
    page = PAGE.replace("bash init.sh --dev\n", "bash init.sh\n")
    assert page != PAGE
    page = page.replace("bertbench doctor acme\n", "")  # takes longest, and changes nothing
    done = follow(page, checkout)
    assert done.returncode == 1
    assert done.stdout.endswith("No module named pytest\n"), done.stdout


def test_the_benchmark_page_leads_to_a_third_benchmark(checkout: Path) -> None:
    """It runs, is recorded, validated, compared, reported, and passes its contract tests."""
    done = follow(BENCHMARK_PAGE, checkout, BENCHMARK_QUICK)
    assert done.returncode == 0, done.stdout
    assert (
        len(re.findall(r"^reached \S+ \S+ of \S+ after 3,200 samples in ", done.stdout, re.M)) == 2
    )
    assert ": valid" in done.stdout and " passed" in done.stdout
    assert "parity" in (checkout / "mine" / "report" / "report.md").read_text()
