# SPDX-License-Identifier: Apache-2.0
"""The backends: the registry of their names (registry.py), and the choice of one to run on.

Importing this module imports neither torch nor any vendor's package.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bertbench.backends import probing
from bertbench.backends.registry import (
    BUILT_IN,
    ENTRY_POINTS,
    FAMILIES,
    load,
    names,
    own_name,
    refused,
)
from bertbench.common.errors import Unsupported

if TYPE_CHECKING:
    from bertbench.backends.base import Backend

__all__ = [
    "BUILT_IN",
    "ENTRY_POINTS",
    "FAMILIES",
    "load",
    "names",
    "own_name",
    "refused",
    "resolve",
]


def resolve(name: str, timeout_s: float | None = None) -> type[Backend]:
    """Return the class to run on.

    ``auto`` is the first accelerator that works, never the CPU; a name of ``FAMILIES`` is its first
    member that works. A vendor's package is first imported in a separate process (probing.py).
    Raises Unsupported, with each reason, where none works: also if it hangs or crashes there.
    """
    name = own_name(name)
    if name != "auto" and name not in FAMILIES:
        # The other processes of a machine would only repeat the examination.
        if name in names() and name != "cpu_ref" and os.environ.get("LOCAL_RANK", "0") == "0":
            answer = probing.examine([name], timeout_s=timeout_s)[name]
            if not answer["ok"]:
                raise Unsupported(f"backend {name!r} cannot run here: {answer['reason']}")
        return load(name)
    candidates = FAMILIES.get(name, [n for n in names() if n != "cpu_ref"])
    answers = probing.examine(candidates, timeout_s=timeout_s, first=True)
    for candidate, answer in answers.items():
        if answer["ok"]:
            return load(candidate)
    detail = "".join(f"\n  {n}: {answer['reason']}" for n, answer in answers.items())
    what = "accelerator" if name == "auto" else name
    raise Unsupported(f"no {what} found; to run on the CPU: --backend cpu_ref{detail}")
