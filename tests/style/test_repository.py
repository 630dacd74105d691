# SPDX-License-Identifier: Apache-2.0
"""What the repository promises: locks, recipes, modules and the README's commands."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bertbench.benchmarks import presets, resolve
from bertbench.benchmarks.bert_pretraining.launch import read
from bertbench.common.cli.main import VERBS
from bertbench.common.launch.launcher import plan

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef, import-not-found, unused-ignore]

ROOT = Path(__file__).parents[2]
READMES = (
    "README.md", "benchmarks/bert_pretraining/README.md", "benchmarks/bert_squad/README.md",
    "results/README.md",
)  # fmt: skip
ONE_DEVICE = {
    "cores": 2,
    "backends": [
        {"name": "any", "ok": True, "accelerator": True, "device_count": 1, "device": "a device"},
        {"name": "cpu_ref", "ok": True, "accelerator": False, "device_count": 1, "device": "CPU"},
    ],
}


def locked(name: str) -> dict[str, int]:
    """Package -> number of hashes."""
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements" / name).read_text())
    return {
        re.split("[=<>; ]", entry)[0]: entry.count("--hash=sha256:") for entry in entries if entry
    }


@pytest.mark.parametrize(("lock", "extras"), [("core.lock", ()), ("dev.lock", ("dev", "compare"))])
def test_locks_hold_all_that_pyproject_asks_for(lock: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    names = {re.split("[=<>; ]", line)[0] for line in wanted} - {"torch"}
    have = locked(lock)
    assert names <= set(have), "run requirements/lock.sh"
    assert all(have.values()), "an entry without a hash"


def test_dev_lock_extends_the_core_lock() -> None:
    pins = [
        set(re.findall(r"^[^\s#].*==[^\\]+", (ROOT / "requirements" / n).read_text(), re.M))
        for n in ("core.lock", "dev.lock")
    ]
    core, dev = ({p.split(" ;")[0].strip() for p in pin} for pin in pins)
    assert core <= dev


@pytest.mark.parametrize("name", presets())
def test_every_recipe_parses(name: str) -> None:
    settings = resolve(name, [])
    assert settings.recipe == settings.preset.recipe
    again = resolve(name, ["--seed", "7", "--output_dir", "elsewhere"])
    assert (again.run.seed, again.origins["seed"]) == (7, "flag")


def test_every_module_imports(files: list[Path]) -> None:
    for path in files:
        if path.suffix == ".py" and path.parts[0] in {"backends", "benchmarks", "common"}:
            module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
            importlib.import_module(module)


def commands() -> list[str]:
    """Lines of the shell blocks of all READMEs, without comments."""
    text = "".join((ROOT / name).read_text() for name in READMES)
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def test_readme_has_commands() -> None:
    assert "bash train_bert_pretraining_amp_dist.sh" in commands()
    assert "bash test.sh" in commands()


@pytest.mark.parametrize("command", dict.fromkeys(commands()))
def test_readme_commands_exist(command: str) -> None:
    words = [w for w in command.split() if not re.fullmatch(r"[A-Z_]+=\S+", w)]
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        if "train" in words[1]:
            request = read([w for w in words[2:] if w != "--help"], {})
            plan(request, {}, ONE_DEVICE, "python")
    elif words[0].endswith("bertbench"):
        verb = words[1]
        assert verb in VERBS
        if verb in ("run", "describe"):
            assert words[2] in presets()
        if verb == "run":
            resolve(words[2], words[3:])
        if verb == "data":
            asked = subprocess.run(
                [sys.executable, "-m", "bertbench", "data", words[2], "--help"],
                cwd=ROOT, capture_output=True, text=True,
            )  # fmt: skip
            assert asked.returncode == 0
            for flag in (w for w in words if w.startswith("--")):
                assert flag.partition("=")[0] in asked.stdout.replace("-", "_") + asked.stdout
    elif words[0].endswith("python"):
        assert (ROOT / words[1]).is_file()
        asked = subprocess.run(
            [sys.executable, words[1], "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert asked.returncode == 0, asked.stderr
    else:
        pytest.fail(f"unknown command: {command}")


def test_readme_links_lead_somewhere(files: list[Path]) -> None:
    for path in (p for p in files if p.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / path).read_text()):
            assert (ROOT / path).parent.joinpath(target).exists(), f"{path}: {target}"


def test_readme_shows_what_the_records_say() -> None:
    tool = [sys.executable, "tools/readme_results.py", "--check"]
    done = subprocess.run(tool, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
