# SPDX-License-Identifier: Apache-2.0
"""Host threads of a process, and the work of others on the same machine."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping

import psutil

from bertbench.common.files import host_cores

MOST_THREADS = 4096
BUSY = 0.25
"""Share of the machine's processors that others may use before a record notes it."""
_SHORTEST_S = 0.2


def host_threads(local_size: int, environment: Mapping[str, str] | None = None) -> int:
    """Return the threads of each of ``local_size`` processes: OMP_NUM_THREADS, else equal shares.

    A 1 below torchrun is torchrun's own default, which the user did not choose; --num_threads 1
    says it anyway.
    """
    env = os.environ if environment is None else environment
    text = env.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    asked = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    defaulted = asked == 1 and local_size > 1 and "TORCHELASTIC_RUN_ID" in env
    if 0 < asked <= MOST_THREADS and not defaulted:
        return asked
    return max(1, host_cores() // local_size)


class OtherWork:
    """Measures, from when it is made, how busy other processes keep the machine."""

    def __init__(self) -> None:
        self._before = self._read()

    def notes(self, local_size: int) -> list[str]:
        """Return a note if they are; ``local_size`` processes work as much as this one."""
        before, after = self._before, self._read()
        if before is None or after is None:
            return []
        (begin, busy, own), (now, busy_now, own_now) = before, after
        seconds, processors = now - begin, os.cpu_count() or 1
        if seconds < _SHORTEST_S:
            return []
        others = (busy_now - busy - local_size * (own_now - own)) / seconds
        if others <= BUSY * processors:
            return []
        return [
            f"other work kept {others:.1f} of the machine's {processors} processors busy while "
            f"this run was built: its rates are below an idle machine's, by more the more threads "
            f"wait for each other (--num_threads)"
        ]

    def _read(self) -> tuple[float, float, float] | None:
        """Return the time, and the processors' seconds of all processes and of this one.

        None where the system does not say: a 0 would be taken for hours of other work.
        """
        try:
            every, process = psutil.cpu_times(), psutil.Process()
            own = sum(process.cpu_times()[:4])  # with children that have ended
        except (OSError, psutil.Error):
            return None
        for child in process.children(recursive=True):  # those that read and prepare the data
            with contextlib.suppress(psutil.Error):
                own += sum(child.cpu_times()[:4])
        return time.monotonic(), every.user + every.system, own
