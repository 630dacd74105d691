# SPDX-License-Identifier: Apache-2.0
"""``bertbench new-backend`` and ``new-benchmark``: packages that add one, ready to run.

A skeleton is a working package about ``mydevice`` or ``mybench``; that word is replaced.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertbench import backends, benchmarks
from bertbench.common.cli.verbs import parser
from bertbench.common.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """The parts that every package of one kind shares."""

    what: str
    word: str
    """The name in the skeleton."""
    folder: Path
    files: Mapping[str, str]
    """Source -> target; NAME is the new name."""
    taken: Collection[str]
    steps: Sequence[str]
    """The commands from the new package to a tested one."""


def backend() -> Skeleton:
    """Return the skeleton of an adapter."""
    return Skeleton(
        what="backend",
        word="mydevice",
        folder=Path(backends.__file__).with_name("skeleton"),
        files={
            "pyproject.toml": "pyproject.toml",
            "README.md": "README.md",
            "adapter.py": "NAME_bertbench.py",
        },
        # Words that mean something else to bertbench, to torch or to the skeleton.
        taken=("auto", "cpu", "meta", "mydevice", *backends.names()),
        steps=("bertbench doctor NAME", "python -m pytest tests/contract --backend NAME"),
    )


def benchmark() -> Skeleton:
    """Return the skeleton of a benchmark."""
    return Skeleton(
        what="benchmark",
        word="mybench",
        folder=Path(benchmarks.__file__).with_name("skeleton"),
        files={
            "pyproject.toml": "pyproject.toml",
            "README.md": "README.md",
            "benchmark.py": "NAME_bertbench/benchmark.py",
            "task.py": "NAME_bertbench/task.py",
        },
        taken=("mybench", "skeleton", *benchmarks.names()),
        steps=(
            "bertbench run NAME_tiny --backend cpu_ref",
            "python -m pytest tests/contract --benchmark NAME",
        ),
    )


def new_backend(argv: Sequence[str]) -> int:
    """Write a package that adds a backend, and print what to do next."""
    return _main("new-backend", backend(), argv)


def new_benchmark(argv: Sequence[str]) -> int:
    """Write a package that adds a benchmark, and print what to do next."""
    return _main("new-benchmark", benchmark(), argv)


def _main(verb: str, skeleton: Skeleton, argv: Sequence[str]) -> int:
    words = parser(verb)
    words.add_argument("name", help="its name: lower-case letters, digits and single _")
    words.add_output(default=Path(), help="parent folder")
    given = words.parse_args(argv)
    made = create(skeleton, given.name, given.output)
    steps = next_steps(skeleton, given.name, made)
    if given.json:
        print(json.dumps({"package": str(made), "next": steps}))
        return 0
    page = f"docs/adding-a-{skeleton.what}.md"
    print(f"wrote {made}: change its Python files (see {page}), then")
    print("\n".join(f"  {command}" for command in steps))
    return 0


def create(skeleton: Skeleton, name: str, output: Path) -> Path:
    """Write the package below the folder ``output`` and return its folder.

    Raises BadInput for an invalid or taken name, and for a place that cannot be used.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise BadInput(
            f"invalid {skeleton.what} name {name!r}: use lower-case letters, digits and single "
            f"underscores, a letter first, and no Python keyword"
        )
    if name in skeleton.taken:
        raise BadInput(f"the name {name!r} is taken: choose another")
    if not output.is_dir():
        raise BadInput(f"--output {output} is not a folder: make it first, or name another")
    package = output / f"bertbench-{name.replace('_', '-')}"
    if package.exists():
        raise BadInput(f"{package} exists already: remove it, or choose another --output")
    word = skeleton.word
    for source, target in skeleton.files.items():
        text = (skeleton.folder / source).read_text().replace(f"bertbench-{word}", package.name)
        text = text.replace(word.capitalize(), "".join(map(str.capitalize, name.split("_"))))
        file = package / target.replace("NAME", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace(word, name))
    return package


def next_steps(skeleton: Skeleton, name: str, package: Path) -> list[str]:
    """Return the commands that lead from the skeleton to a tested package, in order."""
    install = f"python -m pip install --no-deps --no-build-isolation -e {package}"
    return ["bash init.sh --dev", install, *(step.replace("NAME", name) for step in skeleton.steps)]
