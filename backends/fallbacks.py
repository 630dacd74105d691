# SPDX-License-Identifier: Apache-2.0
"""Which operations the host computed in the device's place, for any PrivateUse1 device.

torch's boxed fallback (``at::native::cpu_fallback``) copies the operation's tensors with
``aten::_to_cpu``, which nothing else calls: in a profile it stands below the operation that fell
back, forward and backward. One that has no tensors to copy is not seen.
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
    """While open, profiles the host; afterwards the dictionary holds operation -> times.

    None where another profiler runs already. It slows the host and keeps every event: open it
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
    """Operations above a copy to the host, with how often each fell back.

    One fallback may copy several times (tensors, lists of tensors): its event is counted once.
    """
    seen: dict[int, str] = {}
    for event in events:
        if event.name == _COPY and event.cpu_parent is not None:
            seen[id(event.cpu_parent)] = event.cpu_parent.name
    names = list(seen.values())
    return {name: names.count(name) for name in dict.fromkeys(names)}
