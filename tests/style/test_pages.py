# SPDX-License-Identifier: Apache-2.0
"""The pages: commands, links, generated parts, and the README's list of the core."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_layering import ORDER

from bertbench.benchmarks import presets, resolve
from bertbench.benchmarks.bert_pretraining.launch import read
from bertbench.common.cli.main import VERBS
from bertbench.common.launch.launcher import plan

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*/*.md", "backends/*/*.md", "results/**/*.md")
    for path in sorted(ROOT.glob(pattern))
    if not path.stem.startswith("adding-a-") and path.parent.name != "skeleton"
]
"""All pages with commands, except those that a test follows from end to end, and a template."""
SYSTEM = {"cp", "docker", "git", "kubectl", "pip"}
STARTERS = {"srun", "sbatch"}
MAX_CORE_LINES, CODE = 8000, {".py", ".c", ".cpp", ".h", ".sh"}
ONE_DEVICE = {
    "cores": 2,
    "backends": [
        {"name": "any", "ok": True, "accelerator": True, "device_count": 1, "device": "a device"},
        {"name": "cpu_ref", "ok": True, "accelerator": False, "device_count": 1, "device": "CPU"},
    ],
}


def commands(text: str) -> list[str]:
    """Return the lines of the shell blocks in ``text``, without comments."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


@functools.cache
def usage_of_tool(script: str) -> str:
    """Return the output of ``python SCRIPT --help``."""
    shown = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


@functools.cache
def usage(*verb: str) -> str:
    """Return the output of ``bertbench VERB --help``."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        VERBS[verb[0]].load()([*verb[1:], "--help"])
    return shown.getvalue()


def check_flags(words: list[str], help_text: str) -> None:
    for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert flag in help_text + help_text.replace("-", "_"), flag


def check_bertbench(words: list[str]) -> None:
    """Check the arguments of ``bertbench``: verb, recipe and flags exist."""
    verb, rest = words[0], words[1:]
    assert verb in VERBS
    if verb in ("run", "describe"):
        assert rest[0] in presets()
        if "--config_name" in rest:  # which is read at once, and an earlier command would make
            at = rest.index("--config_name")
            rest = rest[:at] + rest[at + 2 :]
        resolve(rest[0], rest[1:])
        return
    own = rest[: rest.index("--")] if "--" in rest else rest
    if "--" in rest:
        check_bertbench(rest[len(own) + 1 :])
    if "--against" in own:
        at = own.index("--against")
        baseline = " ".join(own[at + 1 :]).partition('"')[2].partition('"')[0]
        check_bertbench(baseline.split())
        own = own[: at + 1]
    check_flags(own, usage(verb, *(rest[:1] if verb in ("data", "score") else ())))


def check(command: str) -> None:
    """Check that ``command`` names a file, verb, recipe and flags that exist."""
    words = [w for w in command.split() if not re.fullmatch(r"[A-Z_]+=\S+", w)]
    if words[0] in STARTERS:  # with flags of its own, before a command of ours
        words = [
            w
            for n, w in enumerate(words[1:], 1)
            if not all(v.startswith("--") for v in words[1 : n + 1])
        ]
        words = words if words[0] != "scripts/slurm/bertbench.sbatch" else ["bash", *words[1:]]
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        if "train" in words[1]:
            request = read([w for w in words[2:] if w != "--help"], {})
            plan(request, {}, ONE_DEVICE, "python")
    elif words[0].endswith("bertbench"):
        check_bertbench(words[1:])
    elif words[0].endswith("python") and words[1] == "-m":
        assert words[2] in ("pip", "pytest")
    elif words[0].endswith("python"):
        help_text = usage_of_tool(words[1])
        if not set(words) & set(presets()):  # with a recipe, its flags are allowed, too
            check_flags(words[2:], help_text)
    else:
        assert words[0] in SYSTEM, f"unknown command: {command}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_the_page_exist(path: Path) -> None:
    for command in dict.fromkeys(commands(path.read_text())):
        check(command)


@pytest.mark.parametrize(
    "command",
    [
        "bash no_such_script.sh",
        "bertbench no_such_verb",
        "bertbench run no_such_recipe",
        "bertbench validate --no_such_flag",
        "bertbench repeat 6 -- run no_such_recipe",
        'bertbench repeat 6 --against "run no_such_recipe" -- run mini',
        "python tools/no_such_tool.py",
        "no_such_command",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    with pytest.raises(Exception, match=r"no_such"):
        check(command)


def test_readme_has_commands() -> None:
    found = commands((ROOT / "README.md").read_text())
    assert found[:2] == ["bash train_bert_pretraining_amp_dist.sh", "bash test.sh"]
    assert "DATA_PATH=/path/to/folder bash scripts/run_squad_8gpu.sh" in found


def test_links_lead_somewhere(files: list[Path]) -> None:
    for path in (p for p in files if p.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / path).read_text()):
            assert (ROOT / path).parent.joinpath(target).exists(), f"{path}: {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_the_page_names_exist(path: Path) -> None:
    folders = "backends|benchmarks|common|docs|scripts|tests|tools|requirements"
    named = set(re.findall(rf"`((?:{folders})/[\w./-]+)`", path.read_text()))
    assert not {name for name in named if not (ROOT / name).exists()}


def test_the_architecture_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [name.split(".")[-1] for name in ORDER if name != "__main__"]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]+)\|", page, re.M))))
    assert not set(rooms) - named


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert not {name for name in pages if f"]({name})" not in index}


@pytest.mark.parametrize("tool", ["readme_results", "draw_architecture"])
def test_generated_parts_are_up_to_date(tool: str) -> None:
    done = subprocess.run(
        [sys.executable, f"tools/{tool}.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_core_is_small() -> None:
    """Count the lines of the files and folders that README names under "Read these files first"."""
    section = (ROOT / "README.md").read_text().partition("\n## Read these files first\n")[2]
    core = re.findall(r"^\d+\. `([^`]+)`", section.partition("\n## ")[0], re.M)
    assert {"common/training/", "backends/base.py", "common/model/"} <= set(core)
    lines = 0
    for name in core:
        place = ROOT / name
        assert place.exists(), name
        for path in [place] if place.is_file() else place.rglob("*"):
            lines += path.read_text().count("\n") if path.suffix in CODE else 0
    assert 0 < lines <= MAX_CORE_LINES
