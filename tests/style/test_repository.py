# SPDX-License-Identifier: Apache-2.0
"""Locks, recipes, modules, and the files that describe the project."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from bertbench.benchmarks import presets, resolve

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef, import-not-found, unused-ignore]

ROOT = Path(__file__).parents[2]


PINS = [
    ("core.lock", (), True),
    ("dev.lock", ("dev", "compare", "glue", "onnx"), True),
    ("triton.lock", ("triton",), False),
]
"""Lock, the extras in it, and whether it holds the core, too."""


def locked(name: str) -> dict[str, int]:
    """Package -> number of hashes."""
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements" / name).read_text())
    return {
        re.split("[=<>; ]", entry)[0]: entry.count("--hash=sha256:") for entry in entries if entry
    }


@pytest.mark.parametrize(("lock", "extras", "core"), PINS)
def test_locks_hold_all_that_pyproject_asks_for(
    lock: str, extras: tuple[str, ...], core: bool
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"]) if core else []
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
    product = {"backends", "benchmarks", "common", "engines"}
    absent = importlib.util.find_spec("triton") is None
    for path in files:
        if absent and path.parent.name == "triton":  # whose kernels are declared at the import
            continue
        if path.suffix == ".py" and path.parts[0] in product:
            module = ".".join(("bertbench", *path.with_suffix("").parts))
            importlib.import_module(module.removesuffix(".__init__"))


def test_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {project['version']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation
    assert project["version"] in (ROOT / "CHANGELOG.md").read_text()


def test_pre_commit_runs_the_linters_of_test_sh() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"^ +entry: \.venv/bin/(.+)$", hooks, re.M)
    runs = re.findall(r"^run (.+)$", (ROOT / "test.sh").read_text(), re.M)
    assert entries == [line for line in runs if not line.startswith("pytest")]


def test_issue_templates_have_a_header() -> None:
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
    assert [path.stem for path in templates] == ["bug", "new-device", "wrong-result"]
    for path in templates:
        assert re.match(r"---\nname: .+\nabout: .+\nlabels: .+\n---\n", path.read_text()), path
