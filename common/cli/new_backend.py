# SPDX-License-Identifier: Apache-2.0
"""``bertbench new-backend NAME``: the skeleton of a package that adds a backend.

The skeleton is the folder backends/skeleton, a working adapter of ``mydevice``; that word is
replaced.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Sequence
from pathlib import Path

from bertbench import backends
from bertbench.common.cli.verbs import parser
from bertbench.common.errors import BadInput

SKELETON = Path(backends.__file__).with_name("skeleton")
TAKEN = ("auto", "cpu", "meta", "mydevice")
"""Words with another meaning in bertbench, torch or the skeleton."""


def main(argv: Sequence[str]) -> int:
    """Write the package, and print the next steps."""
    verb = parser("new-backend")
    verb.add_argument("name", help="value of --backend: lower-case letters, digits and _")
    verb.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="parent folder")
    given = verb.parse_args(argv)
    made = create(given.name, given.output)
    if given.json:
        print(json.dumps({"package": str(made), "next": next_steps(given.name, made)}))
    else:
        print(f"wrote {made}: fill in {made / given.name}_bertbench.py, then")
        print("\n".join(f"  {command}" for command in next_steps(given.name, made)))
        print("docs/adding-a-backend.md describes each step")
    return 0


def create(name: str, output: Path) -> Path:
    """Write the package below the folder ``output`` and return its folder.

    Raises BadInput for an invalid name or output.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise BadInput(
            f"invalid backend name {name!r}: use lower-case letters, digits and single "
            f"underscores, a letter first, and no Python keyword"
        )
    if name in TAKEN or name in backends.names():
        raise BadInput(f"backend {name!r} exists, or the name is reserved: choose another")
    if not output.is_dir():
        raise BadInput(f"--output {output} is not a folder: create it, or choose another")
    package = output / f"bertbench-{name.replace('_', '-')}"
    if package.exists():
        raise BadInput(f"{package} exists: remove it, or choose another --output")
    package.mkdir()
    for source in ("pyproject.toml", "README.md", "adapter.py"):
        text = (SKELETON / source).read_text().replace("bertbench-mydevice", package.name)
        text = text.replace("Mydevice", "".join(map(str.capitalize, name.split("_"))))
        target = f"{name}_bertbench.py" if source == "adapter.py" else source
        (package / target).write_text(text.replace("mydevice", name))
    return package


def next_steps(name: str, package: Path) -> list[str]:
    """Return the commands from the skeleton to a tested backend, in order."""
    return [
        f"python -m pip install --no-deps --no-build-isolation -e {package}",
        f"bertbench doctor {name}",
        f"python -m pytest tests/contract --backend {name}",
    ]
