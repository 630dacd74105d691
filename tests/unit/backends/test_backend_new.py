# SPDX-License-Identifier: Apache-2.0
"""`bertbench new-backend` writes a package that installs; the example package is found."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bertbench import backends
from bertbench.backends.accelerator import Accelerator
from bertbench.common.cli import skeletons
from bertbench.common.cli.main import main
from bertbench.common.errors import BadInput

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "tests" / "example_backend"


def install(package: Path, site: Path) -> None:
    """With pip, from a copy, and without any index."""
    copy = site.with_name(f"{package.name}-copy")
    shutil.copytree(package, copy)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--disable-pip-version-check", "--target", str(site), str(copy)],
        check=True,
    )  # fmt: skip


def test_skeleton_is_installed_and_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-backend", "big_abacus", "--output", str(tmp_path)]) == 0
    package = tmp_path / "bertbench-big-abacus"
    said = capsys.readouterr().out
    for command in (
        "bash init.sh --dev",
        f"python -m pip install --no-deps --no-build-isolation -e {package}",
        "bertbench doctor big_abacus",
        "python -m pytest tests/contract --backend big_abacus",
    ):
        assert command in said
    files = {path.name for path in package.iterdir()}
    assert files == {"pyproject.toml", "README.md", "big_abacus_bertbench.py"}
    for path in package.iterdir():
        assert "mydevice" not in path.read_text().lower()

    install(package, tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert "big_abacus" in backends.names()
    kind = backends.load("big_abacus")
    assert issubclass(kind, Accelerator)
    assert (kind.__name__, kind.device_type, kind.verified) == (
        "BigAbacus", "big_abacus", "documents"
    )  # fmt: skip
    assert kind.probe().reason == "package torch_big_abacus is not installed"


def test_skeleton_explains_each_decision() -> None:
    """Each class attribute has a comment right above it, and is one that backends have."""
    text = (skeletons.backend().folder / "adapter.py").read_text()
    lines = text.splitlines()
    kind = next(node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
    said = [node for node in kind.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    assert len(said) >= 8
    for node in said:
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        assert isinstance(target, ast.Name)
        assert hasattr(Accelerator, target.id) or target.id in ("name", "device_type")
        assert lines[node.lineno - 2].strip().startswith("#"), target.id


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Abacus", "invalid backend name"),
        ("2abacus", "invalid backend name"),
        ("aba-cus", "invalid backend name"),
        ("../abacus", "invalid backend name"),
        ("lambda", "invalid backend name"),
        ("", "invalid backend name"),
        ("cuda", "the name 'cuda' is taken"),
        ("auto", "is taken"),
        ("cpu", "is taken"),
    ],
)
def test_names_that_cannot_be(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        skeletons.create(skeletons.backend(), name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "bertbench-abacus"
    mine.mkdir()
    assert main(["new-backend", "abacus", "--output", str(tmp_path)]) == 2
    assert f"{mine} exists" in capsys.readouterr().err
    assert not list(mine.iterdir())
    assert main(["new-backend", "abacus", "--output", str(tmp_path / "nowhere")]) == 2


def test_new_backend_for_machines_and_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-backend", "abacus", "--output", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["package"] == str(tmp_path / "bertbench-abacus")
    assert len(said["next"]) == 4
    with pytest.raises(SystemExit) as stopped:
        main(["new-backend", "--help"])
    assert stopped.value.code == 0
    assert "--output" in capsys.readouterr().out


def test_example_package_is_installed_and_found(tmp_path: Path) -> None:
    install(EXAMPLE, tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-m", "bertbench", "doctor", "acme", "--json", "--timeout", "300"],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "ACME_VISIBLE_DEVICES": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(done.stdout)["backends"]
    assert (found["ok"], found["device_count"], found["accelerator"]) == (True, 1, True)
    assert (found["simulated"], found["verified"]) == (True, "simulator")
    assert (found["collective"], found["driver"]) == ("acccl", "5.4")
    assert (found["telemetry"], found["timer"]) == ("acme_torch.sensors", "device-event")
    assert set(found["precisions"]) == {"fp32", "bf16", "fp16"}
    assert found["extras"] == {"ACME_VISIBLE_DEVICES": "1"}
