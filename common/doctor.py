# SPDX-License-Identifier: Apache-2.0
"""What can run here, and if not why not, backend by backend."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

import backends
from common.native import cache_dir


def examine() -> dict[str, Any]:
    """Every backend's probe and, where it is ok, what its device can do."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "cache": str(cache_dir()),
        "backends": [_examine_one(name) for name in backends.names()],
    }


def _examine_one(name: str) -> dict[str, Any]:
    probe = backends.probe(name)
    entry: dict[str, Any] = {"name": name, "ok": probe.ok, "reason": probe.reason}
    if not probe.ok:
        return entry
    kind = backends.load(name)
    backend = kind()
    info, can = backend.describe(), backend.capabilities
    telemetry = backend.telemetry()
    return entry | {
        "accelerator": kind.device_type != "cpu",
        "device_count": kind.device_count(),
        "device": info.name,
        "memory_bytes": info.memory_bytes,
        "driver": info.driver,
        "runtime": info.runtime,
        "precisions": list(can.precisions),
        "kernels": list(can.kernels),
        "collective": can.collective,
        "compilers": list(can.compilers),
        "telemetry": None if telemetry is None else telemetry.source,
        "notes": dict(can.notes),
    }


def render(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"python {report['python']}, torch {report['torch']}, {report['cores']} cores, "
        f"cache {report['cache']}"
    ]
    for b in report["backends"]:
        if not b["ok"]:
            lines.append(f"\n{b['name']}: not here: {b['reason']}")
            continue
        lines.append(f"\n{b['name']}: ok ({b['reason']})")
        memory = b["memory_bytes"]
        lines += [
            f"  devices      {b['device_count']} x {b['device']}"
            + (f", {memory / 2**30:.1f} GiB" if memory else ""),
            f"  driver       {b['driver'] or 'not told'}; {b['runtime'] or ''}",
            f"  precisions   {', '.join(b['precisions'])}",
            f"  kernels      {', '.join(b['kernels'])}",
            f"  collective   {b['collective'] or 'none'}",
            f"  compilers    {', '.join(b['compilers']) or 'none'}",
            f"  telemetry    {b['telemetry'] or 'none'}",
        ]
        lines += [f"  without {what}: {why}" for what, why in b["notes"].items()]
    if not any(b["ok"] and b.get("accelerator") for b in report["backends"]):
        lines.append("\nNo accelerator: run with --backend cpu_ref.")
    return "\n".join(lines)
