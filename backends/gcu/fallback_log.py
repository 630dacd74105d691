# SPDX-License-Identifier: Apache-2.0
"""torch_gcu's own log of operations that fell back to the host.

torch_gcu writes it to the process's standard error, below Python, when both variables are set
before its import (its README; the wording is that of its ``gcu_cpu_fallback``).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

LEVEL, MODULE = "ENFLAME_LOG_DEBUG_LEVEL", "ENFLAME_LOG_DEBUG_MOD"
_LINE = re.compile(rb"([\w:]+)(?:\.\w+)? not supported in torch_gcu, and fallback to torch cpu")


def enabled(env: Mapping[str, str] = os.environ) -> bool:
    """Return whether the environment makes torch_gcu log fallbacks."""
    modules = {module.strip() for module in env.get(MODULE, "").split(",")}
    return env.get(LEVEL) == "DEBUG" and bool({"TORCH_GCU", "TORCH_GCU/FALLBACK"} & modules)


@contextmanager
def watch(descriptor: int = 2) -> Iterator[dict[str, int]]:
    """Count the log's lines; after the context closes, the dictionary has operation -> times.

    Operations are without their overload. All output to the descriptor is delayed until the
    context closes: it goes to a file, which cannot fill up and block the writer as a pipe could.
    """
    counts: dict[str, int] = {}
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log, os.fdopen(os.dup(descriptor), "wb") as target:
        os.dup2(log.fileno(), descriptor)
        try:
            yield counts
        finally:
            sys.stderr.flush()
            os.dup2(target.fileno(), descriptor)
            log.seek(0)
            for line in log:
                match = _LINE.search(line)
                if match:
                    name = match[1].decode()
                    counts[name] = counts.get(name, 0) + 1
            log.seek(0)
            shutil.copyfileobj(log, target)
