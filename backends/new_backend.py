# SPDX-License-Identifier: Apache-2.0
"""``bertbench new-backend NAME``: the skeleton of a package that adds a backend.

The skeleton is the folder skeleton/ beside this file: a working adapter of a device that is called
``mydevice``, in which that word is replaced.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import backends
from common.errors import BadInput

SKELETON = Path(__file__).with_name("skeleton")
TAKEN = ("auto", "cpu", "meta", "mydevice")
"""Words that mean something else to bertbench, to torch or to the skeleton."""


def create(name: str, output: Path) -> Path:
    """Write the package below the folder ``output``; returns its folder.

    Raises BadInput for a name or place that cannot be.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise BadInput(
            f"{name!r} cannot be a backend's name: lower-case letters, digits and single _, a "
            f"letter first, and no word of Python's"
        )
    if name in TAKEN or name in backends.names():
        raise BadInput(f"there is a backend {name!r} already, or the word is taken: choose another")
    if not output.is_dir():
        raise BadInput(f"--output {output} is not a folder: make it first, or name another")
    package = output / f"bertbench-{name.replace('_', '-')}"
    if package.exists():
        raise BadInput(f"{package} exists already: remove it, or choose another --output")
    package.mkdir()
    for source in ("pyproject.toml", "README.md", "adapter.py"):
        text = (SKELETON / source).read_text().replace("bertbench-mydevice", package.name)
        text = text.replace("Mydevice", "".join(map(str.capitalize, name.split("_"))))
        target = f"{name}_bertbench.py" if source == "adapter.py" else source
        (package / target).write_text(text.replace("mydevice", name))
    return package


def next_steps(name: str, package: Path) -> list[str]:
    """The commands that lead from the skeleton to a tested backend, in order."""
    return [
        f"python -m pip install --no-deps --no-build-isolation -e {package}",
        f"bertbench doctor {name}",
        f"python -m pytest tests/contract --backend {name}",
    ]
