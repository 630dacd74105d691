# SPDX-License-Identifier: Apache-2.0
"""The backends: which there are (registry.py), and which one to run on.

Importing this module imports neither torch nor any vendor's package.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bertbench.backends import probing
from bertbench.backends.registry import BUILT_IN, ENTRY_POINTS, FAMILIES, load, names, refused
from bertbench.common.errors import Unsupported

if TYPE_CHECKING:
    from bertbench.backends.base import Backend

__all__ = ["BUILT_IN", "ENTRY_POINTS", "FAMILIES", "load", "names", "refused", "resolve"]


def resolve(name: str, timeout_s: float | None = None) -> type[Backend]:
    """The class to run on. ``auto`` is the first accelerator that works, never the CPU by itself;
    a name of ``FAMILIES`` the first of its members that does.

    What may involve a vendor's package is first examined in a process of its own (probing.py):
    one that hangs or crashes is Unsupported, with the reason.
    """
    if name != "auto" and name not in FAMILIES:
        # The other processes of a machine would only ask the same question again.
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
    detail = "; ".join(f"{n}: {answer['reason']}" for n, answer in answers.items())
    what = "accelerator" if name == "auto" else name
    raise Unsupported(f"no {what} found ({detail}). To run on the CPU: --backend cpu_ref")
