# SPDX-License-Identifier: Apache-2.0
"""Profile one call with torch's profiler."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import profile, supported_activities

from backends.base import Backend
from check.device import Check
from check.figure import Report

TOP = 25
_NAME = 90


def profile_step(
    check: Check, report: Report, backend: Backend, label: str, call: Callable[[], None], warm: int
) -> None:
    """Report number and time of the kernels of one call, and the longest of them.

    The profiler's own table goes to profile.txt. On the CPU, and on a device that the profiler
    does not support, report the longest operators of the host instead.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it writes to the console
    for _ in range(warm):
        call()
    backend.synchronize()
    with profile(activities=supported_activities()) as trace:
        call()
        backend.synchronize()
    events = trace.events() or []
    key = "self_device_time_total" if any(map(_is_kernel, events)) else "self_cpu_time_total"
    table = trace.key_averages().table(sort_by=key, row_limit=60, max_name_column_width=110)
    (check.folder / "profile.txt").write_text(table, encoding="utf-8")
    report_events(report, label, events)


def report_events(report: Report, label: str, events: Sequence[Any]) -> None:
    """Report counts, times and the longest of torch.profiler's events (``FunctionEvent``)."""
    kernels = [e for e in events if _is_kernel(e)]
    copies = [e for e in kernels if e.name.startswith(("Memcpy", "Memset"))]
    total = sum(e.time_range.elapsed_us() for e in kernels)
    missing = "" if kernels else "the profiler reports no kernels of this device"
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


def _is_kernel(event: Any) -> bool:
    return event.device_type != DeviceType.CPU and not getattr(event, "is_user_annotation", False)


def _top(report: Report, label: str, kind: str, timed: Iterable[tuple[str, float]]) -> None:
    """Report the names with the most time; ``timed`` is in microseconds."""
    times: dict[str, list[float]] = {}
    for name, us in timed:
        times.setdefault(name, []).append(us)
    total = sum(map(sum, times.values())) or 1.0
    ranked = sorted(times.items(), key=lambda item: -sum(item[1]))[:TOP]
    for place, (name, each) in enumerate(ranked, 1):
        where = "on the device" if kind == "kernel" else "on the host, its callees excluded"
        report.figure(
            f"{label}: {kind} {place}, {name[:_NAME]}",
            sum(each) / 1e3,
            "ms",
            f"time of all calls of this {kind} in one step, {where}; torch.profiler",
            f"{len(each)} calls, {sum(each) / total:.1%} of all",
        )
