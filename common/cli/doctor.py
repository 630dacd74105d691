# SPDX-License-Identifier: Apache-2.0
"""``bertbench doctor``: which backends work here, and why the others do not."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from typing import Any

from bertbench import backends
from bertbench.backends import probing
from bertbench.common.cli.verbs import parser
from bertbench.common.errors import Unsupported
from bertbench.common.files import host_cores

VERIFIED = {
    "hardware": "on hardware",
    "simulator": "on a simulator",
    "documents": "untested: written from documents",
}


def main(argv: Sequence[str]) -> int:
    """Print the report; returns 1 if the named backend does not work."""
    verb = parser("doctor", epilog="Exit code: 0, or 1 if the named backend does not work")
    verb.add_argument("backend", nargs="?", help="examine this backend only; cpu is cpu_ref")
    verb.add_argument("--timeout", type=float, metavar="S", help="seconds a backend (default: 30)")
    given = verb.parse_args(argv)
    report = examine(given.backend, given.timeout)
    print(json.dumps(report, indent=1) if given.json else render(report))
    # Some backends are always missing; a named one should work.
    return 0 if given.backend is None or report["backends"][0]["ok"] else 1


def examine(name: str | None = None, timeout_s: float | None = None) -> dict[str, Any]:
    """Probe every backend, or one, in separate processes.

    Raises Unsupported if torch does not import.
    """
    try:
        import torch

        from bertbench.common.native import cache_dir
    except Exception as error:
        raise Unsupported(f"cannot import torch: {type(error).__name__}: {error}") from error
    wanted = backends.names() if name is None else [backends.own_name(name)]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": host_cores(),
        "cache": str(cache_dir()),
        "refused": backends.refused(),
        "backends": list(probing.examine(wanted, details=True, timeout_s=timeout_s).values()),
    }


def render(report: dict[str, Any]) -> str:
    """Return the report for people, missing backends first."""
    lines = [
        f"python {report['python']}, torch {report['torch']}, {report['cores']} cores, "
        f"cache {report['cache']}"
    ]
    absent = [b for b in report["backends"] if not b["ok"]]
    if absent:
        width = max(len(b["name"]) for b in absent)
        lines += ["", "cannot run here:"]
        lines += [f"  {b['name']:<{width}}  {b['reason']}" for b in absent]
    for b in report["backends"]:
        if b["ok"]:
            lines += ["", *_block(b)]
    lines += ["", *report["refused"]] if report["refused"] else []
    if len(report["backends"]) > 1 and not any(b.get("accelerator") for b in report["backends"]):
        lines += ["", "No accelerator found: use --backend cpu_ref."]
    return "\n".join(lines)


def _block(b: dict[str, Any]) -> list[str]:
    memory = b["memory_bytes"]
    devices = ", ".join(f"{count} x {device}" for device, count in b["devices"].items())
    each = " each" if b["device_count"] > 1 else ""
    rows = {
        "devices": devices + (f", {memory / 2**30:.1f} GiB{each}" if memory else ""),
        "driver": f"{b['driver'] or 'unknown'}; {b['runtime'] or 'runtime unknown'}",
        "verified": VERIFIED[b["verified"]] + (" (this device is simulated)" * b["simulated"]),
        "precisions": ", ".join(b["precisions"]),
        "kernels": ", ".join(b["kernels"]),
        "collective": b["collective"] or "none",
        "compilers": ", ".join(b["compilers"]) or "none",
        "timer": b["timer"],
        "telemetry": b["telemetry"] or "none",
    }
    lines = [f"{b['name']}: ok ({b['reason']})"]
    lines += [f"  {key:<12} {text}" for key, text in rows.items()]
    return lines + [f"  without {what}: {why}" for what, why in b["notes"].items()]
