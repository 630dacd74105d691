# SPDX-License-Identifier: Apache-2.0
"""Profile one call with torch's profiler."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import profile, supported_activities

from bertbench.backends.base import Backend
from check.device import Check
from check.figure import SectionReport

TOP = 25
NO_KERNELS = "the profiler reports no kernels of this device"
TABLE, TRACE = "profile.txt", "trace.json.gz"
_NAME = 160
_NOISE = ("void ", "at::native::", "(anonymous namespace)::")
"""Parts of a kernel's name that say nothing about it."""


def profile_step(
    check: Check,
    report: SectionReport,
    backend: Backend,
    label: str,
    call: Callable[[], None],
    warm: int,
) -> float | None:
    """Report number and time of the kernels of one call, and the longest of them.

    Return the kernels' seconds, or None on the CPU and on a device that the profiler does not
    support: then the longest operators of the host are reported. Write the profiler's own table
    and its trace, with the shapes of all operands, into the check's folder.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it writes to the console
    for _ in range(warm):
        call()
    backend.synchronize()
    with profile(activities=supported_activities(), record_shapes=True) as trace:
        call()
        backend.synchronize()
    events = trace.events() or []
    key = "self_device_time_total" if any(map(_is_kernel, events)) else "self_cpu_time_total"
    seconds = report_events(report, label, events)
    table = trace.key_averages().table(sort_by=key, row_limit=60, max_name_column_width=400)
    (check.folder / TABLE).write_text(table, encoding="utf-8")
    trace.export_chrome_trace(str(check.folder / TRACE))
    return seconds


def report_events(report: SectionReport, label: str, events: Sequence[Any]) -> float | None:
    """Report counts, times and the longest of torch.profiler's events (``FunctionEvent``).

    Return the seconds of all kernels and copies, or None without kernels.
    """
    kernels = [e for e in events if _is_kernel(e)]
    copies = [e for e in kernels if e.name.startswith(("Memcpy", "Memset"))]
    total = sum(e.time_range.elapsed_us() for e in kernels)
    missing = "" if kernels else NO_KERNELS
    for name, value, unit, definition in (
        ("kernels", len(kernels) - len(copies), "kernels", "kernels of one step"),
        ("copies and fills", len(copies), "copies", "memory copies and fills of one step"),
        ("kernel time", total / 1e3, "ms", "sum of the times of the kernels and copies of a step"),
    ):
        found = value if kernels else None
        report.figure(f"{label}: {name}", found, unit, f"{definition}; torch.profiler", missing)
    if kernels:
        _top(report, label, "kernel", ((e.name, e.time_range.elapsed_us()) for e in kernels))
    else:
        host = (e for e in events if e.device_type == DeviceType.CPU)
        _top(report, label, "operator", ((e.name, e.self_cpu_time_total) for e in host))
    return total / 1e6 if kernels else None


def _is_kernel(event: Any) -> bool:
    return event.device_type != DeviceType.CPU and not getattr(event, "is_user_annotation", False)


def short(name: str) -> str:
    """Return a kernel's name without the parts that most names share, at most 160 characters."""
    for part in _NOISE:
        name = name.replace(part, "")
    return name[:_NAME]


def _top(report: SectionReport, label: str, kind: str, timed: Iterable[tuple[str, float]]) -> None:
    """Report the names with the most time; ``timed`` is in microseconds."""
    times: dict[str, list[float]] = {}
    for name, us in timed:
        times.setdefault(name, []).append(us)
    total = sum(map(sum, times.values())) or 1.0
    ranked = sorted(times.items(), key=lambda item: -sum(item[1]))[:TOP]
    for place, (name, each) in enumerate(ranked, 1):
        where = "on the device" if kind == "kernel" else "on the host, without operators it calls"
        report.figure(
            f"{label}: {kind} {place}, {short(name)}",
            sum(each) / 1e3,
            "ms",
            f"time of all calls of this {kind} in one step, {where}; torch.profiler",
            f"{len(each)} calls, {sum(each) / total:.1%} of all",
        )
