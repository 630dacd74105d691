# SPDX-License-Identifier: Apache-2.0
"""init.sh decides rightly which Python and whose torch; it says so and installs nothing here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("init.sh", "pyproject.toml", "requirements", "scripts", "backends")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What init.sh reads, without any .venv."""
    target = tmp_path / "checkout"
    target.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, target / name)  # type: ignore[operator]
    return target


def fake_python(folder: Path, torch: str | None, extra: str = "") -> Path:
    """This Python with ``torch`` as the text of its torch package, or with none."""
    packages = folder / "packages"
    packages.mkdir(parents=True)
    if torch is not None:
        (packages / "torch").mkdir()
        (packages / "torch" / "__init__.py").write_text(torch)
    if extra:
        (packages / extra).mkdir()
    python = folder / "python3.11"
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec "{base}" "$@"\n')
    python.chmod(0o755)
    return python


def torch_text(version: str, **built: str) -> str:
    names = "; ".join(f"version.{k} = {v!r}" for k, v in built.items()) or "pass"
    return (
        f"import types\n__version__ = {version!r}\n"
        f"version = types.SimpleNamespace(cuda=None, hip=None)\n{names}\n"
    )


def init(checkout: Path, python: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(checkout / "init.sh"), "--dry-run", *flags],
        env={**os.environ, "PYTHON": str(python)}, cwd="/", capture_output=True, text=True,
    )  # fmt: skip


def test_without_torch_the_lock_is_installed(checkout: Path, tmp_path: Path) -> None:
    done = init(checkout, fake_python(tmp_path / "p", None))
    assert done.returncode == 0, done.stderr
    assert "requirements/core.lock" in done.stdout
    assert "torch==2.13.0" in done.stdout
    assert "--system-site-packages" not in done.stdout
    assert not (checkout / ".venv").exists(), "a dry run made something"


def test_plain_torch_outside_is_left_outside(checkout: Path, tmp_path: Path) -> None:
    done = init(checkout, fake_python(tmp_path / "p", torch_text("2.13.0+cpu")), "--dev")
    assert "requirements/dev.lock" in done.stdout
    assert "--system-site-packages" not in done.stdout


@pytest.mark.parametrize(
    ("torch", "plugin", "shown"),
    [
        (torch_text("2.10.0+corex.4.4.0", cuda="10.2"), "", "CUDA 10.2"),
        (torch_text("2.10.0a0+b4e4ee8.nv25.12", cuda="13.0"), "", "CUDA 13.0"),
        (torch_text("2.11.0+das.opt1.dtk", hip="6.3"), "", "HIP 6.3"),
        (torch_text("2.10.0+cpu"), "torch_gcu", "torch_gcu"),
    ],
)
def test_a_vendors_torch_is_used_and_never_replaced(
    checkout: Path, tmp_path: Path, torch: str, plugin: str, shown: str
) -> None:
    python = fake_python(tmp_path / "p", torch, plugin)
    done = init(checkout, python)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert "--system-site-packages" in done.stdout
    assert "torch==" not in done.stdout
    assert "core.lock" not in done.stdout
    forced = init(checkout, python, "--backend", "cpu_ref")
    assert "torch==2.13.0" in forced.stdout
    assert "--system-site-packages" not in forced.stdout


@pytest.mark.parametrize(
    ("torch", "flags", "message"),
    [
        (torch_text("2.4.1+cu121", cuda="12.1"), (), "needs torch 2.10 to 2.15"),
        ("raise ImportError('libcuda.so.1 is missing')", (), "libcuda.so.1 is missing"),
        (None, ("--backend", "abacus"), "no backend 'abacus' here; there are: "),
        (None, ("--bckend", "cpu_ref"), "unknown option --bckend"),
    ],
)
def test_errors_name_the_fix(
    checkout: Path, tmp_path: Path, torch: str | None, flags: tuple[str, ...], message: str
) -> None:
    done = init(checkout, fake_python(tmp_path / "p", torch), *flags)
    assert done.returncode == 1
    assert message in done.stderr


def test_a_plugin_that_nobody_knows_is_seen_by_its_entry_point(
    checkout: Path, tmp_path: Path
) -> None:
    python = fake_python(tmp_path / "p", torch_text("2.10.0+cpu"), "acme-1.0.dist-info")
    info = tmp_path / "p" / "packages" / "acme-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\nacme = acme_torch:_autoload\n")
    done = init(checkout, python)
    assert done.returncode == 0, done.stderr
    assert "found torch 2.10.0+cpu (acme_torch): used unchanged" in done.stdout


def test_a_broken_plugin_is_not_a_broken_torch(checkout: Path, tmp_path: Path) -> None:
    """torch imports plugins by itself; init.sh leaves what is wrong with them to the doctor."""
    text = torch_text("2.10.0+cpu") + (
        "import os\nif os.environ.get('TORCH_DEVICE_BACKEND_AUTOLOAD') != '0':\n"
        "    raise RuntimeError('Failed to load the backend extension: torch_gcu')\n"
    )
    done = init(checkout, fake_python(tmp_path / "p", text, "torch_gcu"))
    assert done.returncode == 0, done.stderr
    assert "torch_gcu" in done.stdout


def test_a_python_that_does_not_fit_is_refused(checkout: Path) -> None:
    done = init(checkout, Path("/bin/false"))
    assert done.returncode == 1
    assert "is not a working Python 3.10 to 3.13" in done.stderr


def test_second_call_finds_nothing_to_do(checkout: Path, tmp_path: Path) -> None:
    """The stamp is about init.sh's inputs, --dev and --backend."""
    python = fake_python(tmp_path / "p", None)
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(python)
    inputs = "init.sh pyproject.toml requirements/*.lock requirements/torch.txt"
    key = subprocess.run(
        ["bash", "-c", f"cat {inputs} scripts/outer_torch.py | cksum"],
        cwd=checkout, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    stamp = checkout / ".venv" / ".bertbench"
    stamp.write_text(f"{key}\nno\nany\ncpu_ref\n")
    assert "up to date" in init(checkout, python).stdout
    assert "keeping --backend cpu_ref" in init(checkout, python).stdout
    assert "up to date" not in init(checkout, python, "--dev").stdout
    assert "up to date" not in init(checkout, python, "--backend", "auto").stdout
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert "up to date" not in init(checkout, python).stdout
    assert stamp.exists(), "a dry run took the stamp away"
