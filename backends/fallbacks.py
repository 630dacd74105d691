# SPDX-License-Identifier: Apache-2.0
"""Counts operations that the host computes in the place of a PrivateUse1 device.

torch's boxed fallback (``at::native::cpu_fallback``) copies the operation's tensors with
``aten::_to_cpu``, which only it calls. In a profile that call appears below the operation that
fell back, forward and backward. An operation without tensors to copy is not counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_COPY = "aten::_to_cpu"


@contextmanager
def watch() -> Iterator[dict[str, int] | None]:
    """Profile the host while the context is open; afterwards the dictionary has operation -> times.

    None where another profiler is running. Profiling slows the host and keeps every event: open it
    around a step or two that are not timed, not around a run.
    """
    if torch.autograd.profiler._is_profiler_enabled:  # a second profiler would end the first
        yield None
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it writes to the console, twice each time
    counts: dict[str, int] = {}
    # torch.profiler.profile does the same, and takes seconds to start.
    with torch.autograd.profiler.profile() as profile:
        yield counts
    counts.update(count(profile.function_events or ()))


def count(events: Iterable[Any]) -> dict[str, int]:
    """Return operation -> fallbacks: the events above a copy to the host, each counted once."""
    seen: dict[int, str] = {}
    for event in events:
        if event.name == _COPY and event.cpu_parent is not None:
            seen[id(event.cpu_parent)] = event.cpu_parent.name
    names = list(seen.values())
    return {name: names.count(name) for name in dict.fromkeys(names)}
